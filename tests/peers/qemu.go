package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"time"
)

// qemuMover moves with QEMU. Everything is set over QMP, the same at both ends.
type qemuMover struct {
	b   *bench
	k   *Case
	s   *Setting
	dir string
}

// unlimited is a bandwidth that no machine has: QEMU's own default is 1 Gbit/s.
const unlimited = int64(1) << 50

func (m *qemuMover) start(ctx context.Context, name string, args ...string) (*end, error) {
	e := &end{console: &console{}}
	socket := filepath.Join(m.dir, name)
	// -arch-capabilities: KVM in software (PVM) refuses QEMU's value of it.
	all := append([]string{
		"-M", "microvm,accel=kvm,auto-kernel-cmdline=off", "-cpu", "host,-arch-capabilities",
		"-m", fmt.Sprint(m.k.MemoryMiB), "-nodefaults", "-no-user-config", "-display", "none",
		"-kernel", m.b.elf, "-append", m.b.commandLine(m.k), "-serial", "stdio",
		"-qmp", "unix:" + socket + ",server=on,wait=off",
	}, args...)
	var err error
	if e.p, err = m.b.starter.launch(e.console, m.b.qemu, all...); err != nil {
		return nil, err
	}
	e.p.name = "qemu " + name
	if e.monitor, err = dialQMP(ctx, socket, e.p); err == nil {
		err = m.configure(ctx, e.monitor)
	}
	if err != nil {
		e.close()
		return nil, fmt.Errorf("%w; stderr: %s", err, e.p.diag.tail())
	}
	return e, nil
}

func (m *qemuMover) configure(ctx context.Context, q *qmp) error {
	var caps []map[string]any
	for _, name := range append([]string{"events"}, m.s.Capabilities...) {
		caps = append(caps, map[string]any{"capability": name, "state": true})
	}
	if err := q.do(ctx, "migrate-set-capabilities", map[string]any{"capabilities": caps}, nil); err != nil {
		return err
	}
	downtime := m.k.Downtime
	if m.k.Throughput {
		downtime = defaultDowntime // at first: see move
	}
	parameters := map[string]any{"max-bandwidth": unlimited, "downtime-limit": downtime.Milliseconds()}
	if m.k.Link > 0 {
		parameters["max-bandwidth"] = m.k.Link
	}
	for name, value := range m.s.Parameters {
		parameters[name] = value
	}
	return q.do(ctx, "migrate-set-parameters", parameters, nil)
}

func (m *qemuMover) source(ctx context.Context) (*end, error) { return m.start(ctx, "source") }

func (m *qemuMover) destination(ctx context.Context) (*end, error) {
	e, err := m.start(ctx, "there", "-incoming", "defer")
	if err != nil {
		return nil, err
	}
	if e.address, err = listenQEMU(ctx, e.monitor); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

// listenQEMU makes QEMU listen on a free port of loopback, and asks which.
func listenQEMU(ctx context.Context, q *qmp) (string, error) {
	if err := q.do(ctx, "migrate-incoming", map[string]any{"uri": "tcp:127.0.0.1:0"}, nil); err != nil {
		return "", err
	}
	var in struct {
		Addresses []struct{ Host, Port string } `json:"socket-address"`
	}
	if err := q.do(ctx, "query-migrate", nil, &in); err != nil {
		return "", err
	}
	if len(in.Addresses) == 0 {
		return "", fmt.Errorf("%w: query-migrate of a listening QEMU names no address", errQMP)
	}
	return "tcp:" + net.JoinHostPort(in.Addresses[0].Host, in.Addresses[0].Port), nil
}

// qemuReport is what query-migrate says at the source (QEMU, qapi/migration.json).
type qemuReport struct {
	Status      string  `json:"status"`
	Error       string  `json:"error-desc"`
	TotalTime   float64 `json:"total-time"` // ms
	Downtime    float64 `json:"downtime"`   // ms
	CPUThrottle int     `json:"cpu-throttle-percentage"`
	RAM         struct {
		Transferred    uint64 `json:"transferred"`
		DirtySyncCount int    `json:"dirty-sync-count"`
	} `json:"ram"`
}

func (m *qemuMover) move(ctx context.Context, from, to *end) (moved, error) {
	started := time.Now()
	if err := from.monitor.do(ctx, "migrate", map[string]any{"uri": to.address}, nil); err != nil {
		return moved{}, err
	}
	var status string
	ps := []*process{from.p, to.p}
	// QEMU weighs what is left against its limit all through a pass. So that it
	// finishes the first one, it gets the long limit of such a case only then.
	short := m.k.Throughput
	err := await(ctx, "QEMU's migration to end", &from.monitor.watch, ps, func() (bool, error) {
		if short {
			if _, passed := from.monitor.first(secondPass); passed {
				short = false
				if err := from.monitor.do(ctx, "migrate-set-parameters", map[string]any{"downtime-limit": m.k.Downtime.Milliseconds()}, nil); err != nil {
					return false, err
				}
			}
		}
		e, over := from.monitor.first(func(e qmpEvent) bool {
			s := e.data.Status
			return e.name == "MIGRATION" && (s == "completed" || s == "failed" || s == "cancelled")
		})
		status = e.data.Status
		return over, nil
	})
	if err != nil {
		return moved{}, err
	}
	raw, r, err := from.result(ctx, status == "completed")
	if err != nil {
		return moved{}, err
	}
	if status != "completed" {
		return moved{report: raw}, fmt.Errorf("QEMU's migration ended with status %q: %s; source: %s; destination: %s", status, r.Error, from.p.diag.tail(), to.p.diag.tail())
	}
	err = await(ctx, "QEMU's guest to run at the destination", &to.monitor.watch, ps, func() (bool, error) {
		_, runs := to.monitor.first(func(e qmpEvent) bool { return e.name == "RESUME" })
		return runs, nil
	})
	v := moved{
		totalMS: r.TotalTime, downtimeMS: r.Downtime, wireBytes: r.RAM.Transferred, rounds: r.RAM.DirtySyncCount,
		throttleMax: r.CPUThrottle, passFrom: started, passTo: started.Add(time.Duration(r.TotalTime) * time.Millisecond), report: raw,
	}
	// The first pass is over when the dirty bits are looked at again, or the guest stops.
	if e, ok := from.monitor.first(func(e qmpEvent) bool { return e.name == "STOP" || secondPass(e) }); ok {
		v.passTo = e.at
	}
	return v, err
}

// secondPass says that dirty bits are looked at again: the first pass is over.
func secondPass(e qmpEvent) bool { return e.name == "MIGRATION_PASS" && e.data.Pass >= 2 }

// result is query-migrate at the source. A completed migration has its times only a
// moment after the event that says so.
func (e *end) result(ctx context.Context, completed bool) (raw json.RawMessage, r qemuReport, err error) {
	err = await(ctx, "QEMU's figures", &e.monitor.watch, []*process{e.p}, func() (bool, error) {
		if err := e.monitor.do(ctx, "query-migrate", nil, &raw); err != nil {
			return false, err
		}
		r = qemuReport{}
		if err := json.Unmarshal(raw, &r); err != nil {
			return false, fmt.Errorf("%w: answer to query-migrate: %w", errQMP, err)
		}
		return !completed || r.TotalTime > 0, nil
	})
	return raw, r, err
}
