package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"time"
)

// godwitMover moves with godwit's own commands: run, receive and migrate, each a
// process as a user would have it.
type godwitMover struct {
	b     *bench
	k     *Case
	s     *Setting
	dir   string
	certs []string // flags
}

func (m *godwitMover) start(name string, args ...string) (*end, error) {
	e := &end{console: &console{}, api: filepath.Join(m.dir, name)}
	var err error
	e.p, err = m.b.starter.launch(e.console, m.b.godwit, append(args, "--api-sock", e.api, "--serial", "stdio")...)
	if err != nil {
		return nil, err
	}
	return e, nil
}

func (m *godwitMover) source(context.Context) (*end, error) {
	return m.start("source", append([]string{
		"run", "--guest", "metronome", "--memory", fmt.Sprintf("%dM", m.k.MemoryMiB), "--append", m.b.commandLine(m.k),
	}, m.s.Run...)...)
}

// listening is what `receive` says once a source may come.
var listening = regexp.MustCompile(`listening on ((?:tcp|unix):\S+)`)

func (m *godwitMover) destination(ctx context.Context) (*end, error) {
	at := "tcp:127.0.0.1:0"
	if m.s.Unix {
		at = "unix:" + filepath.Join(m.dir, "in")
	}
	args := append([]string{"receive", "--once", "--listen", at}, m.certs...)
	e, err := m.start("there", append(args, m.s.Receive...)...)
	if err != nil {
		return nil, err
	}
	err = await(ctx, "godwit receive to listen", &e.p.diag.watch, []*process{e.p}, func() (bool, error) {
		found := listening.FindStringSubmatch(e.p.diag.String())
		if found == nil {
			return false, nil
		}
		e.address = found[1]
		return true, nil
	})
	if err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

// godwitReport is what `godwit migrate --json` prints, as far as it is used here.
// It is decoded by its documented names and not with godwit's own type, so that
// the program can be of another commit than this one.
type godwitReport struct {
	Status      string  `json:"status"`
	Error       string  `json:"error"`
	TotalMS     float64 `json:"total_ms"`
	DowntimeMS  float64 `json:"downtime_ms"`
	SetupMS     float64 `json:"setup_ms"`
	WireBytes   uint64  `json:"wire_bytes"`
	ThrottleMax int     `json:"throttle_max"`
	Pages       struct {
		Zero uint64 `json:"zero"`
	} `json:"pages"`
	Rounds []struct {
		MS        float64 `json:"ms"`
		SentPages uint64  `json:"sent_pages"`
	} `json:"rounds"`
}

func (m *godwitMover) move(ctx context.Context, from, to *end) (moved, error) {
	args := []string{"migrate", "--api-sock", from.api, "--to", to.address, "--json", "--downtime-limit", m.k.Downtime.String()}
	if m.k.Link > 0 {
		args = append(args, "--bandwidth", fmt.Sprintf("%gMB/s", float64(m.k.Link)/1e6))
	}
	args = append(append(args, m.certs...), m.s.Migrate...)
	out := &limited{}
	started := time.Now()
	p, err := m.b.starter.launch(out, m.b.godwit, args...)
	if err != nil {
		return moved{}, err
	}
	defer p.end()
	if err := p.ended(ctx); err != nil {
		return moved{}, fmt.Errorf("%w; source: %s; destination: %s", err, from.p.diag.tail(), to.p.diag.tail())
	}
	v, err := parseGodwit([]byte(out.String()), started)
	if err != nil {
		return v, err
	}
	// Its process ends with 0 once the guest has moved away.
	return v, from.p.ended(ctx)
}

// parseGodwit reads the report, the last line of stdout.
func parseGodwit(stdout []byte, started time.Time) (moved, error) {
	lines := bytes.Split(bytes.TrimSpace(stdout), []byte("\n"))
	raw := lines[len(lines)-1]
	var r godwitReport
	if err := json.Unmarshal(raw, &r); err != nil {
		return moved{}, fmt.Errorf("read godwit's report %.200q: %w", raw, err)
	}
	if r.Status != "completed" {
		return moved{report: raw}, fmt.Errorf("godwit's migration ended with status %q: %s", r.Status, r.Error)
	}
	v := moved{
		totalMS: r.TotalMS, downtimeMS: r.DowntimeMS, wireBytes: r.WireBytes, rounds: len(r.Rounds), throttleMax: r.ThrottleMax,
		passFrom: started, passTo: started.Add(msTime(r.TotalMS)), report: raw,
	}
	if len(r.Rounds) > 0 {
		first := r.Rounds[0]
		v.firstRoundPages = first.SentPages - min(first.SentPages, r.Pages.Zero)
		v.passFrom = started.Add(msTime(r.SetupMS))
		v.passTo = v.passFrom.Add(msTime(first.MS))
	}
	return v, nil
}

// msTime converts milliseconds with a fraction.
func msTime(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }
