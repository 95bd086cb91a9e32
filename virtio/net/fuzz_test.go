package net_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/internal/devicefuzz"
	"godwit/virtio/net"
)

// FuzzSequence is a hostile guest on a network that sends it packets of every
// size.
func FuzzSequence(f *testing.F) {
	wires := map[testing.TB]*wire{} // one run has one network, whoever moves
	subject := devicefuzz.Subject{
		New: func(t testing.TB, _ *guestmem.Memory) virtio.Device {
			if wires[t] == nil {
				w := newWire(t, 2)
				for i, n := range []int{60, 1514, 20000, 13, 65000, 100} {
					w.give(t, i%2, packet(ownMAC, byte(i), n))
				}
				wires[t] = w
				t.Cleanup(func() { delete(wires, t) })
			}
			dev, err := net.New(net.Config{Backend: wires[t], Pairs: 2, MTU: 1500, MAC: ownMAC, QueueSize: 64})
			require.NoError(t, err)
			return dev
		},
		ConfigSize: 12,
		Activity:   func(t testing.TB) uint64 { return wires[t].activity.Load() },
	}
	script := func() *devicefuzz.Script { return new(devicefuzz.Script) }
	room, ack := devicefuzz.Room(1526), devicefuzz.Room(1)
	frame := devicefuzz.Bytes(append(make([]byte, headerSize), make([]byte, 60)...)...)
	devicefuzz.Fuzz(f, subject,
		script().Start(0, 1, 2, 3, 4).
			Chain(0, room).Chain(0, room).Chain(2, devicefuzz.Room(12), devicefuzz.Room(4096)).Kick(0).Kick(2).
			Chain(1, frame).IndirectChain(3, devicefuzz.Bytes(make([]byte, headerSize)...), devicefuzz.Data(1500)).Kick(1).Kick(3).
			Chain(4, devicefuzz.Bytes(4, 0, 2, 0), ack).Chain(4, devicefuzz.Bytes(0, 0, 0), ack).Kick(4),
		script().Start(0, 4).Chain(0, devicefuzz.Room(20)).Chain(0, room).Kick(0).Move().
			Chain(0, devicefuzz.Room(1<<15)).Kick(0).Pause().Move().Resume().Reset().Start(0).Chain(0, devicefuzz.Room(4)).Kick(0),
		script().Negotiate(devicefuzz.WithoutOwn).Queue(0, 4).Queue(1, 4).Queue(2, 2).Run().
			Chain(0, room).Chain(0, devicefuzz.Room(100)).Kick(0).Chain(1, devicefuzz.Data(5)).Chain(1, frame).Kick(1).Move().
			Chain(2, devicefuzz.Bytes(1, 0, 0, 0, 0, 0, 0, 0, 0, 0), ack).Kick(2),
	)
}
