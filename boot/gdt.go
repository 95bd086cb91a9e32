package boot

import (
	"encoding/binary"

	"godwit/kvm/guestmem"
)

// Flat segment descriptors (Intel SDM 3A, 3.4.5): base 0, limit 4 GiB,
// present, ring 0, accessed.
const (
	gdtCode32 = 0x00cf9b000000ffff
	gdtCode64 = 0x00af9b000000ffff
	gdtData   = 0x00cf93000000ffff
	gdtTSS    = 0x00008b0000000067 // busy TSS, limit 0x67, as PVH asks of TR
)

// writeGDT places the descriptor table and completes e with it.
func writeGDT(mem *guestmem.Memory, e Entry, table []uint64) (Entry, error) {
	e.GDT, e.GDTLimit = gdtAddr, uint16(8*len(table)-1)
	var b []byte
	for _, d := range table {
		b = binary.LittleEndian.AppendUint64(b, d)
	}
	return e, mem.WriteAt(b, gdtAddr)
}
