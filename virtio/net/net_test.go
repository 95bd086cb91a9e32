package net_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/virtio"
	"godwit/virtio/net"
)

const featureMergeable = 1 << 15

// variants are the features that change every path.
func variants(t *testing.T, test func(t *testing.T, refused uint64)) {
	for _, v := range []struct {
		name    string
		refused uint64
	}{
		{"all", 0},
		{"no event index", virtio.FeatureEventIdx},
		{"no mergeable buffers", featureMergeable},
		{"neither, no indirect", featureMergeable | virtio.FeatureEventIdx | virtio.FeatureIndirectDesc},
	} {
		t.Run(v.name, func(t *testing.T) { test(t, v.refused) })
	}
}

// expect is a packet as the guest must see it, in count buffers.
func expect(p []byte, count int) []byte {
	p = append([]byte(nil), p...)
	p[10], p[11] = byte(count), byte(count>>8)
	return p
}

func TestBothWays(t *testing.T) {
	variants(t, func(t *testing.T, refused uint64) {
		w := newWire(t, 1)
		g := boot(t, setup{config: net.Config{Backend: w}, refused: refused})
		g.post(0, 8, 2048)
		for i := range 100 {
			n := 60 + i*14
			in := packet(ownMAC, byte(i), n)
			w.give(t, 0, in)
			require.Equal(t, expect(in, 1), g.receive(0))
			out := packet(ownMAC, byte(i), n)
			g.transmit(0, out, 12)
			require.Equal(t, out, w.await(t, 0))
			g.wait(1)
		}
		s := g.dev.Stats()
		require.EqualValues(t, 100, s.RxFrames)
		require.EqualValues(t, 100, s.TxFrames)
		require.Equal(t, s.RxBytes, s.TxBytes)
		require.Zero(t, s.HostErrors+s.GuestErrors+s.RxTooLarge+s.TxRefused+s.RxMalformed)
	})
}

// TestLargePackets: every size, through buffers that are always too few at first.
func TestLargePackets(t *testing.T) {
	w := newWire(t, 1)
	g := boot(t, setup{config: net.Config{Backend: w}, size: 64})
	g.post(0, 64, 1526)
	for i, n := range []int{60, 1514, 1515, 3000, 9000, 65535, 65536, 60, 65549, 1514, 30000} {
		in := packet(ownMAC, byte(i), n)
		w.give(t, 0, in)
		require.Equal(t, expect(in, (len(in)+1525)/1526), g.receive(0))
	}
	for range 200 { // until the offer is small again
		in := packet(ownMAC, 1, 100)
		w.give(t, 0, in)
		require.Equal(t, expect(in, 1), g.receive(0))
	}
	in := packet(ownMAC, 9, 40000)
	w.give(t, 0, in)
	require.Equal(t, expect(in, 27), g.receive(0))
	out := packet(ownMAC, 3, 65549)
	g.transmit(0, out, 5, 12, 13, 4000, 40000)
	require.Equal(t, out, w.await(t, 0))
}
