//go:build linux && amd64

package kvm

import (
	"fmt"
	"unsafe"
)

// ioctl is a request number as asm-generic/ioctl.h builds it: direction in
// bits 31-30, size of the argument in 29-16, type in 15-8, number in 7-0.
type ioctl uintptr

const (
	kvmIO     = 0xAE << 8 // KVMIO, in place
	dirWrite  = 1 << 30   // _IOC_WRITE, in place
	dirRead   = 2 << 30   // _IOC_READ, in place
	sizeShift = 16        // _IOC_SIZESHIFT
)

// On /dev/kvm.
const (
	ioctlGetAPIVersion          ioctl = kvmIO                                                                                // KVM_GET_API_VERSION
	ioctlCreateVM               ioctl = kvmIO | 0x01                                                                         // KVM_CREATE_VM
	ioctlGetMSRIndexList        ioctl = dirRead | dirWrite | kvmIO | 0x02 | ioctl(unsafe.Sizeof(msrListHeader{}))<<sizeShift // KVM_GET_MSR_INDEX_LIST
	ioctlCheckExtension         ioctl = kvmIO | 0x03                                                                         // KVM_CHECK_EXTENSION
	ioctlGetVCPUMmapSize        ioctl = kvmIO | 0x04                                                                         // KVM_GET_VCPU_MMAP_SIZE
	ioctlGetSupportedCPUID      ioctl = dirRead | dirWrite | kvmIO | 0x05 | ioctl(unsafe.Sizeof(cpuidHeader{}))<<sizeShift   // KVM_GET_SUPPORTED_CPUID
	ioctlGetEmulatedCPUID       ioctl = dirRead | dirWrite | kvmIO | 0x09 | ioctl(unsafe.Sizeof(cpuidHeader{}))<<sizeShift   // KVM_GET_EMULATED_CPUID
	ioctlGetMSRFeatureIndexList ioctl = dirRead | dirWrite | kvmIO | 0x0a | ioctl(unsafe.Sizeof(msrListHeader{}))<<sizeShift // KVM_GET_MSR_FEATURE_INDEX_LIST
)

// On a VM.
const (
	ioctlCreateVCPU          ioctl = kvmIO | 0x41                                                                         // KVM_CREATE_VCPU
	ioctlGetDirtyLog         ioctl = dirWrite | kvmIO | 0x42 | ioctl(unsafe.Sizeof(dirtyLog{}))<<sizeShift                // KVM_GET_DIRTY_LOG
	ioctlSetUserMemoryRegion ioctl = dirWrite | kvmIO | 0x46 | ioctl(unsafe.Sizeof(userMemoryRegion{}))<<sizeShift        // KVM_SET_USER_MEMORY_REGION
	ioctlSetTSSAddr          ioctl = kvmIO | 0x47                                                                         // KVM_SET_TSS_ADDR
	ioctlSetIdentityMapAddr  ioctl = dirWrite | kvmIO | 0x48 | 8<<sizeShift                                               // KVM_SET_IDENTITY_MAP_ADDR
	ioctlCreateIRQChip       ioctl = kvmIO | 0x60                                                                         // KVM_CREATE_IRQCHIP
	ioctlIRQLine             ioctl = dirWrite | kvmIO | 0x61 | ioctl(unsafe.Sizeof(irqLevel{}))<<sizeShift                // KVM_IRQ_LINE
	ioctlGetIRQChip          ioctl = dirRead | dirWrite | kvmIO | 0x62 | ioctl(unsafe.Sizeof(IRQChip{}))<<sizeShift       // KVM_GET_IRQCHIP
	ioctlSetIRQChip          ioctl = dirRead | kvmIO | 0x63 | ioctl(unsafe.Sizeof(IRQChip{}))<<sizeShift                  // KVM_SET_IRQCHIP
	ioctlSetGSIRouting       ioctl = dirWrite | kvmIO | 0x6a | ioctl(unsafe.Sizeof(irqRoutingHeader{}))<<sizeShift        // KVM_SET_GSI_ROUTING
	ioctlIRQFD               ioctl = dirWrite | kvmIO | 0x76 | ioctl(unsafe.Sizeof(irqFD{}))<<sizeShift                   // KVM_IRQFD
	ioctlCreatePIT2          ioctl = dirWrite | kvmIO | 0x77 | ioctl(unsafe.Sizeof(pitConfig{}))<<sizeShift               // KVM_CREATE_PIT2
	ioctlSetBootCPUID        ioctl = kvmIO | 0x78                                                                         // KVM_SET_BOOT_CPU_ID
	ioctlIOEventFD           ioctl = dirWrite | kvmIO | 0x79 | ioctl(unsafe.Sizeof(ioEventFD{}))<<sizeShift               // KVM_IOEVENTFD
	ioctlSetClock            ioctl = dirWrite | kvmIO | 0x7b | ioctl(unsafe.Sizeof(ClockData{}))<<sizeShift               // KVM_SET_CLOCK
	ioctlGetClock            ioctl = dirRead | kvmIO | 0x7c | ioctl(unsafe.Sizeof(ClockData{}))<<sizeShift                // KVM_GET_CLOCK
	ioctlGetPIT2             ioctl = dirRead | kvmIO | 0x9f | ioctl(unsafe.Sizeof(PIT2{}))<<sizeShift                     // KVM_GET_PIT2
	ioctlSetPIT2             ioctl = dirWrite | kvmIO | 0xa0 | ioctl(unsafe.Sizeof(PIT2{}))<<sizeShift                    // KVM_SET_PIT2
	ioctlSignalMSI           ioctl = dirWrite | kvmIO | 0xa5 | ioctl(unsafe.Sizeof(msi{}))<<sizeShift                     // KVM_SIGNAL_MSI
	ioctlClearDirtyLog       ioctl = dirRead | dirWrite | kvmIO | 0xc0 | ioctl(unsafe.Sizeof(clearDirtyLog{}))<<sizeShift // KVM_CLEAR_DIRTY_LOG
	ioctlResetDirtyRings     ioctl = kvmIO | 0xc7                                                                         // KVM_RESET_DIRTY_RINGS
)

// On a vCPU; ENABLE_CAP, the MSRs and the device attributes elsewhere too.
const (
	ioctlRun           ioctl = kvmIO | 0x80                                                                       // KVM_RUN
	ioctlGetRegs       ioctl = dirRead | kvmIO | 0x81 | ioctl(unsafe.Sizeof(Regs{}))<<sizeShift                   // KVM_GET_REGS
	ioctlSetRegs       ioctl = dirWrite | kvmIO | 0x82 | ioctl(unsafe.Sizeof(Regs{}))<<sizeShift                  // KVM_SET_REGS
	ioctlGetSregs      ioctl = dirRead | kvmIO | 0x83 | ioctl(unsafe.Sizeof(Sregs{}))<<sizeShift                  // KVM_GET_SREGS
	ioctlSetSregs      ioctl = dirWrite | kvmIO | 0x84 | ioctl(unsafe.Sizeof(Sregs{}))<<sizeShift                 // KVM_SET_SREGS
	ioctlTranslate     ioctl = dirRead | dirWrite | kvmIO | 0x85 | ioctl(unsafe.Sizeof(Translation{}))<<sizeShift // KVM_TRANSLATE
	ioctlInterrupt     ioctl = dirWrite | kvmIO | 0x86 | ioctl(unsafe.Sizeof(interrupt{}))<<sizeShift             // KVM_INTERRUPT
	ioctlGetMSRs       ioctl = dirRead | dirWrite | kvmIO | 0x88 | ioctl(unsafe.Sizeof(msrsHeader{}))<<sizeShift  // KVM_GET_MSRS
	ioctlSetMSRs       ioctl = dirWrite | kvmIO | 0x89 | ioctl(unsafe.Sizeof(msrsHeader{}))<<sizeShift            // KVM_SET_MSRS
	ioctlSetSignalMask ioctl = dirWrite | kvmIO | 0x8b | ioctl(unsafe.Sizeof(signalMaskHeader{}))<<sizeShift      // KVM_SET_SIGNAL_MASK
	ioctlGetFPU        ioctl = dirRead | kvmIO | 0x8c | ioctl(unsafe.Sizeof(FPU{}))<<sizeShift                    // KVM_GET_FPU
	ioctlSetFPU        ioctl = dirWrite | kvmIO | 0x8d | ioctl(unsafe.Sizeof(FPU{}))<<sizeShift                   // KVM_SET_FPU
	ioctlGetLAPIC      ioctl = dirRead | kvmIO | 0x8e | ioctl(unsafe.Sizeof(LAPIC{}))<<sizeShift                  // KVM_GET_LAPIC
	ioctlSetLAPIC      ioctl = dirWrite | kvmIO | 0x8f | ioctl(unsafe.Sizeof(LAPIC{}))<<sizeShift                 // KVM_SET_LAPIC
	ioctlSetCPUID2     ioctl = dirWrite | kvmIO | 0x90 | ioctl(unsafe.Sizeof(cpuidHeader{}))<<sizeShift           // KVM_SET_CPUID2
	ioctlGetCPUID2     ioctl = dirRead | dirWrite | kvmIO | 0x91 | ioctl(unsafe.Sizeof(cpuidHeader{}))<<sizeShift // KVM_GET_CPUID2
	ioctlGetMPState    ioctl = dirRead | kvmIO | 0x98 | ioctl(unsafe.Sizeof(mpState{}))<<sizeShift                // KVM_GET_MP_STATE
	ioctlSetMPState    ioctl = dirWrite | kvmIO | 0x99 | ioctl(unsafe.Sizeof(mpState{}))<<sizeShift               // KVM_SET_MP_STATE
	ioctlNMI           ioctl = kvmIO | 0x9a                                                                       // KVM_NMI
	ioctlSetGuestDebug ioctl = dirWrite | kvmIO | 0x9b | ioctl(unsafe.Sizeof(GuestDebug{}))<<sizeShift            // KVM_SET_GUEST_DEBUG
	ioctlGetVCPUEvents ioctl = dirRead | kvmIO | 0x9f | ioctl(unsafe.Sizeof(VCPUEvents{}))<<sizeShift             // KVM_GET_VCPU_EVENTS
	ioctlSetVCPUEvents ioctl = dirWrite | kvmIO | 0xa0 | ioctl(unsafe.Sizeof(VCPUEvents{}))<<sizeShift            // KVM_SET_VCPU_EVENTS
	ioctlGetDebugRegs  ioctl = dirRead | kvmIO | 0xa1 | ioctl(unsafe.Sizeof(DebugRegs{}))<<sizeShift              // KVM_GET_DEBUGREGS
	ioctlSetDebugRegs  ioctl = dirWrite | kvmIO | 0xa2 | ioctl(unsafe.Sizeof(DebugRegs{}))<<sizeShift             // KVM_SET_DEBUGREGS
	ioctlSetTSCKHz     ioctl = kvmIO | 0xa2                                                                       // KVM_SET_TSC_KHZ
	ioctlGetTSCKHz     ioctl = kvmIO | 0xa3                                                                       // KVM_GET_TSC_KHZ
	ioctlEnableCap     ioctl = dirWrite | kvmIO | 0xa3 | ioctl(unsafe.Sizeof(enableCap{}))<<sizeShift             // KVM_ENABLE_CAP
	ioctlGetXSave      ioctl = dirRead | kvmIO | 0xa4 | xsaveMin<<sizeShift                                       // KVM_GET_XSAVE
	ioctlSetXSave      ioctl = dirWrite | kvmIO | 0xa5 | xsaveMin<<sizeShift                                      // KVM_SET_XSAVE
	ioctlGetXCRs       ioctl = dirRead | kvmIO | 0xa6 | ioctl(unsafe.Sizeof(XCRs{}))<<sizeShift                   // KVM_GET_XCRS
	ioctlSetXCRs       ioctl = dirWrite | kvmIO | 0xa7 | ioctl(unsafe.Sizeof(XCRs{}))<<sizeShift                  // KVM_SET_XCRS
	ioctlKVMClockCtrl  ioctl = kvmIO | 0xad                                                                       // KVM_KVMCLOCK_CTRL
	ioctlGetSregs2     ioctl = dirRead | kvmIO | 0xcc | ioctl(unsafe.Sizeof(Sregs2{}))<<sizeShift                 // KVM_GET_SREGS2
	ioctlSetSregs2     ioctl = dirWrite | kvmIO | 0xcd | ioctl(unsafe.Sizeof(Sregs2{}))<<sizeShift                // KVM_SET_SREGS2
	ioctlGetXSave2     ioctl = dirRead | kvmIO | 0xcf | xsaveMin<<sizeShift                                       // KVM_GET_XSAVE2
	ioctlSetDeviceAttr ioctl = dirWrite | kvmIO | 0xe1 | ioctl(unsafe.Sizeof(deviceAttr{}))<<sizeShift            // KVM_SET_DEVICE_ATTR
	ioctlGetDeviceAttr ioctl = dirWrite | kvmIO | 0xe2 | ioctl(unsafe.Sizeof(deviceAttr{}))<<sizeShift            // KVM_GET_DEVICE_ATTR
	ioctlHasDeviceAttr ioctl = dirWrite | kvmIO | 0xe3 | ioctl(unsafe.Sizeof(deviceAttr{}))<<sizeShift            // KVM_HAS_DEVICE_ATTR
)

var ioctlNames = map[ioctl]string{
	ioctlGetAPIVersion:          "KVM_GET_API_VERSION",
	ioctlCreateVM:               "KVM_CREATE_VM",
	ioctlGetMSRIndexList:        "KVM_GET_MSR_INDEX_LIST",
	ioctlCheckExtension:         "KVM_CHECK_EXTENSION",
	ioctlGetVCPUMmapSize:        "KVM_GET_VCPU_MMAP_SIZE",
	ioctlGetSupportedCPUID:      "KVM_GET_SUPPORTED_CPUID",
	ioctlGetEmulatedCPUID:       "KVM_GET_EMULATED_CPUID",
	ioctlGetMSRFeatureIndexList: "KVM_GET_MSR_FEATURE_INDEX_LIST",
	ioctlCreateVCPU:             "KVM_CREATE_VCPU",
	ioctlGetDirtyLog:            "KVM_GET_DIRTY_LOG",
	ioctlSetUserMemoryRegion:    "KVM_SET_USER_MEMORY_REGION",
	ioctlSetTSSAddr:             "KVM_SET_TSS_ADDR",
	ioctlSetIdentityMapAddr:     "KVM_SET_IDENTITY_MAP_ADDR",
	ioctlCreateIRQChip:          "KVM_CREATE_IRQCHIP",
	ioctlIRQLine:                "KVM_IRQ_LINE",
	ioctlGetIRQChip:             "KVM_GET_IRQCHIP",
	ioctlSetIRQChip:             "KVM_SET_IRQCHIP",
	ioctlSetGSIRouting:          "KVM_SET_GSI_ROUTING",
	ioctlIRQFD:                  "KVM_IRQFD",
	ioctlCreatePIT2:             "KVM_CREATE_PIT2",
	ioctlSetBootCPUID:           "KVM_SET_BOOT_CPU_ID",
	ioctlIOEventFD:              "KVM_IOEVENTFD",
	ioctlSetClock:               "KVM_SET_CLOCK",
	ioctlGetClock:               "KVM_GET_CLOCK",
	ioctlGetPIT2:                "KVM_GET_PIT2",
	ioctlSetPIT2:                "KVM_SET_PIT2",
	ioctlSignalMSI:              "KVM_SIGNAL_MSI",
	ioctlClearDirtyLog:          "KVM_CLEAR_DIRTY_LOG",
	ioctlResetDirtyRings:        "KVM_RESET_DIRTY_RINGS",
	ioctlRun:                    "KVM_RUN",
	ioctlGetRegs:                "KVM_GET_REGS",
	ioctlSetRegs:                "KVM_SET_REGS",
	ioctlGetSregs:               "KVM_GET_SREGS",
	ioctlSetSregs:               "KVM_SET_SREGS",
	ioctlTranslate:              "KVM_TRANSLATE",
	ioctlInterrupt:              "KVM_INTERRUPT",
	ioctlGetMSRs:                "KVM_GET_MSRS",
	ioctlSetMSRs:                "KVM_SET_MSRS",
	ioctlSetSignalMask:          "KVM_SET_SIGNAL_MASK",
	ioctlGetFPU:                 "KVM_GET_FPU",
	ioctlSetFPU:                 "KVM_SET_FPU",
	ioctlGetLAPIC:               "KVM_GET_LAPIC",
	ioctlSetLAPIC:               "KVM_SET_LAPIC",
	ioctlSetCPUID2:              "KVM_SET_CPUID2",
	ioctlGetCPUID2:              "KVM_GET_CPUID2",
	ioctlGetMPState:             "KVM_GET_MP_STATE",
	ioctlSetMPState:             "KVM_SET_MP_STATE",
	ioctlNMI:                    "KVM_NMI",
	ioctlSetGuestDebug:          "KVM_SET_GUEST_DEBUG",
	ioctlGetVCPUEvents:          "KVM_GET_VCPU_EVENTS",
	ioctlSetVCPUEvents:          "KVM_SET_VCPU_EVENTS",
	ioctlGetDebugRegs:           "KVM_GET_DEBUGREGS",
	ioctlSetDebugRegs:           "KVM_SET_DEBUGREGS",
	ioctlSetTSCKHz:              "KVM_SET_TSC_KHZ",
	ioctlGetTSCKHz:              "KVM_GET_TSC_KHZ",
	ioctlEnableCap:              "KVM_ENABLE_CAP",
	ioctlGetXSave:               "KVM_GET_XSAVE",
	ioctlSetXSave:               "KVM_SET_XSAVE",
	ioctlGetXCRs:                "KVM_GET_XCRS",
	ioctlSetXCRs:                "KVM_SET_XCRS",
	ioctlKVMClockCtrl:           "KVM_KVMCLOCK_CTRL",
	ioctlGetSregs2:              "KVM_GET_SREGS2",
	ioctlSetSregs2:              "KVM_SET_SREGS2",
	ioctlGetXSave2:              "KVM_GET_XSAVE2",
	ioctlSetDeviceAttr:          "KVM_SET_DEVICE_ATTR",
	ioctlGetDeviceAttr:          "KVM_GET_DEVICE_ATTR",
	ioctlHasDeviceAttr:          "KVM_HAS_DEVICE_ATTR",
}

// String is the name in linux/kvm.h.
func (r ioctl) String() string {
	if s, ok := ioctlNames[r]; ok {
		return s
	}
	return fmt.Sprintf("ioctl %#x", uintptr(r))
}
