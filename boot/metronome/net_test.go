package metronome

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestNetFrameRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed, n := rapid.Uint64().Draw(t, "seed"), rapid.Uint64().Draw(t, "number")
		size := rapid.IntRange(46, 1514).Draw(t, "size")
		f := NetFrame(nil, [6]byte{2}, [6]byte{3}, seed, n, size)
		require.Len(t, f, size)
		got, err := ParseNetFrame(append(f, 0, 0), seed) // a tail of padding does not matter
		require.NoError(t, err)
		require.Equal(t, n, got)

		at := rapid.IntRange(netEthernet+4, size-1).Draw(t, "flip")
		f[at] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
		_, err = ParseNetFrame(f, seed)
		require.ErrorIs(t, err, ErrFrame)
	})
}

func TestNetFrameErrors(t *testing.T) {
	f := NetFrame(nil, [6]byte{}, [6]byte{}, 1, 2, 64)
	_, err := ParseNetFrame(f, 2)
	require.ErrorIs(t, err, ErrFrame, "of another seed")
	_, err = ParseNetFrame(f[:63], 1)
	require.ErrorIs(t, err, ErrFrame, "cut")
	f[12] = 8
	_, err = ParseNetFrame(f, 1)
	require.ErrorIs(t, err, ErrNotOurs)
	_, err = ParseNetFrame(nil, 1)
	require.ErrorIs(t, err, ErrNotOurs)
}

func TestParseNetFrameAllocations(t *testing.T) {
	f := NetFrame(nil, [6]byte{}, [6]byte{}, 1, 2, 1514)
	buf := make([]byte, 0, 2048)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		buf = NetFrame(buf[:0], [6]byte{}, [6]byte{}, 1, 3, 64)
		_, _ = ParseNetFrame(f, 1)
	}))
}

func FuzzParseNetFrame(f *testing.F) {
	f.Add(NetFrame(nil, [6]byte{}, [6]byte{}, 1, 2, 64), uint64(1))
	f.Add(append(make([]byte, 12), 8, 0), uint64(1))
	f.Fuzz(func(t *testing.T, p []byte, seed uint64) {
		n, err := ParseNetFrame(p, seed)
		if err == nil && p[12] != 8 {
			size := netEthernet + int(p[18]) + int(p[19])<<8 + int(p[20])<<16
			require.Equal(t, NetFrame(nil, [6]byte(p[0:6]), [6]byte(p[6:12]), seed, n, size), p[:size])
		}
	})
}
