package console_test

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/console"
	"godwit/virtio/internal/devicefuzz"
)

// peers are the far ends of what is behind the ports of a fuzzed device, and the
// device.
type peers struct {
	dev *console.Device
	fds []int
}

// poke does one thing that a client may do.
func (p *peers) poke(t testing.TB, b byte) {
	fd := p.fds[b&1]
	switch b >> 1 % 5 {
	case 0:
		_, _ = unix.Write(fd, make([]byte, 100))
	case 1:
		_, _ = unix.Read(fd, make([]byte, 4096))
	case 2:
		_ = unix.Shutdown(fd, unix.SHUT_WR)
	case 3:
		_ = p.dev.Resize(0, uint16(b), 25)
	default:
		p.connect(t, int(b&1))
	}
}

// connect puts a new client behind a port.
func (p *peers) connect(t testing.TB, port int) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	if p.fds[port] >= 0 {
		_ = unix.Close(p.fds[port])
	}
	p.fds[port] = fds[1]
	require.NoError(t, p.dev.Attach(port, fds[0], false))
}

func control(id byte, event, value uint16) devicefuzz.Seg {
	b := binary.LittleEndian.AppendUint16([]byte{id, 0, 0, 0}, event)
	return devicefuzz.Bytes(binary.LittleEndian.AppendUint16(b, value)...)
}

// FuzzSequence is a hostile guest with busy clients.
func FuzzSequence(f *testing.F) {
	all := map[testing.TB]*peers{}
	subject := devicefuzz.Subject{
		New: func(t testing.TB, _ *guestmem.Memory) virtio.Device {
			dev, err := console.New(console.Config{Ports: []console.Port{{}, {Name: channel}}})
			require.NoError(t, err)
			p := &peers{dev: dev, fds: []int{-1, -1}}
			p.connect(t, 0)
			p.connect(t, 1)
			if all[t] == nil {
				t.Cleanup(func() { delete(all, t) })
			}
			all[t] = p
			t.Cleanup(func() {
				_ = dev.Close()
				for _, fd := range p.fds {
					_ = unix.Close(fd)
				}
			})
			return dev
		},
		ConfigSize: 12,
		Activity: func(t testing.TB) uint64 {
			return all[t].dev.Port(0).Stats.BytesToGuest + all[t].dev.Port(1).Stats.BytesToHost
		},
		Poke: func(t testing.TB, b byte) { all[t].poke(t, b) },
	}
	room, data := devicefuzz.Room(64), devicefuzz.Data(4096)
	up := func() *devicefuzz.Script {
		return new(devicefuzz.Script).Start(0, 1, 2, 3, 4, 5).
			Chain(2, room).Chain(2, room).Chain(2, room).Chain(2, room).Chain(2, room).Chain(2, room).Kick(2).
			Chain(3, control(0xff, deviceReady, 1)).Chain(3, control(0, portReady, 1)).Chain(3, control(1, portReady, 1)).Kick(3).
			Chain(3, control(0, portOpen, 1)).Chain(3, control(1, portOpen, 1)).Kick(3)
	}
	devicefuzz.Fuzz(f, subject,
		up().Chain(0, room).Chain(4, room, room).Kick(0).Kick(4).Poke(0).Poke(1).Chain(1, data).Chain(5, data, data).Kick(1).Kick(5).Poke(2).Poke(3),
		up().Poke(4).Poke(8).Chain(4, room).Kick(4).Move().Kick(4).Chain(2, room).Kick(2).Pause().Poke(1).Chain(5, data).Kick(5).Move().Resume().Poke(6),
		new(devicefuzz.Script).Negotiate(devicefuzz.WithoutOwn).Queue(0, 4).Queue(1, 4).Run().Chain(0, room).Kick(0).Poke(0).Config(8, 'x').
			Chain(1, data).Kick(1).Reset().Config(8, 'y').Start(0, 1).Chain(1, data).Kick(1),
	)
}
