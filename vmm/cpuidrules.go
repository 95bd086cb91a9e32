package vmm

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"godwit/kvm"
)

// A peer's CPUID table is judged in three steps. It is brought into the one form
// that KVM reads as we do, or refused; each register is held against what this
// host's KVM supports, by the rules below; and what KVM says it has taken is held
// against both once more.

// rule says what a register of a leaf may hold.
type rule uint8

const (
	ruleBits  rule = iota // each bit is a promise, and the host has it
	ruleMost              // a number, no larger than the host's
	ruleBytes             // four numbers of 8 bits, none larger than the host's
	ruleSame              // the host's, or 0
	ruleFree              // no promise: a name, a cache, or ours to set
)

// leafRule holds the rules for eax, ebx, ecx and edx of a leaf. Leaves without one
// have bits in all four: what is not known is not taken unless the host has it.
type leafRule struct {
	rules  [4]rule
	ignore [4]uint32 // bits that are no promise to the guest
}

var allFree = leafRule{rules: [4]rule{ruleFree, ruleFree, ruleFree, ruleFree}}

// anyIndex stands for all subleaves of a leaf that have no rule of their own.
const anyIndex = ^uint32(0)

// leafRules are by leaf and subleaf (Intel SDM 2A, CPUID; AMD APM 3, appendix E;
// kernel: Documentation/virt/kvm/x86/cpuid.rst).
var leafRules = map[[2]uint32]leafRule{
	{0x0, anyIndex}:             {rules: [4]rule{ruleMost, ruleSame, ruleSame, ruleSame}}, // highest leaf, vendor
	{leafFeatures, anyIndex}:    {rules: [4]rule{ruleFree, ruleFree}, ignore: [4]uint32{2: ecxOSXSAVE | ecxHypervisor, 3: edxHTT}},
	{0x2, anyIndex}:             allFree,
	{0x3, anyIndex}:             allFree,
	{leafCaches, anyIndex}:      allFree,
	{leafExtFeatures, 0}:        {rules: [4]rule{ruleMost}, ignore: [4]uint32{2: 1 << 4}}, // OSPKE mirrors CR4
	{0xa, anyIndex}:             {rules: [4]rule{ruleBytes, ruleFree, ruleBits, ruleSame}},
	{leafTopology, anyIndex}:    allFree,
	{leafXSave, 0}:              {rules: [4]rule{ruleBits, ruleFree, ruleMost, ruleBits}}, // ebx: of XCR0 now, kept by KVM
	{leafXSave, 1}:              {rules: [4]rule{ruleBits, ruleFree, ruleBits, ruleBits}},
	{leafXSave, anyIndex}:       {rules: [4]rule{ruleSame, ruleSame, ruleBits, ruleBits}}, // where a component lies
	{0x15, anyIndex}:            allFree,
	{0x16, anyIndex}:            allFree,
	{0x17, anyIndex}:            allFree,
	{0x18, anyIndex}:            allFree,
	{0x1d, anyIndex}:            {rules: [4]rule{ruleSame, ruleSame, ruleSame, ruleSame}},
	{0x1e, anyIndex}:            {rules: [4]rule{ruleSame, ruleSame, ruleSame, ruleSame}},
	{leafTopologyV2, anyIndex}:  allFree,
	{leafKVM, anyIndex}:         {rules: [4]rule{ruleMost, ruleSame, ruleSame, ruleSame}},
	{0x80000000, anyIndex}:      {rules: [4]rule{ruleMost, ruleSame, ruleSame, ruleSame}},
	{leafAMDFeatures, anyIndex}: {rules: [4]rule{ruleFree, ruleFree}},
	{0x80000002, anyIndex}:      allFree,
	{0x80000003, anyIndex}:      allFree,
	{0x80000004, anyIndex}:      allFree,
	{0x80000005, anyIndex}:      allFree,
	{0x80000006, anyIndex}:      allFree,
	{leafAMDSizes, anyIndex}:    {rules: [4]rule{ruleBytes, ruleBits, ruleFree, ruleSame}}, // address widths
	{0x80000019, anyIndex}:      allFree,
	{leafAMDCaches, anyIndex}:   allFree,
	{leafAMDTopology, anyIndex}: allFree,
	{0x80000022, anyIndex}:      {rules: [4]rule{ruleBits, ruleBytes}},
	{0xc0000000, anyIndex}:      {rules: [4]rule{ruleMost}},
}

func ruleOf(leaf, index uint32) leafRule {
	if r, ok := leafRules[[2]uint32{leaf, index}]; ok {
		return r
	}
	return leafRules[[2]uint32{leaf, anyIndex}] // or the zero rule: bits
}

// indexedLeaves have subleaves (kernel: cpuid_function_is_indexed).
var indexedLeaves = map[uint32]bool{0x4: true, 0x7: true, 0xb: true, 0xd: true, 0xf: true, 0x10: true, 0x12: true, 0x14: true,
	0x17: true, 0x18: true, 0x1d: true, 0x1e: true, 0x1f: true, 0x24: true, 0x8000001d: true}

func compareEntries(a, b kvm.CPUIDEntry) int {
	return cmp.Or(cmp.Compare(a.Function, b.Function), cmp.Compare(a.Index, b.Index))
}

// normalCPUID gives a peer's table in the one form in which every way of reading
// it finds the same: sorted, each subleaf once, and an index only where it counts.
// KVM takes the first entry of a leaf whose index does not count, so that one in
// front of another would hide it (kernel: cpuid_entry2_find).
func normalCPUID(entries []kvm.CPUIDEntry) ([]kvm.CPUIDEntry, error) {
	out := slices.Clone(entries)
	slices.SortStableFunc(out, compareEntries)
	for i, e := range out {
		want := uint32(0)
		if indexedLeaves[e.Function] {
			want = kvm.CPUIDFlagSignificantIndex
		}
		switch {
		case e.Flags != want || want == 0 && e.Index != 0:
			return nil, fmt.Errorf("%w: CPUID entry %#x.%d with flags %d, must be %d", ErrConfig, e.Function, e.Index, e.Flags, want)
		case i > 0 && compareEntries(out[i-1], e) == 0:
			return nil, fmt.Errorf("%w: CPUID entry %#x.%d comes twice", ErrConfig, e.Function, e.Index)
		}
	}
	return out, nil
}

// ownCPUID brings this host's table into that form. Old kernels mark leaf 2
// as one with a state, which new ones ignore; a leaf without an index has one
// entry, the first.
func ownCPUID(entries []kvm.CPUIDEntry) []kvm.CPUIDEntry {
	out := slices.Clone(entries)
	for i := range out {
		out[i].Flags = 0
		if indexedLeaves[out[i].Function] {
			out[i].Flags = kvm.CPUIDFlagSignificantIndex
		} else {
			out[i].Index = 0
		}
	}
	slices.SortStableFunc(out, compareEntries)
	return slices.CompactFunc(out, func(a, b kvm.CPUIDEntry) bool { return compareEntries(a, b) == 0 })
}

// lookUp finds what KVM gives a guest for a subleaf, as KVM does.
func lookUp(list []kvm.CPUIDEntry, leaf, index uint32) kvm.CPUIDEntry {
	for _, e := range list {
		if e.Function == leaf && (e.Flags&kvm.CPUIDFlagSignificantIndex == 0 || e.Index == index) {
			return e
		}
	}
	return kvm.CPUIDEntry{}
}

var registerNames = [4]string{"eax", "ebx", "ecx", "edx"}

func registers(e kvm.CPUIDEntry) [4]uint32 { return [4]uint32{e.EAX, e.EBX, e.ECX, e.EDX} }

// missingFeatures names what want promises the guest and have cannot give.
func missingFeatures(want, have []kvm.CPUIDEntry) []string {
	var missing []string
	for _, e := range want {
		asked, host, r := registers(e), registers(lookUp(have, e.Function, e.Index)), ruleOf(e.Function, e.Index)
		for i := range asked {
			missing = append(missing, r.rules[i].lack(featureKey(e, registerNames[i]), asked[i]&^r.ignore[i], host[i])...)
		}
	}
	return missing
}

// featureKey is a register of a subleaf in words.
func featureKey(e kvm.CPUIDEntry, register string) string {
	if e.Index == 0 {
		return fmt.Sprintf("%x.%s", e.Function, register)
	}
	return fmt.Sprintf("%x.%d.%s", e.Function, e.Index, register)
}

// lack names what the host's register lacks.
func (r rule) lack(key string, asked, host uint32) []string {
	switch r {
	case ruleFree:
		return nil
	case ruleBits:
		var out []string
		for lack := asked &^ host; lack != 0; lack &= lack - 1 {
			bit := fmt.Sprintf("%s.%d", key, bits.TrailingZeros32(lack))
			name, ok := featureNames[bit]
			if !ok {
				name = "cpuid " + bit
			}
			out = append(out, name)
		}
		return out
	case ruleMost:
		if asked <= host {
			return nil
		}
	case ruleBytes:
		if asked&0xff <= host&0xff && asked>>8&0xff <= host>>8&0xff && asked>>16&0xff <= host>>16&0xff && asked>>24 <= host>>24 {
			return nil
		}
	case ruleSame:
		if asked == 0 || asked == host {
			return nil
		}
	}
	return []string{fmt.Sprintf("cpuid %s of %#x, it has %#x", key, asked, host)}
}

// checkTaken holds what KVM made of a peer's table against what it made of ours.
func checkTaken(taken, own []kvm.CPUIDEntry) error {
	if missing := missingFeatures(taken, own); len(missing) > 0 {
		return fmt.Errorf("%w: KVM shows its vCPUs CPU features that those of this host's own machines lack: %s",
			ErrIncompatible, strings.Join(missing[:min(len(missing), maxMissing)], ", "))
	}
	return nil
}
