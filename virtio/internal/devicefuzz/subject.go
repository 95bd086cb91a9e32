package devicefuzz

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"godwit/kvm/guestmem"
	"godwit/virtio"
)

// Subject is a kind of device to be fuzzed.
type Subject struct {
	// New gives a new device with what stands behind it. It is called again for
	// each move within a run, while the instance that moves away is paused and
	// not yet reset; the two stand for one device, so what they share (a disk) is
	// for New to remember per t. Whatever the device does not close in Reset is
	// closed by t.Cleanup.
	New func(t testing.TB, mem *guestmem.Memory) virtio.Device
	// ConfigSize is the length of the device's configuration space in bytes: what
	// lies behind must read as zeroes.
	ConfigSize int
	// Activity, where set, is a number that changes whenever the backend is used
	// by whatever New gave for t. It must not change while the device is paused.
	Activity func(t testing.TB) uint64
	// Poke, where set, is an event from the host's side: a packet that arrives, a
	// key that is pressed. b is for it to interpret.
	Poke func(t testing.TB, b byte)
	// Wild says that the guest can make the device change memory by other means
	// than a writable buffer, as a balloon does. The indices are not judged then.
	Wild bool
	// Patience bounds a whole run; 0 means DefaultPatience. A run takes well under
	// a millisecond as a rule, so this is for a machine that is very busy.
	Patience time.Duration
}

// DefaultPatience is how long a run may take until it counts as hung.
const DefaultPatience = 30 * time.Second

// Fuzz runs f over sequences for the subject, with the scripts as first seeds.
func Fuzz(f *testing.F, s Subject, seeds ...*Script) {
	for _, seed := range seeds {
		f.Add(seed.Program())
	}
	f.Fuzz(func(t *testing.T, program []byte) { Run(t, s, program) })
}

// Run does one sequence.
func Run(t testing.TB, s Subject, program []byte) {
	if s.Patience == 0 {
		s.Patience = DefaultPatience
	}
	dog := time.AfterFunc(s.Patience, func() {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		debug.SetTraceback("none")
		// Nothing less ends a step that hangs.
		panic(fmt.Sprintf("devicefuzz: a run takes longer than %v\n%s", s.Patience, buf))
	})
	defer dog.Stop()
	m := newMachine(t, s, program)
	defer m.close()
	m.run()
}
