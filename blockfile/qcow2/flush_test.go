package qcow2

import (
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
