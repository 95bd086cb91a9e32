package qcow2

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestLoadRefusesAnother image than was opened: of another size, or with clusters of
// another.
func TestLoadRefusesAnother(t *testing.T) {
	host := create(t, CreateOptions{Size: 1 << 20, ClusterBits: 12})
	m, err := OpenUntrusted(host, Options{})
	require.NoError(t, err)
	for want, o := range map[string]CreateOptions{
		"had 1048576 bytes when":      {Size: 1 << 21, ClusterBits: 12},
		"had clusters of 4096 bytes ": {Size: 1 << 20, ClusterBits: 16},
	} {
		host.b = create(t, o).b
		require.ErrorContains(t, m.Load(), want)
	}
	host.b = create(t, CreateOptions{Size: 1 << 20, ClusterBits: 12}).b
	require.NoError(t, m.Load())
}
