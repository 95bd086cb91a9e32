package vsock

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/virtio"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/queue"
)

// quiet is a Notifier that nobody listens to.
type quiet struct{ failed error }

func (*quiet) Used()                    {}
func (*quiet) ConfigChanged()           {}
func (q *quiet) NeedsReset(cause error) { q.failed = cause }

// TestTransferAllocatesNothing moves a packet out and one in, over and over.
func TestTransferAllocatesNothing(t *testing.T) {
	dev, err := New(Config{GuestCID: testCID})
	require.NoError(t, err)
	defer dev.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fds[1])
	dev.mu.Lock()
	cn := dev.add(fds[0], open)
	cn.key = key{1, 2}
	dev.table[cn.key] = cn
	dev.mu.Unlock()

	mem := drivertest.Memory(t, 1<<20)
	arena := drivertest.NewArena(0x1000, 1<<20)
	lines, offers := [2]*line{}, [2]func(){}
	notify := &quiet{}
	h := header{srcCID: testCID, dstCID: hostCID, srcPort: 2, dstPort: 1, kind: typeStream, op: opRW, len: 64, bufAlloc: 1 << 30}
	var b [headerSize]byte
	h.put(&b)
	for i := range lines {
		ring := drivertest.NewRing(t, mem, arena, 16, true)
		head, data := arena.Alloc(t, headerSize, 64), arena.Alloc(t, 64, 64)
		require.NoError(t, mem.WriteAt(b[:], head))
		id := ring.Add([]drivertest.Seg{{GPA: head, Len: headerSize, Write: i == rxQueue}, {GPA: data, Len: 64, Write: i == rxQueue}}, true, 0)
		for e := range uint64(16) {
			require.NoError(t, mem.StoreUint16(ring.Avail+4+2*e, id))
		}
		q, err := queue.New(mem, ring.Config(true))
		require.NoError(t, err)
		lines[i] = &line{Line: virtio.Line{Queue: q, Notifier: notify, Workers: &dev.workers}}
		idx := uint16(0)
		offers[i] = func() {
			idx++
			_ = mem.StoreUint16(ring.Avail+2, idx)
		}
	}
	buf := make([]byte, 64)
	got := testing.AllocsPerRun(200, func() {
		offers[txQueue]()
		lines[txQueue].Serve(func() error { return dev.transmit(lines[txQueue]) })
		_, _ = unix.Read(fds[1], buf)
		_, _ = unix.Write(fds[1], buf)
		cn.ready()
		offers[rxQueue]()
		lines[rxQueue].Serve(func() error { return dev.receive(lines[rxQueue]) })
	})
	if !raceEnabled {
		require.Zero(t, got)
	}
	require.NoError(t, notify.failed)
	s := dev.Stats()
	require.EqualValues(t, 201*64, s.BytesToHost)
	require.NotZero(t, s.BytesToGuest)
	require.Zero(t, s.BadPackets)
}
