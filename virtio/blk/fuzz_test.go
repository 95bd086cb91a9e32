package blk_test

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/blk"
	"godwit/virtio/internal/devicefuzz"
)

// ram is a disk in memory. Its second 4 KiB cannot be read or written, its third
// are slow, and so is nothing else: the disk is a blk.Trier.
type ram struct {
	mu       sync.Mutex
	data     [64 << 10]byte
	activity atomic.Uint64
}

var errBadPart = errors.New("the bad part of the disk")

// use counts a call when it begins and when it ends.
func (r *ram) use(off, n int64, do func()) error {
	r.activity.Add(1)
	defer r.activity.Add(1)
	if off < 8192 && off+n > 4096 {
		return errBadPart
	}
	if off < 12288 && off+n > 8192 {
		for range 20 {
			runtime.Gosched()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	do()
	return nil
}

func (r *ram) move(bufs [][]byte, off int64, do func(buf, disk []byte)) (int, error) {
	n := int64(0)
	for _, b := range bufs {
		n += int64(len(b))
	}
	return int(n), r.use(off, n, func() {
		for _, b := range bufs {
			do(b, r.data[off:][:len(b)])
			off += int64(len(b))
		}
	})
}

func (r *ram) Preadv(bufs [][]byte, off int64) (int, error) {
	return r.move(bufs, off, func(buf, disk []byte) { copy(buf, disk) })
}

func (r *ram) Pwritev(bufs [][]byte, off int64) (int, error) {
	return r.move(bufs, off, func(buf, disk []byte) { copy(disk, buf) })
}

func (r *ram) TryPreadv(bufs [][]byte, off int64) (bool, error) {
	if off/4096 == 2 {
		return false, nil
	}
	_, err := r.Preadv(bufs, off)
	return true, err
}

func (r *ram) TryPwritev(bufs [][]byte, off int64) (bool, error) {
	if off/4096 == 2 {
		return false, nil
	}
	_, err := r.Pwritev(bufs, off)
	return true, err
}

func (r *ram) WriteZeroes(off, n int64, _ bool) error {
	return r.use(off, n, func() { clear(r.data[off:][:n]) })
}

func (r *ram) Discard(off, n int64) error { return r.use(off, n, func() {}) }
func (r *ram) Flush() error               { return r.use(0, 0, func() {}) }
func (r *ram) Size() int64                { return int64(len(r.data)) }
func (*ram) BlockSize() int               { return 512 }
func (*ram) ReadOnly() bool               { return false }
func (*ram) WriteCache() bool             { return true }

// header is that of a request: virtio 1.2, 5.2.6.
func header(kind, sector byte) devicefuzz.Seg {
	return devicefuzz.Bytes(kind, 0, 0, 0, 0, 0, 0, 0, sector, 0, 0, 0, 0, 0, 0, 0)
}

// FuzzSequence is a hostile guest.
func FuzzSequence(f *testing.F) {
	disks := map[testing.TB]*ram{} // one run has one disk, whoever moves
	subject := devicefuzz.Subject{
		New: func(t testing.TB, _ *guestmem.Memory) virtio.Device {
			if disks[t] == nil {
				disks[t] = &ram{}
				t.Cleanup(func() { delete(disks, t) })
			}
			dev, err := blk.New(blk.Config{Backend: disks[t], Queues: 2, QueueSize: 64, Serial: "fuzzed"})
			require.NoError(t, err)
			return dev
		},
		ConfigSize: 60,
		Activity:   func(t testing.TB) uint64 { return disks[t].activity.Load() },
	}
	status, room := devicefuzz.Room(1), devicefuzz.Room(4096)
	script := func() *devicefuzz.Script { return new(devicefuzz.Script) }
	devicefuzz.Fuzz(f, subject,
		script().Start(0, 1).
			Chain(0, header(out, 0), devicefuzz.Data(4096), status).IndirectChain(1, header(in, 16), room, status).Kick(0).Kick(1).
			Chain(0, header(flush, 0), status).Chain(0, header(getID, 0), devicefuzz.Room(20), status).Kick(0),
		script().Negotiate(devicefuzz.WithoutBoth).Queue(1, 3).Run().
			Chain(1, header(discard, 0), devicefuzz.Bytes(ranges(0, 8, 0)...), status).
			Chain(1, header(writeZeroes, 0), devicefuzz.Bytes(append(ranges(1, 2, 1), ranges(16, 8, 0)...)...), status).
			Chain(1, header(in, 8), room, status).Chain(1, header(out, 16), devicefuzz.Data(512), status).Kick(1).Move().
			Chain(1, header(in, 0), room, status).Kick(1),
		script().Negotiate(devicefuzz.WithoutOwn).Queue(0, 4).Run().Config(32, 0).
			Chain(0, header(out, 17), devicefuzz.Data(1024), status).Pause().Kick(0).Move().Resume().Kick(0).Reset().
			Start(0).Chain(0, header(99, 0), status).Chain(0, status).Chain(0, header(in, 127), room, status).Kick(0),
	)
}
