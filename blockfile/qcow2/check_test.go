package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// sample writes an image with a bit of everything: 300 clusters of which every
// seventh is compressed, every fifth zero, every third missing.
func sample(t testing.TB, o CreateOptions) *memory {
	t.Helper()
	m := &memory{}
	w, err := NewWriter(m, o)
	require.NoError(t, err)
	size := int64(1) << o.ClusterBits
	clusters := o.Size >> o.ClusterBits
	for c := range clusters {
		switch {
		case c%7 == 0:
			err = w.WriteCompressed(c, make([]byte, 1+c%(size-1)))
		case c%5 == 0:
			err = w.Zero(c)
		case c%3 == 0:
		case c%11 == 0:
			err = w.Reserve(c)
		default:
			err = w.Write(c, make([]byte, size))
		}
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return m
}

func v3(clusterBits, order int) CreateOptions {
	return CreateOptions{Size: 300 << clusterBits, Version: 3, ClusterBits: clusterBits, RefcountBits: 1 << order, Backing: "b", BackingFormat: "raw"}
}

func inspect(t testing.TB, m *memory) *CheckReport {
	t.Helper()
	r, err := Check(context.Background(), m, 10)
	require.NoError(t, err)
	return r
}

func TestWriterMakesCleanImages(t *testing.T) {
	for bits := 9; bits <= 13; bits++ {
		for order := range 7 {
			o := v3(bits, order)
			r := inspect(t, sample(t, o))
			require.Empty(t, r.Findings, "clusters of 2^%d, refcounts of 2^%d", bits, order)
			require.True(t, r.Clean())
			require.EqualValues(t, 300, r.TotalClusters)
			require.EqualValues(t, 43, r.CompressedClusters)
			require.EqualValues(t, 51, r.ZeroClusters)
			require.EqualValues(t, 181, r.AllocatedClusters)
		}
	}
	o := v3(9, 4)
	o.Version = 2
	r := inspect(t, sample(t, o))
	require.True(t, r.Clean())
	require.Zero(t, r.ZeroClusters, "version 2 has none")
}

// Refcount tables of several clusters, blocks that count their own place.
func TestWriterManyRefcountBlocks(t *testing.T) {
	for _, n := range []int64{0, 1, 60, 64, 4000, 4096, 9000} {
		m := &memory{}
		w, err := NewWriter(m, CreateOptions{Size: 10000 << 9, Version: 3, ClusterBits: 9, RefcountBits: 64})
		require.NoError(t, err)
		require.NoError(t, w.Write(0, make([]byte, n<<9)))
		require.LessOrEqual(t, len(w.blocks), 4, "blocks that are done are not kept")
		require.NoError(t, w.Close())
		r := inspect(t, m)
		require.Empty(t, r.Findings, n)
		require.Equal(t, n, r.AllocatedClusters)
	}
}

func TestWriterRefuses(t *testing.T) {
	for want, o := range map[string]CreateOptions{
		"version 4":       {Version: 4},
		"multiple of 512": {Size: 100},
		"larger clusters": {ClusterBits: 9, Size: 1 << 40},
		"fit a cluster":   {ClusterBits: 9, Backing: strings.Repeat("b", 500), BackingFormat: "raw"},
	} {
		_, err := NewWriter(&memory{}, o)
		require.ErrorContains(t, err, want)
	}
	w, err := NewWriter(&memory{}, v3(9, 4))
	require.NoError(t, err)
	require.NoError(t, w.Write(5, make([]byte, 512)))
	require.Error(t, w.Write(5, make([]byte, 512)), "not ascending")
	require.Error(t, w.Write(299, make([]byte, 1024)), "beyond the end")
	require.Error(t, w.WriteCompressed(6, make([]byte, 512)), "not shorter")
	require.Error(t, w.WriteCompressed(6, nil))
}

// image is a sample that can be spoilt field by field.
type image struct {
	*memory
	t testing.TB
	h *Header
}

func spoilable(t testing.TB, o CreateOptions) image {
	m := sample(t, o)
	h, err := ReadHeader(m)
	require.NoError(t, err)
	return image{m, t, h}
}

func (i image) word(off uint64) uint64   { return binary.BigEndian.Uint64(i.b[off:]) }
func (i image) put(off uint64, v uint64) { binary.BigEndian.PutUint64(i.b[off:], v) }
func (i image) l2() uint64               { return i.word(i.h.L1Offset) & offsetMask }

// entry is where the L2 entry of a disk cluster lies; it must be in the first table.
func (i image) entry(c uint64) uint64 { return i.l2() + c*8 }

func (i image) bump(off uint64, by int) {
	c := off >> i.h.ClusterBits
	block := i.b[i.word(i.h.RefcountOffset):]
	setRefcount(block, i.h.RefcountOrder, c, refcount(block, i.h.RefcountOrder, c)+uint64(by))
}

// Disk clusters of the sample by what they are.
const compressed, zero, missing, normal, normal2 = 7, 5, 3, 1, 2

func TestCheckFindsAndRepairs(t *testing.T) {
	for name, c := range map[string]struct {
		spoil       func(i image)
		corruptions int64 // at least
		leaks       int64
		says        string
		lost        int64 // clusters
	}{
		"a leak":                           {func(i image) { i.bump(i.word(i.entry(normal))&offsetMask, 1) }, 1, 1, "refcount 2, references 1", 0},
		"an entry dropped":                 {func(i image) { i.put(i.entry(normal), 0) }, 0, 1, "refcount 1, references 0", 1},
		"refcount too low":                 {func(i image) { i.bump(i.word(i.entry(normal))&offsetMask, -1) }, 2, 0, "refcount 0, references 1", 0},
		"two entries, one cluster":         {func(i image) { i.put(i.entry(normal), i.word(i.entry(normal2))) }, 1, 1, "references 2", 0},
		"copied flag missing":              {func(i image) { i.put(i.entry(normal), i.word(i.entry(normal))&^flagCopied) }, 1, 0, "copied flag is 0", 0},
		"copied flag on compressed":        {func(i image) { i.put(i.entry(compressed), i.word(i.entry(compressed))|flagCopied) }, 1, 0, "copied flag is set", 0},
		"L1 copied flag missing":           {func(i image) { i.put(i.h.L1Offset, i.word(i.h.L1Offset)&^flagCopied) }, 1, 0, "copied flag is 0", 0},
		"unaligned":                        {func(i image) { i.put(i.entry(normal), i.word(i.entry(normal))+512) }, 1, 1, "not at a cluster of its own", 1},
		"outside":                          {func(i image) { i.put(i.entry(normal), 1<<40|flagCopied) }, 1, 1, "outside the file", 1},
		"far outside":                      {func(i image) { i.put(i.entry(normal), offsetMask&^0xfff|flagCopied) }, 1, 1, "outside the file", 1},
		"compressed outside":               {func(i image) { i.put(i.entry(compressed), flagCompressed|1<<50) }, 1, 0, "outside the file", 1},
		"over the L1 table":                {func(i image) { i.put(i.entry(normal), i.h.L1Offset|flagCopied) }, 1, 1, "overlaps", 1},
		"compressed over the header":       {func(i image) { i.put(i.entry(compressed), flagCompressed) }, 1, 0, "overlaps", 1},
		"reserved bits":                    {func(i image) { i.put(i.entry(normal), i.word(i.entry(normal))|1<<57) }, 1, 0, "reserved", 0},
		"L1 reserved bits":                 {func(i image) { i.put(i.h.L1Offset, i.word(i.h.L1Offset)|1) }, 1, 0, "reserved", 0},
		"L1 entry outside":                 {func(i image) { i.put(i.h.L1Offset, 1<<55|flagCopied) }, 1, 1, "outside the file", 1},
		"L1 entry into the refcount table": {func(i image) { i.put(i.h.L1Offset, i.h.RefcountOffset|flagCopied) }, 1, 1, "overlaps", 1},
		"refcount block outside":           {func(i image) { i.put(i.h.RefcountOffset, 1<<50) }, 1, 0, "refcount block 0", 0},
		"refcount block unaligned":         {func(i image) { i.put(i.h.RefcountOffset, i.word(i.h.RefcountOffset)+512) }, 1, 0, "refcount block 0", 0},
		"refcount block missing":           {func(i image) { i.put(i.h.RefcountOffset, 0) }, 10, 0, "refcount 0", 0},
		"refcount reserved bits":           {func(i image) { i.put(i.h.RefcountOffset, i.word(i.h.RefcountOffset)|2) }, 1, 0, "reserved", 0},
		"refcount table over the L1 table": {func(i image) { i.put(48, i.h.L1Offset) }, 1, 0, "refcount table", 0},
		"refcounts all wrong": {func(i image) {
			b := i.word(i.h.RefcountOffset)
			for k := range uint64(4096) {
				i.b[b+k] = 0x55
			}
		}, 10, 10, "references", 0},
	} {
		t.Run(name, func(t *testing.T) {
			i := spoilable(t, v3(12, 4))
			clean := inspect(t, i.memory)
			require.True(t, clean.Clean())
			c.spoil(i)
			r, err := Check(context.Background(), i, 1000)
			require.NoError(t, err)
			require.GreaterOrEqual(t, r.Corruptions, c.corruptions, r.Findings)
			require.GreaterOrEqual(t, r.Leaks, c.leaks, r.Findings)
			require.Contains(t, fmt.Sprint(r.Findings), c.says)

			leaks := &memory{b: append([]byte(nil), i.b...)}
			_, after, err := Repair(context.Background(), leaks, false, 10)
			require.NoError(t, err)
			if r.Corruptions == 0 {
				require.True(t, after.Clean(), after.Findings)
			} else {
				require.Equal(t, r.Corruptions, after.Corruptions)
				require.Equal(t, i.b, leaks.b, "with corruptions nothing is touched")
			}

			before, after, err := Repair(context.Background(), i, true, 10)
			require.NoError(t, err)
			require.Equal(t, r.Corruptions, before.Corruptions)
			require.True(t, after.Clean(), after.Findings)
			if c.lost == 0 {
				require.Equal(t, clean.AllocatedClusters, after.AllocatedClusters)
			}
			_, again, err := Repair(context.Background(), i, true, 10)
			require.NoError(t, err)
			require.Equal(t, after, again, "there is nothing left to do")
		})
	}
}

func TestRepairClearsTheMarks(t *testing.T) {
	for _, all := range []bool{false, true} {
		i := spoilable(t, v3(12, 4))
		i.put(72, IncompatDirty|IncompatCorrupt)
		before, after, err := Repair(context.Background(), i, all, 10)
		require.NoError(t, err)
		require.True(t, before.Dirty && before.Corrupt)
		require.False(t, after.Dirty)
		require.Equal(t, !all, after.Corrupt, "the mark of a corrupt image goes when all is looked at and mended")
		require.True(t, after.Clean())
	}
}

// What a snapshot holds must not be freed because its table cannot be read.
func TestRepairLeavesBrokenSnapshotsAlone(t *testing.T) {
	i := spoilable(t, v3(12, 4))
	at := uint64(len(i.b)+4095) &^ 4095
	i.b = append(i.b, make([]byte, int(at)+4096-len(i.b))...)
	binary.BigEndian.PutUint32(i.b[60:], 1)
	i.put(64, at)
	i.put(at, 1<<50)
	binary.BigEndian.PutUint32(i.b[at+8:], 1)
	was := append([]byte(nil), i.b...)
	before, _, err := Repair(context.Background(), i, true, 10)
	require.ErrorIs(t, err, ErrUnrepairable)
	require.Positive(t, before.Corruptions)
	require.Equal(t, was, i.b)
}

func TestCompressedEntry(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.Uint32Range(9, 21).Draw(t, "bits")
		n := rapid.Uint64Range(1, 1<<bits-1).Draw(t, "n")
		off := rapid.Uint64Range(0, 1<<(62-(bits-8))-1).Draw(t, "off")
		gotOff, gotN := compressedExtent(compressedEntry(off, n, bits), bits)
		require.Equal(t, off, gotOff)
		require.GreaterOrEqual(t, gotN, n)
		require.Less(t, gotN, n+sector)
	})
}

// Whatever the bytes, a check ends, and after a repair nothing is wrong.
func FuzzCheck(f *testing.F) {
	for _, o := range []CreateOptions{v3(9, 4), v3(9, 0), v3(10, 6)} {
		o.Size = 20 << o.ClusterBits
		m := sample(f, o)
		f.Add(m.b, uint16(0), uint64(0))
		h, err := ReadHeader(m)
		require.NoError(f, err)
		r := rand.New(rand.NewPCG(1, 2))
		for _, off := range []uint64{60, 64, 72, h.L1Offset, h.RefcountOffset} {
			f.Add(m.b, uint16(off), r.Uint64())
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, off uint16, v uint64) {
		if len(b) > 1<<20 {
			return
		}
		m := &memory{b: append([]byte(nil), b...)}
		if int(off)+8 <= len(m.b) {
			binary.BigEndian.PutUint64(m.b[off:], v)
		}
		if _, err := Check(context.Background(), m, 3); err != nil {
			return
		}
		if _, after, err := Repair(context.Background(), m, true, 3); err == nil && !after.Clean() {
			t.Fatalf("after a repair: %+v", after)
		}
	})
}
