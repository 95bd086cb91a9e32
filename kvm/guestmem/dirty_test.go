package guestmem

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// drain gives the dirty gfns in order.
func drain(m *Memory) []uint64 {
	dst := make([]uint64, (m.Frames()+63)/64)
	m.DrainDirty(dst)
	return gfns(dst)
}

func gfns(bitmap []uint64) []uint64 {
	var out []uint64
	for i, w := range bitmap {
		for ; w != 0; w &= w - 1 {
			out = append(out, uint64(i*64+bits.TrailingZeros64(w)))
		}
	}
	return out
}

func span(first, last uint64) []uint64 {
	var out []uint64
	for g := first; g <= last; g++ {
		out = append(out, g)
	}
	return out
}

func TestMarkDirty(t *testing.T) {
	const above = uint64(HoleEnd >> PageShift)
	const below = uint64(HoleStart >> PageShift)
	m := newMemory(t, HoleStart+200*PageSize, Options{})
	tests := []struct {
		name   string
		gpa, n uint64
		want   []uint64
	}{
		{"nothing", 5, 0, nil},
		{"nothing at the end", ^uint64(0), 0, nil},
		{"a byte", 4095, 1, []uint64{0}},
		{"two bytes over a page edge", 4095, 2, []uint64{0, 1}},
		{"a word of pages", 64 * PageSize, 64 * PageSize, span(64, 127)},
		{"over word edges", 63 * PageSize, 66 * PageSize, span(63, 128)},
		{"into the hole", HoleStart - 1, 2, []uint64{below - 1}},
		{"in the hole", HoleStart, gib, nil},
		{"across the hole", HoleStart - PageSize, gib + 2*PageSize, []uint64{below - 1, above}},
		{"past the end", HoleEnd + 199*PageSize, ^uint64(0) - HoleEnd, []uint64{above + 199}},
		{"wrapping", HoleEnd + 198*PageSize, ^uint64(0), []uint64{above + 198, above + 199}},
		{"outside", 1 << 62, 1 << 62, nil},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			m.MarkDirty(tc.gpa, tc.n)
			require.Equal(t, tc.want, drain(m))
			require.Empty(t, drain(m))
		})
	}
	m.MarkDirty(0, ^uint64(0))
	require.Len(t, drain(m), int(m.Size()>>PageShift))
}

func TestDrainDirty(t *testing.T) {
	m := newMemory(t, 200*PageSize, Options{})
	m.MarkDirty(0, 200*PageSize)
	m.DrainDirty(nil)
	short := make([]uint64, 1)
	m.DrainDirty(short)
	require.Equal(t, span(0, 63), gfns(short))
	long := make([]uint64, 10)
	long[0], long[9] = 1<<5, 1
	m.DrainDirty(long)
	require.Equal(t, append([]uint64{5}, append(span(64, 199), 9*64)...), gfns(long), "bits in dst stay")
}

func TestPeekAndClearDirty(t *testing.T) {
	m := newMemory(t, 200*PageSize, Options{})
	m.MarkDirty(0, 200*PageSize)
	peek := func() []uint64 {
		dst := make([]uint64, 4)
		m.PeekDirty(dst)
		return gfns(dst)
	}
	require.Equal(t, span(0, 199), peek())
	require.Equal(t, span(0, 199), peek(), "peeking forgets nothing")
	m.ClearDirty(nil)
	m.ClearDirty([]uint64{0, 1, 63, 64, 130, 199, 1 << 40, ^uint64(0)})
	m.ClearDirty([]uint64{140, 2, 140, 70}) // any order will do
	want := slices.DeleteFunc(span(0, 199), func(g uint64) bool {
		return slices.Contains([]uint64{0, 1, 2, 63, 64, 70, 130, 140, 199}, g)
	})
	require.Equal(t, want, peek())
	m.MarkDirty(64*PageSize, 1)
	require.Contains(t, peek(), uint64(64), "written again")
	short := make([]uint64, 1)
	m.PeekDirty(short)
	require.Equal(t, span(3, 62), gfns(short))
	m.ClearDirty(peek())
	require.Empty(t, peek())
	pages := span(0, 199)
	m.MarkDirty(0, 200*PageSize)
	require.Zero(t, testing.AllocsPerRun(10, func() { m.ClearDirty(pages) }))
}

// Streams clear different pages of one word at a time, and none of them may
// take a mark that is not its own.
func TestClearDirtySideBySide(t *testing.T) {
	m := newMemory(t, 64*PageSize, Options{})
	for range 200 {
		m.MarkDirty(0, 64*PageSize)
		var wg sync.WaitGroup
		for k := range uint64(4) {
			wg.Go(func() {
				for g := k; g < 60; g += 4 {
					m.ClearDirty([]uint64{g})
				}
			})
		}
		wg.Wait()
		require.Equal(t, span(60, 63), drain(m))
	}
}

// writeKinds are the ways in which this process writes guest memory. Each puts v
// at gpa in one piece: a torn count would look like a stale one.
var writeKinds = []struct {
	name  string
	write func(m *Memory, gpa uint64, v uint32, buf []byte)
}{
	// The count comes last in a longer write, which leaves a drain time to come
	// between the bytes and a mark that is in the wrong place.
	{"WriteAt", func(m *Memory, gpa uint64, v uint32, buf []byte) {
		binary.LittleEndian.PutUint32(buf[len(buf)-4:], v)
		_ = m.WriteAt(buf, gpa+4-uint64(len(buf)))
	}},
	{"Store", func(m *Memory, gpa uint64, v uint32, _ []byte) { _ = m.StoreUint32(gpa, v) }},
	// A 16-bit store is a plain one on amd64: only the mark orders it.
	{"Writable", func(m *Memory, gpa uint64, v uint32, _ []byte) {
		if b, err := m.Writable(gpa, 2); err == nil {
			storeUint16((*uint16)(unsafe.Pointer(&b[0])), uint16(v))
			m.MarkDirty(gpa, 2)
		}
	}},
}

// TestNoLostPage has writers count up while a reader drains and copies what was
// dirty, as a migration does. After each drain the copy must hold every count
// whose write had returned before the drain began, else a page was lost.
func TestNoLostPage(t *testing.T) {
	for _, take := range takers {
		for _, kind := range writeKinds {
			for _, writers := range []int{1, 2} {
				t.Run(fmt.Sprintf("%s/%s/%d", take.name, kind.name, writers), func(t *testing.T) {
					// Several short races rather than a long one: counts fit 16 bits.
					for range 4 {
						noLostPage(t, writers, take.take, kind.write)
					}
				})
			}
		}
	}
}

// takers are the ways to find dirty pages and to forget them before reading.
var takers = []struct {
	name string
	take func(m *Memory, dst []uint64)
}{
	{"drain", (*Memory).DrainDirty},
	{"peek and clear", func(m *Memory, dst []uint64) {
		m.PeekDirty(dst)
		m.ClearDirty(gfns(dst))
	}},
}

func noLostPage(t *testing.T, writers int, take func(*Memory, []uint64), write func(*Memory, uint64, uint32, []byte)) {
	const rounds = 1 << 15
	frames := [3]uint64{0, 1, 64} // two marks share a word
	m := newMemory(t, 65*PageSize, Options{})
	slot := func(w, f int) uint64 { return frames[f]*PageSize + 2048*uint64(w) + 2044 }
	var (
		done         [2][len(frames)]atomic.Uint32 // last count whose write returned
		copied       [2][len(frames)]uint32
		wg           sync.WaitGroup
		left, drains atomic.Int32
	)
	left.Store(int32(writers))
	for w := range writers {
		wg.Go(func() {
			defer left.Add(-1)
			for drains.Load() == 0 { // start together
				runtime.Gosched()
			}
			buf := make([]byte, 1024)
			for i := range rounds {
				f := i % len(frames)
				write(m, slot(w, f), uint32(i), buf)
				done[w][f].Store(uint32(i))
			}
		})
	}
	defer wg.Wait()
	dst := make([]uint64, 2)
	for finished := false; !finished; drains.Add(1) {
		finished = left.Load() == 0 // one more drain after the last write
		var due [2][len(frames)]uint32
		for w := range due {
			for f := range due[w] {
				due[w][f] = done[w][f].Load()
			}
		}
		clear(dst)
		take(m, dst)
		for f, g := range frames {
			for w := range writers {
				if dst[g/64]&(1<<(g%64)) != 0 {
					v, err := m.LoadUint32(slot(w, f))
					require.NoError(t, err)
					copied[w][f] = v
				}
				if copied[w][f] < due[w][f] {
					t.Fatalf("writer %d had written %d to frame %d, the copy has %d and the page is clean", w, due[w][f], g, copied[w][f])
				}
			}
		}
	}
}

// TestMarkOfMarkedPage is the case that a skipped mark would lose: the page is
// marked already, one side writes and marks it again while the other drains and
// reads. Either the read has the new bytes or a mark is left.
func TestMarkOfMarkedPage(t *testing.T) {
	const rounds = 10000
	m := newMemory(t, PageSize, Options{})
	b, err := m.Writable(0, 2)
	require.NoError(t, err)
	p := (*uint16)(unsafe.Pointer(&b[0]))
	var (
		start, end atomic.Uint32
		wg         sync.WaitGroup
	)
	wg.Go(func() {
		for i := uint32(1); i <= rounds; i++ {
			for start.Load() != i {
				runtime.Gosched()
			}
			storeUint16(p, uint16(i))
			m.MarkDirty(0, 2)
			end.Store(i)
		}
	})
	defer wg.Wait()
	lost := 0
	var dst, rest [1]uint64
	for i := uint32(1); i <= rounds; i++ {
		m.MarkDirty(0, 1)
		clear(dst[:])
		clear(rest[:])
		start.Store(i)
		for range i % 128 { // meet the writer at every point
			_ = m.Size()
		}
		m.DrainDirty(dst[:])
		v, err := m.LoadUint16(0)
		require.NoError(t, err)
		for end.Load() != i {
			runtime.Gosched()
		}
		m.DrainDirty(rest[:])
		if v != uint16(i) && rest[0] == 0 {
			lost++
		}
	}
	require.Zero(t, lost, "writes with neither new bytes nor a mark")
}

// TestModel compares Memory with a map of pages under random operations.
func TestModel(t *testing.T) {
	const above, size = uint64(3), uint64(HoleStart) + 3*PageSize
	for _, b := range backings {
		t.Run(b.String(), func(t *testing.T) {
			// One mapping for all runs; whatever a run touched is zeroed after it.
			m := newMemory(t, size, Options{Backing: b, SmallPages: true})
			rapid.Check(t, func(t *rapid.T) { checkModel(t, m, above) })
		})
	}
}

type model struct {
	bytes map[uint64]byte
	dirty map[uint64]bool
	end   uint64
}

func (d *model) inRAM(gpa, n uint64) bool {
	in := func(lo, hi uint64) bool { return gpa >= lo && gpa <= hi && n <= hi-gpa }
	return in(0, HoleStart) || in(HoleEnd, d.end)
}

func (d *model) write(gpa uint64, p []byte) {
	for i, v := range p {
		d.bytes[gpa+uint64(i)] = v
		d.dirty[(gpa+uint64(i))>>PageShift] = true
	}
}

func checkModel(t *rapid.T, m *Memory, above uint64) {
	d := &model{map[uint64]byte{}, map[uint64]bool{}, HoleEnd + above*PageSize}
	// Addresses cluster where the edges are.
	gpa := rapid.Custom(func(t *rapid.T) uint64 {
		edge := rapid.SampledFrom([]uint64{0, PageSize, 64 * PageSize, HoleStart, HoleEnd, HoleEnd + PageSize, d.end, 1 << 63}).Draw(t, "edge")
		return edge + uint64(rapid.Int64Range(-2*PageSize, 2*PageSize).Draw(t, "off"))
	})
	data := rapid.SliceOfN(rapid.Byte(), 0, 40)
	check := func(t *rapid.T, what string, at, n uint64, err error) bool {
		if ok := d.inRAM(at, n); ok != (err == nil) {
			t.Fatalf("%s %#x+%#x: in RAM %v, error %v", what, at, n, ok, err)
		}
		return err == nil
	}
	t.Repeat(map[string]func(*rapid.T){
		"write": func(t *rapid.T) {
			at, p := gpa.Draw(t, "gpa"), data.Draw(t, "data")
			if check(t, "write", at, uint64(len(p)), m.WriteAt(p, at)) {
				d.write(at, p)
			}
		},
		"fill": func(t *rapid.T) {
			at, p := gpa.Draw(t, "gpa"), data.Draw(t, "data")
			b, err := m.Writable(at, uint64(len(p)))
			if check(t, "fill", at, uint64(len(p)), err) {
				copy(b, p)
				m.MarkDirty(at, uint64(len(p)))
				d.write(at, p)
			}
		},
		"store": func(t *rapid.T) {
			at, v := gpa.Draw(t, "gpa")&^1, rapid.Uint16().Draw(t, "v")
			if check(t, "store", at, 2, m.StoreUint16(at, v)) {
				d.write(at, binary.LittleEndian.AppendUint16(nil, v))
			}
		},
		"read": func(t *rapid.T) {
			at, n := gpa.Draw(t, "gpa"), rapid.Uint64Range(0, 64).Draw(t, "n")
			p := make([]byte, n)
			if !check(t, "read", at, n, m.ReadAt(p, at)) {
				return
			}
			for i, v := range p {
				if want := d.bytes[at+uint64(i)]; v != want {
					t.Fatalf("byte %#x is %#x, not %#x", at+uint64(i), v, want)
				}
			}
		},
		"drain": func(t *rapid.T) {
			got := drain(m)
			for _, g := range got {
				if !d.dirty[g] {
					t.Fatalf("frame %#x is dirty and was not written", g)
				}
			}
			if len(got) != len(d.dirty) {
				t.Fatalf("%d dirty frames, not %d", len(got), len(d.dirty))
			}
			clear(d.dirty)
		},
	})
	for at := range d.bytes {
		if err := m.WriteAt([]byte{0}, at); err != nil {
			t.Fatal(err)
		}
	}
	drain(m)
}
