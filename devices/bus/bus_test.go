package bus

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// recorder answers reads with its tag and remembers the last access.
type recorder struct {
	tag    byte
	off    uint64
	n      int
	reads  int
	writes int
}

func (r *recorder) Read(off uint64, p []byte) {
	r.off, r.n = off, len(p)
	r.reads++
	for i := range p {
		p[i] = r.tag
	}
}

func (r *recorder) Write(off uint64, p []byte) {
	r.off, r.n = off, len(p)
	r.writes++
}

func TestAttachRejects(t *testing.T) {
	var b Bus
	require.NoError(t, b.Attach(0x3f8, 8, "serial", &recorder{}))
	require.NoError(t, b.Attach(0x400, 8, "next door", &recorder{}))
	require.NoError(t, b.Attach(math.MaxUint64, 1, "the last byte", &recorder{}))

	for _, tc := range []struct {
		name       string
		base, size uint64
		dev        Device
		says       string
	}{
		{"empty", 0x10, 0, &recorder{}, "empty"},
		{"wraps", math.MaxUint64 - 3, 5, &recorder{}, "past the end"},
		{"no device", 0x10, 1, nil, "no device"},
		{"same", 0x3f8, 8, &recorder{}, `"serial" at 0x3f8-0x3ff`},
		{"inside", 0x3fa, 1, &recorder{}, `"serial"`},
		{"around", 0x3f0, 0x100, &recorder{}, `"serial"`},
		{"head", 0x3f0, 9, &recorder{}, `"serial"`},
		{"tail", 0x407, 2, &recorder{}, `"next door"`},
		{"top", math.MaxUint64 - 1, 2, &recorder{}, `"the last byte"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := b.Attach(tc.base, tc.size, "newcomer", tc.dev)
			require.ErrorIs(t, err, ErrAttach)
			require.ErrorContains(t, err, tc.says)
			require.ErrorContains(t, err, `"newcomer"`)
		})
	}
	require.Len(t, b.ranges, 3)
}

func TestRouting(t *testing.T) {
	var b Bus
	low, high := &recorder{tag: 1}, &recorder{tag: 2}
	require.NoError(t, b.Attach(0x100, 4, "low", low))
	require.NoError(t, b.Attach(math.MaxUint64-7, 8, "high", high))

	for _, tc := range []struct {
		name string
		addr uint64
		n    int
		want byte // 0xff: nobody
		off  uint64
	}{
		{"first byte", 0x100, 1, 1, 0},
		{"last byte", 0x103, 1, 1, 3},
		{"whole", 0x100, 4, 1, 0},
		{"unaligned", 0x101, 2, 1, 1},
		{"before", 0xff, 1, 0xff, 0},
		{"after", 0x104, 1, 0xff, 0},
		{"straddles the start", 0xff, 2, 0xff, 0},
		{"straddles the end", 0x103, 2, 0xff, 0},
		{"wider than the range", 0x100, 8, 0xff, 0},
		{"odd width", 0x100, 3, 0xff, 0},
		{"top", math.MaxUint64 - 7, 8, 2, 0},
		{"wraps", math.MaxUint64, 2, 0xff, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			*low, *high = recorder{tag: 1}, recorder{tag: 2}
			r0, w0 := b.Unmapped()
			p := make([]byte, tc.n)
			b.Read(tc.addr, p)
			b.Write(tc.addr, p)
			for _, v := range p {
				require.Equal(t, tc.want, v)
			}
			r1, w1 := b.Unmapped()
			if tc.want == 0xff {
				require.Equal(t, []uint64{1, 1}, []uint64{r1 - r0, w1 - w0})
				return
			}
			require.Equal(t, []uint64{0, 0}, []uint64{r1 - r0, w1 - w0})
			hit := low
			if tc.want == 2 {
				hit = high
			}
			require.Equal(t, recorder{tag: tc.want, off: tc.off, n: tc.n, reads: 1, writes: 1}, *hit)
		})
	}
	b.Read(0x100, nil) // no width at all: nothing to fill, nobody to ask
}

// The binary search against a plain scan over everything that was attached.
func TestLookupMatchesScan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type claim struct{ base, last uint64 }
		var b Bus
		var claims []claim
		addr := rapid.OneOf(rapid.Uint64Range(0, 300), rapid.Uint64Range(math.MaxUint64-300, math.MaxUint64))
		for range rapid.IntRange(0, 20).Draw(t, "attachments") {
			base, size := addr.Draw(t, "base"), rapid.Uint64Range(0, 40).Draw(t, "size")
			last := base + size - 1
			ok := size > 0 && last >= base
			for _, c := range claims {
				ok = ok && (last < c.base || base > c.last)
			}
			err := b.Attach(base, size, "x", &recorder{tag: byte(len(claims))})
			if ok != (err == nil) {
				t.Fatalf("attach %#x+%#x: %v", base, size, err)
			}
			if ok {
				claims = append(claims, claim{base, last})
			}
		}
		at := addr.Draw(t, "addr")
		n := rapid.SampledFrom([]int{1, 2, 4, 8}).Draw(t, "width")
		want := byte(0xff)
		for i, c := range claims {
			if at >= c.base && at <= c.last && uint64(n-1) <= c.last-at {
				want = byte(i)
			}
		}
		p := make([]byte, n)
		b.Read(at, p)
		for _, v := range p {
			if v != want {
				t.Fatalf("read %d at %#x: got device %d, want %d", n, at, v, want)
			}
		}
	})
}

func TestAccessDoesNotAllocate(t *testing.T) {
	b := manyDevices(t, 32)
	p := make([]byte, 4)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		b.Read(0x1010, p)
		b.Write(0x1010, p)
		b.Read(1, p)
	}))
}

func TestInterruptFunc(t *testing.T) {
	fired := 0
	var i Interrupt = InterruptFunc(func() error { fired++; return nil })
	require.NoError(t, i.Trigger())
	require.Equal(t, 1, fired)
}

func manyDevices(tb testing.TB, n uint64) *Bus {
	var b Bus
	for i := range n {
		require.NoError(tb, b.Attach(0x1000*(i+1), 0x200, "dev", &recorder{}))
	}
	return &b
}

func BenchmarkRead(b *testing.B) {
	bus := manyDevices(b, 32)
	p := make([]byte, 4)
	b.ReportAllocs()
	var i uint64
	for b.Loop() {
		bus.Read(0x1000*(i%32+1), p)
		i++
	}
}
