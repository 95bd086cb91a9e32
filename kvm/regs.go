//go:build linux && amd64

package kvm

// The structs of this file are x86 state as in asm/kvm.h. Values are passed
// on as they are; KVM judges them when they are set.

// Regs are the general registers.
//
//kvm:mirror kvm_regs
type Regs struct {
	RAX, RBX, RCX, RDX uint64
	RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11   uint64
	R12, R13, R14, R15 uint64
	RIP                uint64
	RFLAGS             uint64
}

// Segment is a segment register with its hidden part. Limit is in bytes,
// already scaled by the granularity.
//
//kvm:mirror kvm_segment
type Segment struct {
	Base     uint64
	Limit    uint32
	Selector uint16
	Type     uint8
	Present  uint8
	DPL      uint8
	DB       uint8
	S        uint8
	L        uint8
	G        uint8
	AVL      uint8
	Unusable uint8
	_        uint8
}

// DTable is GDTR or IDTR.
//
//kvm:mirror kvm_dtable
type DTable struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

// Sregs are the system registers. InterruptBitmap has at most one bit set: an
// external interrupt that is accepted but not yet in the guest.
//
//kvm:mirror kvm_sregs
type Sregs struct {
	CS, DS, ES, FS, GS, SS Segment
	TR, LDT                Segment
	GDT, IDT               DTable
	CR0, CR2, CR3, CR4     uint64
	CR8                    uint64
	EFER                   uint64
	APICBase               uint64
	InterruptBitmap        [4]uint64
}

// Sregs2FlagsPDPTRsValid says that Sregs2.PDPTRs holds the page-directory
// pointers of a PAE guest.
const Sregs2FlagsPDPTRsValid = 1 // KVM_SREGS2_FLAGS_PDPTRS_VALID

// Sregs2 are the system registers with the PDPTRs and without the interrupt
// bitmap, which then travels in VCPUEvents.
//
//kvm:mirror kvm_sregs2
type Sregs2 struct {
	CS, DS, ES, FS, GS, SS Segment
	TR, LDT                Segment
	GDT, IDT               DTable
	CR0, CR2, CR3, CR4     uint64
	CR8                    uint64
	EFER                   uint64
	APICBase               uint64
	Flags                  uint64
	PDPTRs                 [4]uint64 `c:"pdptrs"`
}

// FPU is the legacy x87 and SSE state. XSave holds it too.
//
//kvm:mirror kvm_fpu
type FPU struct {
	FPR        [8][16]uint8
	FCW        uint16
	FSW        uint16
	FTWX       uint8 // as in FXSAVE
	_          uint8
	LastOpcode uint16
	LastIP     uint64
	LastDP     uint64
	XMM        [16][16]uint8
	MXCSR      uint32
	_          uint32
}

// XCR is one extended control register; 0 is XCR0.
//
//kvm:mirror kvm_xcr
type XCR struct {
	XCR   uint32
	_     uint32
	Value uint64
}

// XCRs are the extended control registers; the first NrXCRs entries count.
//
//kvm:mirror kvm_xcrs
type XCRs struct {
	NrXCRs uint32 `c:"nr_xcrs"`
	Flags  uint32
	XCRs   [16]XCR `c:"xcrs"`
	_      [16]uint64
}

// DebugRegs are DR0 to DR3, DR6 and DR7.
//
//kvm:mirror kvm_debugregs
type DebugRegs struct {
	DB    [4]uint64
	DR6   uint64
	DR7   uint64
	Flags uint64
	_     [9]uint64
}

// What VCPUEvents.Flags declares valid.
const (
	VCPUEventValidNMIPending  = 0x01 // KVM_VCPUEVENT_VALID_NMI_PENDING
	VCPUEventValidSIPIVector  = 0x02 // KVM_VCPUEVENT_VALID_SIPI_VECTOR
	VCPUEventValidShadow      = 0x04 // KVM_VCPUEVENT_VALID_SHADOW
	VCPUEventValidSMM         = 0x08 // KVM_VCPUEVENT_VALID_SMM
	VCPUEventValidPayload     = 0x10 // KVM_VCPUEVENT_VALID_PAYLOAD
	VCPUEventValidTripleFault = 0x20 // KVM_VCPUEVENT_VALID_TRIPLE_FAULT
)

// VCPUEvents are exceptions, interrupts, NMIs and SMIs on their way into the
// guest.
//
//kvm:mirror kvm_vcpu_events
type VCPUEvents struct {
	ExceptionInjected     uint8  `c:"exception.injected"`
	ExceptionNr           uint8  `c:"exception.nr"`
	ExceptionHasErrorCode uint8  `c:"exception.has_error_code"`
	ExceptionPending      uint8  `c:"exception.pending"`
	ExceptionErrorCode    uint32 `c:"exception.error_code"`
	InterruptInjected     uint8  `c:"interrupt.injected"`
	InterruptNr           uint8  `c:"interrupt.nr"`
	InterruptSoft         uint8  `c:"interrupt.soft"`
	InterruptShadow       uint8  `c:"interrupt.shadow"`
	NMIInjected           uint8  `c:"nmi.injected"`
	NMIPending            uint8  `c:"nmi.pending"`
	NMIMasked             uint8  `c:"nmi.masked"`
	_                     uint8
	SIPIVector            uint32
	Flags                 uint32
	SMISMM                uint8 `c:"smi.smm"`
	SMIPending            uint8 `c:"smi.pending"`
	SMIInsideNMI          uint8 `c:"smi.smm_inside_nmi"`
	SMILatchedInit        uint8 `c:"smi.latched_init"`
	TripleFaultPending    uint8 `c:"triple_fault.pending"`
	_                     [26]uint8
	ExceptionHasPayload   uint8
	ExceptionPayload      uint64
}

// LAPIC is the register page of a local APIC, one register every 16 bytes.
//
//kvm:mirror kvm_lapic_state
type LAPIC struct {
	Regs [1024]uint8
}

// Register reads the 32-bit register at offset off of the page (Intel SDM
// vol. 3, table 11-1). It gives 0 where off is outside or not aligned to 16.
func (l *LAPIC) Register(off uint16) uint32 {
	if off%16 != 0 || int(off) >= len(l.Regs) {
		return 0
	}
	r := l.Regs[off : off+4]
	return uint32(r[0]) | uint32(r[1])<<8 | uint32(r[2])<<16 | uint32(r[3])<<24
}

// SetRegister writes the 32-bit register at offset off of the page; it ignores
// offsets that Register would.
func (l *LAPIC) SetRegister(off uint16, value uint32) {
	if off%16 != 0 || int(off) >= len(l.Regs) {
		return
	}
	r := l.Regs[off : off+4]
	r[0], r[1], r[2], r[3] = uint8(value), uint8(value>>8), uint8(value>>16), uint8(value>>24)
}

// MPState is what a vCPU does as one processor of many.
type MPState uint32

// The states of x86.
const (
	MPStateRunnable      MPState = 0 // KVM_MP_STATE_RUNNABLE
	MPStateUninitialized MPState = 1 // KVM_MP_STATE_UNINITIALIZED
	MPStateInitReceived  MPState = 2 // KVM_MP_STATE_INIT_RECEIVED
	MPStateHalted        MPState = 3 // KVM_MP_STATE_HALTED
	MPStateSIPIReceived  MPState = 4 // KVM_MP_STATE_SIPI_RECEIVED
	MPStateAPResetHold   MPState = 9 // KVM_MP_STATE_AP_RESET_HOLD
)

//kvm:mirror kvm_mp_state
type mpState struct {
	MPState MPState
}

// Translation is the answer of TranslateGVA.
//
//kvm:mirror kvm_translation
type Translation struct {
	LinearAddress   uint64
	PhysicalAddress uint64
	Valid           uint8
	Writeable       uint8
	Usermode        uint8
	_               [5]uint8
}

// What GuestDebug.Control asks for.
const (
	GuestDebugEnable     = 0x00000001 // KVM_GUESTDBG_ENABLE
	GuestDebugSingleStep = 0x00000002 // KVM_GUESTDBG_SINGLESTEP
	GuestDebugUseSWBP    = 0x00010000 // KVM_GUESTDBG_USE_SW_BP
	GuestDebugUseHWBP    = 0x00020000 // KVM_GUESTDBG_USE_HW_BP
	GuestDebugInjectDB   = 0x00040000 // KVM_GUESTDBG_INJECT_DB
	GuestDebugInjectBP   = 0x00080000 // KVM_GUESTDBG_INJECT_BP
	GuestDebugBlockIRQ   = 0x00100000 // KVM_GUESTDBG_BLOCKIRQ
)

// GuestDebug sets breakpoints and single stepping; DebugReg is used with
// GuestDebugUseHWBP.
//
//kvm:mirror kvm_guest_debug
type GuestDebug struct {
	Control  uint32
	_        uint32
	DebugReg [8]uint64 `c:"arch.debugreg"`
}
