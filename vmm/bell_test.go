package vmm

import (
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestBellLosesNoRing: whoever looks, then checks, then waits sees every change
// that was made before a ring.
func TestBellLosesNoRing(t *testing.T) {
	const rounds = 2000
	var there, back bell
	var wish, done atomic.Int64
	go func() {
		for n := int64(1); n <= rounds; n++ {
			for {
				seen := there.look()
				if wish.Load() >= n {
					break
				}
				there.wait(seen)
			}
			done.Store(n)
			back.ring()
		}
	}()
	for n := int64(1); n <= rounds; n++ {
		wish.Store(n)
		there.ring()
		for {
			seen := back.look()
			if done.Load() >= n {
				break
			}
			back.wait(seen)
		}
	}
	require.EqualValues(t, rounds, done.Load())
}
