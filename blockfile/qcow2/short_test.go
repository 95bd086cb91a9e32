package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// disk reads what an image holds.
func diskOf(m *Image) ([]byte, error) {
	b := make([]byte, m.Size())
	return b, m.Preadv([][]byte{b}, 0)
}

// TestCutShort cuts an image at every cluster: it opens only if nothing that it
// refers to is gone.
func TestCutShort(t *testing.T) {
	for _, o := range []CreateOptions{v3(9, 4), v3(12, 0), v3(12, 6)} {
		o.Backing, o.BackingFormat = "", ""
		full := &memory{}
		require.NoError(t, Create(full, o))
		opened, err := Open(full, Options{})
		require.NoError(t, err)
		for c := int64(0); c < 300; c += 3 {
			require.NoError(t, opened.Pwritev([][]byte{bytes.Repeat([]byte{byte(c + 1)}, 512)}, c<<o.ClusterBits))
		}
		require.NoError(t, opened.Suspend())
		want, err := diskOf(opened)
		require.NoError(t, err)
		refused := 0
		for size := len(full.b); size > 3<<o.ClusterBits; size -= 1 << o.ClusterBits {
			for _, readOnly := range []bool{true, false} {
				cut := &memory{b: bytes.Clone(full.b[:size])}
				m, err := Open(cut, Options{ReadOnly: readOnly})
				if err == nil {
					got, err := diskOf(m)
					require.NoError(t, err)
					require.True(t, bytes.Equal(want, got), "cut to %d bytes", size)
					continue
				}
				require.True(t, errors.Is(err, ErrCorrupt) || errors.Is(err, ErrFormat), "%d: %v", size, err)
				refused++
			}
			// The way out that the error names.
			cut := &memory{b: bytes.Clone(full.b[:size])}
			if _, after, err := Repair(context.Background(), cut, true, 5); err == nil {
				require.True(t, after.Clean(), "%d: %v", size, after)
				_, err = Open(cut, Options{})
				require.NoError(t, err)
			}
		}
		require.Greater(t, refused, 100)
	}
}

// TestCountedBehindTheEnd: a crash can leave counts of clusters that the file
// never got. That is a leak, and no reason to refuse.
func TestCountedBehindTheEnd(t *testing.T) {
	m := sample(t, v3(9, 4))
	h, err := ReadHeader(m)
	require.NoError(t, err)
	block := binary.BigEndian.Uint64(m.b[h.RefcountOffset+uint64(len(m.b)>>9/256)*8:])
	setRefcount(m.b[block:block+512], 4, uint64(len(m.b)>>9%256), 1)
	i, err := Open(m, Options{})
	require.NoError(t, err)
	suspect, err := i.countsBeyondEnd()
	require.NoError(t, err)
	require.True(t, suspect)
	// Nor is the storage of a cluster that reads as zeroes.
	s := image{m, t, h}
	s.put(s.entry(zero), uint64(len(m.b)+511)&^511|flagZero)
	_, err = Open(m, Options{})
	require.NoError(t, err)
	s.put(s.entry(zero), uint64(len(m.b)+511)&^511|flagCopied)
	_, err = Open(m, Options{})
	require.ErrorIs(t, err, ErrShort)
}

// TestReadBehindTheEnd: an entry whose cluster is not there does not read as
// zeroes, however it came into the file.
func TestReadBehindTheEnd(t *testing.T) {
	i := spoilable(t, v3(9, 4))
	i.put(i.entry(1), uint64(len(i.b)+1<<20)&^511|flagCopied)
	m, err := Open(i.memory, Options{})
	require.NoError(t, err, "its counts know nothing of it")
	require.ErrorIs(t, m.Preadv([][]byte{make([]byte, 512)}, 512), ErrShort)
}

// bounded is a host whose file cannot be longer.
type bounded struct {
	*memory
	most int64
}

func (b bounded) Pwritev(bufs [][]byte, off int64) error {
	if off+total(bufs) > b.most {
		return unix.ENOSPC
	}
	return b.memory.Pwritev(bufs, off)
}

// TestRepairWithoutRoom repairs where the file cannot grow: on what clusters are
// free, or not at all and then without a change.
func TestRepairWithoutRoom(t *testing.T) {
	for order := range 7 {
		for _, free := range []int{0, 1, 2, 40} {
			i := spoilable(t, v3(9, order))
			c := uint64(1 << 9)
			// The first cluster that is counted loses its count.
			block := i.word(i.h.RefcountOffset)
			setRefcount(i.b[block:block+c], uint32(order), 0, 0)
			i.b = append(i.b, make([]byte, free<<9)...)
			host := bounded{i.memory, int64(len(i.b))}
			was := bytes.Clone(i.b)
			before, after, err := Repair(context.Background(), host, true, 5)
			require.Positive(t, before.Corruptions)
			if free < 40 && err != nil {
				require.ErrorIs(t, err, ErrUnrepairable)
				require.ErrorContains(t, err, "nothing was changed")
				require.True(t, bytes.Equal(was, i.b), "order %d, %d free", order, free)
				continue
			}
			require.NoError(t, err, "order %d, %d free", order, free)
			require.True(t, after.Clean(), "%v", after.Findings)
			require.Len(t, i.b, len(was))
			_, err = Open(i.memory, Options{})
			require.NoError(t, err)
		}
	}
}
