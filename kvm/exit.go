//go:build linux && amd64

package kvm

import "fmt"

// ExitReason says why KVM_RUN came back.
type ExitReason uint32

// The exit reasons of linux/kvm.h, other architectures' included, so that a
// report can name whatever arrives.
const (
	ExitUnknown       ExitReason = 0  // KVM_EXIT_UNKNOWN
	ExitException     ExitReason = 1  // KVM_EXIT_EXCEPTION
	ExitIO            ExitReason = 2  // KVM_EXIT_IO
	ExitHypercall     ExitReason = 3  // KVM_EXIT_HYPERCALL
	ExitDebug         ExitReason = 4  // KVM_EXIT_DEBUG
	ExitHLT           ExitReason = 5  // KVM_EXIT_HLT
	ExitMMIO          ExitReason = 6  // KVM_EXIT_MMIO
	ExitIRQWindowOpen ExitReason = 7  // KVM_EXIT_IRQ_WINDOW_OPEN
	ExitShutdown      ExitReason = 8  // KVM_EXIT_SHUTDOWN
	ExitFailEntry     ExitReason = 9  // KVM_EXIT_FAIL_ENTRY
	ExitIntr          ExitReason = 10 // KVM_EXIT_INTR
	ExitSetTPR        ExitReason = 11 // KVM_EXIT_SET_TPR
	ExitTPRAccess     ExitReason = 12 // KVM_EXIT_TPR_ACCESS
	ExitS390SIEIC     ExitReason = 13 // KVM_EXIT_S390_SIEIC
	ExitS390Reset     ExitReason = 14 // KVM_EXIT_S390_RESET
	ExitDCR           ExitReason = 15 // KVM_EXIT_DCR
	ExitNMI           ExitReason = 16 // KVM_EXIT_NMI
	ExitInternalError ExitReason = 17 // KVM_EXIT_INTERNAL_ERROR
	ExitOSI           ExitReason = 18 // KVM_EXIT_OSI
	ExitPAPRHcall     ExitReason = 19 // KVM_EXIT_PAPR_HCALL
	ExitS390UControl  ExitReason = 20 // KVM_EXIT_S390_UCONTROL
	ExitWatchdog      ExitReason = 21 // KVM_EXIT_WATCHDOG
	ExitS390TSCH      ExitReason = 22 // KVM_EXIT_S390_TSCH
	ExitEPR           ExitReason = 23 // KVM_EXIT_EPR
	ExitSystemEvent   ExitReason = 24 // KVM_EXIT_SYSTEM_EVENT
	ExitS390STSI      ExitReason = 25 // KVM_EXIT_S390_STSI
	ExitIOAPICEOI     ExitReason = 26 // KVM_EXIT_IOAPIC_EOI
	ExitHyperV        ExitReason = 27 // KVM_EXIT_HYPERV
	ExitARMNISV       ExitReason = 28 // KVM_EXIT_ARM_NISV
	ExitX86RDMSR      ExitReason = 29 // KVM_EXIT_X86_RDMSR
	ExitX86WRMSR      ExitReason = 30 // KVM_EXIT_X86_WRMSR
	ExitDirtyRingFull ExitReason = 31 // KVM_EXIT_DIRTY_RING_FULL
	ExitAPResetHold   ExitReason = 32 // KVM_EXIT_AP_RESET_HOLD
	ExitX86BusLock    ExitReason = 33 // KVM_EXIT_X86_BUS_LOCK
	ExitXen           ExitReason = 34 // KVM_EXIT_XEN
	ExitRISCVSBI      ExitReason = 35 // KVM_EXIT_RISCV_SBI
	ExitRISCVCSR      ExitReason = 36 // KVM_EXIT_RISCV_CSR
	ExitNotify        ExitReason = 37 // KVM_EXIT_NOTIFY
	ExitMemoryFault   ExitReason = 39 // KVM_EXIT_MEMORY_FAULT
)

var exitNames = [...]string{
	ExitUnknown:       "KVM_EXIT_UNKNOWN",
	ExitException:     "KVM_EXIT_EXCEPTION",
	ExitIO:            "KVM_EXIT_IO",
	ExitHypercall:     "KVM_EXIT_HYPERCALL",
	ExitDebug:         "KVM_EXIT_DEBUG",
	ExitHLT:           "KVM_EXIT_HLT",
	ExitMMIO:          "KVM_EXIT_MMIO",
	ExitIRQWindowOpen: "KVM_EXIT_IRQ_WINDOW_OPEN",
	ExitShutdown:      "KVM_EXIT_SHUTDOWN",
	ExitFailEntry:     "KVM_EXIT_FAIL_ENTRY",
	ExitIntr:          "KVM_EXIT_INTR",
	ExitSetTPR:        "KVM_EXIT_SET_TPR",
	ExitTPRAccess:     "KVM_EXIT_TPR_ACCESS",
	ExitS390SIEIC:     "KVM_EXIT_S390_SIEIC",
	ExitS390Reset:     "KVM_EXIT_S390_RESET",
	ExitDCR:           "KVM_EXIT_DCR",
	ExitNMI:           "KVM_EXIT_NMI",
	ExitInternalError: "KVM_EXIT_INTERNAL_ERROR",
	ExitOSI:           "KVM_EXIT_OSI",
	ExitPAPRHcall:     "KVM_EXIT_PAPR_HCALL",
	ExitS390UControl:  "KVM_EXIT_S390_UCONTROL",
	ExitWatchdog:      "KVM_EXIT_WATCHDOG",
	ExitS390TSCH:      "KVM_EXIT_S390_TSCH",
	ExitEPR:           "KVM_EXIT_EPR",
	ExitSystemEvent:   "KVM_EXIT_SYSTEM_EVENT",
	ExitS390STSI:      "KVM_EXIT_S390_STSI",
	ExitIOAPICEOI:     "KVM_EXIT_IOAPIC_EOI",
	ExitHyperV:        "KVM_EXIT_HYPERV",
	ExitARMNISV:       "KVM_EXIT_ARM_NISV",
	ExitX86RDMSR:      "KVM_EXIT_X86_RDMSR",
	ExitX86WRMSR:      "KVM_EXIT_X86_WRMSR",
	ExitDirtyRingFull: "KVM_EXIT_DIRTY_RING_FULL",
	ExitAPResetHold:   "KVM_EXIT_AP_RESET_HOLD",
	ExitX86BusLock:    "KVM_EXIT_X86_BUS_LOCK",
	ExitXen:           "KVM_EXIT_XEN",
	ExitRISCVSBI:      "KVM_EXIT_RISCV_SBI",
	ExitRISCVCSR:      "KVM_EXIT_RISCV_CSR",
	ExitNotify:        "KVM_EXIT_NOTIFY",
	ExitMemoryFault:   "KVM_EXIT_MEMORY_FAULT",
}

// String is the name in linux/kvm.h; an unlisted reason gives its number.
func (r ExitReason) String() string {
	if int64(r) < int64(len(exitNames)) && exitNames[r] != "" {
		return exitNames[r]
	}
	return fmt.Sprintf("KVM_EXIT_%d", uint32(r))
}
