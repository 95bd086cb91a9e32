package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/vmm"
)

func TestParseNetwork(t *testing.T) {
	for s, want := range map[string]vmm.NetworkInterface{
		"tap=t0": {HostDevName: "t0"},
		"tap=t0,mac=02:00:00:00:00:01,bridge=br0,queues=2,mtu=9000,id=lan": {
			HostDevName: "t0", GuestMAC: "02:00:00:00:00:01", Bridge: "br0", QueuePairs: 2, MTU: 9000, ID: "lan",
		},
	} {
		got, err := parseNetwork(s)
		require.NoError(t, err, s)
		require.Equal(t, want, got)
	}
	for _, s := range []string{"", "tap=", "tap", "user", "mac=02:00:00:00:00:01", "tap=t0,queues=", "tap=t0,queues=x", "tap=t0,mtu=0", "tap=t0,colour=red"} {
		_, err := parseNetwork(s)
		require.Error(t, err, s)
	}
}

func TestNetworkMap(t *testing.T) {
	v := networkMapValue{}
	require.NoError(t, v.Set("net0=t1"))
	require.NoError(t, v.Set("net1=t2,bridge=br0"))
	require.Equal(t, networkMapValue{"net0": {Tap: "t1"}, "net1": {Tap: "t2", Bridge: "br0"}}, v)
	for _, s := range []string{"", "net2", "net2=", "=t1", "net0=t3", "net2=t3,", "net2=t3,bridge=", "net2=t3,mac=x", "net2=t3,bridge=a,b"} {
		require.Error(t, v.Set(s), s)
	}
}

// TestReceiverNames: after a reset a machine that came has its taps of here.
func TestReceiverNamesTaps(t *testing.T) {
	r := receiver{networks: networkMapValue{"lan": {Tap: "here0", Bridge: "br1"}}}
	its := vmm.Config{Networks: []vmm.NetworkInterface{{ID: "lan", HostDevName: "there0", Bridge: "br0", MTU: 1400}}}
	got, err := r.here(its)
	require.NoError(t, err)
	require.Equal(t, []vmm.NetworkInterface{{ID: "lan", HostDevName: "here0", Bridge: "br1", MTU: 1400}}, got.Networks)
	require.Equal(t, "there0", its.Networks[0].HostDevName, "the machine's is not changed")
	its.Networks = append(its.Networks, vmm.NetworkInterface{ID: "wan"})
	_, err = r.here(its)
	require.ErrorContains(t, err, "--net wan=TAP")
}

func FuzzParseNetwork(f *testing.F) {
	f.Add("tap=t0,mac=02:00:00:00:00:01,bridge=br0,queues=2,mtu=9000,id=lan")
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseNetwork(s); err == nil && (n.HostDevName == "" || n.QueuePairs < 0 || n.MTU < 0) {
			t.Errorf("%q gave %+v", s, n)
		}
		_ = networkMapValue{}.Set(s)
	})
}
