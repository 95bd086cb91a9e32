// Package guestmem is the RAM of a guest: mapped host memory, addressed by
// guest physical address (gpa), with every access checked.
//
//	gpa   0                 HoleStart          HoleEnd
//	      |------ RAM ------|  MMIO, no RAM    |------ RAM ------|
//	      region 0          3 GiB              4 GiB  region 1   4 GiB + rest
//
// RAM fills the space below 3 GiB first. What does not fit goes on at 4 GiB, so
// that 32-bit devices (local APIC, I/O APIC, virtio-mmio, PCI windows) have the
// gigabyte between. A guest of up to 3 GiB has one region, a larger one has two,
// and no range that is wholly RAM spans both.
//
// # Trust
//
// Guest addresses and lengths are untrusted. No input makes a method of Memory
// panic, wrap around, or give out a byte outside the region that was asked for.
// The content is untrusted as well, and changes while it is read: read a value
// once, check the copy, use the copy.
//
// # Dirty pages
//
// KVM's dirty log records what vCPUs write, never what this process writes.
// Memory keeps its own bitmap for that. Methods that write mark by themselves;
// who fills a slice from [Memory.Writable] calls [Memory.MarkDirty] afterwards.
// The order is always bytes first, mark second, and a reader clears first, reads
// second. A page whose mark was drained is then read with the bytes that the
// mark stands for; were it the other way round, a migration could send the old
// bytes and forget the page.
//
// # Handing it to another process
//
// The RAM of a Memfd backing is one file, regions in address order, sealed
// against any change of size. [Memory.File] gives it, and [Attach] maps it in the
// process that gets it: for reading only, until [Memory.Thaw]. So whoever must not
// write yet cannot, KVM included. From Thaw on it is up to the two processes that
// only one of them writes.
//
// # Who may call what
//
// All methods but Close and Thaw may be called from any goroutine at any time. Close
// needs every user, vCPUs included, to have stopped. The race detector does not
// see mapped memory; two writers to the same bytes are as racy here as two CPUs.
//
// While memory is registered with userfaultfd for missing pages, an access in Go
// code may block its P until the fault is served. Serve faults from a thread
// that needs no P, or access such memory in system calls only.
//
// Values in guest memory are little-endian, and so must the host be.
package guestmem
