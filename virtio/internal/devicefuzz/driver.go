package devicefuzz

import (
	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/queue"
)

// Shapes of a chain: the second argument of opChain.
const (
	shapeCount    = 0x0f // segments
	shapeSilent   = 0x20 // not made available
	shapeLoop     = 0x40 // the last names the first
	shapeIndirect = 0x80
)

// Control byte of a segment.
const (
	segWrite  = 1 // device-writable
	segInline = 2 // length (1) and that many bytes, readable
	segRaw    = 4 // flags (2) and next (2) follow
)

// Kinds of address.
const (
	addrData  byte = iota // anywhere in the data area
	addrEnd0              // before the end of the first region
	addrHole              // from the start of the hole on
	addrBack              // before the end of the hole, or behind it
	addrEnd1              // before the end of memory
	addrWrap              // before 2^64
	addrRings             // in the rings
	addrTable             // in the indirect tables
	addrAny
	addresses
)

// Kinds of length.
const (
	len16 byte = iota
	lenSectors
	lenPages
	lenNone
	lenMost
	lenAny
	lengths
)

func (m *machine) address() uint64 {
	kind, v := m.in.u8()%addresses, uint64(m.in.u16())|uint64(m.in.u8())<<16
	switch kind {
	case addrData:
		return dataArea + v%dataSize
	case addrEnd0:
		return guestmem.HoleStart - v%0x3000
	case addrHole:
		return guestmem.HoleStart + v
	case addrBack:
		return guestmem.HoleEnd - 0x1000 + v%0x3000
	case addrEnd1:
		return memEnd - v%0x3000
	case addrWrap:
		return -v
	case addrRings:
		return ringArea + v%(maxRings*ringStride)
	case addrTable:
		return tableArea + v%(tables*tableSize)
	default:
		return v<<40 | uint64(m.in.u32())
	}
}

func (m *machine) length() uint32 {
	kind, v := m.in.u8()%lengths, uint32(m.in.u16())
	switch kind {
	case len16:
		return v
	case lenSectors:
		return v % 256 * 512
	case lenPages:
		return v % 64 * 4096
	case lenNone:
		return 0
	case lenMost:
		return ^v
	default:
		return v<<16 | uint32(m.in.u16())
	}
}

// negotiate is a driver's way up to FEATURES_OK.
func (m *machine) negotiate(choice byte) {
	f := m.regs.DeviceFeatures()
	switch choice % (someFeatures + 1) {
	case WithoutEventIdx:
		f &^= virtio.FeatureEventIdx
	case WithoutIndirect:
		f &^= virtio.FeatureIndirectDesc
	case WithoutBoth:
		f &^= virtio.FeatureIndirectDesc | virtio.FeatureEventIdx
	case WithoutOwn:
		f &= virtio.RingFeatures
	case someFeatures:
		f ^= m.in.u64()
	}
	m.regs.Negotiate(f)
	clear(m.rings[:])
}

// setQueue does what a driver does, with rings of its own for each queue.
func (m *machine) setQueue(i int, log byte) {
	i %= min(len(m.sizes), maxRings)
	size := min(uint16(1)<<(log%(maxQueue+1)), m.sizes[i])
	n, base := uint64(size), ringArea+ringStride*uint64(i)
	r := ring{size: size, desc: base, avail: base + 16*n, used: (base + 16*n + 6 + 2*n + 3) &^ 3}
	m.regs.Set(0x30, uint32(i))
	if m.regs.Get(0x44) != 0 {
		m.regs.Set(0x44, 0)
	}
	if m.rings[i] = (ring{}); m.regs.Get(0x44) != 0 {
		return
	}
	_ = m.mem.WriteAt(make([]byte, ringStride), base)
	m.setAddresses(uint32(size), r.desc, r.avail, r.used)
	if m.regs.Get(0x44) == 1 {
		m.rings[i] = r
	}
}

func (m *machine) setAddresses(size uint32, desc, avail, used uint64) {
	m.regs.Set(0x38, size)
	for _, a := range []struct {
		off uint64
		gpa uint64
	}{{0x80, desc}, {0x90, avail}, {0xa0, used}} {
		m.regs.Set(a.off, uint32(a.gpa))
		m.regs.Set(a.off+4, uint32(a.gpa>>32))
	}
	m.regs.Set(0x44, 1)
}

func (m *machine) badQueue() {
	m.tainted = true
	m.regs.Set(0x30, uint32(m.in.u8())%(uint32(len(m.sizes))+1))
	m.setAddresses(uint32(m.in.u16()), m.address(), m.address(), m.address())
}

// ring picks a queue. One that is not set up has its rings at address 0, which
// is memory that nothing else is made of.
func (m *machine) ring() *ring {
	return &m.rings[int(m.in.u8())%min(len(m.sizes), maxRings)]
}

// chain writes descriptors one behind the other, and offers the first.
func (m *machine) chain() {
	r, shape := m.ring(), m.in.u8()
	if r.size == 0 {
		r = &ring{size: 1} // it goes nowhere, and is read all the same
	}
	table, at, size := r.desc, r.next, r.size
	if shape&shapeIndirect != 0 {
		table, at, size = tableArea+uint64(m.table)*tableSize, 0, tableSize/16
		m.table = (m.table + 1) % tables
	}
	first, count := at, uint16(shape&shapeCount)
	for i := range count {
		next, flags := (at+1)%size, uint16(0)
		if i+1 < count {
			flags = drivertest.Next
		} else if shape&shapeLoop != 0 {
			next, flags = first, drivertest.Next
		}
		m.segment(table, at, flags, next)
		at = next
	}
	head := first
	if shape&shapeIndirect != 0 {
		head = r.next
		m.putDescriptor(r.desc, head, table, 16*uint32(count), drivertest.Indirect, 0)
		r.next = (r.next + 1) % r.size
	} else {
		r.next = (first + count) % r.size
	}
	if shape&shapeSilent == 0 {
		m.offer(r, head)
	}
}

func (m *machine) segment(table uint64, i, flags, next uint16) {
	c := m.in.u8()
	var gpa uint64
	var n uint32
	if c&segInline != 0 {
		p := m.in.bytes(int(m.in.u8()))
		if m.spare+256 > dataArea+dataSize {
			m.spare = dataArea
		}
		gpa, n = m.spare, uint32(len(p))
		m.poke(gpa, p)
		m.spare += 256
	} else {
		gpa, n = m.address(), m.length()
	}
	if c&segWrite != 0 {
		flags |= drivertest.Write
	}
	if c&segRaw != 0 {
		flags, next = m.in.u16(), m.in.u16()
	}
	m.putDescriptor(table, i, gpa, n, flags, next)
}

func (m *machine) offer(r *ring, head uint16) {
	if r.size == 0 {
		return
	}
	m.store(r.avail+4+2*uint64(r.idx%r.size), head)
	m.bump(r, 1)
}

// bump moves the available index. An index that no driver can have reached makes
// the device stop, and the next one may seem to go back.
func (m *machine) bump(r *ring, n uint16) {
	if r.size == 0 {
		return
	}
	if r.idx+n-m.load(r.used+2) > r.size || n > r.size || n > queue.MaxSize/2 {
		m.tainted = true
	}
	r.idx += n
	m.store(r.avail+2, r.idx)
}
