package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"godwit/migration"
	"godwit/vmm"
)

// engine is one migration at its source: a migration.Session, or a save into a
// file.
type engine interface {
	Run(ctx context.Context) (*migration.Report, error)
	Cancel(reason string) error
	Progress() migration.Progress
	Tune(t migration.Tuning) error
}

var _ engine = (*migration.Session)(nil)

// move is one migration of an Instance. Its goroutine ends with the migration.
type move struct {
	to      Address
	keep    bool
	machine Machine
	session engine
	onNote  func(Note)    // see NewInstance
	paused  bool          // by its operator, when the move began
	done    chan struct{} // closed when it has ended and the machine knows

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when there is news
	report  *migration.Report
	err     error
	left    vmm.State // of the machine here, when the move had ended
	resumed bool      // the guest runs here again, so err has lost its weight
}

func newMove(id string, m Machine, to Address, t *TLS, o migration.SendOptions, keep bool) (*move, error) {
	v := &move{to: to, keep: keep, machine: m, done: make(chan struct{}), changed: make(chan struct{})}
	o.VMID = id
	o.OnProgress = func(migration.Progress) { v.tell() }
	var err error
	if to.IsFile() {
		v.session, err = newSave(m.Source(), to.Target, o)
	} else {
		v.session, err = migration.NewSession(m.Source(), func(ctx context.Context) (net.Conn, error) { return to.Dial(ctx, t) }, o)
	}
	return v, err
}

// tell wakes everyone who watches.
func (v *move) tell() {
	v.mu.Lock()
	defer v.mu.Unlock()
	close(v.changed)
	v.changed = make(chan struct{})
}

func (v *move) run() {
	defer close(v.done)
	rep, err := v.session.Run(context.Background())
	v.mu.Lock()
	v.report, v.err, v.left = rep, err, v.machine.State()
	v.mu.Unlock()
	v.tellNote()
	if err == nil && !v.keep {
		v.machine.MigratedTo()
	}
}

func (v *move) tellNote() {
	if v.onNote != nil {
		v.onNote(v.note())
	}
}

func (v *move) ended() bool {
	select {
	case <-v.done:
		return true
	default:
		return false
	}
}

// cancel asks the migration to end. One that was started a moment ago has not
// begun to run: it is asked again until it is told apart from one that ended.
func (v *move) cancel(reason string) error {
	for {
		err := v.session.Cancel(reason)
		if !errors.Is(err, migration.ErrNotRunning) || v.session.Progress().Done {
			return err
		}
		select {
		case <-v.done:
			return err
		case <-time.After(time.Millisecond):
		}
	}
}

// tooLate is an error when the migration, which has ended, was through before a
// cancel reached it.
func (v *move) tooLate() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.report.Status == migration.Completed {
		return fmt.Errorf("%w: it is at %s", migration.ErrCommitted, v.to)
	}
	return nil
}

// news is closed at the next change.
func (v *move) news() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.changed
}

func (v *move) status() MigrationStatus {
	s := MigrationStatus{To: v.to.String(), Progress: v.session.Progress()}
	if v.ended() {
		v.mu.Lock()
		defer v.mu.Unlock()
		s.Report = v.report
	}
	return s
}

// outcome is an error when the guest is, or may be, at the destination. The
// migration has ended.
func (v *move) outcome() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.resumed {
		return nil
	}
	if v.err == nil && !v.to.IsFile() {
		return fmt.Errorf("it moved to %s", v.to)
	}
	if o := new(migration.OutcomeError); errors.As(v.err, &o) && !o.Known {
		return o
	}
	return nil
}

// mayResume says whether the guest may run here again after this migration,
// which has ended.
func (v *move) mayResume(ctx context.Context, force bool) error {
	err := v.outcome()
	if err == nil {
		return nil
	}
	o := new(migration.OutcomeError)
	if !errors.As(err, &o) {
		return fmt.Errorf("%w: %w", ErrMoved, err)
	}
	if !force {
		return o
	}
	t := time.NewTimer(time.Until(o.ForceAfter))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-v.machine.Source().Ended():
		return ErrNoMachine
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// settle records that the guest runs here again.
func (v *move) settle() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.resumed = true
}
