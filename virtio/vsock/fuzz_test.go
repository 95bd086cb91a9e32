package vsock

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/internal/devicefuzz"
)

// world is the host around a fuzzed device: a listener at port 1, and clients.
type world struct {
	dev      *Device
	dir      string
	listener int
	clients  []int
}

const worldClients = 8

func newWorld(t testing.TB, dir string) *world {
	dev, err := New(Config{GuestCID: testCID})
	require.NoError(t, err)
	dev.nextPort = firstPort // a script is the same each time
	path := filepath.Join(dir, "v")
	_ = os.Remove(path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	require.NoError(t, dev.Listen(l, path))
	w := &world{dev: dev, dir: dir}
	_ = os.Remove(path + "_1")
	w.listener, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Bind(w.listener, &unix.SockaddrUnix{Name: path + "_1"}))
	require.NoError(t, unix.Listen(w.listener, 8))
	t.Cleanup(func() {
		_ = dev.Close()
		for _, fd := range append(w.clients, w.listener) {
			_ = unix.Close(fd)
		}
	})
	return w
}

func (w *world) add(fd int) {
	if len(w.clients) == worldClients {
		_ = unix.Close(w.clients[0])
		w.clients = w.clients[1:]
	}
	w.clients = append(w.clients, fd)
}

// poke does one thing that the host's programs may do.
func (w *world) poke(b byte) {
	switch b % 6 {
	case 0:
		if fd, _, err := unix.Accept4(w.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC); err == nil {
			w.add(fd)
		}
		return
	case 1:
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return
		}
		w.add(fd)
		if unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(w.dir, "v")}) == nil {
			_, _ = unix.Write(fd, []byte("CONNECT 7\nhello"))
		}
		return
	}
	if len(w.clients) == 0 {
		return
	}
	i := int(b/6) % len(w.clients)
	switch b % 6 {
	case 2:
		_, _ = unix.Write(w.clients[i], make([]byte, 1000))
	case 3:
		_, _ = unix.Read(w.clients[i], make([]byte, 4096))
	case 4:
		_ = unix.Shutdown(w.clients[i], unix.SHUT_WR)
	case 5:
		_ = unix.Close(w.clients[i])
		w.clients = append(w.clients[:i:i], w.clients[i+1:]...)
	}
}

func packet(op uint16, host, guest, n, flags uint32) devicefuzz.Seg {
	h := header{srcCID: testCID, dstCID: hostCID, srcPort: guest, dstPort: host, kind: typeStream, op: op, len: n, flags: flags, bufAlloc: 4096}
	var b [headerSize]byte
	h.put(&b)
	return devicefuzz.Bytes(b[:]...)
}

// FuzzSequence is a hostile guest with busy programs on the host.
func FuzzSequence(f *testing.F) {
	worlds := map[testing.TB]*world{}
	subject := devicefuzz.Subject{
		New: func(t testing.TB, _ *guestmem.Memory) virtio.Device {
			var dir string
			if old := worlds[t]; old != nil {
				_ = old.dev.StopListening()
				dir = old.dir
			} else {
				dir = t.TempDir()
				t.Cleanup(func() { delete(worlds, t) })
			}
			worlds[t] = newWorld(t, dir)
			return worlds[t].dev
		},
		ConfigSize: 8,
		Activity: func(t testing.TB) uint64 {
			s := worlds[t].dev.Stats()
			return s.BytesToGuest + s.BytesToHost
		},
		Poke: func(t testing.TB, b byte) { worlds[t].poke(b) },
	}
	room, data := devicefuzz.Room(200), devicefuzz.Data(100)
	up := func() *devicefuzz.Script {
		s := new(devicefuzz.Script).Start(0, 1, 2).Chain(2, devicefuzz.Room(8))
		for range 6 {
			s.Chain(0, room)
		}
		return s.Kick(0).Kick(2)
	}
	devicefuzz.Fuzz(f, subject,
		up().Chain(1, packet(opRequest, 1, 9, 0, 0)).Kick(1).Poke(0).Chain(1, packet(opRW, 1, 9, 100, 0), data).Kick(1).
			Poke(2).Poke(3).Chain(1, packet(opCreditRequest, 1, 9, 0, 0)).Kick(1).Chain(1, packet(opShutdown, 1, 9, 0, 3)).Kick(1),
		up().Poke(1).Chain(1, packet(opResponse, firstPort, 7, 0, 0)).Kick(1).Poke(2).Poke(4).
			Chain(1, packet(opRW, firstPort, 7, 100, 0), data).Kick(1).Poke(5).Chain(1, packet(opRST, firstPort, 7, 0, 0)).Kick(1),
		up().Chain(1, packet(opRequest, 1, 9, 0, 0)).Kick(1).Poke(0).Pause().Poke(2).Move().Resume().Kick(0).Chain(2, devicefuzz.Room(8)).Kick(2).
			Chain(1, packet(opRW, 1, 9, 1000000, 0), data).Chain(1, packet(99, 5, 5, 0, 0)).Kick(1).Reset(),
	)
}
