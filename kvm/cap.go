//go:build linux && amd64

package kvm

import "fmt"

// Cap is a capability: a question to CheckExtension, or a switch for
// EnableCap.
type Cap uint32

// The capabilities that matter on x86 (KVM API 4.4, 6, 7 and 8).
const (
	CapIRQChip                Cap = 0   // KVM_CAP_IRQCHIP
	CapUserMemory             Cap = 3   // KVM_CAP_USER_MEMORY
	CapSetTSSAddr             Cap = 4   // KVM_CAP_SET_TSS_ADDR
	CapExtCPUID               Cap = 7   // KVM_CAP_EXT_CPUID
	CapClockSource            Cap = 8   // KVM_CAP_CLOCKSOURCE
	CapNrVCPUs                Cap = 9   // KVM_CAP_NR_VCPUS
	CapNrMemslots             Cap = 10  // KVM_CAP_NR_MEMSLOTS
	CapMPState                Cap = 14  // KVM_CAP_MP_STATE
	CapSyncMMU                Cap = 16  // KVM_CAP_SYNC_MMU
	CapUserNMI                Cap = 22  // KVM_CAP_USER_NMI
	CapSetGuestDebug          Cap = 23  // KVM_CAP_SET_GUEST_DEBUG
	CapIRQRouting             Cap = 25  // KVM_CAP_IRQ_ROUTING
	CapIRQFD                  Cap = 32  // KVM_CAP_IRQFD
	CapPIT2                   Cap = 33  // KVM_CAP_PIT2
	CapSetBootCPUID           Cap = 34  // KVM_CAP_SET_BOOT_CPU_ID
	CapPITState2              Cap = 35  // KVM_CAP_PIT_STATE2
	CapIOEventFD              Cap = 36  // KVM_CAP_IOEVENTFD
	CapSetIdentityMapAddr     Cap = 37  // KVM_CAP_SET_IDENTITY_MAP_ADDR
	CapAdjustClock            Cap = 39  // KVM_CAP_ADJUST_CLOCK
	CapInternalErrorData      Cap = 40  // KVM_CAP_INTERNAL_ERROR_DATA
	CapVCPUEvents             Cap = 41  // KVM_CAP_VCPU_EVENTS
	CapDebugRegs              Cap = 50  // KVM_CAP_DEBUGREGS
	CapEnableCap              Cap = 54  // KVM_CAP_ENABLE_CAP
	CapXSave                  Cap = 55  // KVM_CAP_XSAVE
	CapXCRs                   Cap = 56  // KVM_CAP_XCRS
	CapAsyncPF                Cap = 59  // KVM_CAP_ASYNC_PF
	CapTSCControl             Cap = 60  // KVM_CAP_TSC_CONTROL
	CapGetTSCKHz              Cap = 61  // KVM_CAP_GET_TSC_KHZ
	CapMaxVCPUs               Cap = 66  // KVM_CAP_MAX_VCPUS
	CapTSCDeadlineTimer       Cap = 72  // KVM_CAP_TSC_DEADLINE_TIMER
	CapSyncRegs               Cap = 74  // KVM_CAP_SYNC_REGS
	CapKVMClockCtrl           Cap = 76  // KVM_CAP_KVMCLOCK_CTRL
	CapSignalMSI              Cap = 77  // KVM_CAP_SIGNAL_MSI
	CapReadonlyMem            Cap = 81  // KVM_CAP_READONLY_MEM
	CapIRQFDResample          Cap = 82  // KVM_CAP_IRQFD_RESAMPLE
	CapExtEmulCPUID           Cap = 95  // KVM_CAP_EXT_EMUL_CPUID
	CapEnableCapVM            Cap = 98  // KVM_CAP_ENABLE_CAP_VM
	CapVMAttributes           Cap = 101 // KVM_CAP_VM_ATTRIBUTES
	CapCheckExtensionVM       Cap = 105 // KVM_CAP_CHECK_EXTENSION_VM
	CapDisableQuirks          Cap = 116 // KVM_CAP_DISABLE_QUIRKS
	CapX86SMM                 Cap = 117 // KVM_CAP_X86_SMM
	CapMultiAddressSpace      Cap = 118 // KVM_CAP_MULTI_ADDRESS_SPACE
	CapSplitIRQChip           Cap = 121 // KVM_CAP_SPLIT_IRQCHIP
	CapIOEventFDAnyLength     Cap = 122 // KVM_CAP_IOEVENTFD_ANY_LENGTH
	CapVCPUAttributes         Cap = 127 // KVM_CAP_VCPU_ATTRIBUTES
	CapMaxVCPUID              Cap = 128 // KVM_CAP_MAX_VCPU_ID
	CapX2APICAPI              Cap = 129 // KVM_CAP_X2APIC_API
	CapImmediateExit          Cap = 136 // KVM_CAP_IMMEDIATE_EXIT
	CapX86DisableExits        Cap = 143 // KVM_CAP_X86_DISABLE_EXITS
	CapGetMSRFeatures         Cap = 153 // KVM_CAP_GET_MSR_FEATURES
	CapNestedState            Cap = 157 // KVM_CAP_NESTED_STATE
	CapExceptionPayload       Cap = 164 // KVM_CAP_EXCEPTION_PAYLOAD
	CapManualDirtyLogProtect2 Cap = 168 // KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
	CapHaltPoll               Cap = 182 // KVM_CAP_HALT_POLL
	CapAsyncPFInt             Cap = 183 // KVM_CAP_ASYNC_PF_INT
	CapStealTime              Cap = 187 // KVM_CAP_STEAL_TIME
	CapX86UserSpaceMSR        Cap = 188 // KVM_CAP_X86_USER_SPACE_MSR
	CapX86MSRFilter           Cap = 189 // KVM_CAP_X86_MSR_FILTER
	CapEnforcePVFeatureCPUID  Cap = 190 // KVM_CAP_ENFORCE_PV_FEATURE_CPUID
	CapDirtyLogRing           Cap = 192 // KVM_CAP_DIRTY_LOG_RING
	CapX86BusLockExit         Cap = 193 // KVM_CAP_X86_BUS_LOCK_EXIT
	CapSregs2                 Cap = 200 // KVM_CAP_SREGS2
	CapExitHypercall          Cap = 201 // KVM_CAP_EXIT_HYPERCALL
	CapExitOnEmulationFailure Cap = 204 // KVM_CAP_EXIT_ON_EMULATION_FAILURE
	CapVMGPABits              Cap = 207 // KVM_CAP_VM_GPA_BITS
	CapXSave2                 Cap = 208 // KVM_CAP_XSAVE2
	CapSysAttributes          Cap = 209 // KVM_CAP_SYS_ATTRIBUTES
	CapPMUCapability          Cap = 212 // KVM_CAP_PMU_CAPABILITY
	CapDisableQuirks2         Cap = 213 // KVM_CAP_DISABLE_QUIRKS2
	CapVMTSCControl           Cap = 214 // KVM_CAP_VM_TSC_CONTROL
	CapSystemEventData        Cap = 215 // KVM_CAP_SYSTEM_EVENT_DATA
	CapX86TripleFaultEvent    Cap = 218 // KVM_CAP_X86_TRIPLE_FAULT_EVENT
	CapX86NotifyVMExit        Cap = 219 // KVM_CAP_X86_NOTIFY_VMEXIT
	CapVMDisableNXHugePages   Cap = 220 // KVM_CAP_VM_DISABLE_NX_HUGE_PAGES
	CapDirtyLogRingAcqRel     Cap = 223 // KVM_CAP_DIRTY_LOG_RING_ACQ_REL
)

var capNames = map[Cap]string{
	CapIRQChip:                "KVM_CAP_IRQCHIP",
	CapUserMemory:             "KVM_CAP_USER_MEMORY",
	CapSetTSSAddr:             "KVM_CAP_SET_TSS_ADDR",
	CapExtCPUID:               "KVM_CAP_EXT_CPUID",
	CapClockSource:            "KVM_CAP_CLOCKSOURCE",
	CapNrVCPUs:                "KVM_CAP_NR_VCPUS",
	CapNrMemslots:             "KVM_CAP_NR_MEMSLOTS",
	CapMPState:                "KVM_CAP_MP_STATE",
	CapSyncMMU:                "KVM_CAP_SYNC_MMU",
	CapUserNMI:                "KVM_CAP_USER_NMI",
	CapSetGuestDebug:          "KVM_CAP_SET_GUEST_DEBUG",
	CapIRQRouting:             "KVM_CAP_IRQ_ROUTING",
	CapIRQFD:                  "KVM_CAP_IRQFD",
	CapPIT2:                   "KVM_CAP_PIT2",
	CapSetBootCPUID:           "KVM_CAP_SET_BOOT_CPU_ID",
	CapPITState2:              "KVM_CAP_PIT_STATE2",
	CapIOEventFD:              "KVM_CAP_IOEVENTFD",
	CapSetIdentityMapAddr:     "KVM_CAP_SET_IDENTITY_MAP_ADDR",
	CapAdjustClock:            "KVM_CAP_ADJUST_CLOCK",
	CapInternalErrorData:      "KVM_CAP_INTERNAL_ERROR_DATA",
	CapVCPUEvents:             "KVM_CAP_VCPU_EVENTS",
	CapDebugRegs:              "KVM_CAP_DEBUGREGS",
	CapEnableCap:              "KVM_CAP_ENABLE_CAP",
	CapXSave:                  "KVM_CAP_XSAVE",
	CapXCRs:                   "KVM_CAP_XCRS",
	CapAsyncPF:                "KVM_CAP_ASYNC_PF",
	CapTSCControl:             "KVM_CAP_TSC_CONTROL",
	CapGetTSCKHz:              "KVM_CAP_GET_TSC_KHZ",
	CapMaxVCPUs:               "KVM_CAP_MAX_VCPUS",
	CapTSCDeadlineTimer:       "KVM_CAP_TSC_DEADLINE_TIMER",
	CapSyncRegs:               "KVM_CAP_SYNC_REGS",
	CapKVMClockCtrl:           "KVM_CAP_KVMCLOCK_CTRL",
	CapSignalMSI:              "KVM_CAP_SIGNAL_MSI",
	CapReadonlyMem:            "KVM_CAP_READONLY_MEM",
	CapIRQFDResample:          "KVM_CAP_IRQFD_RESAMPLE",
	CapExtEmulCPUID:           "KVM_CAP_EXT_EMUL_CPUID",
	CapEnableCapVM:            "KVM_CAP_ENABLE_CAP_VM",
	CapVMAttributes:           "KVM_CAP_VM_ATTRIBUTES",
	CapCheckExtensionVM:       "KVM_CAP_CHECK_EXTENSION_VM",
	CapDisableQuirks:          "KVM_CAP_DISABLE_QUIRKS",
	CapX86SMM:                 "KVM_CAP_X86_SMM",
	CapMultiAddressSpace:      "KVM_CAP_MULTI_ADDRESS_SPACE",
	CapSplitIRQChip:           "KVM_CAP_SPLIT_IRQCHIP",
	CapIOEventFDAnyLength:     "KVM_CAP_IOEVENTFD_ANY_LENGTH",
	CapVCPUAttributes:         "KVM_CAP_VCPU_ATTRIBUTES",
	CapMaxVCPUID:              "KVM_CAP_MAX_VCPU_ID",
	CapX2APICAPI:              "KVM_CAP_X2APIC_API",
	CapImmediateExit:          "KVM_CAP_IMMEDIATE_EXIT",
	CapX86DisableExits:        "KVM_CAP_X86_DISABLE_EXITS",
	CapGetMSRFeatures:         "KVM_CAP_GET_MSR_FEATURES",
	CapNestedState:            "KVM_CAP_NESTED_STATE",
	CapExceptionPayload:       "KVM_CAP_EXCEPTION_PAYLOAD",
	CapManualDirtyLogProtect2: "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
	CapHaltPoll:               "KVM_CAP_HALT_POLL",
	CapAsyncPFInt:             "KVM_CAP_ASYNC_PF_INT",
	CapStealTime:              "KVM_CAP_STEAL_TIME",
	CapX86UserSpaceMSR:        "KVM_CAP_X86_USER_SPACE_MSR",
	CapX86MSRFilter:           "KVM_CAP_X86_MSR_FILTER",
	CapEnforcePVFeatureCPUID:  "KVM_CAP_ENFORCE_PV_FEATURE_CPUID",
	CapDirtyLogRing:           "KVM_CAP_DIRTY_LOG_RING",
	CapX86BusLockExit:         "KVM_CAP_X86_BUS_LOCK_EXIT",
	CapSregs2:                 "KVM_CAP_SREGS2",
	CapExitHypercall:          "KVM_CAP_EXIT_HYPERCALL",
	CapExitOnEmulationFailure: "KVM_CAP_EXIT_ON_EMULATION_FAILURE",
	CapVMGPABits:              "KVM_CAP_VM_GPA_BITS",
	CapXSave2:                 "KVM_CAP_XSAVE2",
	CapSysAttributes:          "KVM_CAP_SYS_ATTRIBUTES",
	CapPMUCapability:          "KVM_CAP_PMU_CAPABILITY",
	CapDisableQuirks2:         "KVM_CAP_DISABLE_QUIRKS2",
	CapVMTSCControl:           "KVM_CAP_VM_TSC_CONTROL",
	CapSystemEventData:        "KVM_CAP_SYSTEM_EVENT_DATA",
	CapX86TripleFaultEvent:    "KVM_CAP_X86_TRIPLE_FAULT_EVENT",
	CapX86NotifyVMExit:        "KVM_CAP_X86_NOTIFY_VMEXIT",
	CapVMDisableNXHugePages:   "KVM_CAP_VM_DISABLE_NX_HUGE_PAGES",
	CapDirtyLogRingAcqRel:     "KVM_CAP_DIRTY_LOG_RING_ACQ_REL",
}

// String is the name in linux/kvm.h, or the number for a capability that this
// package does not list.
func (c Cap) String() string {
	if s, ok := capNames[c]; ok {
		return s
	}
	return fmt.Sprintf("KVM_CAP_%d", uint32(c))
}
