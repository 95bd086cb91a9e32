package drivertest

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/kvm/guestmem"
)

// Memory gives size bytes of guest RAM that live as long as the test.
func Memory(t testing.TB, size uint64) *guestmem.Memory {
	t.Helper()
	mem, err := guestmem.New(size, guestmem.Options{SmallPages: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, mem.Close()) })
	return mem
}

// Arena hands out guest addresses and never takes them back.
type Arena struct {
	mu   sync.Mutex
	next uint64
	end  uint64
}

// NewArena hands out from start up to end.
func NewArena(start, end uint64) *Arena { return &Arena{next: start, end: end} }

// Alloc gives n bytes aligned to align, a power of two.
func (a *Arena) Alloc(t testing.TB, n, align uint64) uint64 {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	gpa := (a.next + align - 1) &^ (align - 1)
	require.LessOrEqual(t, gpa+n, a.end, "the test's guest memory is too small")
	a.next = gpa + n
	return gpa
}

// Interrupt is a bus.Interrupt that a test waits for. Edges coalesce, as real
// ones do.
type Interrupt struct {
	edge  chan struct{}
	mu    sync.Mutex
	count int
}

// NewInterrupt gives one that has not been triggered.
func NewInterrupt() *Interrupt { return &Interrupt{edge: make(chan struct{}, 1)} }

// Trigger implements bus.Interrupt.
func (i *Interrupt) Trigger() error {
	i.mu.Lock()
	i.count++
	i.mu.Unlock()
	select {
	case i.edge <- struct{}{}:
	default:
	}
	return nil
}

// Count is the number of edges so far.
func (i *Interrupt) Count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.count
}

// lost is how long a guest waits until the test calls the interrupt lost. It is
// never waited for when all is well.
const lost = 60 * time.Second

// Wait returns after an edge.
func (i *Interrupt) Wait(t testing.TB) {
	t.Helper()
	select {
	case <-i.edge:
	case <-time.After(lost):
		require.FailNow(t, "an interrupt was lost")
	}
}

// Forward calls handle after each edge, as a CPU calls an interrupt handler,
// until stop is closed.
func (i *Interrupt) Forward(stop <-chan struct{}, handle func()) {
	for {
		select {
		case <-i.edge:
			handle()
		case <-stop:
			return
		}
	}
}

// Lose drops an edge that nobody has seen yet.
func (i *Interrupt) Lose() {
	select {
	case <-i.edge:
	default:
	}
}
