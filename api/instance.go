package api

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"godwit/migration"
	"godwit/vmm"
)

// Errors of an Instance. They answer with 409, ErrNoMigration with 404.
var (
	ErrNoMachine   = errors.New("there is no machine at the moment")
	ErrNoMigration = errors.New("no migration has been started")
	ErrMigrating   = errors.New("a migration is under way")
	ErrMoved       = errors.New("the guest runs elsewhere")
	ErrLeftPaused  = errors.New("the last migration left the guest paused here")
)

// Machine is what an Instance needs of a machine.
type Machine interface {
	State() vmm.State
	// PausedByOperator: such a machine stays paused, here or where it is moved.
	PausedByOperator() bool
	Info() (vmm.Info, error)
	Pause(ctx context.Context) error
	Resume() error
	Stop()
	SetLink(id string, up bool) error
	ResizeConsole(id string, columns, rows uint16) error
	// SetBalloon and SetBalloonInterval are in MiB and in seconds.
	SetBalloon(mib int) error
	SetBalloonInterval(seconds int) error
	// Source gives the engine's view; each migration takes a new one.
	Source() migration.Source
	// TakeBack takes back what a migration released: see vmm.Machine.
	TakeBack(certain, stale bool) error
	// MigratedTo ends a machine whose guest runs elsewhere.
	MigratedTo()
}

var _ Machine = (*vmm.Machine)(nil)

// Instance is one guest of this process and its migrations: what the API acts
// on. The machine behind it may be replaced. All methods may be called from
// any goroutine.
type Instance struct {
	id     string
	onNote func(Note)

	// op makes pause, resume, the start of a migration and a change of machine
	// follow one another. It may be held long; mu, which guards the fields below,
	// may not.
	op      sync.Mutex
	mu      sync.Mutex
	machine Machine
	move    *move // the last migration of this machine, or nil
	closed  bool
}

// NewInstance makes an instance without a machine. onNote, if not nil, is told
// how each migration ended, before a machine that has moved ends, and when a
// guest that one left paused was resumed. It must not call the instance.
func NewInstance(id string, onNote func(Note)) *Instance { return &Instance{id: id, onNote: onNote} }

// Set shows a machine. There must be none at the moment.
func (i *Instance) Set(id string, m Machine) {
	i.op.Lock()
	defer i.op.Unlock()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.id, i.machine, i.move = id, m, nil
}

// Detach takes the machine away, waiting for its migration to end first: the
// caller may close it afterwards. It gives the migration's last status, nil if
// there was none.
func (i *Instance) Detach() *MigrationStatus {
	i.op.Lock()
	defer i.op.Unlock()
	i.mu.Lock()
	mv := i.move
	i.machine = nil
	i.mu.Unlock()
	if mv == nil {
		return nil
	}
	<-mv.done
	s := mv.status()
	return &s
}

// current gives the machine and its last migration.
func (i *Instance) current() (Machine, *move, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.machine == nil {
		return nil, i.move, ErrNoMachine
	}
	return i.machine, i.move, nil
}

// Describe answers GET /.
func (i *Instance) Describe() InstanceInfo {
	i.mu.Lock()
	m := i.machine
	info := InstanceInfo{ID: i.id, State: StateNotStarted, VMMVersion: Version(), AppName: "godwit"}
	i.mu.Unlock()
	if m != nil {
		switch m.State() {
		case vmm.StateRunning:
			info.State = StateRunning
		case vmm.StatePaused:
			info.State = StatePaused
		}
	}
	return info
}

// Info answers GET /vm/info.
func (i *Instance) Info() (Info, error) {
	m, mv, err := i.current()
	if err != nil {
		return Info{}, err
	}
	var out Info
	if mv != nil && mv.ended() {
		n := mv.note()
		out.LastMigration = &n
	}
	out.Info, err = m.Info()
	return out, err
}

// idle gives the machine when no migration moves it. op is held.
func (i *Instance) idle() (Machine, *move, error) {
	m, mv, err := i.current()
	if err == nil && mv != nil && !mv.ended() {
		err = fmt.Errorf("%w; cancel it first, or wait for its end", ErrMigrating)
	}
	return m, mv, err
}

// Pause stops the guest. Pausing a paused guest is no error.
func (i *Instance) Pause(ctx context.Context) error {
	i.op.Lock()
	defer i.op.Unlock()
	m, _, err := i.idle()
	if err != nil || m.State() == vmm.StatePaused {
		return err
	}
	return m.Pause(ctx)
}

// Resume lets the guest run on. A guest that a migration left paused is resumed
// only where that cannot make two copies run: with force, after waiting until
// the destination can no longer take it. Resuming a running guest is no error.
//
// A guest that moved, or may have, does not run over disks that are newer than its
// memory unless stale says so.
func (i *Instance) Resume(ctx context.Context, force, stale bool) error {
	i.op.Lock()
	defer i.op.Unlock()
	m, mv, err := i.idle()
	if err != nil || m.State() == vmm.StateRunning {
		return err
	}
	if mv != nil {
		if err := mv.mayResume(ctx, force || stale); err != nil {
			return err
		}
		if err := m.TakeBack(mv.outcome() != nil, stale); err != nil {
			return fmt.Errorf("resume: take the disks back: %w", err)
		}
	}
	if err := m.Resume(); err != nil {
		return err
	}
	if mv != nil && mv.note().Guest != GuestHere {
		mv.settle()
		mv.tellNote()
	}
	return nil
}

// Stop ends the guest as if its power were cut.
func (i *Instance) Stop() error {
	m, _, err := i.current()
	if err == nil {
		m.Stop()
	}
	return err
}

// StartMigration begins one and returns. There is one at a time.
func (i *Instance) StartMigration(q MigrationRequest) error {
	_, err := i.start(q)
	return err
}

func (i *Instance) start(q MigrationRequest) (*move, error) {
	to, o, err := q.options()
	if err != nil {
		return nil, err
	}
	secure, err := q.secure(to)
	if err != nil {
		return nil, err
	}
	i.op.Lock()
	defer i.op.Unlock()
	m, mv, err := i.idle()
	if err != nil {
		return nil, err
	}
	if mv != nil {
		if err := mv.outcome(); err != nil {
			return nil, fmt.Errorf("%w, or nobody knows: %w", ErrMoved, err)
		}
		if mv.note().Guest != GuestHere {
			return nil, fmt.Errorf("%w; resume it first", ErrLeftPaused)
		}
	}
	paused := m.PausedByOperator()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return nil, ErrNoMachine
	}
	if mv, err = newMove(i.id, m, to, secure, o, q.Keep); err != nil {
		return nil, err
	}
	mv.onNote, mv.paused = i.onNote, paused
	i.move = mv
	go mv.run()
	return mv, nil
}

// last is the last migration of the machine.
func (i *Instance) last() (*move, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.move == nil {
		return nil, ErrNoMigration
	}
	return i.move, nil
}

// Migration tells how the last migration stands.
func (i *Instance) Migration() (MigrationStatus, error) {
	mv, err := i.last()
	if err != nil {
		return MigrationStatus{}, err
	}
	return mv.status(), nil
}

// CancelMigration ends the migration under way and waits for that, at most
// until ctx ends. It is refused once the guest has been handed over.
func (i *Instance) CancelMigration(ctx context.Context) error {
	mv, err := i.last()
	if err != nil {
		return err
	}
	if err := mv.cancel("by its user"); err != nil {
		return err
	}
	select {
	case <-mv.done:
		return mv.tooLate()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// UpdateMigration retunes the migration under way: all of u, or nothing where any of
// it is refused.
func (i *Instance) UpdateMigration(u MigrationUpdate) error {
	mv, err := i.last()
	if err != nil {
		return err
	}
	t, err := u.tuning()
	if err != nil {
		return err
	}
	return mv.session.Tune(t)
}

// Close cancels a migration that may still be cancelled and waits for its end.
// No other starts.
func (i *Instance) Close() {
	i.mu.Lock()
	mv := i.move
	i.closed = true
	i.mu.Unlock()
	if mv != nil {
		_ = mv.cancel("the source's process ends") // else it has ended, or will by itself
		<-mv.done
	}
}
