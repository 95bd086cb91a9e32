package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"godwit/devices/state"
	"godwit/kvm"
	"godwit/kvm/guestmem"
	"godwit/migration"
	"godwit/migration/policy"
)

// wireConfig is CONFIG on the wire: the machine, and what its vCPUs promise
// the guest.
type wireConfig struct {
	Config Config           `json:"config"`
	CPUID  []kvm.CPUIDEntry `json:"cpuid"`
	TSCKHz uint32           `json:"tsc_khz"`
}

// consolePatience is how long a migration waits for somebody to read the guest's
// console, and at last lets the guest stand still for a slow reader; long enough
// for a willing one on a busy host.
const consolePatience = 5 * time.Second

// consoleHolds is how long the guest stands still for whoever reads its console,
// try after try: what it writes in between must not keep it from ever leaving.
var consoleHolds = [...]time.Duration{consoleHold, 2 * consoleHold, 4 * consoleHold, 8 * consoleHold, 16 * consoleHold, consolePatience}

const consoleHold = 100 * time.Millisecond

var (
	errConsole = errors.New("nobody reads the guest's console, and what it wrote there would be lost; read it, or start the machine with --serial none")
	errSlow    = fmt.Errorf("the guest's console is read so slowly that what it wrote there takes more than %v to leave; read it faster, or start the machine with --serial none", consolePatience)
)

// source is a Machine about to leave.
type source struct {
	m         *Machine
	wasPaused bool
	holds     int // of consoleHolds, that were too short since the last Pause
}

var (
	_ migration.LocalSource = (*source)(nil)
	_ migration.HintSource  = (*source)(nil)
	_ migration.Settler     = (*source)(nil)
)

// Source gives the migration engine its view of the machine. One migration at
// a time may use it.
func (m *Machine) Source() migration.Source { return &source{m: m} }

// Config implements migration.Source.
func (s *source) Config() ([]byte, error) {
	if err := canMove(s.m.cfg.Drives); err != nil {
		return nil, err
	}
	cfg := s.m.cfg
	cfg.Drives = slices.Clone(cfg.Drives)
	for i := range cfg.Drives {
		cfg.Drives[i].Backing = "" // this host's
	}
	return json.Marshal(wireConfig{Config: cfg, CPUID: s.m.cpuid, TSCKHz: s.m.tscKHz})
}

// Memory implements migration.Source.
func (s *source) Memory() []migration.Region { return regions(s.m.mem) }

// MemoryFile implements migration.LocalSource.
func (s *source) MemoryFile() (*os.File, error) {
	f, err := s.m.mem.File()
	if errors.Is(err, guestmem.ErrBacking) {
		return nil, fmt.Errorf("%w; only a machine that was started with --memory-backing memfd can hand it over; migrate without --local", err)
	}
	return f, err
}

func regions(mem *memory) []migration.Region {
	var out []migration.Region
	for _, r := range mem.Regions() {
		out = append(out, migration.Region{GPA: r.GPA, Bytes: r.Bytes})
	}
	return out
}

// Touched implements migration.Source.
func (s *source) Touched() ([]migration.Extent, error) { return s.m.mem.touched() }

// StartDirtyLog implements migration.Source.
func (s *source) StartDirtyLog() error { return s.m.mem.startLog() }

// StopDirtyLog implements migration.Source.
func (s *source) StopDirtyLog() error { return s.m.mem.stopLog() }

// Dirty implements migration.Source.
func (s *source) Dirty(dst migration.Bitmap) error { return s.m.mem.dirty(dst) }

// Clear implements migration.Source.
func (s *source) Clear(gfns []uint64) error { return s.m.mem.clear(gfns) }

// VCPUs implements migration.Source.
func (s *source) VCPUs() int { return len(s.m.vcpus) }

// CanPace implements migration.Source.
func (s *source) CanPace(p policy.Pace) error { return s.m.throttle.can(p) }

// SetPace implements migration.Source.
func (s *source) SetPace(p policy.Pace) error { return s.m.throttle.set(p) }

// Settle implements migration.Settler: somebody must read the guest's console. A
// machine that its operator has paused need not stand still for the rest either.
func (s *source) Settle(ctx context.Context) error {
	flow, cancel := context.WithTimeoutCause(ctx, consolePatience, errConsole)
	defer cancel()
	if err := s.m.dev.serial.Flow(flow); err != nil {
		return err
	}
	if s.m.State() != StatePaused {
		return nil
	}
	drain, cancel := context.WithTimeoutCause(ctx, consolePatience, errSlow)
	defer cancel()
	return s.m.dev.serial.Drain(drain)
}

// Pause implements migration.Source. A machine that its operator has paused
// stays paused, here after a failure and there after success. All that the guest
// wrote to its console must have left, here, before the guest does.
func (s *source) Pause(ctx context.Context) error {
	s.m.op.Lock()
	defer s.m.op.Unlock()
	s.wasPaused = s.m.State() == StatePaused
	s.m.operatorPaused = s.wasPaused && !s.m.fullPaused // as PausedByOperator
	if s.wasPaused {
		ctx, cancel := context.WithTimeoutCause(ctx, consolePatience, errSlow)
		defer cancel()
		return s.m.dev.serial.Drain(ctx)
	}
	cause := migration.ErrUnsettled
	if s.holds == len(consoleHolds)-1 {
		cause = errSlow
	}
	err := s.m.pause(func() error {
		ctx, cancel := context.WithTimeoutCause(ctx, consoleHolds[s.holds], cause)
		defer cancel()
		return s.m.dev.serial.Drain(ctx)
	})
	if errors.Is(err, migration.ErrUnsettled) {
		s.holds++
	} else if err == nil {
		s.holds = 0
	}
	return err
}

// Resume implements migration.Source. After a Pause that failed the machine
// runs already.
func (s *source) Resume() error {
	if s.wasPaused || s.m.State() == StateRunning {
		return nil
	}
	return s.m.Resume()
}

// SaveState implements migration.Source. The vCPUs' state is collected side by
// side; writing it is only encoding.
func (s *source) SaveState(w io.Writer) error {
	s.m.op.Lock()
	defer s.m.op.Unlock()
	if st := s.m.State(); st != StatePaused {
		return fmt.Errorf("save state: %w: the machine is %s", ErrState, st)
	}
	vcpus := make([]state.Saver, len(s.m.vcpus))
	var group errgroup.Group
	for i, v := range s.m.vcpus {
		group.Go(func() error {
			st, err := v.readState()
			vcpus[i] = &vcpuSaver{v: v, s: st}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	sw := state.NewWriter(w)
	for _, p := range s.m.savers(vcpus) {
		if err := sw.WriteSaver(p); err != nil {
			return err
		}
	}
	return sw.Close()
}

// Release implements migration.Source.
func (s *source) Release() error {
	s.m.op.Lock()
	defer s.m.op.Unlock()
	s.m.released = true // also when it fails half-way
	return s.m.dev.release()
}

// Reclaim implements migration.Source. The guest runs on without a channel whose
// path cannot be had again; see channels.go.
func (s *source) Reclaim() error { return s.m.reclaim(func() error { return nil }) }

// reclaim takes back what Release gave up, if check, asked when the disks are
// locked, allows it.
func (m *Machine) reclaim(check func() error) error {
	m.op.Lock()
	defer m.op.Unlock()
	if !m.released {
		return nil
	}
	if err := m.notTaken(); err != nil {
		return err // the disks are the destination's, too
	}
	if err := m.dev.claimParts(true); err != nil {
		return err
	}
	if err := check(); err != nil {
		return errors.Join(err, m.dev.release())
	}
	m.released = false
	m.toFollow = true // when it runs: an operator may have paused it
	m.reclaimChannels(channelTries)
	return nil
}

// Ended implements migration.Source.
func (s *source) Ended() <-chan struct{} { return s.m.Ended() }

// EndReason implements migration.Source.
func (s *source) EndReason() error { return s.m.Exit() }

// MigratedTo ends a paused machine whose guest runs elsewhere now. Its disks
// are not flushed or touched any more: they belong to the destination.
func (m *Machine) MigratedTo() { m.end(Exit{Kind: ExitMigrated}) }
