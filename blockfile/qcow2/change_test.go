package qcow2

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// afterCrash is a file whose writer stopped before event n: what was not flushed
// is there by sectors, or is not.
func afterCrash(before []byte, log []event, n int, r *rand.Rand) *memory {
	m := &memory{b: bytes.Clone(before)}
	stable := 0
	for i, e := range log[:n] {
		if e.data == nil {
			stable = i
		}
	}
	for i, e := range log[:n] {
		for at := 0; at < len(e.data); {
			end := min(len(e.data), at+sector-int((e.off+int64(at))%sector))
			if i < stable || r.IntN(2) == 0 {
				_ = m.Pwritev([][]byte{e.data[at:end]}, e.off+int64(at))
			}
			at = end
		}
	}
	return m
}

// written makes an image with something in every third cluster.
func written(t *testing.T, o CreateOptions, back Backing) *recorder {
	host := &recorder{}
	require.NoError(t, Create(host, o))
	m, err := Open(host, Options{Backing: back})
	require.NoError(t, err)
	for c := int64(0); c < o.Size>>o.ClusterBits; c += 3 {
		require.NoError(t, m.Pwritev([][]byte{bytes.Repeat([]byte{byte(c + 1)}, sector)}, c<<o.ClusterBits))
	}
	require.NoError(t, m.Suspend())
	host.log = nil
	return host
}

// backing is a disk of one byte all over.
type backing int64

func (b backing) Size() int64 { return int64(b) }
func (b backing) Preadv(bufs [][]byte, _ int64) (int, error) {
	for _, p := range bufs {
		copy(p, bytes.Repeat([]byte{0xbb}, len(p)))
	}
	return int(total(bufs)), nil
}

func reads(t *testing.T, host Host, back Backing) []byte {
	m, err := Open(host, Options{ReadOnly: true, Backing: back})
	require.NoError(t, err)
	b, err := diskOf(m)
	require.NoError(t, err)
	return b
}

// TestResize grows and shrinks, over a backing file too, and is cut off at every
// event: the disk is the old one, or the new one.
func TestResize(t *testing.T) {
	const old = 100<<9 + 0
	for _, c := range []struct {
		version, bits int
		size          int64
	}{{3, 9, 101 << 9}, {3, 9, 64 << 20}, {3, 12, 3 << 20}, {2, 9, 4 << 20}, {3, 9, 30 << 9}, {2, 12, 13 << 9}, {3, 12, 512}} {
		for _, back := range []Backing{nil, backing(150 << 9), backing(20 << 9)} {
			o := CreateOptions{Size: old, ClusterBits: c.bits, Version: c.version}
			if back != nil {
				o.Backing, o.BackingFormat = "b", "raw"
			}
			host := written(t, o, back)
			before, disk := bytes.Clone(host.b), reads(t, host, back)
			m, err := Open(host, Options{Backing: back})
			require.NoError(t, err)
			require.NoError(t, m.Resize(c.size))
			require.NoError(t, m.Suspend())
			require.Equal(t, c.size, m.Size())
			want := append(bytes.Clone(disk), make([]byte, max(0, c.size-old))...)[:c.size]
			require.True(t, bytes.Equal(want, reads(t, host, back)), "%+v %v", c, back)
			require.Empty(t, inspect(t, &host.memory).Findings)
			r := rand.New(rand.NewPCG(1, uint64(c.size)))
			for n := range host.log {
				left := afterCrash(before, host.log, n, r)
				require.Zero(t, inspect(t, left).Corruptions, "%+v at %d", c, n)
				got := reads(t, left, back)
				keep := min(old, c.size)
				require.True(t, bytes.Equal(disk[:keep], got[:keep]), "%+v at %d", c, n)
				require.Contains(t, []int64{old, c.size}, int64(len(got)))
			}
			// What was lost does not come back.
			m, err = Open(host, Options{Backing: back})
			require.NoError(t, err)
			require.NoError(t, m.Resize(c.size+old))
			require.NoError(t, m.Suspend())
			require.True(t, bytes.Equal(append(want, make([]byte, old)...), reads(t, host, back)))
		}
	}
}

// TestSetBacking changes the name again and again, short and long, and is cut
// off at every event: the name is the old one, or the new one.
func TestSetBacking(t *testing.T) {
	for _, version := range []int{2, 3} {
		host := &recorder{}
		require.NoError(t, Create(host, CreateOptions{Size: 1 << 20, Version: version, Backing: "first", BackingFormat: "raw"}))
		h, err := ReadHeader(host)
		require.NoError(t, err)
		// QEMU's table of feature names reaches into the second sector.
		h.Extensions = []Extension{{extFeatureNames, bytes.Repeat([]byte{7}, 384)}, {0x12345678, []byte("kept")}}
		b, err := h.Encode()
		require.NoError(t, err)
		require.NoError(t, host.Pwritev([][]byte{b}, 0))
		r := rand.New(rand.NewPCG(2, 2))
		was := "first"
		for _, name := range []string{"second", strings.Repeat("long", 200), strings.Repeat("longer", 170), "", strings.Repeat("again", 200), "short", ""} {
			format := "qcow2"
			if name == "" {
				format = ""
			}
			before := bytes.Clone(host.b)
			host.log = nil
			require.NoError(t, SetBacking(host, name, format))
			h, err := ReadHeader(host)
			require.NoError(t, err)
			require.Equal(t, []string{name, format}, []string{h.Backing, h.BackingFormat})
			require.True(t, slices.ContainsFunc(h.Extensions, func(e Extension) bool { return string(e.Data) == "kept" }))
			for n := range host.log {
				h, err := ReadHeader(afterCrash(before, host.log, n, r))
				require.NoError(t, err, "%.20q at %d", name, n)
				require.Contains(t, []string{was, name}, h.Backing)
			}
			was = name
		}
		require.Empty(t, inspect(t, &host.memory).Findings)
	}
}

// TestEmpty: all of the backing file shows, and the file is short again.
func TestEmpty(t *testing.T) {
	host := written(t, CreateOptions{Size: 300 << 9, ClusterBits: 9, Backing: "b", BackingFormat: "raw"}, backing(300<<9))
	before := bytes.Clone(host.b)
	end, err := Empty(context.Background(), host)
	require.NoError(t, err)
	require.Less(t, end, int64(len(host.b))/4)
	require.True(t, bytes.Equal(bytes.Repeat([]byte{0xbb}, 300<<9), reads(t, host, backing(300<<9))))
	require.Empty(t, inspect(t, &host.memory).Findings)
	r := rand.New(rand.NewPCG(3, 3))
	for n := range host.log {
		require.Zero(t, inspect(t, afterCrash(before, host.log, n, r)).Corruptions, n)
	}
}
