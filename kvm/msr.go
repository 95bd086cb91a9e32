//go:build linux && amd64

package kvm

import (
	"errors"

	"golang.org/x/sys/unix"
)

// maxMSRs is how many one ioctl takes: fewer than MAX_IO_MSRS, which is 256 in
// arch/x86/kvm/x86.c.
const maxMSRs = 255

// maxMSRList bounds what we allocate on the kernel's word.
const maxMSRList = 1 << 16

// MSREntry is a model-specific register and its value.
//
//kvm:mirror kvm_msr_entry
type MSREntry struct {
	Index uint32
	_     uint32
	Data  uint64
}

//kvm:mirror kvm_msrs
type msrsHeader struct {
	NMSRs uint32 `c:"nmsrs"`
	_     uint32
}

//kvm:mirror kvm_msr_list
type msrListHeader struct {
	NMSRs uint32 `c:"nmsrs"`
}

// getMSRList asks with no room first: E2BIG then comes with the count.
func getMSRList(f *file, req ioctl) ([]uint32, error) {
	var n uint32
	for {
		b := newFlex[msrListHeader, uint32](int(n))
		b.header().NMSRs = n
		_, err := f.ioctl(req, b.pointer())
		if err == nil {
			return b.elems(int(b.header().NMSRs)), nil
		}
		want := b.header().NMSRs
		if !errors.Is(err, unix.E2BIG) || want <= n || want > maxMSRList {
			return nil, err
		}
		n = want
	}
}

func getMSRs(f *file, entries []MSREntry) error {
	for start := 0; start < len(entries); start += maxMSRs {
		part := entries[start:min(start+maxMSRs, len(entries))]
		b := msrBuffer(part)
		done, err := f.ioctl(ioctlGetMSRs, b.pointer())
		if err != nil {
			return err
		}
		done = min(done, len(part))
		copy(part[:done], b.elems(done))
		if done < len(part) {
			return &MSRError{Op: ioctlGetMSRs.String(), Object: f.name,
				Done: start + done, Total: len(entries), Index: part[done].Index}
		}
	}
	return nil
}

func setMSRs(f *file, entries []MSREntry) error {
	for start := 0; start < len(entries); start += maxMSRs {
		part := entries[start:min(start+maxMSRs, len(entries))]
		b := msrBuffer(part)
		done, err := f.ioctl(ioctlSetMSRs, b.pointer())
		if err != nil {
			return err
		}
		if done < len(part) {
			return &MSRError{Op: ioctlSetMSRs.String(), Object: f.name,
				Done: start + done, Total: len(entries), Index: part[done].Index, Data: part[done].Data}
		}
	}
	return nil
}

func msrBuffer(part []MSREntry) flex[msrsHeader, MSREntry] {
	b := newFlex[msrsHeader, MSREntry](len(part))
	b.header().NMSRs = uint32(len(part))
	copy(b.elems(len(part)), part)
	return b
}
