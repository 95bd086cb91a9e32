package guestmem

// storeUint16 is one aligned 16-bit MOV: never torn, never delayed past an
// earlier store (Intel SDM volume 3, "Memory Ordering"; AMD APM volume 2, 7.2),
// and it takes one step whatever the guest does to the neighbour. It is in
// assembly so that the compiler cannot move or split it.
//
//go:noescape
func storeUint16(p *uint16, v uint16)

// fence is a locked operation on the stack, a full barrier that is cheaper than
// MFENCE.
func fence()
