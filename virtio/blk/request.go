package blk

import (
	"encoding/binary"
	"errors"
	"fmt"

	"godwit/virtio/queue"
)

// Request types and states: virtio 1.2, 5.2.6.
const (
	typeIn          = 0  // VIRTIO_BLK_T_IN
	typeOut         = 1  // VIRTIO_BLK_T_OUT
	typeFlush       = 4  // VIRTIO_BLK_T_FLUSH
	typeGetID       = 8  // VIRTIO_BLK_T_GET_ID
	typeDiscard     = 11 // VIRTIO_BLK_T_DISCARD
	typeWriteZeroes = 13 // VIRTIO_BLK_T_WRITE_ZEROES

	statusOK     = 0 // VIRTIO_BLK_S_OK
	statusIOErr  = 1 // VIRTIO_BLK_S_IOERR
	statusUnsupp = 2 // VIRTIO_BLK_S_UNSUPP

	headerSize = 16 // type, reserved, sector
	rangeSize  = 16 // struct virtio_blk_discard_write_zeroes

	flagUnmap = 1 // its flags
)

// Why a request was not carried out. A host error is any other.
var (
	errRequest     = errors.New("bad request")
	errUnsupported = errors.New("unsupported request")
)

// request is one that was popped and is not answered yet. One goroutine has it at
// a time: the worker that popped it, one of the pool, the owner of the queue.
type request struct {
	worker *worker
	dev    *Device
	next   *request // in the list that it is in

	chain   *queue.Chain
	status  []byte // one byte of guest memory, or nil
	written uint32 // for Push

	kind   uint32
	room   int64                        // length of the writable part without the status
	off, n int64                        // bytes of the disk, of a read or a write
	header [headerSize]byte             // a copy
	ranges *[rangeSize * maxRanges]byte // copies, of a request that has some
	listed int                          // bytes used of ranges
	bad    error                        // of a request that arrived parked: what is wrong with it
}

// settleStatus writes the status and says what the writable part holds: filled
// bytes from its start, then the status.
func (r *request) settleStatus(filled int64, err error) {
	status := r.dev.account(err)
	if r.status == nil {
		return
	}
	r.status[0] = status
	if filled < r.room {
		// The status is not next to the data. What lies between was perhaps
		// written by a transfer that failed.
		r.chain.MarkAll()
		r.written = uint32(filled)
		return
	}
	r.written = uint32(filled) + 1
}

// parse judges what the header asks for. The header is copied first.
func (r *request) parse() error {
	r.room = queue.Len(r.chain.Writable())
	if !r.chain.Take(r.header[:]) {
		return fmt.Errorf("%w: no header", errRequest)
	}
	sector := binary.LittleEndian.Uint64(r.header[8:])
	switch r.kind = binary.LittleEndian.Uint32(r.header[:]); r.kind {
	case typeIn:
		return r.locate(sector, r.room)
	case typeOut:
		if err := r.locate(sector, queue.Len(r.chain.Readable())); err != nil {
			return err
		}
		if r.dev.backend.ReadOnly() {
			r.n = 0
			return fmt.Errorf("%w: the disk is read-only", errRequest)
		}
		return nil
	case typeFlush, typeGetID:
		return nil
	case typeDiscard:
		return r.takeRanges(maxDiscardSectors, 0)
	case typeWriteZeroes:
		return r.takeRanges(maxWriteZeroesSectors, flagUnmap)
	default:
		return fmt.Errorf("%w: type %d", errUnsupported, r.kind)
	}
}

// try carries a request out if that does not wait for the host's storage. filled
// is how much of the writable part is.
func (r *request) try() (done bool, filled int64, err error) {
	t := r.dev.try
	switch {
	case r.kind == typeGetID:
		return true, r.getID(), nil
	case t == nil:
	case r.kind == typeIn:
		if done, err = t.TryPreadv(r.chain.Writable(), r.off); done && err == nil {
			r.countRead()
			filled = r.n
		}
	case r.kind == typeOut && !r.mustSettle():
		if done, err = t.TryPwritev(r.chain.Readable(), r.off); done && err == nil {
			r.countWrite()
		}
	}
	return done, filled, err
}

// do carries a request out, however long that takes.
func (r *request) do() (filled int64, err error) {
	if r.bad != nil {
		return 0, r.bad
	}
	b, s := r.dev.backend, &r.dev.stats
	switch r.kind {
	case typeIn:
		if _, err := b.Preadv(r.chain.Writable(), r.off); err != nil {
			return 0, err
		}
		r.countRead()
		return r.n, nil
	case typeOut:
		if _, err := b.Pwritev(r.chain.Readable(), r.off); err != nil {
			return 0, err
		}
		r.countWrite()
	case typeFlush:
		s.flushes.Add(1)
		return 0, b.Flush()
	case typeDiscard:
		s.discards.Add(1)
		return 0, r.eachRange(func(off, n int64, _ bool) error { return b.Discard(off, n) })
	case typeWriteZeroes:
		s.writeZeroes.Add(1)
		if err := r.eachRange(b.WriteZeroes); err != nil {
			return 0, err
		}
	}
	if r.mustSettle() {
		return 0, b.Flush()
	}
	return 0, nil
}

func (r *request) countRead() {
	r.dev.stats.reads.Add(1)
	r.dev.stats.bytesRead.Add(uint64(r.n))
}

func (r *request) countWrite() {
	r.dev.stats.writes.Add(1)
	r.dev.stats.bytesWritten.Add(uint64(r.n))
}

// mustSettle says that a write is to be stable before it is answered: virtio 1.2,
// 5.2.6.2. A driver without FLUSH and CONFIG_WCE has no other means.
func (r *request) mustSettle() bool {
	if !r.dev.backend.WriteCache() {
		return false
	}
	if f := r.worker.features; f&featureConfigWCE == 0 {
		return f&featureFlush == 0
	}
	return !r.dev.writeback.Load()
}

// getID gives the serial, NUL-padded but not NUL-ended.
func (r *request) getID() int64 {
	n := 0
	for _, b := range r.chain.Writable() {
		n += copy(b, r.dev.serial[n:])
	}
	return int64(n)
}

// takeRanges copies the ranges of a discard or write-zeroes, and judges all of
// them. allowed are the flags that may be set.
func (r *request) takeRanges(maxSectors uint32, allowed uint32) error {
	if r.dev.backend.ReadOnly() {
		return fmt.Errorf("%w: the disk is read-only", errUnsupported)
	}
	n := queue.Len(r.chain.Readable())
	if n == 0 || n%rangeSize != 0 || n > int64(len(r.ranges)) {
		return fmt.Errorf("%w: %d bytes of ranges", errRequest, n)
	}
	if r.ranges == nil {
		r.ranges = new([rangeSize * maxRanges]byte)
	}
	r.listed = int(n)
	list := r.ranges[:n]
	r.chain.Take(list)
	for i := 0; i < len(list); i += rangeSize {
		sector, sectors, flags := decodeRange(list[i:])
		if flags&^allowed != 0 {
			return fmt.Errorf("%w: flags %#x", errUnsupported, flags)
		}
		if sectors > maxSectors {
			return fmt.Errorf("%w: %d sectors at once", errRequest, sectors)
		}
		if _, err := r.dev.locate(sector, int64(sectors)*SectorSize); err != nil {
			return err
		}
	}
	return nil
}

// eachRange does the ranges in order.
func (r *request) eachRange(do func(off, n int64, unmap bool) error) error {
	list := r.ranges[:r.listed]
	for i := 0; i < len(list); i += rangeSize {
		sector, sectors, flags := decodeRange(list[i:])
		if err := do(int64(sector)*SectorSize, int64(sectors)*SectorSize, flags&flagUnmap != 0); err != nil {
			return err
		}
	}
	return nil
}

func decodeRange(b []byte) (sector uint64, sectors, flags uint32) {
	le := binary.LittleEndian
	return le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:])
}

// locate notes which bytes of the disk a read or a write is about.
func (r *request) locate(sector uint64, n int64) error {
	off, err := r.dev.locate(sector, n)
	if err == nil {
		r.off, r.n = off, n
	}
	return err
}

// locate turns a sector and a length into a byte offset that is on the disk.
func (d *Device) locate(sector uint64, n int64) (int64, error) {
	if n%SectorSize != 0 {
		return 0, fmt.Errorf("%w: %d bytes", errRequest, n)
	}
	// sector+n could wrap; this cannot.
	if have := d.sectors(); sector > have || uint64(n)/SectorSize > have-sector {
		return 0, fmt.Errorf("%w: %d bytes at sector %d of %d", errRequest, n, sector, have)
	}
	return int64(sector) * SectorSize, nil
}
