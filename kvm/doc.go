//go:build linux && amd64

// Package kvm is a typed layer over the ioctls of /dev/kvm on x86-64: one Go
// type for each kind of file descriptor, one method for each ioctl, and no
// policy. It uses no cgo.
//
//	Open() ──> System   /dev/kvm: what the host can do
//	             │ CreateVM
//	             ▼
//	            VM       memory slots, dirty log, interrupt chips, clock, event fds
//	             │ CreateVCPU
//	             ▼
//	            VCPU ──> RunData     the shared page struct kvm_run: why the guest left
//	             │  └──> DirtyRing   optional, instead of the dirty log
//	             ▼
//	            Run()    enters the guest; returns at an exit or with EINTR
//
// # Who may call what
//
// System and VM methods may be called from any goroutine. A VCPU belongs to
// one locked OS thread: KVM wants its ioctls from the thread that runs it, and
// blocks others until KVM_RUN returns. Two VCPU methods are for other threads:
// SetImmediateExit and Close. RunData belongs to the vCPU's thread, between
// two calls of Run.
//
// # Errors
//
// A failed ioctl gives an *Error that names the ioctl and the object and
// unwraps to the errno. Run is special: EINTR and EAGAIN come back bare and at
// once, because a caller that kicks a vCPU with a signal must see every kick.
// All other ioctls are repeated on EINTR, since signals of the Go runtime
// carry no meaning there.
//
// # Life of descriptors
//
// Every object has an idempotent Close. The descriptor is closed when the last
// ioctl in flight has returned, so a number that the process has reused is
// never hit by mistake. Objects that are dropped without Close keep their
// descriptor until the process ends.
//
// # Memory
//
// Guest memory given to SetUserMemoryRegion must come from mmap and outlive
// the slot. Structs that mirror the kernel's carry a //kvm:mirror directive;
// constants name their header constant in the comment. A test compiles a C
// program against the installed headers and compares all of them.
//
// Section numbers in comments are those of Documentation/virt/kvm/api.rst of
// Linux 6.1.
package kvm
