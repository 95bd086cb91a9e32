package readloop

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A yardstick that skips bytes would flatter nobody but itself.
func TestOrReadsEveryByte(t *testing.T) {
	if !Available() {
		t.Skip("no AVX2")
	}
	mem := make([]byte, 4*block+block/2)
	require.False(t, Or(mem))
	require.False(t, Or(mem[:block-1]))
	for i := range 4 * block {
		mem[i] = 1
		require.True(t, Or(mem), "byte %d", i)
		mem[i] = 0
	}
}
