package zero

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// twins runs a test with the assembly, where there is any, and without it.
func twins(t *testing.T, test func(*testing.T)) {
	t.Helper()
	for name, on := range map[string]bool{"vector": true, "portable": false} {
		t.Run(name, func(t *testing.T) {
			if on && !hasVector() {
				t.Skip("no AVX2 on this machine")
			}
			use(t, on)
			test(t)
		})
	}
}

func use(t testing.TB, on bool) {
	before := vector
	vector = on
	t.Cleanup(func() { vector = before })
}

// model is Classify written down as its comment says.
func model(mem []byte, bitmap []uint64) (zeros int) {
	clear(bitmap)
	for i := 0; i < len(bitmap)*64 && i*PageSize < len(mem); i++ {
		var or byte
		for _, b := range mem[i*PageSize : min(len(mem), (i+1)*PageSize)] {
			or |= b
		}
		if or == 0 {
			bitmap[i/64] |= 1 << (i % 64)
			zeros++
		}
	}
	return zeros
}

func TestPageSeesEveryBit(t *testing.T) {
	twins(t, func(t *testing.T) {
		for _, offset := range []int{0, 1, 31, 33} { // alignment
			page := make([]byte, offset+PageSize)[offset:]
			require.True(t, Page(page))
			for bit := range PageSize * 8 {
				page[bit/8] = 1 << (bit % 8)
				if Page(page) {
					t.Fatalf("bit %d at alignment %d is not seen", bit, offset)
				}
				page[bit/8] = 0
			}
		}
	})
}

// Bytes beside the slice do not count, whatever its length.
func TestPageOfAnyLength(t *testing.T) {
	twins(t, func(t *testing.T) {
		require.True(t, Page(nil))
		buf := make([]byte, 3*PageSize)
		for _, n := range []int{0, 1, 7, 8, 31, 63, 64, 255, 4095, 4096, 4097, 4160, 8191, 8192, 8193, 10000} {
			for _, at := range []int{1, 64, 1000} {
				p := buf[at : at+n]
				buf[at-1], buf[at+n] = 0xff, 0xff
				require.True(t, Page(p), "%d bytes at %d", n, at)
				for i := range p {
					p[i] = 0x80
					if Page(p) {
						t.Fatalf("byte %d of %d at %d is not seen", i, n, at)
					}
					p[i] = 0
				}
				buf[at-1], buf[at+n] = 0, 0
			}
		}
	})
}

func TestClassifyProperty(t *testing.T) {
	twins(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			size := rapid.OneOf(rapid.IntRange(0, 140*PageSize), rapid.Map(rapid.IntRange(0, 140), func(n int) int { return n * PageSize })).Draw(t, "size")
			offset := rapid.IntRange(0, 64).Draw(t, "offset")
			mem := make([]byte, offset+size)[offset:]
			rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
			for range min(size, rapid.IntRange(0, 200).Draw(t, "bits")) {
				mem[rng.IntN(size)] |= 1 << rng.IntN(8)
			}
			got := make([]uint64, rapid.IntRange(0, 4).Draw(t, "words"))
			for i := range got {
				got[i] = rng.Uint64() // Classify leaves nothing of what was there
			}
			want := make([]uint64, len(got))
			zeros := model(mem, want)
			require.Equal(t, zeros, Classify(mem, got))
			require.Equal(t, want, got)
		})
	})
}

func TestNoAllocation(t *testing.T) {
	twins(t, func(t *testing.T) {
		mem, bitmap := make([]byte, 65*PageSize), make([]uint64, 2)
		require.Zero(t, testing.AllocsPerRun(10, func() {
			Classify(mem, bitmap)
			Page(mem)
		}))
	})
}

func FuzzClassify(f *testing.F) {
	f.Add([]byte{}, uint16(0), uint16(0), uint8(1))
	f.Add([]byte{1}, uint16(4095), uint16(3), uint8(2))
	f.Add([]byte{0, 0, 0, 8}, uint16(63), uint16(8192), uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, before, after uint16, words uint8) {
		mem := make([]byte, int(before)+len(data)+int(after))
		copy(mem[before:], data)
		want := make([]uint64, words)
		zeros := model(mem, want)
		for _, on := range []bool{false, hasVector()} {
			use(t, on)
			got := make([]uint64, words)
			require.Equal(t, zeros, Classify(mem, got))
			require.Equal(t, want, got)
			require.Equal(t, model(mem, make([]uint64, 64)) == (len(mem)+PageSize-1)/PageSize, Page(mem))
		}
	})
}
