//go:build linux && amd64

package kvm

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

// Flags of a memory slot.
const (
	MemLogDirtyPages = 1 // KVM_MEM_LOG_DIRTY_PAGES
	MemReadonly      = 2 // KVM_MEM_READONLY
)

// Arguments of CapManualDirtyLogProtect2.
const (
	DirtyLogManualProtectEnable = 1 // KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
	DirtyLogInitiallySet        = 2 // KVM_DIRTY_LOG_INITIALLY_SET
)

//kvm:mirror kvm_userspace_memory_region
type userMemoryRegion struct {
	Slot          uint32
	Flags         uint32
	GuestPhysAddr uint64
	MemorySize    uint64
	UserspaceAddr uintptr
}

//kvm:mirror kvm_dirty_log
type dirtyLog struct {
	Slot        uint32
	_           uint32
	DirtyBitmap *uint64
}

//kvm:mirror kvm_clear_dirty_log
type clearDirtyLog struct {
	Slot        uint32
	NumPages    uint32
	FirstPage   uint64
	DirtyBitmap *uint64
}

// SetUserMemoryRegion shows host memory to the guest at gpa, or changes the
// flags of a slot that is already so (KVM API 4.35). Both ends and gpa are
// whole pages of 4096 bytes. The memory must come from mmap, not from the Go
// heap, and stay mapped until the slot is deleted or the VM is gone.
func (vm *VM) SetUserMemoryRegion(slot, flags uint32, gpa uint64, host []byte) error {
	addr := uintptr(unsafe.Pointer(unsafe.SliceData(host)))
	fail := func(err error) error {
		return withDetail(err, "slot %d, flags %#x, %d bytes at gpa %#x", slot, flags, len(host), gpa)
	}
	if len(host) == 0 || len(host)%pageSize != 0 || addr%pageSize != 0 || gpa%pageSize != 0 {
		return fail(vm.f.fail(ioctlSetUserMemoryRegion,
			fmt.Errorf("address and size must be whole pages, and at least one: %w", unix.EINVAL)))
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	err := set(vm.f, ioctlSetUserMemoryRegion, &userMemoryRegion{
		Slot: slot, Flags: flags, GuestPhysAddr: gpa, MemorySize: uint64(len(host)), UserspaceAddr: addr})
	runtime.KeepAlive(host)
	if err != nil {
		return fail(err)
	}
	vm.slots[slot] = uint64(len(host)) / pageSize
	return nil
}

// DeleteMemoryRegion takes a slot away; the guest then exits with MMIO there.
func (vm *VM) DeleteMemoryRegion(slot uint32) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if err := set(vm.f, ioctlSetUserMemoryRegion, &userMemoryRegion{Slot: slot}); err != nil {
		return withDetail(err, "delete slot %d", slot)
	}
	delete(vm.slots, slot)
	return nil
}

// GetDirtyLog copies a slot's dirty bits, one for each 4 KiB page, page 0 in
// bit 0 of the first word (KVM API 4.8). Without manual protection it also
// clears them and write-protects the pages again. The bitmap must have a bit
// for every page of the slot; KVM writes whole words.
func (vm *VM) GetDirtyLog(slot uint32, bitmap []uint64) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	pages, ok := vm.slots[slot]
	if !ok {
		return withDetail(vm.f.fail(ioctlGetDirtyLog, ErrNoSlot), "slot %d", slot)
	}
	if uint64(len(bitmap)) < (pages+63)/64 {
		return withDetail(vm.f.fail(ioctlGetDirtyLog, ErrBitmap), "slot %d has %d pages, the bitmap %d bits", slot, pages, len(bitmap)*64)
	}
	arg := dirtyLog{Slot: slot, DirtyBitmap: unsafe.SliceData(bitmap)}
	if err := set(vm.f, ioctlGetDirtyLog, &arg); err != nil {
		return withDetail(err, "slot %d", slot)
	}
	return nil
}

// ClearDirtyLog clears and write-protects the pages whose bits are set (KVM
// API 4.117). It goes with CapManualDirtyLogProtect2: without that, GetDirtyLog
// has cleared them already. Bit 0 of the bitmap is
// firstPage, a multiple of 64. The count numPages is a multiple of 64 too,
// unless it reaches the end of the slot.
//
// A caller that copies pages must clear first and read afterwards: a write
// between the two is then seen by the next GetDirtyLog.
func (vm *VM) ClearDirtyLog(slot uint32, firstPage uint64, numPages uint32, bitmap []uint64) error {
	fail := func(err error) error {
		return withDetail(err, "slot %d, pages %d+%d", slot, firstPage, numPages)
	}
	if uint64(len(bitmap)) < (uint64(numPages)+63)/64 {
		return fail(vm.f.fail(ioctlClearDirtyLog, fmt.Errorf("%w: %d bits", ErrBitmap, len(bitmap)*64)))
	}
	if numPages == 0 {
		return nil
	}
	arg := clearDirtyLog{Slot: slot, NumPages: numPages, FirstPage: firstPage, DirtyBitmap: unsafe.SliceData(bitmap)}
	if err := set(vm.f, ioctlClearDirtyLog, &arg); err != nil {
		return fail(err)
	}
	return nil
}
