package vmm

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/tap/taptest"
	vnet "godwit/virtio/net"
)

// TestLinkMoves: a cable that was pulled at the source is not plugged in at the
// destination, nor is the guest announced there before it is; and a migration that
// failed does not plug it in either. A guest that goes on sending is not heard.
func TestLinkMoves(t *testing.T) {
	enter := taptest.Namespace(t)
	taptest.Bridge(t, "br")
	taptest.Veth(t, "br", "port", "peer")
	m, out := start(t, networkConfig("io=net,tx,64 beat=50", "vm0"))
	lastBeat(t, out, 2)
	up := func(m *Machine, name string) {
		t.Helper()
		info, err := m.Info()
		require.NoError(t, err)
		require.Equal(t, name, info.Networks[0].Tap)
		require.True(t, info.Networks[0].LinkUp)
		require.True(t, taptest.Carrier(t, name))
	}
	down := func(m *Machine, name string) {
		t.Helper()
		info, err := m.Info()
		require.NoError(t, err)
		require.Equal(t, name, info.Networks[0].Tap)
		require.False(t, info.Networks[0].LinkUp)
		require.False(t, taptest.Carrier(t, name))
	}
	up(m, "vm0")
	require.ErrorIs(t, m.SetLink("vm0", false), ErrNoNetwork)
	require.NoError(t, m.SetLink("net0", false))
	down(m, "vm0")
	silent := func(m *Machine) {
		t.Helper()
		stats := func() vnet.Stats {
			info, err := m.Info()
			require.NoError(t, err)
			return info.Networks[0].Stats
		}
		dropped := stats().TxLinkDown // what was in hand is counted with it
		taptest.Until(t, func() bool { return stats().TxLinkDown > dropped })
		first := stats()
		taptest.Until(t, func() bool { return stats().TxLinkDown > first.TxLinkDown+1000 })
		require.Equal(t, first.TxFrames, stats().TxFrames, "frames passed a pulled cable")
	}
	silent(m)

	s := m.Source()
	standStill(t, s)
	require.NoError(t, s.Release())
	require.NoError(t, s.Reclaim())
	require.NoError(t, s.Resume())
	down(m, "vm0")

	announced := taptest.PacketsOf(t, "peer", unix.ETH_P_RARP)
	in := Incoming{Options: Options{Serial: out}, Networks: map[string]HostNetwork{"net0": {Tap: "vm1", Bridge: "br"}}}
	arrived := moveInto(t, m, in, enter)
	require.NoError(t, m.Close())
	down(arrived, "vm1")
	silent(arrived)
	_, _, err := unix.Recvfrom(announced, make([]byte, 1), unix.MSG_DONTWAIT)
	require.ErrorIs(t, err, unix.EAGAIN, "the guest was announced with its cable pulled")
	// Plugged in while it stands still, it is announced when it runs.
	for _, paused := range []bool{false, true} {
		if paused {
			require.NoError(t, arrived.SetLink("net0", false))
			require.NoError(t, arrived.Pause(t.Context()))
			arrived.dev.parts[0].(*nic).hush()
			for err == nil {
				_, _, err = unix.Recvfrom(announced, make([]byte, 1), unix.MSG_DONTWAIT)
			}
		}
		require.NoError(t, arrived.SetLink("net0", true))
		if paused {
			require.NoError(t, arrived.Resume())
		}
		up(arrived, "vm1")
		hear(t, announced)
		err = nil
	}
	require.NoError(t, arrived.Close())
	require.ErrorIs(t, arrived.SetLink("net0", true), ErrState)
}
