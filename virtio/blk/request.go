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

// answer carries out a request, writes its status, and returns the number of
// bytes that the writable part holds now, from its start.
func (w *worker) answer(c *queue.Chain) uint32 {
	status := c.TakeLast()
	if status == nil {
		w.dev.stats.guestErrors.Add(1)
		return 0
	}
	room := queue.Len(c.Writable())
	n, err := w.execute(c)
	status[0] = w.dev.account(err)
	if n < room {
		// The status is not next to the data. What lies between was perhaps
		// written by a transfer that failed.
		c.MarkAll()
		return uint32(n)
	}
	return uint32(n) + 1
}

// execute does what the header asks for, and returns how much of the writable
// data part is filled. The header is copied before it is judged.
func (w *worker) execute(c *queue.Chain) (int64, error) {
	if !c.Take(w.header[:]) {
		return 0, fmt.Errorf("%w: no header", errRequest)
	}
	sector := binary.LittleEndian.Uint64(w.header[8:])
	switch t := binary.LittleEndian.Uint32(w.header[:]); t {
	case typeIn:
		return w.read(c, sector)
	case typeOut:
		return 0, w.write(c, sector)
	case typeFlush:
		w.dev.stats.flushes.Add(1)
		return 0, w.dev.backend.Flush()
	case typeGetID:
		return w.getID(c), nil
	case typeDiscard:
		w.dev.stats.discards.Add(1)
		return 0, w.eachRange(c, maxDiscardSectors, 0, func(off, n int64, _ bool) error {
			return w.dev.backend.Discard(off, n)
		})
	case typeWriteZeroes:
		w.dev.stats.writeZeroes.Add(1)
		if err := w.eachRange(c, maxWriteZeroesSectors, flagUnmap, w.dev.backend.WriteZeroes); err != nil {
			return 0, err
		}
		return 0, w.settle()
	default:
		return 0, fmt.Errorf("%w: type %d", errUnsupported, t)
	}
}

func (w *worker) read(c *queue.Chain, sector uint64) (int64, error) {
	bufs := c.Writable()
	n := queue.Len(bufs)
	off, err := w.dev.locate(sector, n)
	if err != nil {
		return 0, err
	}
	if _, err := w.dev.backend.Preadv(bufs, off); err != nil {
		return 0, err
	}
	w.dev.stats.reads.Add(1)
	w.dev.stats.bytesRead.Add(uint64(n))
	return n, nil
}

func (w *worker) write(c *queue.Chain, sector uint64) error {
	bufs := c.Readable()
	n := queue.Len(bufs)
	off, err := w.dev.locate(sector, n)
	if err != nil {
		return err
	}
	if w.dev.backend.ReadOnly() {
		return fmt.Errorf("%w: the disk is read-only", errRequest)
	}
	if _, err := w.dev.backend.Pwritev(bufs, off); err != nil {
		return err
	}
	w.dev.stats.writes.Add(1)
	w.dev.stats.bytesWritten.Add(uint64(n))
	return w.settle()
}

// settle makes a write stable where the driver was promised that: virtio 1.2,
// 5.2.6.2. Without FLUSH and CONFIG_WCE it has no other means.
func (w *worker) settle() error {
	if !w.dev.backend.WriteCache() {
		return nil
	}
	cached := w.features&featureFlush != 0
	if w.features&featureConfigWCE != 0 {
		cached = w.dev.writeback.Load()
	}
	if cached {
		return nil
	}
	return w.dev.backend.Flush()
}

// getID gives the serial, NUL-padded but not NUL-ended.
func (w *worker) getID(c *queue.Chain) int64 {
	n := 0
	for _, b := range c.Writable() {
		n += copy(b, w.dev.serial[n:])
	}
	return int64(n)
}

// eachRange reads the ranges of a discard or write-zeroes, judges all of them,
// then does them in order. allowed are the flags that may be set.
func (w *worker) eachRange(c *queue.Chain, maxSectors uint32, allowed uint32, do func(off, n int64, unmap bool) error) error {
	if w.dev.backend.ReadOnly() {
		return fmt.Errorf("%w: the disk is read-only", errUnsupported)
	}
	n := queue.Len(c.Readable())
	if n == 0 || n%rangeSize != 0 || n > int64(len(w.ranges)) {
		return fmt.Errorf("%w: %d bytes of ranges", errRequest, n)
	}
	list := w.ranges[:n]
	c.Take(list)
	for i := 0; i < len(list); i += rangeSize {
		sector, sectors, flags := decodeRange(list[i:])
		if flags&^allowed != 0 {
			return fmt.Errorf("%w: flags %#x", errUnsupported, flags)
		}
		if sectors > maxSectors {
			return fmt.Errorf("%w: %d sectors at once", errRequest, sectors)
		}
		if _, err := w.dev.locate(sector, int64(sectors)*SectorSize); err != nil {
			return err
		}
	}
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
