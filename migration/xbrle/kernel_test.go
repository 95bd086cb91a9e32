package xbrle

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// portable runs f with the portable twin in place of the assembly.
func portable(f func()) {
	was := useAVX2
	useAVX2 = false
	defer func() { useAVX2 = was }()
	withoutAVX512(f)
}

// withoutAVX512 runs f with AVX2 alone, where the CPU has that.
func withoutAVX512(f func()) {
	was := useAVX512
	useAVX512 = false
	defer func() { useAVX512 = was }()
	f()
}

// withEach runs f with whatever this CPU has, and without.
func withEach(f func()) {
	if useAVX512 {
		f()
	}
	if useAVX2 {
		withoutAVX512(f)
	}
	portable(f)
}

// pagePair draws a base and a changed page: random, structured and edge cases.
func pagePair(t *rapid.T) (base, page [pageSize]byte) {
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	if rapid.Bool().Draw(t, "filled") {
		fill(rng, base[:])
	}
	page = base
	for range rapid.IntRange(0, 40).Draw(t, "changes") {
		at := rapid.OneOf(rapid.IntRange(0, pageSize-1), rapid.SampledFrom([]int{0, 1, 63, 64, 65, 4031, 4032, 4091, 4092, 4095})).Draw(t, "at")
		n := min(rapid.SampledFrom([]int{1, 1, 2, 3, 8, 16, 17, 64, 127, 128, 300, 4096}).Draw(t, "length"), pageSize-at)
		step := rapid.IntRange(1, 7).Draw(t, "step")
		for i := at; i < at+n; i += step {
			page[i] ^= byte(1 + rng.IntN(255))
		}
	}
	if rapid.Bool().Draw(t, "sprinkle") {
		for range rapid.IntRange(0, 4096).Draw(t, "bytes") {
			page[rng.IntN(pageSize)] = byte(rng.Uint32())
		}
	}
	return base, page
}

// fill makes p random; its length is a multiple of 8.
func fill(rng *rand.Rand, p []byte) {
	for ; len(p) > 0; p = p[8:] {
		binary.LittleEndian.PutUint64(p, rng.Uint64())
	}
}

// literals finds by the plainest means what findEdges must find.
func literals(base, page *[pageSize]byte) (edges []uint16) {
	for i := 0; i < pageSize; i++ {
		if base[i] == page[i] {
			continue
		}
		end := i + 1
		for j := end; j < pageSize && j-end <= maxGap; j++ {
			if base[j] != page[j] {
				end = j + 1
			}
		}
		edges = append(edges, uint16(i), uint16(end))
		i = end
	}
	return edges
}

// encodeDelta is the codec's encoding without its cache.
func encodeDelta(s *scratch, dst, base, page *[pageSize]byte) (int, bool) {
	return s.encode(dst, s.diff(base, page))
}

// kernel is a way to encode a page and to bring the base up to date.
type kernel struct {
	name   string
	with   func(f func())
	encode func(s *scratch, dst, base, page *[pageSize]byte) (int, bool)
}

// kernels are those that run here, the portable one first. "whole" encodes every
// page as a whole that differs at all.
func kernels() []kernel {
	all := []kernel{{"portable", portable, encodeDelta}}
	if useAVX2 {
		all = append(all, kernel{"avx2", withoutAVX512, encodeDelta})
	}
	if useAVX512 {
		all = append(all,
			kernel{"avx512", func(f func()) { f() }, encodeDelta},
			kernel{"whole", func(f func()) { f() }, func(s *scratch, dst, base, page *[pageSize]byte) (int, bool) {
				if changed := s.diff(base, page); changed != 0 {
					return s.encodeDense(dst)
				}
				return 0, true
			}})
	}
	return all
}

// checkPair checks that the kernels agree about two pages, and gives the
// encoding's length, or false if there is none.
func checkPair(t require.TestingT, base, page [pageSize]byte) (int, bool) {
	want := literals(&base, &page)
	require.LessOrEqual(t, len(want)+16, maxEdges)
	var first []byte
	var masks [lines + 1]uint64
	var smaller bool
	for i, k := range kernels() {
		k.with(func() {
			// A memory of before, as the pool gives it: nothing may depend on it.
			s := dirtyScratch
			// dst, with nothing that may be written on either side.
			var room [pageSize + 2*guard]byte
			for i := range guard {
				room[i], room[guard+pageSize+i] = 0xa5, 0xa5
			}
			n, ok := k.encode(&s, (*[pageSize]byte)(room[guard:]), &base, &page)
			for _, side := range [][]byte{room[:guard], room[guard+pageSize:]} {
				require.Equal(t, guard, bytes.Count(side, []byte{0xa5}), "%s wrote outside dst", k.name)
			}
			require.True(t, *s.snap() == page, "%s: the snapshot is not the page", k.name)
			enc := room[guard:][:n]
			if i == 0 {
				first, masks, smaller = append(first, enc...), s.masks, ok
			}
			require.True(t, masks == s.masks, "%s: masks differ", k.name)
			require.Equal(t, smaller, ok, k.name)
			require.True(t, bytes.Equal(first, enc), "%s: another encoding", k.name)

			changed := s.diff(&base, &page)
			edges := s.edges[:s.findEdges(changed)]
			require.True(t, slices.Equal(want, edges), "%s: edges: want %v, found %v", k.name, want, edges)
			again := base
			crc := s.fold(&again, changed, crc32.Checksum(base[:], castagnoli))
			require.True(t, page == again, "%s: the base is not the page", k.name)
			if changed == 0 || useAVX2 {
				require.Equal(t, crc32.Checksum(page[:], castagnoli), crc, k.name)
			} else {
				require.Zero(t, crc, "%s: to be computed when asked for", k.name)
			}
		})
	}
	return len(first), smaller
}

const guard = 128

// dirtyScratch is what the pool may give: used, for the worst pages there are.
var dirtyScratch = func() (s scratch) {
	var base, page, dst [pageSize]byte
	for i := 0; i < pageSize; i += maxGap + 2 {
		page[i] = 1
	}
	for _, k := range kernels() {
		k.with(func() { k.encode(&s, &dst, &base, &page) })
	}
	return s
}()

func checkRoundTrip(t require.TestingT, base, page [pageSize]byte) {
	var s scratch
	var enc, zero [pageSize]byte
	if n, ok := encodeDelta(&s, &enc, &base, &page); ok {
		got := base
		require.NoError(t, decode(&got, enc[:n], false))
		require.True(t, page == got, "decode(encode) is not the page")
	}
	if n, ok := encodeDelta(&s, &enc, &zero, &page); ok {
		got := base
		require.NoError(t, decode(&got, enc[:n], true))
		require.True(t, page == got, "decode(encode) is not the page")
	}
}

func TestKernelsAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base, page := pagePair(t)
		checkPair(t, base, page)
		checkRoundTrip(t, base, page)
	})
}

func TestEdgePages(t *testing.T) {
	for step := 1; step <= 70; step++ { // alternating bytes in every rhythm
		for _, first := range []int{0, 1, step - 1, pageSize - 1, pageSize - step} {
			var base, page [pageSize]byte
			for i := max(first, 0); i < pageSize; i += step {
				page[i] = 0xff
			}
			checkPair(t, base, page)
			checkPair(t, page, base)
			checkRoundTrip(t, base, page)
		}
	}
	for i := range pageSize { // one byte, everywhere
		var base, page [pageSize]byte
		page[i] = 1
		checkRoundTrip(t, base, page)
		if i%17 == 0 || i < 130 || i > pageSize-130 {
			checkPair(t, base, page)
		}
	}
}

func TestEncodingSizes(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(p *[pageSize]byte)
		want   []byte
		raw    bool
	}{
		{"unchanged", func(*[pageSize]byte) {}, nil, false},
		{"first byte", func(p *[pageSize]byte) { p[0] = 9 }, []byte{0, 1, 9}, false},
		{"last byte", func(p *[pageSize]byte) { p[4095] = 9 }, []byte{0xff, 0x1f, 1, 9}, false},
		{"gap of 3 is merged", func(p *[pageSize]byte) { p[1], p[5] = 9, 8 }, []byte{1, 5, 9, 0, 0, 0, 8}, false},
		{"gap of 4 is not", func(p *[pageSize]byte) { p[1], p[6] = 9, 8 }, []byte{1, 1, 9, 4, 1, 8}, false},
		{"every byte", func(p *[pageSize]byte) { fill(rand.New(rand.NewPCG(1, 1)), p[:]) }, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s scratch
			var base, page, dst [pageSize]byte
			c.change(&page)
			n, ok := encodeDelta(&s, &dst, &base, &page)
			require.Equal(t, !c.raw, ok)
			require.True(t, bytes.Equal(c.want, dst[:n]), "% x", dst[:n])
		})
	}
	// The longest literal that is still smaller with its two length bytes and
	// the first that is not.
	for length, smaller := range map[int]bool{pageSize - 4: true, pageSize - 3: false} {
		var s scratch
		var base, page, dst [pageSize]byte
		for i := range length {
			page[i] = 1
		}
		n, ok := encodeDelta(&s, &dst, &base, &page)
		require.Equal(t, smaller, ok, "%d bytes: %d", length, n)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, enc := range map[string][]byte{
		"half a header":             {5},
		"half a varint":             {0x85},
		"no literal length":         {0x85, 0x01},
		"overlong varint":           {0x85, 0x00, 1, 1},
		"varint of three bytes":     {0x80, 0x80, 0x01, 1, 1},
		"empty literal":             {5, 0},
		"literal after a literal":   {1, 1, 7, 0, 1, 7},
		"literal cut short":         {0, 5, 1, 2, 3, 4},
		"gap beyond the page":       {0xff, 0x3f, 1, 1},
		"literal beyond the page":   {0xff, 0x1f, 2, 1, 1},
		"a byte behind a full page": {0xff, 0x1f, 1, 9, 0, 1, 9},
		"trailing zero run":         {1, 1, 7, 4, 0},
		"as long as a page":         make([]byte, pageSize),
	} {
		for _, plain := range []bool{false, true} {
			var page [pageSize]byte
			require.ErrorIs(t, decode(&page, enc, plain), ErrFormat, name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{0, 1, 9}, false)
	f.Add([]byte{0xff, 0x1f, 1, 9}, true)
	f.Add([]byte{1, 5, 9, 0, 0, 0, 8, 0x85, 0x01, 1, 1}, false)
	f.Fuzz(func(t *testing.T, enc []byte, plain bool) {
		var room [pageSize + 2*lineSize]byte
		for i := range room {
			room[i] = 0xa5
		}
		page := (*[pageSize]byte)(room[lineSize:])
		err := decode(page, enc, plain)
		for _, guard := range [][]byte{room[:lineSize], room[lineSize+pageSize:]} {
			require.Equal(t, lineSize, bytes.Count(guard, []byte{0xa5}), "decode wrote outside the page")
		}
		if err == nil && len(enc) == 0 && !plain {
			require.Equal(t, byte(0xa5), page[0])
		}
	})
}

// FuzzKernels makes two pages from one text and checks twins and round trip.
func FuzzKernels(f *testing.F) {
	f.Add([]byte("a page"), []byte("a pAge"), uint16(0))
	f.Add([]byte{}, []byte{1, 0, 0, 0, 1}, uint16(4091))
	f.Fuzz(func(t *testing.T, old, change []byte, at uint16) {
		var base [pageSize]byte
		for i := 0; len(old) > 0 && i < pageSize; {
			i += copy(base[i:], old)
		}
		page := base
		for i, b := range change {
			page[(int(at)+i)%pageSize] ^= b
		}
		checkPair(t, base, page)
		checkRoundTrip(t, base, page)
	})
}
