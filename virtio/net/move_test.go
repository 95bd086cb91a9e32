package net_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/devices/state"
	"godwit/devices/state/statetest"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/mmio"
	"godwit/virtio/net"
)

// move hands the card over to a new device on next.
func (g *guest) move(next *wire) {
	g.cpu.Lock() // the vCPUs are paused
	defer g.cpu.Unlock()
	require.NoError(g.t, g.tr.Pause())
	stream := statetest.Stream(g.t, g.tr)
	require.Equal(g.t, stream, statetest.Stream(g.t, g.tr), "a save changes nothing")
	require.NoError(g.t, g.tr.Close())
	g.irq.Lose()
	g.cfg.Backend = next
	g.transport()
	require.NoError(g.t, statetest.Restore(g.tr, stream))
	require.Equal(g.t, stream, statetest.Stream(g.t, g.tr), "what was restored is what was saved")
	require.NoError(g.t, g.tr.Resume())
}

// TestMoveWithAPacketInHand: a packet that waits for buffers moves along, and so
// does everything else.
func TestMoveWithAPacketInHand(t *testing.T) {
	for _, resumed := range []bool{false, true} {
		w := newWire(t, 1)
		g := boot(t, setup{config: net.Config{Backend: w}, size: 64})
		g.post(0, 2, 1526)
		large := packet(ownMAC, 9, 30000)
		w.give(t, 0, large)
		w.taken(t, 0)
		if resumed { // a migration that failed
			require.NoError(t, g.tr.Pause())
			statetest.Stream(t, g.tr)
			require.NoError(t, g.tr.Resume())
		} else {
			next := newWire(t, 1)
			g.move(next)
			w = next
		}
		small := packet(ownMAC, 2, 200)
		w.give(t, 0, small)
		g.post(0, 20, 1526)
		require.Equal(t, expect(large, 20), g.receive(0))
		require.Equal(t, expect(small, 1), g.receive(0))
	}
}

// TestMoveUnderLoad moves a busy card again and again, both directions at work.
// Each packet comes once and in order.
func TestMoveUnderLoad(t *testing.T) {
	variants(t, func(t *testing.T, refused uint64) {
		const packets = 400
		w := newWire(t, 1)
		g := boot(t, setup{config: net.Config{Backend: w}, refused: refused, size: 32})
		g.post(0, 16, 4096)
		size := func(i int) int {
			if refused&featureMergeable == 0 && i%7 == 0 {
				return 20000
			}
			return 100 + i
		}
		var group sync.WaitGroup
		group.Go(func() { // the network
			for i := range packets {
				p := packet(ownMAC, byte(i), size(i))
				for unix.Sendto(w.far[0], p, 0, nil) != nil {
					if t.Failed() {
						return // nobody may read any more
					}
					time.Sleep(100 * time.Microsecond) // the queue is full
				}
			}
		})
		group.Go(func() { // the guest's driver
			for i := range packets {
				p := g.receive(0)
				require.Equal(t, expect(packet(ownMAC, byte(i), size(i)), int(p[10])), p)
			}
		})
		out := g.room(4096).GPA
		group.Go(func() {
			for i := range packets {
				require.NoError(t, g.mem.WriteAt(packet(ownMAC, byte(i), 100+i), out))
				g.send(1, drivertest.Seg{GPA: out, Len: uint32(headerSize + 100 + i)})
				g.wait(1)
			}
		})
		group.Go(func() {
			for i := range packets {
				require.Equal(t, packet(ownMAC, byte(i), 100+i), w.await(t, 0))
			}
		})
		done := make(chan struct{})
		go func() { group.Wait(); close(done) }()
		for range 25 {
			g.move(w)
		}
		<-done
	})
}

// TestAnnouncements: RARP, ARP for what the guest was heard to be, and the guest
// itself, until it has.
func TestAnnouncements(t *testing.T) {
	w := newWire(t, 1)
	g := boot(t, setup{config: net.Config{Backend: w}})
	arp := func(mac net.MAC, ip [4]byte) []byte {
		p := packet(net.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 0, 42)
		f := p[headerSize:]
		copy(f[6:], mac[:])
		copy(f[12:], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1})
		copy(f[22:], mac[:])
		copy(f[28:], ip[:])
		return p
	}
	foreign := arp(net.MAC{2, 9, 9, 9, 9, 9}, [4]byte{10, 0, 0, 66})
	copy(foreign[headerSize+6:], ownMAC[:]) // says another's address
	for _, p := range [][]byte{
		arp(ownMAC, [4]byte{}), arp(ownMAC, [4]byte{127, 0, 0, 1}), arp(ownMAC, [4]byte{224, 0, 0, 1}), foreign,
		arp(ownMAC, [4]byte{10, 0, 0, 99}), arp(ownMAC, [4]byte{10, 0, 0, 99}),
		arp(ownMAC, [4]byte{10, 0, 0, 1}), arp(ownMAC, [4]byte{10, 0, 0, 2}),
		arp(ownMAC, [4]byte{10, 0, 0, 3}), arp(ownMAC, [4]byte{10, 0, 0, 4}),
		arp(ownMAC, [4]byte{10, 0, 0, 5}), arp(ownMAC, [4]byte{10, 0, 0, 6}),
		arp(ownMAC, [4]byte{10, 0, 0, 7}), arp(ownMAC, [4]byte{10, 0, 0, 1}), arp(ownMAC, [4]byte{10, 0, 0, 8}),
	} {
		g.transmit(0, p, 12, 20)
		w.await(t, 0)
		g.wait(1)
	}
	status := func() uint16 {
		b := make([]byte, 2)
		g.tr.Read(0x106, b)
		return binary.LittleEndian.Uint16(b)
	}
	next := newWire(t, 1)
	g.move(next)
	for range 2 {
		require.NoError(t, g.dev.Announce())
		p := next.await(t, 0)
		require.Equal(t, make([]byte, headerSize), p[:headerSize])
		require.Equal(t, []byte{
			0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x80, 0x35,
			0, 1, 8, 0, 6, 4, 0, 3, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0,
			0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		}, p[headerSize:], "as QEMU says it")
		for _, last := range []byte{2, 3, 4, 5, 6, 7, 1, 8} { // the eight that spoke last
			f := next.await(t, 0)[headerSize:]
			require.Equal(t, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, last, 0, 0, 0, 0, 0, 0, 10, 0, 0, last}, f[12:42])
		}
		require.EqualValues(t, 3, status(), "link up, and announce")
	}
	require.Zero(t, g.command(3, 0))
	require.EqualValues(t, 1, status())
	require.EqualValues(t, 18, g.dev.Stats().Announcements)

	require.NoError(t, g.tr.Pause())
	require.NoError(t, g.dev.Announce())
	require.EqualValues(t, 18, g.dev.Stats().Announcements, "a paused device says nothing")
	require.NoError(t, g.tr.Resume())
	g.regs.Set(0x70, 0)
	require.NoError(t, g.dev.Announce())
	require.EqualValues(t, 18, g.dev.Stats().Announcements, "nor one that nobody drives")
}

// golden is a card with something in every part of its state.
func golden(t *testing.T) *guest {
	w := newWire(t, 2)
	g := boot(t, setup{config: net.Config{Backend: w, Pairs: 2, MTU: 1500}})
	require.Zero(t, g.command(0, 0, 0))
	require.Zero(t, g.command(1, 0, 1, 0, 0, 0, 2, 2, 2, 2, 2, 2, 1, 0, 0, 0, 1, 2, 3, 4, 5, 6))
	require.Zero(t, g.command(4, 0, 2, 0))
	require.Zero(t, g.command(5, 0, 2, 0, 0, 0, 0, 0, 0, 0))
	p := packet(net.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 0, 42)
	copy(p[headerSize+6:], ownMAC[:])
	copy(p[headerSize+12:], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1})
	g.transmit(0, p)
	g.wait(1)
	g.post(1, 1, 100)
	w.give(t, 1, packet(ownMAC, 3, 150))
	held := func() bool { // the packet, in the state
		g.cpu.Lock()
		defer g.cpu.Unlock()
		require.NoError(t, g.tr.Pause())
		defer func() { require.NoError(t, g.tr.Resume()) }()
		return bytes.Contains(statetest.Data(t, g.tr), packet(ownMAC, 3, 150)[headerSize:])
	}
	for end := time.Now().Add(lost); !held(); {
		require.True(t, time.Now().Before(end))
	}
	require.NoError(t, g.dev.Announce())
	g.dev.SetLink(false)
	return g
}

func (g *guest) another(t testing.TB, cfg net.Config) *mmio.Transport {
	dev, err := net.New(cfg)
	require.NoError(t, err)
	tr, err := mmio.New(mmio.Config{ID: "virtio/net0", Memory: g.mem, Device: dev, Interrupt: drivertest.NewInterrupt()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, tr.Close()) })
	return tr
}

func TestState(t *testing.T) {
	g := golden(t)
	g.cpu.Lock()
	require.NoError(t, g.tr.Pause())
	g.regs.Acknowledge()
	g.cpu.Unlock()
	statetest.Golden(t, g.tr, func() state.Saver { return g.another(t, g.cfg) })
}

func TestRestoreWantsTheSameCard(t *testing.T) {
	g := golden(t)
	require.NoError(t, g.tr.Pause())
	data := statetest.Data(t, g.tr)
	for want, change := range map[string]func(*net.Config){
		"features":                  func(c *net.Config) { c.MTU = 0 },
		"has MTU 1500, the one":     func(c *net.Config) { c.MTU = 1400 },
		"it has 5 queues, not 3":    func(c *net.Config) { c.Pairs = 1 },
		"give the device here the ": func(c *net.Config) { c.Backend.(*wire).has = 0 },
	} {
		cfg := g.cfg
		cfg.Backend = newWire(t, 2)
		change(&cfg)
		require.ErrorContains(t, g.another(t, cfg).Restore(1, state.NewDecoder(data)), want)
	}
}

// FuzzRestore feeds a destination the state of a hostile source.
func FuzzRestore(f *testing.F) {
	golden, err := os.ReadFile("testdata/virtio_net0-v1.state")
	require.NoError(f, err)
	f.Add(golden)
	g := &guest{mem: drivertest.Memory(f, memSize)}
	w := newWire(f, 2)
	f.Fuzz(func(t *testing.T, data []byte) {
		tr := g.another(t, net.Config{Backend: w, Pairs: 2, MTU: 1500, MAC: ownMAC})
		if tr.Restore(1, state.NewDecoder(data)) == nil {
			require.NoError(t, tr.Resume())
			require.NoError(t, tr.Pause())
		}
	})
}
