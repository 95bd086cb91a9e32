package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"

	"godwit/devices/state"
	"godwit/kvm"
	"godwit/migration"
)

// ErrIncompatible marks a machine that this host cannot take.
var ErrIncompatible = errors.New("this host cannot take the machine")

// Incoming says what a stranger's machine may have here.
type Incoming struct {
	Options
	// Disks maps a drive's id to the path that the operator opens for it.
	Disks map[string]string
	// Consoles maps a console's id to the Path that it has here. One that is not
	// in it has nobody behind it.
	Consoles map[string]string
	// Networks maps a card's id to the tap that the operator gives it.
	Networks map[string]HostNetwork
	// Vsock is the path of the machine's vsock here. Without one it is the source's
	// if that is allowed, and else nobody is behind it.
	Vsock string
	// AllowPrefixes are the directories below which a path that the source
	// names is opened as it is. Links that lead out of them are not followed.
	AllowPrefixes []string
	// MaxMemoryMiB and MaxVCPUs are the most that a machine may have; 0 means as much
	// memory as is free here when it comes, and as many vCPUs as KVM takes.
	MaxMemoryMiB, MaxVCPUs int
	// Saved says that the machine comes out of a file: nobody may hold the locks
	// of its disks, where otherwise its source must.
	Saved bool
}

// target is a Machine about to arrive.
type target struct{ m *Machine }

var _ migration.Target = (*target)(nil)

// BuildTarget makes the Builder of a receiver. built is told each machine
// before anything of the guest arrives, so that its owner can show and close
// it; it may be nil.
func BuildTarget(in Incoming, built func(*Machine)) migration.Builder {
	return func(_ context.Context, offer migration.Offer) (migration.Target, error) {
		if offer.Memory != nil {
			defer offer.Memory.Close() // the machine has a duplicate
		}
		m, err := newIncoming(in, offer)
		if err != nil {
			return nil, err
		}
		if built != nil {
			built(m)
		}
		return &target{m: m}, nil
	}
}

func newIncoming(in Incoming, offer migration.Offer) (*Machine, error) {
	w, err := parseWireConfig(offer.Config)
	if err != nil {
		return nil, err
	}
	cfg := w.Config.withDefaults()
	if err := cfg.validate(true); err != nil {
		return nil, err
	}
	if err := in.grant(cfg, offer.Memory != nil); err != nil {
		return nil, err
	}
	if w.CPUID, err = checkHost(w.CPUID); err != nil {
		return nil, err
	}
	disks, err := in.resolve(cfg.Drives)
	if err != nil {
		return nil, err
	}
	networks, err := in.resolveNetworks(cfg.Networks)
	if err != nil {
		return nil, err
	}
	vsockPath, err := in.VsockPath(cfg.Vsock)
	if err != nil {
		return nil, err
	}
	if err := in.checkConsoles(cfg.Consoles); err != nil {
		return nil, err
	}
	a := assembly{incoming: true, cpuid: w.CPUID, disks: disks, networks: networks, saved: in.Saved, memory: offer.Memory,
		consoles: in.Consoles, vsock: vsockPath}
	m, err := assemble(cfg, in.judged(), a)
	if err != nil {
		return nil, err
	}
	m.toFollow = true
	if w.TSCKHz != 0 && w.TSCKHz != m.tscKHz {
		if err := m.setTSCKHz(w.TSCKHz); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	return m, nil
}

// setTSCKHz gives all vCPUs the rate that the guest is used to, or fails with
// ErrIncompatible. KVM takes a rate above the host's also where the processor cannot
// scale it, and moves the guest's TSC up at each exit (arch/x86/kvm/x86.c,
// set_tsc_khz: always catch up): between exits the guest's clock runs slow. So
// whether it can be scaled is asked, and what was set is read back.
func (m *Machine) setTSCKHz(khz uint32) error {
	if sameTSCRate(khz, m.tscKHz) {
		return nil
	}
	scales, err := m.sys.CheckExtension(kvm.CapTSCControl)
	if err != nil {
		return err
	}
	if scales == 0 {
		return fmt.Errorf("%w: its TSC runs at %d kHz, this host's at %d, and this host's KVM scales none (it has no KVM_CAP_TSC_CONTROL)", ErrIncompatible, khz, m.tscKHz)
	}
	for _, v := range m.vcpus {
		if err := v.fd.SetTSCKHz(khz); err != nil {
			return fmt.Errorf("%w: its TSC runs at %d kHz, this host's at %d and cannot be scaled: %w", ErrIncompatible, khz, m.tscKHz, err)
		}
		got, err := v.fd.TSCKHz()
		if err != nil {
			return err
		}
		if !sameTSCRate(khz, got) {
			return fmt.Errorf("%w: its TSC runs at %d kHz, and after KVM was asked for that, a vCPU's here runs at %d", ErrIncompatible, khz, got)
		}
	}
	m.tscKHz = khz
	return nil
}

// sameTSCRate reports whether a guest used to the rate want may run at have, both in
// kHz. Linux calls 250 parts in a million the same rate and so do we: the guest's own
// clock discipline covers it (kernel: tsc_tolerance_ppm).
func sameTSCRate(want, have uint32) bool {
	diff := max(want, have) - min(want, have)
	return uint64(diff)*1e6 <= uint64(want)*250
}

// Memory implements migration.Target.
func (t *target) Memory() []migration.Region { return regions(t.m.mem) }

// Touched lets the engine hash what the source never sent, too.
func (t *target) Touched() ([]migration.Extent, error) { return t.m.mem.touched() }

// Populate implements migration.Target.
func (t *target) Populate(extents []migration.Extent) error {
	return t.m.mem.populate(extents)
}

// Expect lets the engine say that the source has let go of its networks.
func (t *target) Expect() {
	t.m.op.Lock()
	defer t.m.op.Unlock()
	t.m.dev.expect()
}

// LoadState implements migration.Target.
func (t *target) LoadState(r io.Reader) error {
	t.m.op.Lock()
	defer t.m.op.Unlock()
	sections, err := state.Read(r, state.DefaultLimits)
	if err != nil {
		return err
	}
	vcpus := make([]state.Saver, len(t.m.vcpus))
	for i, v := range t.m.vcpus {
		vcpus[i] = &vcpuSaver{v: v}
	}
	for _, p := range t.m.savers(vcpus) {
		if err := sections.Restore(p); err != nil {
			return err
		}
	}
	if err := sections.Done(); err != nil {
		return err
	}
	t.m.dev.rearm()
	for _, v := range t.m.vcpus {
		if err := v.unhalt(); err != nil {
			return err
		}
	}
	return nil
}

// Acquire implements migration.Target.
func (t *target) Acquire() error {
	t.m.op.Lock()
	defer t.m.op.Unlock()
	return t.m.dev.claim()
}

// Run implements migration.Target. Memory that was handed over becomes writable
// here and not before: GO has come. Until then it was mapped for reading only,
// so restoring the state could not write it, KVM included, whose own writes then
// fail without a word: the wall clock stays as the guest has it, and the clock
// page of a vCPU is found again when it first runs (kernel:
// kvm_write_wall_clock, kvm_gpc_refresh).
func (t *target) Run() error {
	if err := t.m.mem.Thaw(); err != nil {
		return err
	}
	t.m.markImages() // GO has come and the guest has not written yet
	if t.m.operatorPaused {
		t.m.op.Lock()
		defer t.m.op.Unlock()
		return t.m.setState(StatePaused)
	}
	return t.m.Start()
}

// Abort implements migration.Target.
func (t *target) Abort() error { return t.m.Close() }
