package vmm

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"godwit/devices/state"
	"godwit/migration"
	"godwit/tap"
	"godwit/tap/taptest"
)

func networkConfig(args, tap string) Config {
	c := metronomeConfig(args)
	c.Networks = []NetworkInterface{{HostDevName: tap, Bridge: "br", GuestMAC: "02:00:00:00:00:07"}}
	return c
}

// hear waits for a frame of the guest's at a packet socket.
func hear(t *testing.T, fd int) {
	t.Helper()
	b := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		require.NoError(t, err, "nothing was heard")
		if n >= 14 && b[6] == 2 && b[11] == 7 {
			return
		}
	}
}

// TestNetworkFollows moves a guest that sends without a pause: its frames come
// out of the bridge at once from the source's tap and then from the
// destination's, which says where the guest is.
func TestNetworkFollows(t *testing.T) {
	enter := taptest.Namespace(t)
	taptest.Bridge(t, "br")
	taptest.Veth(t, "br", "port", "peer")
	m, out := start(t, networkConfig("io=net,tx,64 beat=50", "vm0"))
	lastBeat(t, out, 2)
	hear(t, taptest.PacketsOf(t, "peer", loadType))
	announced := taptest.PacketsOf(t, "peer", unix.ETH_P_RARP)

	for i := range 3 {
		name := []string{"vm1", "vm0"}[i%2]
		in := Incoming{Options: Options{Serial: out}, Networks: map[string]HostNetwork{"net0": {Tap: name, Bridge: "br"}}}
		arrived := moveInto(t, m, in, enter)
		require.NoError(t, m.Close())
		m = arrived
		hear(t, announced)
		hear(t, taptest.PacketsOf(t, "peer", loadType))
		require.Zero(t, lastBeat(t, out, 2).Bad)
		info, err := m.Info()
		require.NoError(t, err)
		require.Equal(t, name, info.Networks[0].Tap)
		require.Equal(t, "02:00:00:00:00:07", info.Networks[0].MAC)
		require.NotZero(t, info.Networks[0].Stats.TxFrames)
		require.NotZero(t, info.Networks[0].Stats.Announcements)
		require.Zero(t, info.Networks[0].Stats.Dropped(), "%+v", info.Networks[0].Stats)
	}
	taptest.Until(t, func() bool {
		info, err := m.Info()
		require.NoError(t, err)
		return int(info.Networks[0].Stats.Announcements) == 1+len(announceGaps)
	})
	require.NoError(t, m.Close())
	_, err := netlink.LinkByName("vm1")
	require.Error(t, err, "taps that were made are gone")
}

// loadType is the EtherType of metronome's frames.
const loadType = 0x88b5

// moveInto is move with a destination's settings, built inside a namespace.
func moveInto(t *testing.T, m *Machine, in Incoming, enter func(func())) *Machine {
	t.Helper()
	// A socket file: it is the same one from every network namespace.
	path := filepath.Join(t.TempDir(), "in.sock")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer l.Close()
	dial := func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	var arrived *Machine
	build := BuildTarget(in, func(m *Machine) { arrived = m })
	inside := func(ctx context.Context, o migration.Offer) (target migration.Target, err error) {
		enter(func() { target, err = build(ctx, o) })
		return target, err
	}
	done := make(chan error, 1)
	go func() {
		_, _, err := migration.Receive(context.Background(), migration.AcceptFrom(l), inside, migration.ReceiveOptions{Silence: time.Minute})
		done <- err
	}()
	_, err = migration.Send(context.Background(), m.Source(), dial, migration.SendOptions{Verify: true, Silence: time.Minute})
	require.NoError(t, err)
	require.NoError(t, <-done)
	t.Cleanup(func() { require.NoError(t, arrived.Close()) })
	m.MigratedTo()
	return arrived
}

func TestNetworksAreChecked(t *testing.T) {
	good := networkConfig("", "tap0")
	require.NoError(t, good.withDefaults().validate(false))
	for says, change := range map[string]func(*NetworkInterface){
		`network id "a b"`:     func(n *NetworkInterface) { n.ID = "a b" },
		"two networks":         func(n *NetworkInterface) { n.ID = "net0" },
		"an MTU of 67":         func(n *NetworkInterface) { n.MTU = 67 },
		"an MTU of 65522":      func(n *NetworkInterface) { n.MTU = 65522 },
		"17 queue pairs":       func(n *NetworkInterface) { n.QueuePairs = 17 },
		"no address of a card": func(n *NetworkInterface) { n.GuestMAC = "01:00:00:00:00:01" },
		`tap ""`:               func(n *NetworkInterface) { n.HostDevName = "" },
		`tap "../etc"`:         func(n *NetworkInterface) { n.HostDevName = "../etc" },
		`bridge "b r"`:         func(n *NetworkInterface) { n.Bridge = "b r" },
		"another card's":       func(n *NetworkInterface) { n.HostDevName = "tap0" },
	} {
		c := good
		c.Networks = append([]NetworkInterface(nil), good.Networks...)
		n := NetworkInterface{HostDevName: "tap1"}
		change(&n)
		c.Networks = append(c.Networks, n)
		err := c.withDefaults().validate(false)
		require.ErrorIs(t, err, ErrConfig, says)
		require.ErrorContains(t, err, says)
	}
	c := good
	c.Networks = make([]NetworkInterface, 9)
	require.ErrorContains(t, c.withDefaults().validate(false), "at most 8")
}

// TestMadeUpAddress: the same machine has the same address, another has another.
func TestMadeUpAddress(t *testing.T) {
	mac := func(id string, i int, tap string) string {
		n := NetworkInterface{HostDevName: tap}.withDefaults(id, i)
		_, err := n.mac()
		require.NoError(t, err)
		return n.GuestMAC
	}
	require.Equal(t, mac("a", 0, "t"), mac("a", 0, "t"))
	require.NotEqual(t, mac("a", 0, "t"), mac("b", 0, "t"))
	require.NotEqual(t, mac("a", 0, "t"), mac("a", 1, "t"))
	require.NotEqual(t, mac("a", 0, "t"), mac("a", 0, "u"))
}

// TestStrangersTap: what the source names is never opened.
func TestStrangersTap(t *testing.T) {
	list := []NetworkInterface{{ID: "lan", HostDevName: "eth0"}}
	_, err := Incoming{}.resolveNetworks(list)
	require.ErrorIs(t, err, ErrIncompatible)
	require.ErrorContains(t, err, "--net lan=TAP")
	_, err = Incoming{Networks: map[string]HostNetwork{"lan": {Tap: "t"}, "wan": {Tap: "u"}}}.resolveNetworks(list)
	require.ErrorContains(t, err, "--net wan=")
	got, err := Incoming{Networks: map[string]HostNetwork{"lan": {Tap: "t"}}}.resolveNetworks(list)
	require.NoError(t, err)
	require.Equal(t, "t", got["lan"].Tap)
}

// TestTapIsQuietWhileReleased: a bridge gives it nothing and knows nobody there;
// a source whose migration failed is heard again.
func TestTapIsQuietWhileReleased(t *testing.T) {
	taptest.Namespace(t)
	taptest.Bridge(t, "br")
	taptest.Veth(t, "br", "port", "peer")
	m, out := start(t, networkConfig("io=net,tx,64 beat=50", "vm0"))
	lastBeat(t, out, 2)
	port, err := netlink.LinkByName("vm0")
	require.NoError(t, err)
	known := func() (n int) {
		list, err := netlink.NeighList(port.Attrs().Index, unix.AF_BRIDGE)
		require.NoError(t, err)
		for _, e := range list {
			if e.HardwareAddr.String() == "02:00:00:00:00:07" {
				n++
			}
		}
		return n
	}
	state := func() netlink.LinkOperState {
		l, err := netlink.LinkByName("vm0")
		require.NoError(t, err)
		return l.Attrs().OperState
	}
	hear(t, taptest.PacketsOf(t, "peer", loadType))
	require.Equal(t, 1, known())
	require.NoError(t, m.Pause(context.Background()))
	require.NoError(t, m.Source().Release())
	require.Zero(t, known())
	taptest.Until(t, func() bool { return state() == netlink.OperDown })
	require.NoError(t, m.Source().Reclaim())
	require.NoError(t, m.Source().Reclaim(), "having it already is no error")
	require.NoError(t, m.dev.claim(), "nor for its parts")
	// However long it stays paused, the announcements are still to come.
	for _, p := range m.dev.parts {
		if n, ok := p.(*nic); ok {
			n.done.Wait()
		}
	}
	announced := taptest.PacketsOf(t, "peer", unix.ETH_P_RARP)
	require.NoError(t, m.Resume())
	taptest.Until(t, func() bool { return state() == netlink.OperUp })
	hear(t, announced)
	hear(t, taptest.PacketsOf(t, "peer", loadType))
}

// TestTapRemovedByItsOperator: a guest whose tap is gone can still leave, and goes
// on where it is when that fails.
func TestTapRemovedByItsOperator(t *testing.T) {
	taptest.Namespace(t)
	taptest.Bridge(t, "br")
	spec := NetworkInterface{HostDevName: "vm0", Bridge: "br", GuestMAC: "02:00:00:00:00:07"}.withDefaults("m", 0)
	n, err := newNIC(spec, assembly{})
	require.NoError(t, err)
	port, err := netlink.LinkByName("vm0")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkDel(port))
	require.NoError(t, n.release())
	require.NoError(t, n.claim())
	require.NoError(t, n.close())
}

// TestFramesForAGuestOnItsWay: what the destination's tap got while the source's
// still did is thrown away, and what it gets from then on is kept.
func TestFramesForAGuestOnItsWay(t *testing.T) {
	taptest.Namespace(t)
	taptest.Bridge(t, "br")
	taptest.Veth(t, "br", "port", "peer")
	spec := NetworkInterface{GuestMAC: "02:00:00:00:00:07"}.withDefaults("m", 0)
	p, err := newNIC(spec, assembly{incoming: true, networks: map[string]HostNetwork{"net0": {Tap: "vm1", Bridge: "br"}}})
	require.NoError(t, err)
	n := p.(*nic)
	defer n.close()
	peer := taptest.Packets(t, "peer")
	taptest.OneProcessor(t)
	send := func(mark byte) {
		f := make([]byte, 60)
		copy(f, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 9, 9, 9, 9, 9, loadType >> 8, loadType & 0xff, mark})
		_, err := unix.Write(peer, f)
		require.NoError(t, err)
	}
	b := make([]byte, 1<<16)
	came := func() bool {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(n.tap.Fd(0)), Events: unix.POLLIN}}, 10)
		return err == nil && ready == 1
	}
	// The port comes up in its own time. What was sent until then is here, or never
	// comes, when what was sent after it has come.
	taptest.Until(t, func() bool { send(100); return came() })
	send(101)
	taptest.Until(t, func() bool {
		_, err := n.tap.Readv(0, [][]byte{b})
		return err == nil && b[tap.HeaderSize+14] == 101
	})
	send(1)
	taptest.Until(t, came)
	n.expect()
	_, err = n.tap.Readv(0, [][]byte{b})
	require.ErrorIs(t, err, unix.EAGAIN)
	send(2)
	taptest.Until(t, came)
	var e state.Encoder
	require.NoError(t, n.dev.Save(&e))
	require.NoError(t, n.dev.Restore(n.dev.StateVersion(), state.NewDecoder(e.Data())))
	_, err = n.tap.Readv(0, [][]byte{b})
	require.NoError(t, err)
	require.EqualValues(t, 2, b[tap.HeaderSize+14])
}
