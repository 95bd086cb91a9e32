package balloon_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/balloon"
	"godwit/virtio/internal/devicefuzz"
)

// fuzzed is what one run has: the device of the moment, and who asks it for hints.
type fuzzed struct {
	mu       sync.Mutex
	dev      *balloon.Device
	activity atomic.Uint64
	asking   sync.WaitGroup
	cancel   context.CancelFunc
}

// watched counts what reaches memory, and holds it to its contract.
type watched struct {
	*guestmem.Memory
	t testing.TB
	f *fuzzed
}

func (w watched) Discard(es []guestmem.Extent) error {
	w.f.activity.Add(1)
	defer w.f.activity.Add(1)
	err := w.Memory.Discard(es)
	if err != nil {
		w.t.Errorf("discard of %v: %v", es, err)
	}
	return err
}

func (f *fuzzed) stop() {
	if f.cancel != nil {
		f.cancel()
	}
	f.asking.Wait()
}

// noticed tells when somebody waits for its end, which FreePages does once.
type noticed struct {
	context.Context
	waited chan struct{}
}

func (n noticed) Done() <-chan struct{} {
	n.waited <- struct{}{}
	return n.Context.Done()
}

// poke is the host's side.
func (f *fuzzed) poke(b byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch b % 4 {
	case 0:
		_ = f.dev.SetTarget(uint32(b)) // some are refused
	case 1:
		_ = f.dev.SetStatsInterval(time.Duration(b) * time.Second)
	case 2:
		f.stop()
	case 3:
		f.stop()
		dev := f.dev
		ctx, cancel := context.WithCancel(context.Background())
		f.cancel = cancel
		// A state that changes by itself cannot be compared, so wait until this has.
		begun := make(chan struct{}, 2)
		f.asking.Go(func() {
			_ = dev.FreePages(noticed{ctx, begun}, func([]guestmem.Extent) { f.activity.Add(1) })
			begun <- struct{}{}
		})
		<-begun
	}
}

// FuzzSequence is a hostile guest.
func FuzzSequence(f *testing.F) {
	var mu sync.Mutex
	runs := map[testing.TB]*fuzzed{}
	run := func(t testing.TB) *fuzzed {
		mu.Lock()
		defer mu.Unlock()
		if runs[t] == nil {
			r := &fuzzed{}
			runs[t] = r
			t.Cleanup(func() {
				r.stop()
				mu.Lock()
				defer mu.Unlock()
				delete(runs, t)
			})
		}
		return runs[t]
	}
	subject := devicefuzz.Subject{
		New: func(t testing.TB, mem *guestmem.Memory) virtio.Device {
			r := run(t)
			dev, err := balloon.New(balloon.Config{Memory: watched{mem, t, r}, Target: 3, DeflateOnOOM: true,
				StatsInterval: time.Second, Reporting: true, Hinting: true})
			require.NoError(t, err)
			r.mu.Lock()
			defer r.mu.Unlock()
			r.dev = dev
			return dev
		},
		ConfigSize: 16,
		Activity:   func(t testing.TB) uint64 { return run(t).activity.Load() },
		Poke:       func(t testing.TB, b byte) { run(t).poke(b) },
		Wild:       true,
	}
	script := func() *devicefuzz.Script { return new(devicefuzz.Script) }
	page, id := devicefuzz.Room(8192), devicefuzz.Bytes(0, 0, 0, 0x80)
	devicefuzz.Fuzz(f, subject,
		script().Start(0, 1).Config(4, 1, 0, 0, 0).
			Chain(0, devicefuzz.Bytes(20, 0, 0, 0, 21, 0, 0, 0, 255, 255, 255, 255, 20, 0, 0, 0)).Kick(0).
			IndirectChain(1, devicefuzz.Data(1024), page).Chain(0, devicefuzz.Bytes(1, 2, 3)).Kick(1).Kick(0),
		script().Start(0, 1, 2, 3, 4).Config(12, 0, 0, 0, 0).
			Chain(2, devicefuzz.Bytes(statistic(4, 1)...)).Kick(2).Poke(1).Move().
			Chain(4, page, page).Kick(4).Config(12, 1, 0, 0, 0).Chain(4, page).Kick(4).Chain(2, page).Chain(2).Kick(2),
		script().Start(0, 1, 2, 3, 4).Poke(3).Chain(3, id).Chain(3, page).Kick(3).Pause().Chain(3, page).Move().Resume().
			Poke(3).Chain(3, devicefuzz.Bytes(1, 0, 0, 0x80)).Chain(3, page).Chain(3, devicefuzz.Bytes(0, 0, 0, 0)).Kick(3).
			Poke(7).Reset().Start(0).Poke(2).Poke(3),
		script().Negotiate(devicefuzz.WithoutOwn).Queue(3, 4).Run().Chain(3, devicefuzz.Data(4096)).Kick(3).Poke(3).Move().Kick(3),
	)
}
