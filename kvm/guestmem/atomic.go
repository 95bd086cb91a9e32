package guestmem

import (
	"sync/atomic"
	"unsafe"
)

// Loads here have acquire ordering: what the guest wrote before it wrote the
// value is seen by reads after the load. Stores have release ordering: what this
// process wrote before the store is seen by a guest that sees the value. That is
// what virtio asks of ring indices (virtio 1.2, 2.7.13 and 2.7.14). A store is
// not ordered before later loads; Fence does that. (On x86 the marking in a store
// happens to be a full barrier; callers are not to rely on it.)

// word gives the address of the size bytes at gpa, size a power of two. The
// mapping starts on a page, so the pointer is as aligned as gpa is.
func (m *Memory) word(op string, gpa, size uint64) (unsafe.Pointer, error) {
	if gpa&(size-1) != 0 {
		return nil, rangeError(op, gpa, size, ErrMisaligned)
	}
	b, err := m.slice(op, gpa, size)
	if err != nil {
		return nil, err
	}
	return unsafe.Pointer(unsafe.SliceData(b)), nil
}

// wordToWrite is word for a value that will be written.
func (m *Memory) wordToWrite(gpa, size uint64) (unsafe.Pointer, error) {
	if m.frozen.Load() {
		return nil, rangeError("store", gpa, size, ErrFrozen)
	}
	return m.word("store", gpa, size)
}

// LoadUint16 reads the 2-byte value at gpa, which must be even.
//
// sync/atomic has no 16-bit load. The aligned 32-bit word around the value lies in
// the same page, is loaded in one piece, and loading the neighbour disturbs
// nobody.
func (m *Memory) LoadUint16(gpa uint64) (uint16, error) {
	if gpa&1 != 0 {
		return 0, rangeError("load", gpa, 2, ErrMisaligned)
	}
	p, err := m.word("load", gpa&^3, 4)
	if err != nil {
		return 0, err
	}
	return uint16(atomic.LoadUint32((*uint32)(p)) >> (8 * (gpa & 2))), nil
}

// LoadUint32 reads the 4-byte value at gpa, which must be a multiple of 4.
func (m *Memory) LoadUint32(gpa uint64) (uint32, error) {
	p, err := m.word("load", gpa, 4)
	if err != nil {
		return 0, err
	}
	return atomic.LoadUint32((*uint32)(p)), nil
}

// LoadUint64 reads the 8-byte value at gpa, which must be a multiple of 8.
func (m *Memory) LoadUint64(gpa uint64) (uint64, error) {
	p, err := m.word("load", gpa, 8)
	if err != nil {
		return 0, err
	}
	return atomic.LoadUint64((*uint64)(p)), nil
}

// StoreUint16 writes v to gpa, which must be even, and marks the page dirty.
// Bytes beside the value keep what the guest writes to them meanwhile.
func (m *Memory) StoreUint16(gpa uint64, v uint16) error {
	p, err := m.wordToWrite(gpa, 2)
	if err != nil {
		return err
	}
	storeUint16((*uint16)(p), v)
	m.mark(gpa, 2)
	return nil
}

// StoreUint32 writes v to gpa, which must be a multiple of 4, and marks the page
// dirty.
func (m *Memory) StoreUint32(gpa uint64, v uint32) error {
	p, err := m.wordToWrite(gpa, 4)
	if err != nil {
		return err
	}
	atomic.StoreUint32((*uint32)(p), v)
	m.mark(gpa, 4)
	return nil
}

// StoreUint64 writes v to gpa, which must be a multiple of 8, and marks the page
// dirty.
func (m *Memory) StoreUint64(gpa uint64, v uint64) error {
	p, err := m.wordToWrite(gpa, 8)
	if err != nil {
		return err
	}
	atomic.StoreUint64((*uint64)(p), v)
	m.mark(gpa, 8)
	return nil
}

// Fence is a full barrier: stores before it are visible to the guest before any
// load after it is done. A device needs it between publishing the event index (or
// the used index) and reading the other side's (virtio 1.2, 2.7.7.1 and 2.7.10),
// or both sides may wait for each other.
func Fence() { fence() }

// casUint16 stores v by replacing the aligned 32-bit word around it, for CPUs
// without an assembly store here. A write of the guest to the other half makes
// the exchange fail, and the next try takes that write along; none is lost.
func casUint16(p *uint16, v uint16) {
	shift := 8 * (uintptr(unsafe.Pointer(p)) & 2)
	w := (*uint32)(unsafe.Add(unsafe.Pointer(p), -int(shift/8)))
	for {
		old := atomic.LoadUint32(w)
		if atomic.CompareAndSwapUint32(w, old, old&^(0xffff<<shift)|uint32(v)<<shift) {
			return
		}
	}
}
