package vmm

import (
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/kvm"
)

func TestSameTSCRate(t *testing.T) {
	for name, c := range map[string]struct {
		want, have uint32
		same       bool
	}{
		"equal":               {2_000_000, 2_000_000, true},
		"at the bound":        {2_000_000, 2_000_500, true},
		"at the bound below":  {2_000_000, 1_999_500, true},
		"above the bound":     {2_000_000, 2_000_501, false},
		"below the bound":     {2_000_000, 1_999_499, false},
		"three times":         {2_000_000, 6_000_000, false},
		"highest against low": {1<<32 - 1, 1, false},
		"low against highest": {1, 1<<32 - 1, false},
		"none":                {0, 2_000_000, false},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.same, sameTSCRate(c.want, c.have)) })
	}
}

// A machine whose TSC this host can neither match nor scale to is refused, a faster
// one, too, that KVM takes in silence. Where KVM scales, every vCPU has the rate.
func TestForeignTSCRate(t *testing.T) {
	m, err := New(Config{ID: "vm", Machine: MachineConfig{MemSizeMiB: 64, VCPUCount: 2}, BootSource: BootSource{Guest: GuestMetronome}}, Options{})
	require.NoError(t, err)
	defer m.Close()
	host := m.tscKHz
	scales, err := m.sys.CheckExtension(kvm.CapTSCControl)
	require.NoError(t, err)
	for name, khz := range map[string]uint32{
		"the host's":   host,
		"nearly":       host + host/8000,
		"a bit faster": host + host/1000,
		"faster":       host + host/10,
		"three times":  3 * host,
		"slower":       host - host/10,
	} {
		t.Run(name, func(t *testing.T) {
			m.tscKHz = host
			err := m.setTSCKHz(khz)
			if !sameTSCRate(khz, host) && scales == 0 {
				require.ErrorIs(t, err, ErrIncompatible)
				require.Equal(t, host, m.tscKHz)
				return
			}
			require.NoError(t, err)
			for _, v := range m.vcpus {
				got, err := v.fd.TSCKHz()
				require.NoError(t, err)
				require.True(t, sameTSCRate(khz, got))
			}
		})
	}
}
