package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"godwit/blockfile"
	"godwit/devices/bus"
	"godwit/devices/state"
	"godwit/kvm"
)

// Options is what a machine gets from the process that it lives in, and what
// does not travel with it.
type Options struct {
	// Serial receives what the guest writes to its first serial port; nil
	// discards it. A slow writer never holds a vCPU for long: see devices/serial.
	Serial io.Writer
	// Overlays keeps the changes of drives that are snapshots from one machine
	// to the next, as when a guest resets; nil has each machine begin anew.
	Overlays *Overlays
	// Open opens the files that Config names; nil means open(2). See Incoming.
	Open blockfile.Opener
	// AllowPaths are folders below which backing files are opened, besides those in
	// the folder of the image that names them.
	AllowPaths []string
	// AllowBacking judges a backing file of a drive instead (blockfile.BackingRule).
	// See Incoming.
	AllowBacking func(drive, image, path string) (string, blockfile.Opener, error)
	// Stdio gives one end of a connected socket that stands for the process'
	// standard input and output, each time that a console asks for it; the caller
	// closes it. Nil where they are used otherwise.
	Stdio func() (fd int, err error)
	// OnFull hears why a machine has been paused whose disk has no room on the
	// host; Resume tries again. Nil hears nothing.
	OnFull func(error)
	// Log receives what an operator may want to know; nil is silent.
	Log *slog.Logger
}

// Machine is a virtual machine. Its methods may be called from any goroutine.
type Machine struct {
	cfg   Config
	log   *slog.Logger
	began time.Time // when assembly began

	sys      *kvm.System
	vm       *kvm.VM
	mem      *memory
	cpuid    []kvm.CPUIDEntry // what all vCPUs share
	msrs     []uint32         // saved MSRs, the TSC last
	tscKHz   uint32
	clock    clockSaver
	vcpus    []*VCPU
	throttle *throttle

	pio, mmio bus.Bus
	dev       devices

	// op serialises what changes the machine's life; it may be held for as
	// long as vCPUs take to stop. mu guards the fields below it and is never
	// held while waiting, since vCPU threads take it when the guest ends.
	op    sync.Mutex
	mu    sync.Mutex
	state State
	exit  Exit
	ended chan struct{}
	// full says which disk has no room since the machine went on last, pausing that
	// pauseFull is on its way.
	full    error
	pausing bool

	pausers sync.WaitGroup // pauseFull
	onFull  func(error)

	// Guarded by op:
	fullPaused     bool   // paused because a disk has no room, and by nobody else
	operatorPaused bool   // paused by its operator, so that it arrives paused
	ticksAway      uint64 // what a restored machine's TSC must catch up
	tscWanted      uint64 // what the vCPU being restored should read
	tscShift       uint64 // between the source's TSC offsets and ours
	tscAligned     bool   // tscShift is known
	released       bool   // disk locks and the like are given up to a destination
	toFollow       bool   // came from another host, or has stayed here after all, and has not run since

	channelTimer *time.Timer // asks for channels again: see channels.go
}

// New assembles a machine and loads what it boots. The guest does not run yet.
// On an error nothing is left behind.
func New(cfg Config, o Options) (*Machine, error) {
	unsaid := cfg.unsaidFormats()
	cfg = cfg.withDefaults()
	if err := cfg.validate(false); err != nil {
		return nil, err
	}
	m, err := assemble(cfg, o, assembly{unsaid: unsaid})
	if err != nil {
		return nil, err
	}
	if err := m.load(o.Open); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// setState makes a legal step.
func (m *Machine) setState(to State) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := legal(m.state, to); err != nil {
		return err
	}
	m.state = to
	return nil
}

// State tells where the machine stands.
func (m *Machine) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// Start lets a built machine run.
func (m *Machine) Start() error {
	m.op.Lock()
	defer m.op.Unlock()
	if s := m.State(); s != StateBuilt {
		return fmt.Errorf("start: %w: the machine is %s", ErrState, s)
	}
	return m.run()
}

// Pause stops the vCPUs and drains the devices: when it returns, nothing in
// this process writes guest memory or disk images any more. What the guest wrote
// to its console has left if somebody reads it; what has not after consoleHold, or
// when ctx ends, leaves as it is read.
func (m *Machine) Pause(ctx context.Context) error {
	m.op.Lock()
	defer m.op.Unlock()
	return m.pause(func() error {
		ctx, cancel := context.WithTimeout(ctx, consoleHold)
		defer cancel()
		_ = m.dev.serial.Drain(ctx) // it stays queued
		return nil
	})
}

// pause stops the guest, and lets it go on if last, which is called when all
// stands still, fails.
func (m *Machine) pause(last func() error) error {
	if s := m.State(); s != StateRunning {
		return fmt.Errorf("pause: %w: the machine is %s", ErrState, s)
	}
	m.parkVCPUs()
	err := m.dev.pause()
	if err == nil {
		err = last()
	}
	if err != nil {
		m.dev.resume()
		m.runVCPUs()
		return fmt.Errorf("pause: %w", err)
	}
	if err := m.setState(StatePaused); err != nil {
		return fmt.Errorf("pause: %w: %w", err, m.Exit())
	}
	return nil
}

// Resume lets a paused machine run on.
func (m *Machine) Resume() error {
	m.op.Lock()
	defer m.op.Unlock()
	if s := m.State(); s != StatePaused {
		return fmt.Errorf("resume: %w: the machine is %s", ErrState, s)
	}
	return m.run()
}

func (m *Machine) run() error {
	if m.released {
		return fmt.Errorf("resume: %w: its disks and networks are given up", ErrState)
	}
	if err := m.notTaken(); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	if err := m.setState(StateRunning); err != nil {
		return err
	}
	for _, v := range m.vcpus {
		// Tells a guest's watchdog that it was stopped; EINVAL means the guest
		// has no kvmclock and needs no telling.
		_ = v.fd.KVMClockCtrl()
	}
	m.tryAgain()
	m.dev.resume()
	m.runVCPUs()
	if m.toFollow {
		m.toFollow = false
		m.dev.follow()
	}
	return nil
}

// notTaken refuses where the destination of a local migration may have changed
// the memory. After a hand-over without an answer only the memory itself tells.
func (m *Machine) notTaken() error {
	taken, err := m.mem.Taken()
	if err == nil && taken {
		err = fmt.Errorf("%w: the destination of its local migration has taken its memory, and may have changed it; end this machine", ErrState)
	}
	return err
}

// runVCPUs lets the vCPUs run, unless the guest has ended meanwhile: end holds
// the same lock and parks them after it, so none runs after the end.
func (m *Machine) runVCPUs() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != StateRunning {
		return
	}
	for _, v := range m.vcpus {
		v.tell(wishRun)
	}
}

// parkVCPUs kicks all vCPUs first and waits for each then, so that they stop
// side by side.
func (m *Machine) parkVCPUs() {
	for _, v := range m.vcpus {
		v.tell(wishPark)
	}
	for _, v := range m.vcpus {
		v.waitParked()
	}
}

// Stop ends the machine as if its power were cut. It is not an error to stop a
// machine that has ended.
func (m *Machine) Stop() {
	m.end(Exit{Kind: ExitStopped})
}

// end records how the guest ended, once, and parks the vCPUs. It may be called
// from a vCPU's thread or a device, so it waits for nothing.
func (m *Machine) end(e Exit) {
	m.mu.Lock()
	if legal(m.state, StateEnded) != nil {
		m.mu.Unlock()
		return
	}
	m.state, m.exit = StateEnded, e
	close(m.ended)
	m.mu.Unlock()
	for _, v := range m.vcpus {
		v.tell(wishPark)
	}
}

// Ended is closed when the guest has ended; Exit then tells how.
func (m *Machine) Ended() <-chan struct{} { return m.ended }

// Exit tells how the guest ended. Only after Ended is closed.
func (m *Machine) Exit() Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exit
}

// Config is what the machine was built from, defaults filled in.
func (m *Machine) Config() Config { return m.cfg }

// Close ends the machine where it has not ended and gives back everything it
// holds. What the guest wrote but did not flush is left to the host's page
// cache, as after a power cut that the host survives. The machine must not be
// used afterwards.
func (m *Machine) Close() error {
	m.end(Exit{Kind: ExitStopped})
	m.pausers.Wait() // none begins after the end
	m.op.Lock()
	defer m.op.Unlock()
	if m.State() == StateClosed {
		return nil
	}
	if m.channelTimer != nil {
		m.channelTimer.Stop()
	}
	var err error
	if m.throttle != nil {
		err = m.throttle.close()
	}
	for _, v := range m.vcpus {
		v.tell(wishStop)
	}
	for _, v := range m.vcpus {
		if v.tid != 0 {
			<-v.done
		}
	}
	err = errors.Join(err, m.dev.close())
	if m.mem != nil {
		if ring := m.mem.ring(); ring != nil {
			err = errors.Join(err, ring.close())
		}
	}
	for _, v := range m.vcpus {
		v.fd.Close()
	}
	if m.vm != nil {
		m.vm.Close()
	}
	if m.mem != nil {
		err = errors.Join(err, m.mem.Close())
	}
	if m.sys != nil {
		m.sys.Close()
	}
	_ = m.setState(StateClosed)
	return err
}

// savers lists every part with state, in the order of restoring: the machine's
// own first, since vCPUs and clock need what it says; interrupt controllers
// before the local APICs of the vCPUs that they signal; the clock after the
// vCPUs' TSCs, on which it is based.
func (m *Machine) savers(vcpus []state.Saver) []state.Saver {
	list := []state.Saver{&machineSaver{m}, chipSaver{m.vm}}
	list = append(list, vcpus...)
	list = append(list, m.clock)
	return append(list, m.dev.savers()...)
}
