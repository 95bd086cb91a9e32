// Package taptest gives tests a network of their own.
package taptest

import (
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Namespace puts the test into an empty network namespace with the loopback up,
// which is gone after it. The test keeps its thread: goroutines and subtests that
// it starts are outside, but for what they do in enter; they may use what was
// opened inside. It takes root.
func Namespace(t testing.TB) (enter func(do func())) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET), "tests with taps run as root")
	for _, dir := range []string{"all", "default"} {
		// Interfaces that come up would say so to each other.
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+dir+"/disable_ipv6", []byte("1"), 0)
	}
	up(t, "lo")
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return func(do func()) {
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked, likewise
			err := unix.Setns(fd, unix.CLONE_NEWNET)
			if err == nil {
				do()
			}
			done <- err
		}()
		require.NoError(t, <-done)
	}
}

func up(t testing.TB, name string) {
	l, err := netlink.LinkByName(name)
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetUp(l))
}

// Bridge makes a bridge that is up and does not snoop multicast.
func Bridge(t testing.TB, name string) {
	t.Helper()
	off := false
	require.NoError(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}, MulticastSnooping: &off}))
	up(t, name)
}

// Veth makes a pair of interfaces, both up, whose first end is in the bridge. It
// returns when the bridge has seen the carrier, which the kernel tells later.
func Veth(t testing.TB, bridge, name, peer string) {
	t.Helper()
	b, err := netlink.LinkByName(bridge)
	require.NoError(t, err)
	require.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: b.Attrs().Index}, PeerName: peer}))
	up(t, name)
	up(t, peer)
	Until(t, func() bool {
		l, err := netlink.LinkByName(name)
		require.NoError(t, err)
		return l.Attrs().OperState == netlink.OperUp
	})
}

// Packets opens a raw socket that sees every frame of an interface, and sends.
func Packets(t testing.TB, name string) int { return PacketsOf(t, name, unix.ETH_P_ALL) }

// PacketsOf sees frames of one EtherType only.
func PacketsOf(t testing.TB, name string, kind uint16) int {
	t.Helper()
	l, err := netlink.LinkByName(name)
	require.NoError(t, err)
	kind = kind>>8 | kind<<8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	require.NoError(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: kind, Ifindex: l.Attrs().Index}))
	require.NoError(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 60}))
	return fd
}

// OneProcessor keeps the test on one processor. The kernel carries a frame from
// device to device on the processor that sent it, so frames arrive in order, and
// whoever has seen one on its way finds it arrived.
func OneProcessor(t testing.TB) {
	t.Helper()
	var set unix.CPUSet
	require.NoError(t, unix.SchedGetaffinity(0, &set))
	for cpu := 0; set.Count() > 1; cpu++ {
		set.Clear(cpu)
	}
	require.NoError(t, unix.SchedSetaffinity(0, &set))
}

// DropRights takes all capabilities from the test's thread. It stays the owner of
// root's files.
func DropRights(t testing.TB) {
	t.Helper()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	require.NoError(t, unix.Capset(&head, &none[0]))
}

// Until calls done on the test's own thread until it says so.
func Until(t testing.TB, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(end), "it never happened")
	}
}

// Carrier says whether an interface has carrier.
func Carrier(t testing.TB, name string) bool {
	t.Helper()
	l, err := netlink.LinkByName(name)
	require.NoError(t, err)
	return l.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
}
