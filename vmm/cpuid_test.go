package vmm

import (
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/kvm"
)

// find gives the subleaf of a list, nil where there is none.
func find(list []kvm.CPUIDEntry, leaf, index uint32) *kvm.CPUIDEntry {
	for i := range list {
		if list[i].Function == leaf && list[i].Index == index {
			return &list[i]
		}
	}
	return nil
}

func TestTopology(t *testing.T) {
	// As KVM lists it: subleaf 0 alone, empty.
	base := []kvm.CPUIDEntry{
		{Function: leafFeatures, EBX: 0x00800, ECX: ecxHypervisor},
		{Function: leafTopology, Flags: kvm.CPUIDFlagSignificantIndex},
		{Function: leafAMDSizes},
	}
	for _, tc := range []struct{ cpus, id, shift int }{{1, 0, 0}, {2, 1, 1}, {4, 3, 2}, {6, 5, 3}} {
		got := vcpuCPUID(base, tc.id, tc.cpus)
		require.EqualValues(t, tc.id, find(got, leafFeatures, 0).EBX>>24)
		require.EqualValues(t, tc.cpus, find(got, leafFeatures, 0).EBX>>16&0xff)
		require.Equal(t, tc.cpus > 1, find(got, leafFeatures, 0).EDX&edxHTT != 0)
		smt, core, end := find(got, leafTopology, 0), find(got, leafTopology, 1), find(got, leafTopology, 2)
		require.EqualValues(t, 1, smt.EBX)
		require.EqualValues(t, topologySMT, smt.ECX)
		require.EqualValues(t, tc.shift, core.EAX)
		require.EqualValues(t, tc.cpus, core.EBX)
		require.EqualValues(t, topologyCore|1, core.ECX)
		require.EqualValues(t, tc.id, core.EDX)
		require.Zero(t, end.EBX)
		require.Nil(t, find(got, leafTopologyV2, 0), "the host has none")
	}
	require.Len(t, base, 3, "base is shared by all vCPUs and stays as it was")
}

func TestMissingFeatures(t *testing.T) {
	have := []kvm.CPUIDEntry{{Function: leafFeatures, ECX: 1<<28 | ecxOSXSAVE}, {Function: leafExtFeatures, EBX: 1 << 5}}
	want := []kvm.CPUIDEntry{{Function: leafFeatures, ECX: 1<<28 | 1<<23 | ecxHypervisor}, {Function: leafExtFeatures, EBX: 1<<5 | 1<<16, EDX: 1 << 2}}
	require.Empty(t, missingFeatures(have, have))
	require.Empty(t, missingFeatures(have, want))
	require.Equal(t, []string{"popcnt", "avx512f", "cpuid 7.edx.2"}, missingFeatures(want, have))
}

func TestBaseCPUID(t *testing.T) {
	sys, err := kvm.Open()
	require.NoError(t, err)
	defer sys.Close()
	base, err := baseCPUID(sys)
	require.NoError(t, err)
	require.NotZero(t, find(base, leafFeatures, 0).ECX&ecxHypervisor)
	require.Zero(t, find(base, leafFeatures, 0).ECX&ecxVMX, "nested state is not saved")
	require.Empty(t, missingFeatures(base, base))
}
