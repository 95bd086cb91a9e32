//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// apiVersion is the only version there is (KVM API 4.1).
const apiVersion = 12 // KVM_API_VERSION

const devicePath = "/dev/kvm"

// System is an open /dev/kvm. Its methods may be called from any goroutine.
type System struct {
	f *file
}

// Open opens /dev/kvm and checks the API version. The error says what to do;
// errors.Is finds fs.ErrNotExist, fs.ErrPermission or ErrAPIVersion in it.
func Open() (*System, error) { return open(devicePath) }

func open(path string) (*System, error) {
	fd, err := openRetry(path)
	if err != nil {
		return nil, openError(path, err)
	}
	s := &System{f: newFile(path, fd)}
	version, err := s.f.ioctlValue(ioctlGetAPIVersion, 0)
	if errors.Is(err, unix.ENOTTY) {
		err = fmt.Errorf("%w: this is not the KVM device; check what is at %s", err, path)
	}
	if err == nil && version != apiVersion {
		err = fmt.Errorf("kvm: %s speaks API version %d, need %d: %w; use Linux 2.6.22 or later",
			path, version, apiVersion, ErrAPIVersion)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func openRetry(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func openError(path string, err error) error {
	advice := "see the kernel log (dmesg) for what kvm said"
	switch err {
	case unix.ENOENT:
		advice = "load kvm_intel or kvm_amd, and enable virtualization in the firmware; inside a virtual machine or container its host must pass KVM on"
	case unix.ENODEV, unix.ENXIO:
		advice = "the device node is there but no KVM module answers: load kvm_intel or kvm_amd"
	case unix.EACCES, unix.EPERM:
		advice = "join the group that owns the device (usually: usermod -aG kvm, then log in again) or run as root"
	}
	return fmt.Errorf("kvm: open %s: %w; %s", path, err, advice)
}

// Close closes the descriptor. VMs made from it live on. It may be called
// again.
func (s *System) Close() { s.f.close() }

// CheckExtension asks for a capability (KVM API 4.4): 0 is no, a positive
// number is yes and may be a size or a set of flags. Some answers depend on
// the VM; prefer VM.CheckExtension once there is one.
func (s *System) CheckExtension(c Cap) (int, error) {
	n, err := s.f.ioctlValue(ioctlCheckExtension, uintptr(c))
	return n, withDetail(err, "%v", c)
}

// VCPUMmapSize is the size in bytes of a vCPU's shared mapping (KVM API 4.5).
func (s *System) VCPUMmapSize() (int, error) {
	return s.f.ioctlValue(ioctlGetVCPUMmapSize, 0)
}

// SupportedCPUID lists what the host and KVM can give to a guest (KVM API
// 4.46). The caller chooses from it and calls VCPU.SetCPUID.
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) {
	return getCPUID(s.f, ioctlGetSupportedCPUID)
}

// EmulatedCPUID lists features that KVM emulates in software, slowly (KVM API
// 4.88).
func (s *System) EmulatedCPUID() ([]CPUIDEntry, error) {
	return getCPUID(s.f, ioctlGetEmulatedCPUID)
}

// MSRIndexList names the MSRs that make up a vCPU's state (KVM API 4.3).
func (s *System) MSRIndexList() ([]uint32, error) {
	return getMSRList(s.f, ioctlGetMSRIndexList)
}

// MSRFeatureIndexList names the MSRs that describe the host's features (KVM
// API 4.3); FeatureMSRs reads them.
func (s *System) MSRFeatureIndexList() ([]uint32, error) {
	return getMSRList(s.f, ioctlGetMSRFeatureIndexList)
}

// FeatureMSRs fills in Data of every entry (KVM API 4.18). See VCPU.MSRs for
// the error.
func (s *System) FeatureMSRs(entries []MSREntry) error {
	return getMSRs(s.f, entries)
}

// CreateVM makes an empty machine: no memory, no vCPU (KVM API 4.2).
func (s *System) CreateVM() (*VM, error) {
	size, err := s.VCPUMmapSize()
	if err != nil {
		return nil, err
	}
	if size < int(unsafe.Sizeof(run{})) {
		return nil, s.f.fail(ioctlGetVCPUMmapSize, fmt.Errorf("%d bytes cannot hold struct kvm_run", size))
	}
	fd, err := s.f.ioctlValue(ioctlCreateVM, 0)
	if err != nil {
		return nil, err
	}
	return &VM{f: newFile("VM", fd), mmapSize: size, slots: map[uint32]uint64{}}, nil
}
