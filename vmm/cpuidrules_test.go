package vmm

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"godwit/kvm"
)

func TestNormalCPUID(t *testing.T) {
	const indexed = kvm.CPUIDFlagSignificantIndex
	for name, c := range map[string]struct {
		entries []kvm.CPUIDEntry
		says    string
	}{
		"sorted":                {[]kvm.CPUIDEntry{{Function: 7, Index: 1, Flags: indexed}, {Function: 1}, {Function: 7, Flags: indexed}}, ""},
		"one in front":          {[]kvm.CPUIDEntry{{Function: 7, EBX: 1 << 16}, {Function: 7, Flags: indexed}}, "0x7.0 with flags 0, must be 1"},
		"twice":                 {[]kvm.CPUIDEntry{{Function: 1}, {Function: 1, ECX: 1}}, "0x1.0 comes twice"},
		"a subleaf twice":       {[]kvm.CPUIDEntry{{Function: 7, Index: 1, Flags: indexed}, {Function: 7, Index: 1, Flags: indexed}}, "0x7.1 comes twice"},
		"an index for nothing":  {[]kvm.CPUIDEntry{{Function: 1, Index: 5}}, "0x1.5"},
		"a flag for nothing":    {[]kvm.CPUIDEntry{{Function: 1, Flags: indexed}}, "must be 0"},
		"a flag nobody knows":   {[]kvm.CPUIDEntry{{Function: 7, Flags: indexed | 2}}, "flags 3"},
		"a hidden entry behind": {[]kvm.CPUIDEntry{{Function: 1}, {Function: 1, Index: 1}}, "0x1.1"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := normalCPUID(c.entries)
			if c.says != "" {
				require.ErrorIs(t, err, ErrConfig)
				require.ErrorContains(t, err, c.says)
				return
			}
			require.NoError(t, err)
			require.IsIncreasing(t, []uint32{got[0].Function, got[1].Function})
			require.Less(t, got[1].Index, got[2].Index)
		})
	}
}

func TestEveryRule(t *testing.T) {
	for _, c := range []struct {
		r           rule
		asked, host uint32
		ok          bool
	}{
		{ruleBits, 0b101, 0b111, true}, {ruleBits, 0b101, 0b100, false},
		{ruleMost, 5, 5, true}, {ruleMost, 6, 5, false},
		{ruleBytes, 0x01020304, 0x01020304, true}, {ruleBytes, 0x0100, 0xff, false}, {ruleBytes, 0x00ff, 0x0100, false}, {ruleBytes, 0x2000000, 0x1ffffff, false},
		{ruleSame, 7, 7, true}, {ruleSame, 0, 7, true}, {ruleSame, 6, 7, false},
		{ruleFree, 9, 0, true},
	} {
		require.Equal(t, c.ok, c.r.lack("k", c.asked, c.host) == nil, "%+v", c)
	}
	// What nobody knows is not taken.
	require.Equal(t, []string{"cpuid 40000003.eax.4"}, missingFeatures([]kvm.CPUIDEntry{{Function: 0x40000003, EAX: 1 << 4}}, nil))
	// Hyper-V's interface is another signature where KVM's is.
	require.NotEmpty(t, missingFeatures([]kvm.CPUIDEntry{{Function: leafKVM, EBX: 0x7263694d}}, []kvm.CPUIDEntry{{Function: leafKVM, EAX: leafKVMFeatures, EBX: 0x4b4d564b}}))
}

// Whatever list a peer sends: what the filter lets through, KVM reads as the filter
// did, and every bit of it is the host's.
func TestNothingPassesTheFilterUnseen(t *testing.T) {
	leaves := []uint32{0, 1, 4, 7, 0xd, 0x14, leafKVM, leafKVMFeatures, leafAMDFeatures, leafAMDSizes, 0x80000021}
	entry := rapid.Custom(func(rt *rapid.T) kvm.CPUIDEntry {
		word := rapid.Uint32Range(0, 3)
		return kvm.CPUIDEntry{Function: rapid.SampledFrom(leaves).Draw(rt, "leaf"), Index: rapid.Uint32Range(0, 2).Draw(rt, "index"),
			Flags: rapid.SampledFrom([]uint32{0, 1, 1, 3}).Draw(rt, "flags"),
			EAX:   word.Draw(rt, "eax"), EBX: word.Draw(rt, "ebx"), ECX: word.Draw(rt, "ecx"), EDX: word.Draw(rt, "edx")}
	})
	rapid.Check(t, func(rt *rapid.T) {
		have := ownCPUID(rapid.SliceOf(entry).Draw(rt, "have"))
		want, err := normalCPUID(rapid.SliceOfN(entry, 0, 6).Draw(rt, "want"))
		if err != nil || len(missingFeatures(want, have)) > 0 {
			return
		}
		given := vcpuCPUID(want, 1, 2)
		for _, leaf := range leaves {
			if leaf == leafFeatures || leaf == leafCaches || leaf == leafAMDSizes {
				continue // in part ours
			}
			for index := range uint32(3) {
				read, host, r := registers(lookUp(given, leaf, index)), registers(lookUp(have, leaf, index)), ruleOf(leaf, index)
				for i := range read {
					require.Nil(rt, r.rules[i].lack("k", read[i]&^r.ignore[i], host[i]), "leaf %#x.%d register %d: %#x, host %#x", leaf, index, i, read[i], host[i])
				}
			}
		}
	})
}

// KVM gives back what it was given, on this host.
func TestKVMTakesItsOwnTable(t *testing.T) {
	sys, err := kvm.Open()
	require.NoError(t, err)
	defer sys.Close()
	base, err := baseCPUID(sys)
	require.NoError(t, err)
	same, err := normalCPUID(base)
	require.NoError(t, err)
	require.Equal(t, base, same)
	taken := append([]kvm.CPUIDEntry(nil), base...)
	require.NoError(t, checkTaken(taken, base))
	for i := range taken {
		if taken[i].Function == leafExtFeatures && taken[i].Index == 0 {
			taken[i].EDX = ^uint32(0)
		}
	}
	require.ErrorIs(t, checkTaken(taken, base), ErrIncompatible)
}
