package vmm

import (
	"math/bits"

	"godwit/kvm"
)

// CPUID leaves and bits that are ours to set (Intel SDM 2A, CPUID; AMD APM 3,
// appendix E).
const (
	leafFeatures    = 0x1
	leafCaches      = 0x4
	leafExtFeatures = 0x7
	leafTopology    = 0xb
	leafXSave       = 0xd
	leafTopologyV2  = 0x1f
	leafKVM         = 0x40000000
	leafKVMFeatures = 0x40000001
	leafAMDFeatures = 0x80000001
	leafAMDSizes    = 0x80000008
	leafAMDCaches   = 0x8000001d
	leafAMDTopology = 0x8000001e

	ecxTSCDeadline = 1 << 24 // leaf 1
	ecxVMX         = 1 << 5  // leaf 1
	ecxSVM         = 1 << 2  // leaf 0x80000001
	ecxHypervisor  = 1 << 31 // leaf 1
	ecxOSXSAVE     = 1 << 27 // leaf 1: a copy of CR4.OSXSAVE, kept by KVM
	edxHTT         = 1 << 28 // leaf 1

	topologySMT  = 1 << 8 // level types in ECX of leaf 0xb
	topologyCore = 2 << 8
)

// baseCPUID is what this host's KVM supports, plus what the in-kernel local
// APIC adds, less nested virtualization: its state is not saved, so a guest
// that used it could not move. It is the same for every vCPU and travels in
// CONFIG.
func baseCPUID(sys *kvm.System) ([]kvm.CPUIDEntry, error) {
	entries, err := sys.SupportedCPUID()
	if err != nil {
		return nil, err
	}
	deadline, err := sys.CheckExtension(kvm.CapTSCDeadlineTimer)
	if err != nil {
		return nil, err
	}
	for i := range entries {
		switch e := &entries[i]; e.Function {
		case leafFeatures:
			e.ECX |= ecxHypervisor
			e.ECX &^= ecxOSXSAVE | ecxVMX
			if deadline > 0 {
				e.ECX |= ecxTSCDeadline
			}
		case leafAMDFeatures:
			e.ECX &^= ecxSVM
		}
	}
	return ownCPUID(entries), nil
}

// vcpuCPUID is base with the topology of vCPU id: one package of single-thread
// cores, the APIC id being the vCPU's number.
func vcpuCPUID(base []kvm.CPUIDEntry, id, cpus int) []kvm.CPUIDEntry {
	out := withTopology(base, id, cpus)
	coreBits := uint32(bits.Len(uint(cpus - 1)))
	for i := range out {
		e := &out[i]
		switch e.Function {
		case leafFeatures:
			e.EBX = e.EBX&0xffff | uint32(id)<<24 | uint32(min(cpus, 255))<<16
			e.EDX &^= edxHTT
			if cpus > 1 {
				e.EDX |= edxHTT
			}
		case leafCaches:
			// Cores a package in 31:26; threads that share the cache in 25:14:
			// every core has its own, but the last level is shared.
			if e.EAX&0x1f != 0 {
				e.EAX = e.EAX&0x3fff | (1<<coreBits-1)&0x3f<<26
				if e.EAX>>5&7 >= 3 {
					e.EAX |= (1<<coreBits - 1) & 0xfff << 14
				}
			}
		case leafAMDSizes:
			e.ECX = e.ECX&^0xf0ff | coreBits<<12 | uint32(cpus-1)&0xff
		case leafAMDCaches:
			if e.EAX&0x1f != 0 {
				e.EAX &= 0x3fff
				if e.EAX>>5&7 >= 3 {
					e.EAX |= uint32(cpus-1) & 0xfff << 14
				}
			}
		case leafAMDTopology:
			e.EAX, e.EBX, e.ECX = uint32(id), uint32(id)&0xff, 0
		}
	}
	return out
}

// withTopology copies base with leaves 0xb and 0x1f made anew: KVM lists only
// their first subleaf, empty (kernel: __do_cpuid_func), and leaves the rest to
// us. Subleaf 0 is the thread level, one thread a core; 1 is the core level; 2
// ends the list.
func withTopology(base []kvm.CPUIDEntry, id, cpus int) []kvm.CPUIDEntry {
	var out []kvm.CPUIDEntry
	had := map[uint32]bool{}
	for _, e := range base {
		if e.Function == leafTopology || e.Function == leafTopologyV2 {
			had[e.Function] = true
			continue
		}
		out = append(out, e)
	}
	for _, leaf := range []uint32{leafTopology, leafTopologyV2} {
		if !had[leaf] {
			continue // a processor from before x2APIC
		}
		level := func(index, shift, count, kind uint32) {
			out = append(out, kvm.CPUIDEntry{Function: leaf, Index: index, Flags: kvm.CPUIDFlagSignificantIndex,
				EAX: shift, EBX: count, ECX: kind | index, EDX: uint32(id)})
		}
		level(0, 0, 1, topologySMT)
		level(1, uint32(bits.Len(uint(cpus-1))), uint32(cpus), topologyCore)
		level(2, 0, 0, 0)
	}
	return out
}

// featureNames names the bits that people know; the others are told by
// register and bit.
var featureNames = map[string]string{
	"1.ecx.0": "sse3", "1.ecx.1": "pclmulqdq", "1.ecx.9": "ssse3", "1.ecx.12": "fma", "1.ecx.13": "cx16",
	"1.ecx.17": "pcid", "1.ecx.19": "sse4.1", "1.ecx.20": "sse4.2", "1.ecx.21": "x2apic", "1.ecx.22": "movbe",
	"1.ecx.23": "popcnt", "1.ecx.24": "tsc-deadline", "1.ecx.25": "aes", "1.ecx.26": "xsave", "1.ecx.28": "avx",
	"1.ecx.29": "f16c", "1.ecx.30": "rdrand",
	"7.ebx.0": "fsgsbase", "7.ebx.3": "bmi1", "7.ebx.5": "avx2", "7.ebx.7": "smep", "7.ebx.8": "bmi2", "7.ebx.9": "erms",
	"7.ebx.10": "invpcid", "7.ebx.16": "avx512f", "7.ebx.17": "avx512dq", "7.ebx.18": "rdseed", "7.ebx.19": "adx",
	"7.ebx.20": "smap", "7.ebx.23": "clflushopt", "7.ebx.24": "clwb", "7.ebx.28": "avx512cd", "7.ebx.29": "sha",
	"7.ebx.30": "avx512bw", "7.ebx.31": "avx512vl", "7.ecx.1": "avx512vbmi", "7.ecx.2": "umip", "7.ecx.3": "pku",
	"7.ecx.8": "gfni", "7.ecx.9": "vaes", "7.ecx.10": "vpclmulqdq", "7.ecx.11": "avx512vnni", "7.ecx.12": "avx512bitalg",
	"7.ecx.14": "avx512vpopcntdq", "7.ecx.16": "la57", "7.ecx.22": "rdpid",
	"40000001.eax.3": "kvmclock2", "40000001.eax.5": "kvm-steal-time", "40000001.eax.24": "kvmclock-stable",
	"80000001.edx.26": "pdpe1gb", "80000001.edx.27": "rdtscp", "80000001.edx.29": "lm", "80000001.ecx.6": "sse4a",
	"80000001.ecx.5": "abm",
}
