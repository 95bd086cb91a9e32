package net_test

import (
	"encoding/binary"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/virtio/internal/drivertest"
	"godwit/virtio/net"
)

func TestFilter(t *testing.T) {
	var (
		other = net.MAC{0x02, 0, 0, 0, 0, 9}
		multi = net.MAC{0x01, 0, 0x5e, 0, 0, 1}
		bcast = net.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	)
	w := newWire(t, 1)
	g := boot(t, setup{config: net.Config{Backend: w}})
	g.post(0, 8, 2048)
	passes := func(want string) {
		t.Helper()
		var got string
		for name, dst := range map[string]net.MAC{"a": ownMAC, "b": other, "c": multi, "d": bcast} {
			before := g.dev.Stats()
			p := packet(dst, 5, 80)
			w.give(t, 0, p)
			require.Eventually(t, func() bool {
				s := g.dev.Stats()
				return s.RxFrames+s.RxFiltered > before.RxFrames+before.RxFiltered
			}, lost, 50*time.Microsecond)
			if g.dev.Stats().RxFrames > before.RxFrames {
				got += name
				require.Equal(t, expect(p, 1), g.receive(0))
			}
		}
		sorted := []byte(got)
		slices.Sort(sorted)
		require.Equal(t, want, string(sorted))
	}
	table := func(uni, multi []net.MAC) []byte {
		var b []byte
		for _, list := range [][]net.MAC{uni, multi} {
			b = binary.LittleEndian.AppendUint32(b, uint32(len(list)))
			for _, m := range list {
				b = append(b, m[:]...)
			}
		}
		return b
	}
	passes("abcd") // promiscuous until told otherwise
	require.Zero(t, g.command(0, 0, 0))
	passes("ad")
	require.Zero(t, g.command(1, 0, table([]net.MAC{other}, nil)...))
	passes("abd")
	require.Zero(t, g.command(1, 0, table(nil, []net.MAC{multi})...))
	passes("acd")
	require.Zero(t, g.command(1, 0, table(make([]net.MAC, 65), nil)...))
	passes("abd") // too many to know
	require.Zero(t, g.command(1, 0, table(nil, nil)...))
	require.Zero(t, g.command(0, 1, 1))
	passes("acd")
	require.Zero(t, g.command(0, 3, 1))
	passes("ad")
	require.Zero(t, g.command(0, 5, 1))
	passes("a")
	require.Zero(t, g.command(0, 2, 1))
	passes("ab")
	require.Zero(t, g.command(0, 4, 1))
	passes("")
	require.Zero(t, g.command(0, 4, 0))
	require.Zero(t, g.command(0, 2, 0))
	require.Zero(t, g.command(1, 1, other[:]...))
	passes("b")
	require.Equal(t, other, g.dev.MAC())
	mac := make([]byte, 6)
	g.tr.Read(0x100, mac)
	require.Equal(t, other[:], mac)
	g.move(w)
	passes("b")
}

// TestCommandsRefused: each is answered, and changes nothing.
func TestCommandsRefused(t *testing.T) {
	w := newWire(t, 2)
	g := boot(t, setup{config: net.Config{Backend: w, Pairs: 2}})
	for name, c := range map[string][]byte{
		"unknown class":      {9, 0},
		"unknown command":    {0, 6, 1},
		"no value":           {0, 0},
		"neither on nor off": {0, 0, 2},
		"half a table":       {1, 0, 1, 0, 0, 0, 1, 2, 3},
		"one table":          {1, 0, 0, 0, 0, 0},
		"a huge table":       {1, 0, 0xff, 0xff, 0xff, 0xff},
		"half an address":    {1, 1, 2, 0, 0},
		"VLAN":               {2, 0, 1, 0},
		"nothing announced":  {3, 0},
		"no pairs":           {4, 0, 0, 0},
		"three pairs":        {4, 0, 3, 0},
		"unknown offload":    {5, 0, 4, 0, 0, 0, 0, 0, 0, 0},
	} {
		require.EqualValues(t, 1, g.command(c[0], c[1], c[2:]...), name)
	}
	require.EqualValues(t, 13, g.dev.Stats().GuestErrors)
	// No room for an answer, and a command far too long: given back.
	at := g.room(1 << 17).GPA
	g.send(4, drivertest.Seg{GPA: at, Len: 2})
	_, n := g.wait(4)
	require.Zero(t, n)
	g.send(4, drivertest.Seg{GPA: at, Len: 1 << 17}, g.room(1))
	segs, _ := g.wait(4)
	require.EqualValues(t, 1, g.bytes(segs[1:], 1)[0])
}

func TestOffloads(t *testing.T) {
	w := newWire(t, 1)
	g := boot(t, setup{config: net.Config{Backend: w}, refused: 1<<54 | 1<<55})
	const tso = offloads &^ (net.OffloadUSO4 | net.OffloadUSO6)
	require.EqualValues(t, tso, w.set.Load(), "all that the driver accepted")
	set := func(bits uint64) byte { return g.command(5, 0, binary.LittleEndian.AppendUint64(nil, bits)...) }
	for _, c := range []struct {
		guest uint64
		want  int64
	}{
		{0, 0},
		{1 << 1, net.OffloadCSUM},
		{1<<1 | 1<<7, net.OffloadCSUM | net.OffloadTSO4},
		{1<<1 | 1<<9, net.OffloadCSUM},
		{1 << 7, 0},
	} {
		require.Zero(t, set(c.guest))
		require.Equal(t, c.want, w.set.Load(), "%#x", c.guest)
	}
	require.EqualValues(t, 1, set(1<<54), "not accepted before")
	require.Zero(t, set(1<<1|1<<8))
	next := newWire(t, 1)
	g.move(next)
	require.EqualValues(t, net.OffloadCSUM|net.OffloadTSO6, next.set.Load(), "moved along")
	g.regs.Set(0x70, 0)
	require.Zero(t, next.set.Load(), "void after a reset")
}

// TestPairs: packets come through the pairs that the driver uses, and through no
// other.
func TestPairs(t *testing.T) {
	w := newWire(t, 3)
	g := boot(t, setup{config: net.Config{Backend: w, Pairs: 3}})
	for i := range 3 {
		g.post(i, 8, 2048)
	}
	require.EqualValues(t, 1, w.queues.Load())
	for _, n := range []int{3, 2, 1, 3} {
		require.Zero(t, g.command(4, 0, byte(n), 0))
		require.EqualValues(t, n, w.queues.Load())
		for i := range n {
			in := packet(ownMAC, byte(i), 90)
			w.give(t, i, in)
			require.Equal(t, expect(in, 1), g.receive(i))
			g.transmit(i, in)
			require.Equal(t, in, w.await(t, i))
			g.wait(2*i + 1)
		}
	}
	require.Zero(t, g.command(4, 0, 2, 0))
	refused := g.dev.Stats().TxRefused
	g.transmit(2, packet(ownMAC, 1, 90))
	g.wait(5)
	require.Equal(t, refused+1, g.dev.Stats().TxRefused)
	next := newWire(t, 3)
	g.move(next)
	require.EqualValues(t, 2, next.queues.Load())
	next.give(t, 1, packet(ownMAC, 7, 100))
	require.Equal(t, expect(packet(ownMAC, 7, 100), 1), g.receive(1))
}

// leaving is a wire whose second pair is being read when it is taken out of use,
// which it then says, as a tap does.
type leaving struct {
	*wire
	late          bool // it says so when the test lets it
	once          sync.Once
	reading, left chan struct{}
}

func (l *leaving) Readv(pair int, bufs [][]byte) (int, error) {
	select {
	case <-l.left:
		return l.wire.Readv(pair, bufs)
	default:
	}
	if pair == 0 {
		return l.wire.Readv(pair, bufs)
	}
	l.reading <- struct{}{}
	<-l.left
	return 0, unix.EBADFD
}

func (l *leaving) leave() { l.once.Do(func() { close(l.left) }) }

func (l *leaving) SetQueues(n int) error {
	if !l.late && l.queues.Load() == 2 && n == 1 {
		l.leave()
	}
	return l.wire.SetQueues(n)
}

// TestPairLeavesWhileItIsRead: that is no error of the host's.
func TestPairLeavesWhileItIsRead(t *testing.T) {
	l := &leaving{wire: newWire(t, 2), reading: make(chan struct{}, 1), left: make(chan struct{})}
	g := boot(t, setup{config: net.Config{Backend: l, Pairs: 2}})
	defer l.leave() // a worker that reads cannot be stopped
	g.post(1, 1, 2048)
	require.Zero(t, g.command(4, 0, 2, 0))
	<-l.reading
	require.Zero(t, g.command(4, 0, 1, 0))
	require.NoError(t, g.tr.Pause())
	require.Zero(t, g.dev.Stats().HostErrors, g.dev.Stats().LastHostError)
}

// TestPairComesBackWhileItIsRead: what the backend said of the pair that had left
// is no error of the pair that is there again.
func TestPairComesBackWhileItIsRead(t *testing.T) {
	l := &leaving{wire: newWire(t, 2), late: true, reading: make(chan struct{}, 1), left: make(chan struct{})}
	g := boot(t, setup{config: net.Config{Backend: l, Pairs: 2}})
	defer l.leave()
	g.post(1, 1, 2048)
	require.Zero(t, g.command(4, 0, 2, 0))
	<-l.reading
	require.Zero(t, g.command(4, 0, 1, 0))
	require.Zero(t, g.command(4, 0, 2, 0))
	l.leave()
	require.NoError(t, g.tr.Pause())
	require.Zero(t, g.dev.Stats().HostErrors, g.dev.Stats().LastHostError)
}

// TestOnePairWithoutMQ: then the control queue is the third.
func TestOnePairWithoutMQ(t *testing.T) {
	w := newWire(t, 4)
	g := boot(t, setup{config: net.Config{Backend: w, Pairs: 4}, refused: 1 << 22})
	require.Zero(t, g.command(0, 0, 1))
	require.EqualValues(t, 1, g.command(4, 0, 1, 0))
}

func TestConfigSpace(t *testing.T) {
	w := newWire(t, 2)
	g := boot(t, setup{config: net.Config{Backend: w, Pairs: 2, MTU: 9000}})
	read := func() []byte {
		b := make([]byte, 24)
		g.tr.Read(0x100, b)
		return b
	}
	want := append([]byte{2, 0, 0, 0, 0, 1, 1, 0, 2, 0, 0x28, 0x23}, make([]byte, 12)...)
	require.Equal(t, want, read())
	g.tr.Write(0x100, []byte{1, 2, 3, 4})
	require.Equal(t, want, read(), "nothing can be written")
	generation := g.regs.Get(0xfc)
	g.dev.SetLink(false)
	g.dev.SetLink(false)
	want[6] = 0
	require.Equal(t, want, read())
	require.Equal(t, generation+1, g.regs.Get(0xfc))
	g.dev.SetLink(true)
	want[6] = 1
	require.Equal(t, want, read())
}

// TestPulledCable: no frame passes either way, not even one that the driver sends
// without a look at the link, nor an announcement; what waits for buffers when the
// cable is pulled still comes. Plugged in, all is as before.
func TestPulledCable(t *testing.T) {
	variants(t, func(t *testing.T, refused uint64) {
		w := newWire(t, 1)
		g := boot(t, setup{config: net.Config{Backend: w}, refused: refused})
		count := func(f func(net.Stats) uint64) func() bool {
			return func() bool { return f(g.dev.Stats()) == 40 }
		}
		g.post(0, 8, 2048)
		for range 2 {
			g.dev.SetLink(false)
			require.False(t, g.dev.LinkUp())
			before := g.dev.Stats()
			for i := range 40 {
				w.give(t, 0, packet(ownMAC, byte(i), 100))
				g.transmit(0, packet(ownMAC, byte(i), 100))
				g.wait(1) // the driver gets its buffers back
			}
			w.taken(t, 0)
			require.NoError(t, g.dev.Announce())
			require.Eventually(t, count(func(s net.Stats) uint64 { return s.RxLinkDown - before.RxLinkDown }), lost, time.Millisecond)
			require.Eventually(t, count(func(s net.Stats) uint64 { return s.TxLinkDown - before.TxLinkDown }), lost, time.Millisecond)
			require.NoError(t, g.tr.Pause()) // all figures are out
			after := g.dev.Stats()
			require.NoError(t, g.tr.Resume())
			require.Equal(t, before.RxFrames, after.RxFrames)
			require.Equal(t, before.TxFrames, after.TxFrames)
			require.Zero(t, after.Announcements+after.Dropped()+after.HostErrors)
			_, _, err := unix.Recvfrom(w.far[0], make([]byte, 1), unix.MSG_DONTWAIT)
			require.ErrorIs(t, err, unix.EAGAIN, "a frame passed")

			g.dev.SetLink(true)
			in := packet(ownMAC, 99, 100)
			w.give(t, 0, in)
			require.Equal(t, expect(in, 1), g.receive(0), "the first to pass")
			g.transmit(0, in)
			require.Equal(t, in, w.await(t, 0))
			g.wait(1)
		}
	})
}

// TestPulledCableFreesTheDriver: frames that wait for the host's room are dropped
// when the cable is pulled, so that the driver has its buffers back.
func TestPulledCableFreesTheDriver(t *testing.T) {
	w := newWire(t, 1)
	w.fault.Store(int64(unix.EAGAIN))
	g := boot(t, setup{config: net.Config{Backend: w}})
	// Never room: the poll of a full socket, whose reader reads nothing.
	for unix.Sendto(w.near[0], make([]byte, 4096), 0, nil) == nil {
	}
	g.transmit(0, packet(ownMAC, 1, 100))
	require.Eventually(t, func() bool { return g.dev.Stats().TxWaits > 0 }, lost, time.Millisecond)
	g.dev.SetLink(false)
	g.wait(1)
	require.Eventually(t, func() bool { return g.dev.Stats().TxLinkDown == 1 }, lost, time.Millisecond)
}

func TestBadSetUp(t *testing.T) {
	w := newWire(t, 2)
	for want, c := range map[string]net.Config{
		"no backend":          {MAC: ownMAC},
		"is no address of a":  {Backend: w, MAC: net.MAC{1}},
		"not all zero":        {Backend: w},
		"an MTU of 67 bytes":  {Backend: w, MAC: ownMAC, MTU: 67},
		"65 queue pairs; use": {Backend: w, MAC: ownMAC, Pairs: 65},
		"over a backend of 2": {Backend: w, MAC: ownMAC, Pairs: 3},
		"queues of size 8":    {Backend: w, MAC: ownMAC, QueueSize: 8},
		"queues of size 24":   {Backend: w, MAC: ownMAC, QueueSize: 24},
	} {
		_, err := net.New(c)
		require.ErrorContains(t, err, want)
	}
}
