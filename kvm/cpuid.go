//go:build linux && amd64

package kvm

// What CPUIDEntry.Flags may hold.
const (
	CPUIDFlagSignificantIndex = 1 // KVM_CPUID_FLAG_SIGNIFCANT_INDEX
)

// maxCPUIDEntries is the kernel's own bound, KVM_MAX_CPUID_ENTRIES in
// arch/x86/include/asm/kvm_host.h.
const maxCPUIDEntries = 256

// CPUIDEntry is one CPUID leaf, or one subleaf where Flags has
// CPUIDFlagSignificantIndex.
//
//kvm:mirror kvm_cpuid_entry2
type CPUIDEntry struct {
	Function uint32
	Index    uint32
	Flags    uint32
	EAX      uint32
	EBX      uint32
	ECX      uint32
	EDX      uint32
	_        [3]uint32
}

//kvm:mirror kvm_cpuid2
type cpuidHeader struct {
	Nent uint32
	_    uint32
}

func getCPUID(f *file, req ioctl) ([]CPUIDEntry, error) {
	b := newFlex[cpuidHeader, CPUIDEntry](maxCPUIDEntries)
	b.header().Nent = maxCPUIDEntries
	if _, err := f.ioctl(req, b.pointer()); err != nil {
		return nil, err
	}
	return b.elems(int(b.header().Nent)), nil
}

func setCPUID(f *file, entries []CPUIDEntry) error {
	b := newFlex[cpuidHeader, CPUIDEntry](len(entries))
	b.header().Nent = uint32(len(entries))
	copy(b.elems(len(entries)), entries)
	_, err := f.ioctl(ioctlSetCPUID2, b.pointer())
	return withDetail(err, "%d entries", len(entries))
}
