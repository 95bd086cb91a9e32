//go:build linux && amd64

package kvm

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Device attributes: a group, and a number inside it.
const (
	VCPUTSCCtrl      = 0 // KVM_VCPU_TSC_CTRL
	VCPUTSCOffset    = 0 // KVM_VCPU_TSC_OFFSET
	XCompGuestSupp   = 0 // KVM_X86_XCOMP_GUEST_SUPP
	systemXCompGroup = 0
)

//kvm:mirror kvm_device_attr
type deviceAttr struct {
	Flags uint32
	Group uint32
	Attr  uint64
	Addr  *uint64
}

// HasAttr tells whether the vCPU knows an attribute (KVM API 4.81); it needs
// CapVCPUAttributes.
func (v *VCPU) HasAttr(group uint32, attr uint64) (bool, error) {
	err := set(v.f, ioctlHasDeviceAttr, &deviceAttr{Group: group, Attr: attr})
	if errors.Is(err, unix.ENXIO) {
		return false, nil
	}
	return err == nil, withDetail(err, "group %d, attribute %d", group, attr)
}

// Attr reads an attribute of the vCPU (KVM API 4.80). All of x86 are 64 bits
// wide.
func (v *VCPU) Attr(group uint32, attr uint64) (uint64, error) {
	return getAttr(v.f, group, attr)
}

// SetAttr writes an attribute of the vCPU (KVM API 4.80).
func (v *VCPU) SetAttr(group uint32, attr, value uint64) error {
	err := set(v.f, ioctlSetDeviceAttr, &deviceAttr{Group: group, Attr: attr, Addr: &value})
	return withDetail(err, "group %d, attribute %d, value %#x", group, attr, value)
}

// TSCOffset is what KVM adds to the host's TSC to make the guest's. Some KVMs
// accept SetTSCOffset and ignore it: read it back.
func (v *VCPU) TSCOffset() (uint64, error) { return v.Attr(VCPUTSCCtrl, VCPUTSCOffset) }

// SetTSCOffset sets what TSCOffset reads.
func (v *VCPU) SetTSCOffset(offset uint64) error {
	return v.SetAttr(VCPUTSCCtrl, VCPUTSCOffset, offset)
}

// GuestXFeatures is the set of XSAVE features that a guest may have, by bit
// number in XCR0; those that need arch_prctl are in it whether or not it was
// called. It needs CapSysAttributes.
func (s *System) GuestXFeatures() (uint64, error) {
	return getAttr(s.f, systemXCompGroup, XCompGuestSupp)
}

func getAttr(f *file, group uint32, attr uint64) (uint64, error) {
	var value uint64
	err := set(f, ioctlGetDeviceAttr, &deviceAttr{Group: group, Attr: attr, Addr: &value})
	return value, withDetail(err, "group %d, attribute %d", group, attr)
}
