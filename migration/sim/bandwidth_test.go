package sim_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration/sim"
)

// slowStart is a machine that takes its time over each chunk of round 1, as one does
// that has much memory to look at.
type slowStart struct {
	*sim.Machine
	chunks *int
}

func (s slowStart) Clear(gfns []uint64) error {
	if *s.chunks--; *s.chunks >= 0 {
		time.Sleep(50 * time.Millisecond)
	}
	return s.Machine.Clear(gfns)
}

// A first round that looks at many zeros and sends little says nothing of the link. A
// guest that writes little, so that no later round is long enough to tell, is not
// kept by it until the last round allowed.
func TestZerosAreNoBandwidth(t *testing.T) {
	for _, c := range []struct{ data, chunks int }{
		{4, 4}, // 16 KiB in 200 ms: 20 pages would take a second
		{70, 12},
	} {
		t.Run(fmt.Sprint(c.data), func(t *testing.T) {
			pages := uint64(c.chunks) * 256
			w := sim.NewWorld()
			src, err := sim.NewMachine(w, layout(pages)...)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, src.Close()) })
			r := rigOf(t, w, src, slowStart{src, &c.chunks}, pages)
			for i := range pages {
				r.put(i, 0)
			}
			for i := range uint64(c.data) {
				r.put(i, i+1)
			}
			v := uint64(1000)
			src.Hook(func(m string) {
				if m == "Dirty" {
					for i := range uint64(20) {
						v++
						r.put(i, v)
					}
				}
			})
			res := r.migrate(context.Background())
			r.moved(res)
			require.Less(t, len(res.sent.Rounds), 20)
		})
	}
}
