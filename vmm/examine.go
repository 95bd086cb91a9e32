package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"godwit/kvm"
)

// Examination is what this host can do, found out by trying it. `godwit
// doctor` prints it.
type Examination struct {
	KVM          KVMFacts          `json:"kvm"`
	Instructions []InstructionFact `json:"instructions,omitempty"`
	Speed        *SpeedFacts       `json:"speed,omitempty"`
	DirtyLog     *DirtyLogFact     `json:"dirty_log,omitempty"`
	TSC          *TSCFacts         `json:"tsc,omitempty"`
	Memory       MemoryFacts       `json:"memory"`
	// Metronome and Linux say which guests run directly.
	Metronome bool `json:"metronome_runs"`
	Linux     bool `json:"linux_runs"`
	// Reasons say why not, each with what to do where something can be done.
	Reasons []string `json:"reasons,omitempty"`
}

// KVMFacts are about /dev/kvm itself.
type KVMFacts struct {
	Usable       bool             `json:"usable"`
	Error        string           `json:"error,omitempty"`
	APIVersion   int              `json:"api_version,omitempty"`
	Kind         string           `json:"kind,omitempty"` // VMX, SVM, PVM or unknown
	MaxVCPUs     int              `json:"max_vcpus,omitempty"`
	Capabilities []CapabilityFact `json:"capabilities,omitempty"`
}

// CapabilityFact is a capability that godwit needs or can use.
type CapabilityFact struct {
	Name   string `json:"name"`
	Value  int    `json:"value"` // 0 is absent
	Needed bool   `json:"needed"`
}

// capabilities are what vmm asks of KVM. The others make something better:
// dirty rings, faster logging, scaled TSCs.
var capabilities = []struct {
	cap    kvm.Cap
	needed bool
}{
	{kvm.CapUserMemory, true}, {kvm.CapIRQChip, true}, {kvm.CapPIT2, true}, {kvm.CapPITState2, true},
	{kvm.CapSetTSSAddr, true}, {kvm.CapSetIdentityMapAddr, true}, {kvm.CapExtCPUID, true}, {kvm.CapMPState, true},
	{kvm.CapVCPUEvents, true}, {kvm.CapDebugRegs, true}, {kvm.CapXSave, true}, {kvm.CapXCRs, true},
	{kvm.CapIRQFD, true}, {kvm.CapIOEventFD, true}, {kvm.CapAdjustClock, true}, {kvm.CapImmediateExit, true},
	{kvm.CapGetTSCKHz, false}, {kvm.CapTSCControl, false}, {kvm.CapXSave2, false}, {kvm.CapSplitIRQChip, false},
	{kvm.CapManualDirtyLogProtect2, false}, {kvm.CapDirtyLogRing, false}, {kvm.CapTSCDeadlineTimer, false},
}

// kvmAPIVersion is the only one: kvm.Open accepts no other.
const kvmAPIVersion = 12

// slowKernelMIPS is the speed below which kernel mode is emulated instruction
// by instruction, in millions a second. Hardware is a thousand times above it.
const slowKernelMIPS = 50

// Examine looks at this host. It takes about a second, and leaves nothing
// behind. What is missing is a fact, not an error; an error means that the
// examination itself could not be done.
func Examine(ctx context.Context) (*Examination, error) {
	x := &Examination{}
	if err := x.Memory.look(); err != nil {
		return nil, err
	}
	sys, err := kvm.Open()
	if err != nil {
		x.KVM.Error = err.Error()
		x.Reasons = append(x.Reasons, err.Error())
		return x, nil
	}
	defer sys.Close()
	x.KVM.Usable, x.KVM.APIVersion, x.KVM.Kind = true, kvmAPIVersion, kvmKind("/sys/module")
	x.lookAtCapabilities(sys)
	if err := x.probe(ctx, sys); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		x.Reasons = append(x.Reasons, fmt.Sprintf("a small guest could not be run: %v", err))
		return x, nil
	}
	x.judge()
	return x, nil
}

// kvmKind tells which KVM answers, by the modules that are loaded. A kernel with
// KVM built in has the folders too.
func kvmKind(modules string) string {
	for _, k := range []struct{ module, kind string }{{"kvm_pvm", "PVM"}, {"kvm_intel", "VMX"}, {"kvm_amd", "SVM"}} {
		if _, err := os.Stat(filepath.Join(modules, k.module)); err == nil {
			return k.kind
		}
	}
	return "unknown"
}

func (x *Examination) lookAtCapabilities(sys *kvm.System) {
	var missing []string
	for _, c := range capabilities {
		n, err := sys.CheckExtension(c.cap)
		if err != nil {
			n = 0 // a question that KVM does not understand is a no
		}
		x.KVM.Capabilities = append(x.KVM.Capabilities, CapabilityFact{c.cap.String(), n, c.needed})
		if n == 0 && c.needed {
			missing = append(missing, c.cap.String())
		}
	}
	if n, err := sys.CheckExtension(kvm.CapMaxVCPUs); err == nil {
		x.KVM.MaxVCPUs = n
	}
	if len(missing) > 0 {
		x.Reasons = append(x.Reasons, "this host's KVM lacks "+strings.Join(missing, ", ")+"; a newer kernel has them")
	}
}

// probe runs the small guests.
func (x *Examination) probe(ctx context.Context, sys *kvm.System) error {
	var err error
	if x.Instructions, err = tryInstructions(ctx, sys); err != nil {
		return fmt.Errorf("try instructions: %w", err)
	}
	if x.Speed, err = measureSpeed(ctx, sys); err != nil {
		return fmt.Errorf("measure speed: %w", err)
	}
	if x.DirtyLog, err = tryDirtyLog(ctx, sys); err != nil {
		return fmt.Errorf("try the dirty log: %w", err)
	}
	if x.TSC, err = tryTSC(ctx, sys); err != nil {
		return fmt.Errorf("try the TSC: %w", err)
	}
	return nil
}

// judge draws the conclusions.
func (x *Examination) judge() {
	basics := len(x.Reasons) == 0
	if d := x.DirtyLog; d.Seen < d.Written {
		x.Reasons = append(x.Reasons, fmt.Sprintf("the dirty log misses writes (%d of %d pages seen): live migration would lose data", d.Seen, d.Written))
		basics = false
	}
	x.Metronome, x.Linux = basics, basics
	var broken []string
	for _, i := range x.Instructions {
		if i.Result == resultGaveUp || i.Result == resultHung {
			broken = append(broken, i.Name)
		}
	}
	if len(broken) > 0 {
		x.Linux = false
		x.Reasons = append(x.Reasons, "this host's KVM gives up on kernel-mode instructions that Linux uses: "+strings.Join(broken, ", "))
	}
	if x.Speed.KernelMIPS < slowKernelMIPS {
		x.Linux = false
		x.Reasons = append(x.Reasons, fmt.Sprintf("kernel mode is emulated here, at %.1f million instructions a second", x.Speed.KernelMIPS))
	}
}

// Verdict says in one line each what runs here.
func (x *Examination) Verdict() []string {
	why := strings.Join(x.Reasons, "; ")
	var out []string
	if x.Metronome {
		out = append(out, "Built-in guest: runs directly (godwit demo)")
	} else {
		out = append(out, "Built-in guest: cannot run here, because "+why)
	}
	if x.Linux {
		return append(out, "Linux guests: run directly")
	}
	return append(out, "Linux guests: use godwit lab, because "+why)
}

// MissingCapabilities names the needed ones that are absent.
func (x *Examination) MissingCapabilities() []string {
	var out []string
	for c := range slices.Values(x.KVM.Capabilities) {
		if c.Needed && c.Value == 0 {
			out = append(out, c.Name)
		}
	}
	return out
}

var errProbe = errors.New("probe guest")
