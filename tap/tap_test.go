package tap

import (
	"bytes"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"godwit/tap/taptest"
)

var (
	guestMAC  = net.HardwareAddr{0x02, 0, 0, 0, 0, 1}
	peerMAC   = net.HardwareAddr{0x02, 0, 0, 0, 0, 2}
	broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

// frame is an Ethernet frame of n bytes of an experimental type.
func frame(dst, src net.HardwareAddr, n int) []byte {
	f := append(append(append([]byte{}, dst...), src...), 0x88, 0xb5)
	return append(f, bytes.Repeat([]byte{0xa5}, n-len(f))...)
}

func open(t *testing.T, o Options) *Interface {
	t.Helper()
	i, err := Open(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, i.Close()) })
	return i
}

func send(t *testing.T, i *Interface, q int, f []byte) {
	t.Helper()
	n, err := i.Writev(q, [][]byte{make([]byte, 5), nil, make([]byte, HeaderSize-5), f})
	require.NoError(t, err)
	require.Equal(t, HeaderSize+len(f), n)
}

// receive waits for the next frame of our type at a queue.
func receive(t *testing.T, i *Interface, q int) []byte {
	t.Helper()
	for {
		set := []unix.PollFd{{Fd: int32(i.Fd(q)), Events: unix.POLLIN}}
		n, err := unix.Poll(set, 60_000)
		if err == unix.EINTR {
			continue
		}
		require.NoError(t, err)
		require.Equal(t, 1, n, "no packet came")
		head, body := make([]byte, HeaderSize), make([]byte, 65536)
		n, err = i.Readv(q, [][]byte{head, body[:9], body[9:]})
		require.NoError(t, err)
		if f := body[:n-HeaderSize]; ours(f) {
			return f
		}
	}
}

func ours(f []byte) bool { return len(f) > 14 && f[12] == 0x88 && f[13] == 0xb5 }

// hear waits for a frame of our type at a packet socket.
func hear(t *testing.T, fd int) []byte {
	t.Helper()
	for {
		b := make([]byte, 65536)
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err == unix.EINTR { // the runtime's signals; a socket with a time limit is not restarted (signal(7))
			continue
		}
		require.NoError(t, err, "no packet came")
		if ours(b[:n]) {
			return b[:n]
		}
	}
}

// TestThroughABridge makes a tap, moves frames both ways, and finds it gone after
// Close.
func TestThroughABridge(t *testing.T) {
	taptest.Namespace(t)
	taptest.Bridge(t, "br")
	taptest.Veth(t, "br", "port", "peer")
	peer := taptest.Packets(t, "peer")
	i, err := Open(Options{Name: "guest0", Bridge: "br", MTU: 1400})
	require.NoError(t, err)
	require.True(t, i.Made())
	require.Equal(t, 1400, i.MTU())
	require.Equal(t, uint(usual), i.Offloads()&usual)

	out := frame(peerMAC, guestMAC, 100)
	send(t, i, 0, out)
	require.Equal(t, out, hear(t, peer))
	in := frame(guestMAC, peerMAC, 1414)
	require.NoError(t, unix.Sendto(peer, in, 0, nil))
	require.Equal(t, in, receive(t, i, 0))
	_, err = i.Readv(0, [][]byte{make([]byte, 2000)})
	require.Equal(t, unix.EAGAIN, err)

	require.NoError(t, i.Forget(guestMAC))
	require.NoError(t, i.Forget(guestMAC), "twice")
	require.NoError(t, i.Close())
	require.NoError(t, i.Close())
	_, err = netlink.LinkByName("guest0")
	require.ErrorAs(t, err, &netlink.LinkNotFoundError{})
}

// TestCarrier: a bridge hears of a pulled cable, and packets come again after.
func TestCarrier(t *testing.T) {
	taptest.Namespace(t)
	taptest.Bridge(t, "br")
	taptest.Veth(t, "br", "port", "peer")
	peer := taptest.Packets(t, "peer")
	i := open(t, Options{Name: "guest0", Bridge: "br"})
	state := func() netlink.LinkOperState {
		l, err := netlink.LinkByName("guest0")
		require.NoError(t, err)
		return l.Attrs().OperState
	}
	require.NoError(t, i.SetCarrier(false))
	taptest.Until(t, func() bool { return state() == netlink.OperDown })
	require.NoError(t, unix.Sendto(peer, frame(broadcast, peerMAC, 60), 0, nil))
	require.NoError(t, i.SetCarrier(true))
	taptest.Until(t, func() bool { return state() == netlink.OperUp })
	require.NoError(t, unix.Sendto(peer, frame(broadcast, peerMAC, 61), 0, nil))
	require.Len(t, receive(t, i, 0), 61)
}

// TestQueues: packets go only to queues in use.
func TestQueues(t *testing.T) {
	taptest.Namespace(t)
	taptest.Bridge(t, "br")
	taptest.Veth(t, "br", "port", "peer")
	peer := taptest.Packets(t, "peer")
	i := open(t, Options{Name: "guest0", Bridge: "br", Queues: 3})
	require.Equal(t, 3, i.Queues())
	for range 2 {
		for n := 60; n < 80; n++ {
			require.NoError(t, unix.Sendto(peer, frame(guestMAC, peerMAC, n), 0, nil))
			require.Len(t, receive(t, i, 0), n)
		}
		_, err := i.Readv(2, [][]byte{make([]byte, 2000)})
		require.Equal(t, unix.EAGAIN, err)
		require.NoError(t, i.SetQueues(3))
		send(t, i, 2, frame(peerMAC, guestMAC, 99))
		require.Len(t, hear(t, peer), 99)
		for q := range 3 {
			_, err := i.Readv(q, [][]byte{make([]byte, 2000)})
			require.Equal(t, unix.EAGAIN, err)
		}
		require.NoError(t, i.SetQueues(1))
	}
	require.Error(t, i.SetQueues(0))
	require.Error(t, i.SetQueues(4))
}

func TestPurge(t *testing.T) {
	taptest.Namespace(t)
	taptest.Bridge(t, "br")
	taptest.Veth(t, "br", "port", "peer")
	peer := taptest.Packets(t, "peer")
	i := open(t, Options{Name: "guest0", Bridge: "br"})
	arrived := taptest.Packets(t, "guest0")
	taptest.OneProcessor(t)
	send := func(n int) {
		require.NoError(t, unix.Sendto(peer, frame(guestMAC, peerMAC, n), 0, nil))
	}
	ready := func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(i.Fd(0)), Events: unix.POLLIN}}, 10)
		return err == nil && n == 1
	}
	taptest.Until(t, func() bool { send(60); return ready() }) // the port comes up in its own time
	for n := range 50 {
		send(1000 + n)
		for len(hear(t, arrived)) != 1000+n {
		}
	}
	require.True(t, ready())
	i.Purge()
	send(77)
	require.Len(t, receive(t, i, 0), 77)
}

// TestExisting: an interface that was made before is used as it is, and stays.
func TestExisting(t *testing.T) {
	taptest.Namespace(t)
	taptest.Bridge(t, "br")
	for name, flags := range map[string]netlink.TuntapFlag{
		"one":  netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR | netlink.TUNTAP_ONE_QUEUE,
		"many": netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR | netlink.TUNTAP_MULTI_QUEUE,
	} {
		require.NoError(t, netlink.LinkAdd(&netlink.Tuntap{
			LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1300}, Mode: netlink.TUNTAP_MODE_TAP, Flags: flags,
		}))
		l, err := netlink.LinkByName(name)
		require.NoError(t, err)
		require.NoError(t, netlink.LinkSetMTU(l, 1300))
		for range 2 {
			i, err := Open(Options{Name: name, Bridge: "br"})
			require.NoError(t, err)
			require.False(t, i.Made())
			require.Equal(t, 1300, i.MTU())
			_, err = Open(Options{Name: name})
			require.ErrorIs(t, err, ErrInUse)
			require.NoError(t, i.Close())
			l, err := netlink.LinkByName(name)
			require.NoError(t, err)
			require.Zero(t, l.Attrs().MasterIndex, "out of the bridge again")
		}
		_, err = Open(Options{Name: name, MTU: 1500})
		require.ErrorContains(t, err, "its MTU is 1300, not 1500")
	}
	_, err := Open(Options{Name: "one", Queues: 2})
	require.ErrorContains(t, err, "it has one queue, not 2")
	i := open(t, Options{Name: "many", Queues: 2})
	require.NoError(t, i.SetQueues(2))
}

func TestRefused(t *testing.T) {
	taptest.Namespace(t)
	taptest.Bridge(t, "br")
	taptest.Veth(t, "br", "port", "peer")
	require.NoError(t, netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN}))
	for want, o := range map[string]Options{
		"1 to 15 bytes":             {Name: "sixteen-bytes-00"},
		"use 1 to 64":               {Name: "guest0", Queues: 65},
		"type bridge, not a tap":    {Name: "br"},
		"it is a tun":               {Name: "tun0"},
		"make it with `ip link add": {Name: "guest0", Bridge: "nosuch"},
		"type veth, not a bridge":   {Name: "guest0", Bridge: "peer"},
		"set MTU 7":                 {Name: "guest0", MTU: 7},
		"open tap \"\": a name has": {},
	} {
		_, err := Open(o)
		require.ErrorContains(t, err, want)
		_, err = netlink.LinkByName("guest0")
		require.Error(t, err, "nothing is left behind")
	}
}

// TestWithoutRights: without rights, and with one's own tap only.
func TestWithoutRights(t *testing.T) {
	taptest.Namespace(t)
	for name, owner := range map[string]uint32{"mine": 0, "theirs": 1} {
		require.NoError(t, netlink.LinkAdd(&netlink.Tuntap{
			LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP, Owner: owner, Flags: netlink.TUNTAP_DEFAULTS,
		}))
		l, err := netlink.LinkByName(name)
		require.NoError(t, err)
		require.NoError(t, netlink.LinkSetUp(l))
	}
	taptest.Bridge(t, "br")
	taptest.DropRights(t)
	i, err := Open(Options{Name: "mine"})
	require.NoError(t, err)
	send(t, i, 0, frame(peerMAC, guestMAC, 60))
	require.NoError(t, i.SetCarrier(false))
	require.NoError(t, i.SetCarrier(true))
	require.NoError(t, i.Forget(guestMAC))
	require.NoError(t, i.Close())
	_, err = Open(Options{Name: "theirs"})
	require.ErrorContains(t, err, "belongs to another user")
	_, err = Open(Options{Name: "new"})
	require.ErrorContains(t, err, "making it takes CAP_NET_ADMIN")
	_, err = Open(Options{Name: "mine", Bridge: "br"})
	require.ErrorContains(t, err, "do it with `ip link set mine master br`")
}

// TestNothingIsAllocated per packet.
func TestNothingIsAllocated(t *testing.T) {
	taptest.Namespace(t)
	i := open(t, Options{Name: "guest0"})
	bufs := [][]byte{make([]byte, HeaderSize), frame(peerMAC, guestMAC, 60)}
	send := testing.AllocsPerRun(200, func() { _, _ = i.Writev(0, bufs) })
	i.Purge()
	read := testing.AllocsPerRun(200, func() { _, _ = i.Readv(0, bufs) })
	if !raceEnabled {
		require.Zero(t, send)
		require.Zero(t, read)
	}
}
