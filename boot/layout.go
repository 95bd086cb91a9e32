package boot

import "godwit/kvm/guestmem"

// Guest physical addresses of what Load writes below 1 MiB.
const (
	gdtAddr       = 0x500
	startInfoAddr = 0x6000
	modListAddr   = 0x6040
	memMapAddr    = 0x6100
	zeroPageAddr  = 0x7000
	pml4Addr      = 0x9000
	pdptAddr      = 0xa000
	pdAddr        = 0xb000 // four pages, one a GiB
	cmdlineAddr   = 0x20000
	ebdaAddr      = 0x9fc00
	mpTableAddr   = 0xf0000
	highMemory    = 0x100000

	// maxCmdline bounds a command line where the kernel does not say: the
	// COMMAND_LINE_SIZE of Linux on x86, with its final NUL.
	maxCmdline = 2048
	// minMemory is the least RAM that Load accepts: everything below 1 MiB
	// and room for the smallest kernel.
	minMemory = 4 << 20
)

// Address ranges that a machine puts outside RAM.
const (
	// IOAPICBase and LAPICBase are where the in-kernel interrupt controllers
	// live (Intel MP 1.4, section 3.6.1).
	IOAPICBase = 0xfec00000
	LAPICBase  = 0xfee00000
)

// e820 types, as in Linux's arch/x86/include/asm/e820/types.h.
const (
	e820RAM      = 1
	e820Reserved = 2
)

// memRange is an entry of the guest's memory map.
type memRange struct {
	addr, size uint64
	kind       uint32
}

// memoryMap describes guest RAM for e820 and for PVH. The first MiB keeps its
// PC shape: base memory, the last KiB of it reserved (EBDA), and the BIOS area
// where the MP table lies.
func memoryMap(mem *guestmem.Memory) []memRange {
	m := []memRange{
		{0, ebdaAddr, e820RAM},
		{ebdaAddr, 0xa0000 - ebdaAddr, e820Reserved},
		{mpTableAddr, highMemory - mpTableAddr, e820Reserved},
	}
	for _, r := range mem.Regions() {
		start, end := r.GPA, r.GPA+uint64(len(r.Bytes))
		if start < highMemory {
			start = highMemory
		}
		if end > start {
			m = append(m, memRange{start, end - start, e820RAM})
		}
	}
	return m
}

// lowEnd is the end of the RAM that starts at address 0, in bytes.
func lowEnd(mem *guestmem.Memory) uint64 {
	for _, r := range mem.Regions() {
		if r.GPA == 0 {
			return uint64(len(r.Bytes))
		}
	}
	return 0
}
