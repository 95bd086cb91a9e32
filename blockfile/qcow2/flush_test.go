package qcow2

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

// stubborn is a host that frees no storage.
type stubborn struct{ memory }

func (*stubborn) Punch(int64, int64) error { return errMoody }

// TestFlushGoesOn: storage that cannot be freed is no error of a flush, and a
// cluster that cannot be counted off keeps no others.
func TestFlushGoesOn(t *testing.T) {
	const cluster = 1 << 12
	host := new(stubborn)
	require.NoError(t, Create(host, CreateOptions{Size: 1 << 20, ClusterBits: 12}))
	m := open(t, host, Options{})
	place := func(guest uint64) int64 {
		entry, err := m.lookup(guest)
		require.NoError(t, err)
		return int64(entry&offsetMask) >> m.g.bits
	}
	references := func(c int64) uint64 {
		b, err := m.block(uint64(c) / m.g.perBlock)
		require.NoError(t, err)
		return refcount(b.b, m.g.order, uint64(c)%m.g.perBlock)
	}
	require.NoError(t, m.Pwritev([][]byte{random(1, 8*cluster)}, 0))
	require.NoError(t, m.Flush())
	dropped := []int64{place(0), place(1), place(2), place(5)}

	_, err := m.count(dropped[1], -1) // as a corrupt image has it
	require.NoError(t, err)
	require.NoError(t, m.Discard(0, 3*cluster))
	require.NoError(t, m.Discard(5*cluster, cluster))
	require.ErrorIs(t, m.Flush(), ErrCorrupt)
	for _, c := range dropped {
		require.Zero(t, references(c))
	}
	require.Equal(t, dropped[0], m.refs.hint)
	require.Zero(t, m.freed)

	dropped = []int64{place(6)}
	require.NoError(t, m.Discard(6*cluster, cluster))
	require.NoError(t, m.Flush())
	require.Zero(t, references(dropped[0]))
}

// unreadable is a host that reads nothing of a range.
type unreadable struct {
	memory
	off, n int64
	failed int
}

func (u *unreadable) Preadv(bufs [][]byte, off int64) error {
	if off < u.off+u.n && u.off < off+int64(len(bufs[0])) {
		u.failed++
		return errMoody
	}
	return u.memory.Preadv(bufs, off)
}

// TestFlushTriesAgain: what cannot be counted off because the host does not read
// the counts is counted off once it does, and only once. Until then a flush
// fails once, and costs one more attempt each.
func TestFlushTriesAgain(t *testing.T) {
	const cluster, clusters = 512, 400
	host := new(unreadable)
	require.NoError(t, Create(host, CreateOptions{Size: clusters * cluster, ClusterBits: 9, RefcountBits: 64}))
	m := open(t, host, Options{})
	require.NoError(t, m.Pwritev([][]byte{random(1, clusters*cluster)}, 0))
	leaks := func() int64 {
		require.NoError(t, m.Suspend())
		report, err := Check(context.Background(), host, 1<<20)
		require.NoError(t, err)
		require.Zero(t, report.Corruptions)
		require.NoError(t, m.Load())
		return report.Leaks
	}
	require.Zero(t, leaks())
	discard := func() { // what lies in one block, in two runs, and what lies beside it
		require.NoError(t, m.Discard(130*cluster, 10*cluster))
		require.NoError(t, m.Discard(145*cluster, 100*cluster))
	}

	discard()
	host.off, host.n = int64(m.refs.table[uint64(m.frees[0].first)/m.g.perBlock]), cluster
	require.ErrorIs(t, m.Flush(), errMoody)
	require.Zero(t, m.freed)
	require.NotEmpty(t, m.stuck)
	waits := len(m.stuck)
	for range 3 {
		failed := host.failed
		require.NoError(t, m.Flush())
		require.Equal(t, failed+1, host.failed)
		require.Len(t, m.stuck, waits)
	}
	host.n = 0
	require.NoError(t, m.Flush())
	require.Empty(t, m.stuck)
	require.Zero(t, m.freed)
	require.NoError(t, m.Flush(), "nothing is counted off twice")
	require.Zero(t, leaks())

	// Other hands get the image with what is stuck: it is leaked then.
	require.NoError(t, m.Pwritev([][]byte{random(2, clusters*cluster)}, 0))
	require.Zero(t, leaks())
	discard()
	host.off, host.n = int64(m.refs.table[uint64(m.frees[0].first)/m.g.perBlock]), cluster
	require.ErrorIs(t, m.Flush(), errMoody)
	require.NoError(t, m.Suspend())
	host.n = 0
	require.NoError(t, m.Load())
	require.Empty(t, m.stuck)
	require.Positive(t, leaks())
}
