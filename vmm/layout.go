package vmm

// Where the devices are, inside the 32-bit MMIO hole. Ports are named by the
// devices that have them.
const (
	virtioBase = 0xd0000000 // device i at virtioBase + i * virtioStep
	virtioStep = 0x1000

	tssAddr         = 0xfffbd000 // three pages that VMX needs for real mode
	identityMapAddr = 0xfffbc000 // one page, likewise
)

// virtioGSIs are the interrupt lines that devices may have, in the order they
// are given out: the ISA lines that nothing else uses, then the pins of the
// I/O APIC above them.
var virtioGSIs = []uint32{5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}
