// Package devicefuzz drives a virtio device as a hostile guest and a busy host
// would: a byte string is decoded to a sequence of register accesses, queue
// set-ups, descriptor chains, kicks, pauses, moves to another instance and
// resets, and rules that hold whatever the guest does are checked on the way.
//
//	bytes ── Run ──> mmio registers ──┐
//	            ├──> rings in memory ─┼──> device ──> its fake backend
//	            ├──> pause, resume   ─┤
//	            └──> save, restore ───┘ into a second instance
//
// What is checked:
//
//   - Nothing panics, and every step ends: a watchdog prints all stacks.
//   - A paused device is quiet: no guest memory is marked dirty, no used index
//     moves, and its backend is not called.
//   - The used index never runs ahead of the available one.
//   - Configuration space behind the device's own reads as zeroes.
//   - What was saved can be restored, and saves again to the same bytes. A state
//     with a byte changed is refused or works, and never hurts.
//
// A device's test is a few lines:
//
//	func FuzzSequence(f *testing.F) {
//		devicefuzz.Fuzz(f, devicefuzz.Subject{
//			New:        func(t testing.TB, mem *guestmem.Memory) virtio.Device { ... },
//			ConfigSize: 60,
//		}, new(devicefuzz.Script).Start(0).Chain(0, devicefuzz.Bytes(header...), devicefuzz.Room(512)).Kick(0))
//	}
//
// How a worker is scheduled shows in the coverage, so the same bytes count as
// interesting now and then; without a bound go test spends its time on making
// them shorter:
//
//	go test ./virtio/blk -run '^$' -fuzz FuzzSequence -fuzztime 60s -fuzzminimizetime 10x
//
// It is a package apart from drivertest because that one is used by the tests
// inside virtio/mmio, which this one imports.
package devicefuzz
