package console

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

// TestTransferAllocatesNothing moves the same buffer over and over, out and in.
func TestTransferAllocatesNothing(t *testing.T) {
	dev, err := New(Config{Ports: []Port{{}}})
	require.NoError(t, err)
	defer dev.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fds[1])
	require.NoError(t, dev.Attach(0, fds[0], false))

	mem := drivertest.Memory(t, 1<<20)
	arena := drivertest.NewArena(0x1000, 1<<20)
	lines := [2]*virtio.Line{}
	offers := [2]func(){}
	notify := &quiet{}
	for i := range lines {
		ring := drivertest.NewRing(t, mem, arena, 16, true)
		head := ring.Add([]drivertest.Seg{{GPA: arena.Alloc(t, 64, 64), Len: 64, Write: i == 0}}, true, 0)
		for e := range uint64(16) {
			require.NoError(t, mem.StoreUint16(ring.Avail+4+2*e, head))
		}
		q, err := queue.New(mem, ring.Config(true))
		require.NoError(t, err)
		lines[i] = &virtio.Line{Queue: q, Notifier: notify, Workers: &dev.workers}
		idx := uint16(0)
		offers[i] = func() {
			idx++
			_ = mem.StoreUint16(ring.Avail+2, idx)
		}
	}
	p, buf := dev.ports[0], make([]byte, 64)
	got := testing.AllocsPerRun(200, func() {
		offers[1]()
		lines[1].Serve(func() error { return p.transmit(lines[1]) })
		_, _ = unix.Read(fds[1], buf)
		_, _ = unix.Write(fds[1], buf)
		offers[0]()
		lines[0].Serve(func() error { return p.receive(lines[0]) })
	})
	if !raceEnabled {
		require.Zero(t, got)
	}
	require.NoError(t, notify.failed)
	require.EqualValues(t, 201*64, p.stats.read().BytesToHost)
	require.EqualValues(t, 201*64, p.stats.read().BytesToGuest)
}
