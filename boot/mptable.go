package boot

import (
	"encoding/binary"
	"fmt"

	"godwit/kvm/guestmem"
)

// MaxCPUs is the most vCPUs that the MP table can name: local APIC ids are 8
// bits, 255 is broadcast, and one is left for the I/O APIC.
const MaxCPUs = 254

// Entry types and flags of Intel's MultiProcessor Specification 1.4, chapter 4.
const (
	mpProcessor = 0
	mpBus       = 1
	mpIOAPIC    = 2
	mpInterrupt = 3
	mpLocal     = 4

	mpCPUEnabled = 1
	mpCPUBSP     = 2

	mpINT    = 0
	mpNMI    = 1
	mpExtINT = 3

	lapicVersion  = 0x14
	ioapicVersion = 0x11
	isaPins       = 16
	ioapicPins    = 24
)

// writeMPTable describes the processors and how interrupts reach them (Intel
// MP 1.4): an ISA bus whose IRQ n is pin n of the one I/O APIC, except that the
// timer (IRQ 0) is on pin 2, as KVM's default routing has it.
func writeMPTable(mem *guestmem.Memory, cpus int) error {
	if cpus < 1 || cpus > MaxCPUs {
		return fmt.Errorf("write MP table: %d vCPUs; give 1 to %d with --cpus", cpus, MaxCPUs)
	}
	le := binary.LittleEndian
	var entries []byte
	count := 0
	add := func(e ...byte) { entries = append(entries, e...); count++ }
	for id := range cpus {
		flags := byte(mpCPUEnabled)
		if id == 0 {
			flags |= mpCPUBSP
		}
		// Signature: family 6; features: on-chip FPU and APIC. Linux reads CPUID.
		add(mpProcessor, byte(id), lapicVersion, flags, 0x00, 0x06, 0, 0, 0x01, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	ioapicID := byte(cpus)
	add(append([]byte{mpBus, 0}, "ISA   "...)...)
	add(le.AppendUint32([]byte{mpIOAPIC, ioapicID, ioapicVersion, 1}, IOAPICBase)...)
	pin := func(irq, pin byte) { add(mpInterrupt, mpINT, 0, 0, 0, irq, ioapicID, pin) }
	for irq := byte(0); irq < isaPins; irq++ {
		switch irq {
		case 0:
			pin(0, 2)
		case 2: // the cascade of the second PIC: no device
		default:
			pin(irq, irq)
		}
	}
	// virtio devices beyond the ISA lines use the remaining pins.
	for irq := byte(isaPins); irq < ioapicPins; irq++ {
		pin(irq, irq)
	}
	add(mpLocal, mpExtINT, 0, 0, 0, 0, 0, 0)
	add(mpLocal, mpNMI, 0, 0, 0, 0, 0xff, 1)

	const floatLen, headLen = 16, 44
	table := make([]byte, headLen, headLen+len(entries))
	copy(table, "PCMP")
	le.PutUint16(table[4:], uint16(headLen+len(entries)))
	table[6] = 4 // revision 1.4
	copy(table[8:], "GODWIT  ")
	copy(table[16:], "GODWIT      ")
	le.PutUint16(table[34:], uint16(count))
	le.PutUint32(table[36:], LAPICBase)
	table = append(table, entries...)
	table[7] = checksum(table)

	float := make([]byte, floatLen)
	copy(float, "_MP_")
	le.PutUint32(float[4:], mpTableAddr+floatLen)
	float[8] = 1 // length in 16-byte units
	float[9] = 4 // revision 1.4
	float[10] = checksum(float)
	return mem.WriteAt(append(float, table...), mpTableAddr)
}

// checksum is the byte that makes all bytes of b sum to zero.
func checksum(b []byte) byte {
	var sum byte
	for _, c := range b {
		sum += c
	}
	return -sum
}
