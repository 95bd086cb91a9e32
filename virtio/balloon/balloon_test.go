package balloon_test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/balloon"
	"godwit/virtio/internal/drivertest"
)

func TestFeaturesAndConfig(t *testing.T) {
	for _, c := range []struct {
		cfg  balloon.Config
		want uint64
	}{
		{balloon.Config{}, 0},
		{balloon.Config{DeflateOnOOM: true}, fOOM},
		{balloon.Config{StatsInterval: time.Second}, fStats},
		{balloon.Config{Hinting: true}, fHint | fPoison},
		{balloon.Config{Reporting: true}, fReport | fPoison},
	} {
		g := boot(t, c.cfg, 0)
		require.Equal(t, c.want|ringFeatures, g.regs.DeviceFeatures())
	}
	g := boot(t, balloon.Config{Target: 256}, 0)
	require.EqualValues(t, 256, g.regs.Get(cfgTarget))
	generation := g.regs.Get(0xfc)
	require.NoError(t, g.dev.SetTarget(512))
	g.irq.Wait(t)
	require.EqualValues(t, 2, g.regs.Acknowledge(), "a configuration change")
	require.EqualValues(t, 512, g.regs.Get(cfgTarget))
	require.NotEqual(t, generation, g.regs.Get(0xfc))
	g.regs.Set(cfgActual, 300)
	g.regs.Set(cfgTarget, 7) // not the driver's
	require.Equal(t, balloon.Status{TargetPages: 512, ActualPages: 300}, g.dev.Status())
	require.ErrorIs(t, g.dev.SetTarget(memSize/4096+1), balloon.ErrTarget)
	require.NoError(t, g.dev.SetTarget(memSize/4096))

	g.regs.Set(0x70, 0)
	require.Equal(t, balloon.Status{TargetPages: memSize / 4096}, g.dev.Status(), "a reset keeps the host's wish")
	require.NoError(t, g.dev.SetTarget(0), "without a driver, too")
}

func TestNewRefuses(t *testing.T) {
	mem := drivertest.Memory(t, memSize)
	for _, c := range []struct {
		cfg  balloon.Config
		want error
	}{
		{balloon.Config{Memory: mem, Target: memSize/4096 + 1}, balloon.ErrTarget},
		{balloon.Config{Memory: mem, StatsInterval: time.Millisecond}, balloon.ErrInterval},
		{balloon.Config{Memory: mem, StatsInterval: 2 * time.Hour}, balloon.ErrInterval},
		{balloon.Config{Memory: mem, StatsInterval: -time.Second}, balloon.ErrInterval},
	} {
		_, err := balloon.New(c.cfg)
		require.ErrorIs(t, err, c.want)
	}
	_, err := balloon.New(balloon.Config{})
	require.Error(t, err)
}

// TestInflate has random lists, with doubles and pages that are not RAM, in random
// pieces, against a model.
func TestInflate(t *testing.T) {
	for _, refused := range []uint64{0, virtio.FeatureEventIdx} {
		g := boot(t, balloon.Config{}, refused, 0, 1)
		rapid.Check(t, func(t *rapid.T) {
			g.arena = drivertest.NewArena(0x40000, rings)
			g.fill()
			before := g.dev.Stats()
			pfn := rapid.Uint32Range(rings/4096, memSize/4096+20)
			pfns := rapid.SliceOfN(pfn, 0, 600).Draw(t, "pfns")
			if rapid.Bool().Draw(t, "far") {
				pfns = append(pfns, 1<<32-1, 1<<31)
			}
			cut := rapid.IntRange(0, len(pfns)).Draw(t, "cut")
			g.do(0, g.list(pfns[:cut]...), g.list(pfns[cut:]...))
			var want []uint32
			stray := 0
			for _, p := range sorted(pfns) {
				if p < memSize/4096 {
					want = append(want, p)
				} else {
					stray++
				}
			}
			require.Equal(t, want, g.gone())
			s := g.dev.Stats()
			require.EqualValues(t, len(want), s.InflatedPages-before.InflatedPages)
			require.EqualValues(t, len(want)*4096, s.DiscardedBytes-before.DiscardedBytes)
			require.EqualValues(t, stray, s.StrayPages-before.StrayPages)
			g.do(1, g.list(want...))
			require.EqualValues(t, len(want), g.dev.Stats().DeflatedPages-s.DeflatedPages)
			require.Zero(t, s.GuestErrors+s.HostErrors)
		})
	}
}

// TestRuns: a chain's pages go to the host joined and in order.
func TestRuns(t *testing.T) {
	m := &recorder{}
	g := boot(t, balloon.Config{Memory: m}, 0, 0)
	g.do(0, g.list(9, 5, 3, 4, 4, 8))
	require.Equal(t, [][]guestmem.Extent{{{GPA: 3 << 12, Len: 3 << 12}, {GPA: 8 << 12, Len: 2 << 12}}}, m.seen())
	// The hole is no RAM, and regions that meet stay two.
	g.do(0, g.list(0xfe, 0xff, 0x100, 0x101, 0x1ff, 0x200, 0x300, 0x301))
	require.Equal(t, []guestmem.Extent{{GPA: 0xfe000, Len: 0x2000}, {GPA: 0x100000, Len: 0x2000}, {GPA: 0x1ff000, Len: 0x1000}, {GPA: 0x300000, Len: 0x1000}}, m.seen()[1])
	require.EqualValues(t, 2, g.dev.Stats().StrayPages)
	m.breaks(errors.New("no"))
	g.do(0, g.list(3))
	s := g.dev.Stats()
	require.EqualValues(t, 1, s.HostErrors)
	require.Equal(t, "no", s.LastHostError)
}

// recorder is a Memory of three regions that notes what is discarded. An answer
// that the driver finds in its ring orders nothing for the race detector: mu does.
type recorder struct {
	mu    sync.Mutex
	calls [][]guestmem.Extent
	fail  error
}

func (m *recorder) seen() [][]guestmem.Extent {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls
}

func (m *recorder) breaks(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

func (m *recorder) Discard(es []guestmem.Extent) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, append([]guestmem.Extent(nil), es...))
	return m.fail
}

func (*recorder) Regions() []guestmem.Region {
	return []guestmem.Region{{GPA: 0, Bytes: make([]byte, 1<<20)}, {GPA: 1 << 20, Bytes: make([]byte, 1<<20)}, {GPA: 3 << 20, Bytes: make([]byte, 4096)}}
}

// TestListsHaveALimit: a chain of gigabytes costs no more than its first pages.
func TestListsHaveALimit(t *testing.T) {
	g := boot(t, balloon.Config{}, 0, 0)
	g.fill()
	n := rings // a whole buffer of zeros, many times
	var segs []drivertest.Seg
	for range 60 {
		segs = append(segs, drivertest.Seg{GPA: memSize - uint64(n), Len: uint32(n)})
	}
	require.NoError(t, g.mem.WriteAt(make([]byte, n), memSize-uint64(n)))
	g.do(0, segs...)
	s := g.dev.Stats()
	require.EqualValues(t, 1, s.InflatedPages, "page 0, over and over")
	require.EqualValues(t, 1, s.GuestErrors)
	g.do(0, g.bytes([]byte{1, 2, 3}))
	require.EqualValues(t, 2, g.dev.Stats().GuestErrors)
	g.do(0, free(memSize-4096, 4096))
	require.NotContains(t, g.gone(), uint32(rings/4096), "a list to write is no list")
}

// TestReporting discards whole pages only, and none that hold a pattern.
func TestReporting(t *testing.T) {
	for _, q := range []int{2, 4} { // as Linux counts, and as the specification does
		g := boot(t, balloon.Config{Reporting: true}, 0, 0, 1, q)
		g.fill()
		g.do(q, free(2<<20, 8192), free(4<<20+1, 3*4096), free(6<<20, 4095))
		require.Equal(t, []uint32{512, 513, 1025, 1026}, g.gone())
		g.regs.Set(cfgPoison, 0xaaaaaaaa)
		g.do(q, free(8<<20, 2<<20))
		require.Len(t, g.gone(), 4)
		s := g.dev.Stats()
		require.EqualValues(t, 2<<20, s.PoisonedBytes)
		require.EqualValues(t, 2<<20+4*4096, s.ReportedBytes)
		require.EqualValues(t, 4*4096, s.DiscardedBytes)

		// A driver that did not negotiate poison has none, whatever it wrote.
		g = boot(t, balloon.Config{Reporting: true}, fPoison, 0, 1, q)
		g.fill()
		g.regs.Set(cfgPoison, 0xaaaaaaaa)
		g.do(q, free(8<<20, 4096))
		require.Len(t, g.gone(), 1)
	}
}

// TestMoveWhileInflating moves a busy balloon again and again. Every page of every
// list must be gone in the end, and everything must be answered.
func TestMoveWhileInflating(t *testing.T) {
	g := boot(t, balloon.Config{Target: 1024, StatsInterval: time.Second}, 0, 0, 1, 2)
	g.fill()
	stats := g.send(2, g.bytes(statistic(1, 4711)))
	done := make(chan []uint32)
	go func() {
		var all []uint32
		for i := range 200 {
			var pfns []uint32
			for range 32 {
				pfns = append(pfns, rings/4096+rand.Uint32N((memSize-rings)/4096))
			}
			all = append(all, pfns...)
			g.cpu.Lock()
			seg := g.list(pfns...)
			g.cpu.Unlock()
			g.do(0, seg)
			g.cpu.Lock()
			g.regs.Set(cfgActual, uint32(i))
			g.cpu.Unlock()
		}
		done <- sorted(all)
	}()
	for range 20 {
		g.move()
	}
	want := <-done
	require.Equal(t, want, g.gone())
	require.Equal(t, balloon.Status{TargetPages: 1024, ActualPages: 199}, g.dev.Status())
	require.Equal(t, stats, g.wait(2), "pausing has asked for statistics")
	require.Equal(t, time.Second, g.dev.StatsInterval())
}
