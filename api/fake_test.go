package api

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/migration/sim"
	"godwit/vmm"
)

// fakeVM is a Machine whose migrations move a simulated guest.
type fakeVM struct {
	certain, stale bool // as TakeBack was asked
	sim            *sim.Machine
	from           migration.Source // what migrates, where it is not sim

	mu    sync.Mutex
	state vmm.State
	moved bool

	balloon *vmm.BalloonInfo // nil: none
	links   map[string]bool  // what SetLink was told
	size    [2]uint16        // what ResizeConsole was told
}

func (f *fakeVM) State() vmm.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

func (f *fakeVM) PausedByOperator() bool { return f.State() == vmm.StatePaused }

func (f *fakeVM) set(s vmm.State) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = s
}

func (f *fakeVM) hasMoved() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.moved
}

func (f *fakeVM) Info() (vmm.Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return vmm.Info{ID: "fake", VCPUs: 3, Balloon: f.balloon}, nil
}

func (f *fakeVM) SetLink(id string, up bool) error {
	if id != "net0" {
		return vmm.ErrNoNetwork
	}
	f.links = map[string]bool{id: up}
	return nil
}

func (f *fakeVM) ResizeConsole(id string, columns, rows uint16) error {
	switch id {
	case "con0":
		f.size = [2]uint16{columns, rows}
		return nil
	case "channel":
		return vmm.ErrConfig
	}
	return vmm.ErrNoConsole
}

func (f *fakeVM) SetBalloon(mib int) error {
	return f.inBalloon(mib, func(b *vmm.BalloonInfo) { b.TargetMiB = mib })
}

func (f *fakeVM) SetBalloonInterval(s int) error {
	return f.inBalloon(s, func(b *vmm.BalloonInfo) { b.StatsIntervalS = s })
}

func (f *fakeVM) inBalloon(n int, change func(*vmm.BalloonInfo)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.balloon == nil:
		return vmm.ErrNoBalloon
	case n > 1000:
		return fmt.Errorf("%w: %d", vmm.ErrConfig, n)
	}
	change(f.balloon)
	return nil
}

func (f *fakeVM) Pause(context.Context) error { f.set(vmm.StatePaused); return nil }
func (f *fakeVM) Resume() error               { f.set(vmm.StateRunning); return nil }
func (f *fakeVM) Stop()                       { f.set(vmm.StateEnded) }

func (f *fakeVM) Source() migration.Source {
	if f.from != nil {
		return f.from
	}
	return f.sim
}

func (f *fakeVM) TakeBack(certain, stale bool) error {
	f.mu.Lock()
	f.certain, f.stale = certain, stale
	f.mu.Unlock()
	return f.Source().Reclaim()
}

func (f *fakeVM) MigratedTo() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state, f.moved = vmm.StateEnded, true
}

// rig is a fake machine behind a real socket, and a destination.
type rig struct {
	t     *testing.T
	world *sim.World
	host  *sim.Host
	vm    *fakeVM
	inst  *Instance
	path  string
	c     *Client
	to    string

	received chan error
	gate     chan struct{} // when set, the source's Pause waits for it
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, world: sim.NewWorld(), path: filepath.Join(dir, "api.sock"), to: "unix:" + filepath.Join(dir, "in.sock"),
		received: make(chan error, 1)}
	r.host = sim.NewHost(r.world)
	m, err := sim.NewMachine(r.world, migration.Extent{GPA: 0, Len: 4 << 20})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	for gpa := uint64(0); gpa < 1<<20; gpa += 4096 {
		m.Write(gpa, func(p []byte) { p[0] = 1 })
	}
	r.vm = &fakeVM{sim: m, state: vmm.StateRunning}
	m.Hook(func(method string) {
		switch method {
		case "Pause":
			r.vm.set(vmm.StatePaused)
			if r.gate != nil {
				<-r.gate
			}
		case "Resume":
			r.vm.set(vmm.StateRunning)
		}
	})
	r.inst = NewInstance("before", nil)
	server, err := Listen(r.path, r.inst)
	require.NoError(t, err)
	t.Cleanup(func() {
		r.inst.Close()
		require.NoError(t, server.Close(time.Minute))
		_, err := os.Lstat(r.path)
		require.ErrorIs(t, err, os.ErrNotExist, "the socket is removed")
		require.NoError(t, r.world.Check())
	})
	r.c = NewClient(r.path)
	return r
}

// receive waits for one migration in the background; its end comes on received.
func (r *rig) receive() {
	to, err := ParseAddress(r.to)
	require.NoError(r.t, err)
	l, err := to.Listen(nil)
	require.NoError(r.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	r.t.Cleanup(func() { cancel(); <-done; _ = l.Close() })
	go func() {
		defer close(done)
		target, _, err := migration.Receive(ctx, migration.AcceptFrom(l), r.host.Build, migration.ReceiveOptions{})
		if target != nil {
			err = target.(*sim.Target).Close()
		}
		r.received <- err
	}()
}

// deaf is a destination that accepts and says nothing.
func (r *rig) deaf() {
	to, err := ParseAddress(r.to)
	require.NoError(r.t, err)
	l, err := to.Listen(nil)
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = l.Close() })
	go func() {
		var held []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				for _, c := range held {
					_ = c.Close()
				}
				return
			}
			held = append(held, c)
		}
	}()
}
