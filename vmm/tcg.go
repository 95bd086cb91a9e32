package vmm

import (
	"os"
	"strings"
	"sync"

	"godwit/kvm"
)

// underTCG tells whether this host is itself emulated by QEMU's TCG, as the
// lab's outer machine is.
var underTCG = sync.OnceValue(func() bool {
	text, err := os.ReadFile("/proc/cpuinfo")
	return err == nil && strings.Contains(string(text), "QEMU TCG CPU")
})

// typeBusy is the bit of a system segment's type that says busy TSS (Intel SDM
// 3A, 7.2.2).
const typeBusy = 2

// forTCG makes restored system registers fit an emulated processor. kvm-amd
// always reports the task register's type as busy, as hardware has it; TCG
// (check_io in target/i386/tcg/seg_helper.c) refuses port I/O at CPL 3 through
// the permission bitmap unless the type is available, as it was before.
func forTCG(s *kvm.Sregs) {
	if underTCG() {
		s.TR.Type &^= typeBusy
	}
}

// presetXCR0 gives a fresh vCPU under TCG the extended state components that
// its guest will ask for. TCG does not intercept XSETBV in a nested guest, so
// kvm-amd never learns of the guest's XCR0: CPUID would go on giving the size
// of the x87 area alone, and Linux then gives up AVX as inconsistent.
func presetXCR0(fd *kvm.VCPU, cpuid []kvm.CPUIDEntry) error {
	if !underTCG() {
		return nil
	}
	for _, e := range cpuid {
		if e.Function == leafXSave && e.Index == 0 {
			x := kvm.XCRs{NrXCRs: 1}
			x.XCRs[0].Value = uint64(e.EDX)<<32 | uint64(e.EAX)
			return fd.SetXCRs(&x)
		}
	}
	return nil
}
