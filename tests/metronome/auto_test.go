package metronome_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/migration/policy"
)

// The codec auto moves a guest with text, random words and a working set, over a
// link of 1 Gbit/s and over one without a limit. Both ends' hashes and the
// guest itself say that memory is right.
func TestAutoMovesTheGuest(t *testing.T) {
	size := shortOr(64, 256)
	c := bootHere(t, guest(2, 4*size+128, fmt.Sprintf("fill=%d text=%d ws=%d rate=20000 beat=40", 2*size, size, size/2)))
	for _, bandwidth := range []int64{125e6, 0} {
		for _, streams := range []int{1, 3} {
			codec, err := policy.Codecs.Parse("auto,cache=16M")
			require.NoError(t, err)
			o := migration.SendOptions{Streams: streams, Bandwidth: bandwidth, Verify: true}
			o.Policies.Codec = codec
			o.Policies.Stop = policy.Rounds{N: 4}
			next, rep, err := c.move(route{o: o})
			require.NoError(t, err)
			t.Logf("%d bytes/s, %d streams: %.0f ms, %d MiB sent, %+v", bandwidth, streams, rep.TotalMS, rep.WireBytes>>20, rep.Pages)
			require.Equal(t, rep.Verify.Source, rep.Verify.Destination)
			c = next
			c.beats(2)
			require.Zero(t, c.swept().Bad)
			if bandwidth > 0 {
				// How many of each is for the link and this host to say.
				require.NotZero(t, rep.Pages.Compressed+rep.Pages.Delta, "text and the working set")
			}
			require.NotZero(t, rep.Pages.Raw, "random words")
		}
	}
}
