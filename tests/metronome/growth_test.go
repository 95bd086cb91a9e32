package metronome_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/vmm"
)

// oddMiB is a guest size that no other mapping of this process has.
const oddMiB = 150

// held counts what this process holds of the kinds that leak.
type held struct {
	goroutines, files int
	vcpus, memories   int // mappings
}

func holding(t *testing.T) held {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	maps, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	h := held{goroutines: runtime.NumGoroutine(), files: len(files)}
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		_, err := fmt.Sscanf(line, "%x-%x", &from, &to)
		require.NoError(t, err)
		if strings.Contains(line, "kvm-vcpu") {
			h.vcpus++
		}
		if to-from == oddMiB<<20 {
			h.memories++
		}
	}
	return h
}

// beyond says whether there is more of anything. There may be less: what an
// earlier test was still closing when before was counted.
func (h held) beyond(before held) bool {
	return h.goroutines > before.goroutines || h.files > before.files || h.vcpus > before.vcpus || h.memories > before.memories
}

// A guest that moves on and on leaves nothing behind in the processes it was in.
func TestMovesLeaveNothingBehind(t *testing.T) {
	leavesNothingBehind(t, guest(2, oddMiB, "fill=16 ws=8 rate=5000 beat=10"), func(i int) migration.SendOptions {
		return migration.SendOptions{Streams: 1 + i%4, Verify: i%5 == 0}
	})
}

// Nor does one that is handed on and on.
func TestHandOversLeaveNothingBehind(t *testing.T) {
	leavesNothingBehind(t, onFile(guest(2, oddMiB, "fill=16 ws=8 rate=5000 beat=10")), func(i int) migration.SendOptions {
		return migration.SendOptions{Local: true, Verify: i%5 == 0}
	})
}

func leavesNothingBehind(t *testing.T, cfg vmm.Config, how func(i int) migration.SendOptions) {
	c := bootHere(t, cfg)
	before := holding(t)
	require.Equal(t, 2, before.vcpus)
	require.Equal(t, 1, before.memories)
	for i := range shortOr(20, 500) {
		next, _, err := c.move(route{o: how(i)})
		require.NoError(t, err)
		c = next
		c.beats(2)
	}
	require.Zero(t, c.swept().Bad)
	// Goroutines that were told to end may still be on their way.
	ctx := deadline(t)
	after := holding(t)
	for ; after.beyond(before); after = holding(t) {
		require.NoError(t, ctx.Err(), "before %+v, after %+v", before, after)
		time.Sleep(time.Millisecond)
	}
}
