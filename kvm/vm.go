//go:build linux && amd64

package kvm

import (
	"fmt"
	"math"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// VM is one machine. Its methods may be called from any goroutine. KVM binds
// it to the address space that created it: another process cannot use it.
type VM struct {
	f        *file
	mmapSize int

	// mu guards slots. It is held across the ioctls that change a slot or
	// write its bitmap, so that a bitmap checked here still fits there.
	mu    sync.Mutex
	slots map[uint32]uint64 // slot number to pages
}

// Close closes the descriptor; the kernel frees the machine when the vCPUs
// and memory mappings are closed too. It may be called again.
func (vm *VM) Close() { vm.f.close() }

// CheckExtension asks what this VM can do (KVM API 4.4).
func (vm *VM) CheckExtension(c Cap) (int, error) {
	n, err := vm.f.ioctlValue(ioctlCheckExtension, uintptr(c))
	return n, withDetail(err, "%v", c)
}

//kvm:mirror kvm_enable_cap
type enableCap struct {
	Cap   Cap
	Flags uint32
	Args  [4]uint64
	_     [64]uint8
}

func enable(f *file, c Cap, flags uint32, args []uint64) error {
	e := enableCap{Cap: c, Flags: flags}
	if len(args) > len(e.Args) {
		return withDetail(f.fail(ioctlEnableCap, unix.EINVAL), "%v, %d arguments, at most %d", c, len(args), len(e.Args))
	}
	copy(e.Args[:], args)
	return withDetail(set(f, ioctlEnableCap, &e), "%v, flags %#x, arguments %#x", c, flags, args)
}

// EnableCap switches a capability of the VM on (KVM API 4.37 and 7), with at
// most four arguments. Many must come before the first vCPU.
func (vm *VM) EnableCap(c Cap, flags uint32, args ...uint64) error {
	return enable(vm.f, c, flags, args)
}

// SetTSSAddr places the three pages that Intel hosts need for real mode (KVM
// API 4.36). They must lie below 4 GiB and outside every slot; call it before
// the first vCPU runs.
func (vm *VM) SetTSSAddr(gpa uint32) error {
	_, err := vm.f.ioctlValue(ioctlSetTSSAddr, uintptr(gpa))
	return withDetail(err, "%#x", gpa)
}

// SetIdentityMapAddr places the one page of page tables that Intel hosts need
// for real mode (KVM API 4.40). Call it before the first vCPU is created.
func (vm *VM) SetIdentityMapAddr(gpa uint64) error {
	return withDetail(set(vm.f, ioctlSetIdentityMapAddr, &gpa), "%#x", gpa)
}

// SetBootCPUID says which vCPU starts by itself; 0 without the call (KVM API
// 4.41). Call it before the first vCPU is created.
func (vm *VM) SetBootCPUID(id uint32) error {
	_, err := vm.f.ioctlValue(ioctlSetBootCPUID, uintptr(id))
	return withDetail(err, "vCPU %d", id)
}

// CreateVCPU adds a vCPU and maps its struct kvm_run (KVM API 4.7). The id is
// also the initial APIC ID, from 0 up to what CapMaxVCPUID says.
func (vm *VM) CreateVCPU(id int) (*VCPU, error) {
	if id < 0 || id > math.MaxInt32 {
		return nil, withDetail(vm.f.fail(ioctlCreateVCPU, unix.EINVAL), "vCPU %d", id)
	}
	// Features that change the size are locked in by the first vCPU
	// (KVM API 4.134), so one question is enough.
	xsave, err := vm.CheckExtension(CapXSave2)
	if err != nil {
		return nil, err
	}
	fd, err := vm.f.ioctlValue(ioctlCreateVCPU, uintptr(id))
	if err != nil {
		return nil, withDetail(err, "vCPU %d", id)
	}
	name := fmt.Sprintf("vCPU %d", id)
	mem, err := unix.Mmap(fd, 0, vm.mmapSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		_ = unix.Close(fd)
		return nil, &Error{Op: "mmap", Object: name, Detail: "struct kvm_run", Err: err}
	}
	v := &VCPU{id: id, f: newFile(name, fd), xsaveSize: max(xsave, xsaveMin), hasXSave2: xsave > 0}
	v.data = RunData{mem: mem, run: (*run)(unsafe.Pointer(unsafe.SliceData(mem)))}
	v.f.onClose = func() { _ = unix.Munmap(mem) }
	return v, nil
}
