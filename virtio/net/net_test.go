package net_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/devices/state/statetest"
	"godwit/virtio"
	"godwit/virtio/internal/drivertest"
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

// TestWaitsForBuffers: with no buffer nothing is read, with too few a packet is
// kept; none is lost, and the device sleeps.
func TestWaitsForBuffers(t *testing.T) {
	variants(t, func(t *testing.T, refused uint64) {
		w := newWire(t, 1)
		g := boot(t, setup{config: net.Config{Backend: w}, refused: refused, size: 64})
		var sent [][]byte
		for i := range 5 {
			sent = append(sent, packet(ownMAC, byte(i), 1000))
			w.give(t, 0, sent[i])
		}
		require.Eventually(t, func() bool { return g.dev.Stats().RxWaits > 0 }, lost, time.Millisecond)
		before := w.activity.Load()
		require.Zero(t, before, "nothing is read without a buffer")
		for i := range sent {
			g.post(0, 1, 2048)
			segs, n := g.wait(0)
			require.Equal(t, expect(sent[i], 1), g.bytes(segs, n))
		}
		if refused&featureMergeable != 0 {
			return
		}
		large := packet(ownMAC, 9, 30000)
		g.post(0, 3, 1526)
		w.give(t, 0, large)
		w.taken(t, 0)
		g.post(0, 30, 1526)
		require.Equal(t, expect(large, 20), g.receive(0))
	})
}

// TestTooLarge: what no buffer of the ring can hold is dropped, and the next
// packet comes.
func TestTooLarge(t *testing.T) {
	for _, c := range []struct {
		name    string
		refused uint64
		segs    int // of a buffer
		large   int
	}{
		{"one buffer for each", featureMergeable, 1, 5000},
		{"a full ring", 0, 1, 40000},
		{"a full ring of long chains", virtio.FeatureIndirectDesc, 2, 40000},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWire(t, 1)
			g := boot(t, setup{config: net.Config{Backend: w}, refused: c.refused, size: 16})
			for range 16 / c.segs {
				segs := make([]drivertest.Seg, c.segs)
				for i := range segs {
					segs[i] = g.room(2048 / c.segs)
				}
				g.send(0, segs...)
			}
			w.give(t, 0, packet(ownMAC, 1, c.large))
			next := packet(ownMAC, 2, 1000)
			w.give(t, 0, next)
			require.Equal(t, expect(next, 1), g.receive(0))
			require.EqualValues(t, 1, g.dev.Stats().RxTooLarge)
		})
	}
}

// TestBadPackets are dropped, counted, and given back to the driver.
func TestBadPackets(t *testing.T) {
	w := newWire(t, 1)
	g := boot(t, setup{config: net.Config{Backend: w}, size: 64})
	g.post(0, 2, 2048)
	w.give(t, 0, make([]byte, 25))
	good := packet(ownMAC, 2, 1000)
	w.give(t, 0, good)
	require.Equal(t, expect(good, 1), g.receive(0))
	require.EqualValues(t, 1, g.dev.Stats().RxMalformed)
	for _, n := range []int{1, 12, 25, 66000} {
		g.transmit(0, make([]byte, n))
		g.wait(1)
	}
	w.fault.Store(int64(unix.EIO))
	g.transmit(0, good)
	g.wait(1)
	w.fault.Store(0)
	g.transmit(0, good)
	require.Equal(t, good, w.await(t, 0), "the first that came out")
	s := g.dev.Stats()
	require.EqualValues(t, 4, s.TxMalformed)
	require.EqualValues(t, 1, s.TxRefused)
	require.EqualValues(t, 6, s.Dropped())
	require.Contains(t, s.LastHostError, "input/output error")
}

// TestTinyBuffer: a receive buffer without room for the header ends the queue.
func TestTinyBuffer(t *testing.T) {
	w := newWire(t, 1)
	g := boot(t, setup{config: net.Config{Backend: w}})
	g.post(0, 1, 11)
	require.Eventually(t, func() bool { return g.regs.Get(0x70)&64 != 0 }, lost, time.Millisecond)
	g.cpu.Lock()
	defer g.cpu.Unlock()
	require.NoError(t, g.tr.Pause())
	statetest.Stream(t, g.tr)
	require.NoError(t, g.tr.Resume())
}

// TestWaitsForRoom: while the network takes nothing, the device keeps what the
// guest sends, and sleeps.
func TestWaitsForRoom(t *testing.T) {
	w := newWire(t, 1)
	g := boot(t, setup{config: net.Config{Backend: w}, size: 64})
	const packets = 40 // more than a datagram socket holds (net.unix.max_dgram_qlen)
	for i := range packets {
		g.transmit(0, packet(ownMAC, byte(i), 60000))
	}
	require.Eventually(t, func() bool { return g.dev.Stats().TxWaits > 0 }, lost, time.Millisecond)
	for i := range packets {
		require.Equal(t, packet(ownMAC, byte(i), 60000), w.await(t, 0))
		g.wait(1)
	}
	require.Less(t, g.dev.Stats().TxWaits, uint64(2*packets))
}

// TestDirtyPages: what a packet was written to is marked, and so is what a packet
// touched that nobody wanted.
func TestDirtyPages(t *testing.T) {
	w := newWire(t, 1)
	g := boot(t, setup{config: net.Config{Backend: w}})
	require.Zero(t, g.command(0, 0, 0))
	s := drivertest.Seg{GPA: g.arena.Alloc(t, 8192, 4096), Len: 8192, Write: true}
	g.send(0, s)
	dirty := make([]uint64, (g.mem.Frames()+63)/64)
	g.mem.DrainDirty(dirty)
	w.give(t, 0, packet(net.MAC{2, 2, 2, 2, 2, 2}, 1, 5000))
	w.taken(t, 0)
	require.NoError(t, g.tr.Pause())
	clear(dirty)
	g.mem.DrainDirty(dirty)
	for p := s.GPA / 4096; p < s.GPA/4096+2; p++ {
		require.NotZero(t, dirty[p/64]>>(p%64)&1)
	}
	require.NoError(t, g.tr.Resume())
	require.EqualValues(t, 1, g.dev.Stats().RxFiltered)
}
