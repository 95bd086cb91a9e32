package vmm

import (
	"fmt"

	"godwit/devices/bus"
	"godwit/kvm"
)

// handleExit answers the exit that KVM_RUN just brought. over reports that the
// guest has ended, and how. Devices that end the guest (power-off, reset) call
// Machine.end themselves; the kick that follows stops this vCPU too.
func (v *VCPU) handleExit() (exit Exit, over bool) {
	d := v.fd.RunData()
	switch reason := d.ExitReason(); reason {
	case kvm.ExitIO:
		io, err := d.IO()
		if err != nil {
			return v.faultExit(err.Error(), "")
		}
		portAccess(&v.m.pio, io)
	case kvm.ExitMMIO:
		io, err := d.MMIO()
		if err != nil {
			return v.faultExit(err.Error(), "")
		}
		if io.Write {
			v.m.mmio.Write(io.Addr, io.Data)
		} else {
			v.m.mmio.Read(io.Addr, io.Data)
		}
	case kvm.ExitDirtyRingFull:
		ring := v.m.mem.ring()
		if ring == nil {
			return v.faultExit("dirty ring is full", "this machine has none: a bug of the host's KVM")
		}
		if err := ring.full(); err != nil {
			return v.faultExit(err.Error(), "")
		}
	case kvm.ExitIntr, kvm.ExitIRQWindowOpen:
		// The wish is looked at by the caller.
	case kvm.ExitShutdown:
		return v.faultExit("triple fault", "the guest crashed, or panicked with reboot=t; its console says why. A guest that means to reset uses reboot=k")
	case kvm.ExitSystemEvent:
		return v.systemEvent(d)
	case kvm.ExitInternalError:
		return v.internalError(d)
	case kvm.ExitFailEntry:
		f, err := d.FailEntry()
		if err != nil {
			return v.faultExit(err.Error(), "")
		}
		return v.faultExit(fmt.Sprintf("the processor refused to enter the guest: hardware reason %#x on CPU %d", f.HardwareEntryFailureReason, f.CPU),
			"the guest's register state is not valid for this processor")
	case kvm.ExitHLT:
		return v.faultExit("HLT reached the VMM", "the in-kernel interrupt controller should have handled it")
	default:
		return v.faultExit(fmt.Sprintf("unexpected exit %v", reason), "")
	}
	return Exit{}, false
}

// portAccess carries out a port access, once for every repetition of a string
// instruction.
func portAccess(b *bus.Bus, io kvm.IO) {
	for i := 0; i+io.Size <= len(io.Data); i += io.Size {
		p := io.Data[i : i+io.Size]
		if io.Out {
			b.Write(uint64(io.Port), p)
		} else {
			b.Read(uint64(io.Port), p)
		}
	}
}

func (v *VCPU) systemEvent(d *kvm.RunData) (Exit, bool) {
	e, err := d.SystemEvent()
	if err != nil {
		return v.faultExit(err.Error(), "")
	}
	switch e.Type {
	case kvm.SystemEventShutdown:
		return Exit{Kind: ExitPowerOff}, true
	case kvm.SystemEventReset:
		return Exit{Kind: ExitReset}, true
	}
	return v.faultExit(fmt.Sprintf("system event %d", e.Type), "")
}

func (v *VCPU) internalError(d *kvm.RunData) (Exit, bool) {
	e, err := d.InternalError()
	if err != nil {
		return v.faultExit(err.Error(), "")
	}
	hint := ""
	if e.Suberror == kvm.InternalErrorEmulation {
		hint = "this host's KVM cannot execute that instruction (software KVM such as PVM emulates kernel mode in part); " +
			"`godwit doctor` tells what works here, `godwit lab -- run ...` runs the guest in a machine with full nested KVM"
	}
	return v.faultExit("KVM gave up: "+e.String(), hint)
}

func (v *VCPU) faultExit(reason, hint string) (Exit, bool) {
	return Exit{Kind: ExitFault, Err: v.fault(reason, hint)}, true
}
