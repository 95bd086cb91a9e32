package rng_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/internal/devicefuzz"
	"godwit/virtio/rng"
)

// FuzzSequence is a hostile guest.
func FuzzSequence(f *testing.F) {
	subject := devicefuzz.Subject{
		New: func(t testing.TB, _ *guestmem.Memory) virtio.Device {
			dev, err := rng.New(rng.Config{Limit: rng.Limit{Size: 1000, OneTimeBurst: 100, Refill: 10 * time.Millisecond}})
			require.NoError(t, err)
			return dev
		},
	}
	script := func() *devicefuzz.Script { return new(devicefuzz.Script) }
	devicefuzz.Fuzz(f, subject,
		script().Start(0).Chain(0, devicefuzz.Room(64)).Chain(0, devicefuzz.Room(4096), devicefuzz.Room(4096)).Kick(0).
			Chain(0, devicefuzz.Room(4096)).Kick(0).Pause().Move().Resume().Kick(0),
		script().Negotiate(devicefuzz.WithoutBoth).Queue(0, 2).Run().
			Chain(0, devicefuzz.Data(64)).Chain(0, devicefuzz.Room(1)).Kick(0).Move().Kick(0).Reset().Start(0).Chain(0, devicefuzz.Room(9)).Kick(0),
	)
}
