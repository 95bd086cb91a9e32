package queue

import (
	"encoding/binary"
	"fmt"
	"math"

	"godwit/kvm/guestmem"
)

// Descriptor flags: virtio 1.2, 2.7.5.
const (
	descNext     = 1 // VIRTQ_DESC_F_NEXT
	descWrite    = 2 // VIRTQ_DESC_F_WRITE
	descIndirect = 4 // VIRTQ_DESC_F_INDIRECT
)

// maxChainBytes bounds a chain: virtio 1.2, 2.7.4 allows 2^32 bytes, and the
// used ring can report one less.
const maxChainBytes = math.MaxUint32

// Chain is one request: what the driver lets the device read, then what it lets
// it write. The slices are guest memory itself. The guest can change their
// bytes at any time, so a value is copied before it is judged. All of it is
// valid until Push, Stage or PutBack.
type Chain struct {
	head     uint16
	taken    uint16 // the available entry it came from, modulo 2^16
	own      int    // descriptors of the queue's own table in it
	readable [][]byte
	writable [][]byte
	targets  []guestmem.Extent // the writable part as it came, for the dirty marks
	all      bool              // mark all of it

	// What readable and writable were cut from, to be filled again.
	readBuf, writeBuf [][]byte
}

// Readable is the device-readable part, without empty segments. The caller may
// change the slices, but not the bytes.
func (c *Chain) Readable() [][]byte { return c.readable }

// Writable is the device-writable part, without empty segments. The caller may
// change the slices; Push knows the original range.
func (c *Chain) Writable() [][]byte { return c.writable }

// Targets says where the writable part is in guest memory, as the driver gave it,
// for a device to which the addresses matter and not the bytes. They are
// RAM, each within one region. The caller does not change them.
func (c *Chain) Targets() []guestmem.Extent { return c.targets }

// Head is the index by which the driver knows the chain.
func (c *Chain) Head() uint16 { return c.head }

// Take copies the next len(p) bytes of the readable part to p and removes them
// from it. It reports false, having removed nothing, when fewer are left.
func (c *Chain) Take(p []byte) bool {
	if Len(c.readable) < int64(len(p)) {
		return false
	}
	for len(p) > 0 {
		n := copy(p, c.readable[0])
		p = p[n:]
		if c.readable[0] = c.readable[0][n:]; len(c.readable[0]) == 0 {
			c.readable = c.readable[1:]
		}
	}
	return true
}

// TakeLast removes the last byte of the writable part and gives it, for a
// device whose answer ends in a status. It gives nil when there is none.
func (c *Chain) TakeLast() []byte {
	n := len(c.writable) - 1
	if n < 0 {
		return nil
	}
	seg := c.writable[n]
	last := seg[len(seg)-1:]
	if c.writable[n] = seg[:len(seg)-1]; len(c.writable[n]) == 0 {
		c.writable = c.writable[:n]
	}
	return last
}

// MarkAll makes Push mark the whole writable part dirty, not just what it
// reports as written: for a transfer that failed half-way, or one that did not
// start at the front.
func (c *Chain) MarkAll() { c.all = true }

// Len is the number of bytes in a list of segments.
func Len(segs [][]byte) int64 {
	var n int64
	for _, s := range segs {
		n += int64(len(s))
	}
	return n
}

func (c *Chain) markDirty(mem *guestmem.Memory, written uint64) {
	if c.all {
		written = math.MaxUint64
	}
	for _, t := range c.targets {
		n := min(t.Len, written)
		mem.MarkDirty(t.GPA, n)
		if written -= n; written == 0 {
			return
		}
	}
}

// newChain reuses a pushed chain. There are never more than Size out.
func (q *Queue) newChain() *Chain {
	if n := len(q.free); n > 0 {
		c := q.free[n-1]
		q.free = q.free[:n-1]
		return c
	}
	return &Chain{}
}

// recycle takes a chain back. It empties it, so that a use after Push finds
// nothing instead of somebody else's memory.
func (q *Queue) recycle(c *Chain) {
	clear(c.readBuf)
	clear(c.writeBuf)
	*c = Chain{readBuf: c.readBuf[:0], writeBuf: c.writeBuf[:0], targets: c.targets[:0]}
	q.free = append(q.free, c)
}

// descriptor is one entry of a table, copied: virtio 1.2, 2.7.5.
type descriptor struct {
	addr  uint64
	len   uint32
	flags uint16
	next  uint16
}

// readDescriptor copies entry i of the table at gpa. The entries of the queue's
// own table were checked when it was set up; those of an indirect one are here.
func (q *Queue) readDescriptor(table uint64, i uint16) (descriptor, error) {
	at := table + descSize*uint64(i)
	if at < table {
		return descriptor{}, fmt.Errorf("descriptor table at %#x wraps around", table)
	}
	b := q.scratch[:]
	if err := q.mem.ReadAt(b, at); err != nil {
		return descriptor{}, err
	}
	return descriptor{
		addr:  binary.LittleEndian.Uint64(b),
		len:   binary.LittleEndian.Uint32(b[8:]),
		flags: binary.LittleEndian.Uint16(b[12:]),
		next:  binary.LittleEndian.Uint16(b[14:]),
	}, nil
}

// walk follows a chain from its head and collects its segments.
func (q *Queue) walk(c *Chain, head uint16) error {
	c.head = head
	table, entries, i := q.cfg.Desc, uint32(q.cfg.Size), head
	indirect := false
	var bytes uint64
	// A chain is no longer than the queue, indirect or not (2.7.5.3.1). That
	// also ends loops. The descriptor that names the indirect table is one more.
	for left := int(q.cfg.Size); left > 0; {
		if uint32(i) >= entries {
			return fmt.Errorf("descriptor %d in a table of %d", i, entries)
		}
		if !indirect {
			c.own++
		}
		d, err := q.readDescriptor(table, i)
		if err != nil {
			return fmt.Errorf("descriptor %d: %w", i, err)
		}
		if d.flags&descIndirect != 0 {
			if err := q.checkIndirect(d, indirect); err != nil {
				return fmt.Errorf("descriptor %d: %w", i, err)
			}
			table, entries, i, indirect = d.addr, d.len/descSize, 0, true
			continue
		}
		if bytes += uint64(d.len); bytes > maxChainBytes {
			return fmt.Errorf("chain %d has more than %d bytes", head, uint64(maxChainBytes))
		}
		if err := c.add(q.mem, d); err != nil {
			return fmt.Errorf("descriptor %d: %w", i, err)
		}
		if d.flags&descNext == 0 {
			return nil
		}
		i = d.next
		left--
	}
	return fmt.Errorf("chain %d has more than %d descriptors", head, q.cfg.Size)
}

// checkIndirect judges a descriptor that names a table: virtio 1.2, 2.7.5.3. Its
// write flag is to be ignored.
func (q *Queue) checkIndirect(d descriptor, nested bool) error {
	switch {
	case !q.cfg.Indirect:
		return fmt.Errorf("indirect, which was not negotiated")
	case nested:
		return fmt.Errorf("indirect inside an indirect table")
	case d.flags&descNext != 0:
		return fmt.Errorf("indirect with a next descriptor")
	case d.len == 0 || d.len%descSize != 0:
		return fmt.Errorf("indirect table of %d bytes, not a multiple of %d", d.len, descSize)
	}
	return nil
}

// add appends one buffer. Empty ones carry nothing, not even an address.
func (c *Chain) add(mem *guestmem.Memory, d descriptor) error {
	write := d.flags&descWrite != 0
	if !write && len(c.targets) > 0 {
		return fmt.Errorf("device-readable after device-writable")
	}
	if d.len == 0 {
		return nil
	}
	if !write {
		b, err := mem.View(d.addr, uint64(d.len))
		c.readBuf = append(c.readBuf, b)
		c.readable = c.readBuf
		return err
	}
	b, err := mem.Writable(d.addr, uint64(d.len))
	c.writeBuf = append(c.writeBuf, b)
	c.writable = c.writeBuf
	c.targets = append(c.targets, guestmem.Extent{GPA: d.addr, Len: uint64(d.len)})
	return err
}
