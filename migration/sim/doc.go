// Package sim is a machine without a CPU: guest memory, a dirty log, a disk
// lock and the life cycle that migration.Source and migration.Target describe,
// all in this process. It tests the engine in microseconds and without KVM.
//
// A World holds what must be true of all machines together: at most one copy of
// the guest runs, and at most one holds the disk. Machine (the source) and
// Target check every call against the contract and note what breaks it; a test
// asks World.Check at the end. Any method can be made to fail, and a hook runs
// before each one, which is how writes are scripted at exact moments. Write is
// safe to call from goroutines of its own, like a vCPU.
//
// Memory is mapped outside the Go heap, as guest memory is, so that writers and
// the engine may meet on a page as they do in a real machine.
package sim
