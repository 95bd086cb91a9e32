package devicefuzz

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/devices/state"
	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/queue"
)

// echo answers every chain at once. Its switches make it break one rule each.
type echo struct {
	mem     *guestmem.Memory
	workers virtio.Workers
	used    atomic.Uint64
	astray  sync.WaitGroup // works on while paused
	stop    atomic.Bool

	restless, forgetful, talkative, busy, ahead bool
}

func (e *echo) Type() uint32               { return 63 }
func (e *echo) Features() uint64           { return 0 }
func (e *echo) QueueSizes() []uint16       { return []uint16{16} }
func (e *echo) StateID() string            { return "echo" }
func (e *echo) StateVersion() uint32       { return 1 }
func (e *echo) WriteConfig(uint64, []byte) {}

func (e *echo) ReadConfig(_ uint64, p []byte) {
	if clear(p); e.talkative && len(p) > 0 {
		p[len(p)-1] = 1
	}
}

func (e *echo) Save(enc *state.Encoder) error {
	enc.Bool(e.forgetful)
	return nil
}

func (e *echo) Restore(_ uint32, d *state.Decoder) error {
	if d.Bool(); e.forgetful {
		e.forgetful = false
	}
	return nil
}

func (e *echo) Activate(a virtio.Activation) error {
	q := a.Queues[0]
	if q == nil {
		return nil
	}
	e.workers.Start(a.Kicks[0], func() {
		for !e.workers.Yield() {
			c, err := q.Pop()
			if err != nil {
				a.Notifier.NeedsReset(err)
			}
			if c == nil {
				return
			}
			e.used.Add(1)
			_, _ = q.Push(c, uint32(queue.Len(c.Writable())))
			if e.ahead {
				// Where setQueue put it, in a queue of 16.
				v, _ := e.mem.LoadUint16(ringArea + 16*16 + 40 + 2)
				_ = e.mem.StoreUint16(ringArea+16*16+40+2, v+1)
			}
		}
	})
	return nil
}

func (e *echo) Reset() {
	e.stop.Store(true)
	e.astray.Wait()
	e.workers.Stop()
}

func (e *echo) Pause() error {
	e.workers.Pause()
	if !e.restless && !e.busy {
		return nil
	}
	e.astray.Go(func() {
		for !e.stop.Load() {
			if e.restless {
				_ = e.mem.StoreUint16(0x100, 1)
			} else {
				e.used.Add(1)
			}
			runtime.Gosched()
		}
	})
	return nil
}

func (e *echo) Resume() error {
	e.workers.Resume()
	return nil
}

// recorder is a testing.TB that fails quietly.
type recorder struct {
	testing.TB
	failed atomic.Bool
}

func (r *recorder) Errorf(string, ...any) { r.failed.Store(true) }
func (r *recorder) Helper()               {}
func (r *recorder) FailNow() {
	r.failed.Store(true)
	runtime.Goexit()
}

// TestNotices: each broken rule is found by a script that any device has as a
// seed, and a good device passes it.
func TestNotices(t *testing.T) {
	script := new(Script).Start(0)
	for range 20 {
		script.Chain(0, Bytes(1, 2, 3), Room(10)).Kick(0).Pause().Resume().Move()
		for i := range byte(3) {
			script.op(opConfig, 8+2*i, 0, 0, 0, 0, 0, 0, 0, 8)
		}
	}
	for name, spoil := range map[string]func(*echo){
		"":                                 func(*echo) {},
		"writes while paused":              func(e *echo) { e.restless = true },
		"uses the backend while paused":    func(e *echo) { e.busy = true },
		"forgets state":                    func(e *echo) { e.forgetful = true },
		"has more configuration than said": func(e *echo) { e.talkative = true },
		"answers what nobody asked":        func(e *echo) { e.ahead = true },
	} {
		t.Run(name, func(t *testing.T) {
			var answered atomic.Uint64
			last := &echo{}
			s := Subject{
				ConfigSize: 8,
				New: func(_ testing.TB, mem *guestmem.Memory) virtio.Device {
					answered.Add(last.used.Load())
					last = &echo{mem: mem}
					spoil(last)
					return last
				},
				Activity: func(testing.TB) uint64 { return last.used.Load() },
			}
			r := &recorder{TB: t}
			done := make(chan struct{})
			go func() {
				defer close(done)
				Run(r, s, script.Program())
			}()
			<-done
			require.Equal(t, name != "", r.failed.Load())
			if name == "" {
				require.EqualValues(t, 20, answered.Load()+last.used.Load())
			}
		})
	}
}

// TestEveryStep: a program of every operation with arguments of every kind ends.
func TestEveryStep(t *testing.T) {
	for k := range 64 {
		program := new(Script).Start(0).Program()
		for o := range operations {
			program = append(program, byte(o))
			for i := range 12 {
				program = append(program, byte(k*7+i*k))
			}
		}
		Run(t, Subject{ConfigSize: 0, New: func(_ testing.TB, mem *guestmem.Memory) virtio.Device {
			return &echo{mem: mem}
		}}, program)
	}
}
