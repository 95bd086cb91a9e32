package migration

import (
	"errors"
	"fmt"
	"time"
)

// Errors of a migration, one per stage or outcome. They come wrapped with the
// cause and what to do.
var (
	ErrOptions   = errors.New("bad migration option")
	ErrConnect   = errors.New("connect to the destination")
	ErrHandshake = errors.New("migration handshake")
	ErrConfig    = errors.New("machine configuration")
	ErrMemory    = errors.New("transfer of guest memory")
	ErrState     = errors.New("transfer of device state")
	ErrCommit    = errors.New("commit of the migration")
	ErrVerify    = errors.New("guest memory differs between source and destination")
	ErrFile      = errors.New("saved machine")
	ErrLocal     = errors.New("local hand-over")
	// ErrPolicy says that a policy broke its contract. The guest runs on.
	ErrPolicy = errors.New("a migration policy is faulty")

	// ErrConnection says that the connection broke: closed, reset, or garbled.
	ErrConnection = errors.New("migration connection failed")
	// ErrSilence says that the peer sent no sign of life for too long. It comes
	// together with ErrConnection.
	ErrSilence = errors.New("peer is silent")
	// ErrStalled says that the other side shows that it lives, and does nothing.
	ErrStalled = errors.New("the other side makes no progress")
	// ErrCancelled says that the user cancelled, before GO.
	ErrCancelled = errors.New("migration cancelled")
	// ErrTimeout says that the migration took longer than its Timeout.
	ErrTimeout = errors.New("migration timed out")
	// ErrGuestEnded says that the guest powered off, reset or faulted meanwhile.
	ErrGuestEnded = errors.New("the guest ended during the migration")
	// ErrCommitted refuses a cancel after the point of no return.
	ErrCommitted = errors.New("too late: the guest has been handed over to the destination")
	// ErrNotRunning refuses a change to a migration that has ended or not begun.
	ErrNotRunning = errors.New("no migration is running")
	// ErrStaysPaused says that the source could not be brought back: its guest
	// stays paused, with the reason.
	ErrStaysPaused = errors.New("the guest stays paused at the source")
	// ErrOutcomeUnknown says that GO may have reached the destination and no
	// answer came: see OutcomeError.
	ErrOutcomeUnknown = errors.New("nobody can know which side has the guest")
	// ErrNotTaken says that the destination answered GO by promising that it does
	// not run the guest and never will: see OutcomeError.
	ErrNotTaken = errors.New("the destination did not take the guest")
	// ErrLateGo says that GO reached the destination after its lease had ended.
	ErrLateGo = errors.New("GO came after the lease had ended")
)

// PeerError is the reason that the other side gave for giving up.
type PeerError struct {
	Text      string // safe to print
	Cancelled bool   // its user cancelled
}

func (e *PeerError) Error() string {
	if e.Cancelled {
		return "cancelled by the other side: " + e.Text
	}
	return "the other side gave up: " + e.Text
}

// Is makes a peer's cancel an ErrCancelled.
func (e *PeerError) Is(target error) bool { return e.Cancelled && target == ErrCancelled }

// OutcomeError is how a source ends whose GO was not answered by RUNNING. The
// guest is paused at the source and the engine never resumes it.
type OutcomeError struct {
	// Known is true when the destination promised that it does not run the guest
	// and never will: resuming at the source is safe at once. Otherwise the
	// destination may be running it.
	Known bool
	// ForceAfter is when the destination's lease has ended for certain: a
	// destination that has not taken the guest by then never will. Before it,
	// resuming can make two copies run even if the destination does not now.
	ForceAfter time.Time
	// Err is what happened.
	Err error
}

func (e *OutcomeError) Error() string {
	if e.Known {
		return fmt.Sprintf("%v: %v; the guest is paused here and may be resumed", ErrNotTaken, e.Err)
	}
	return fmt.Sprintf("%v: GO was sent and no answer came: %v; the guest is paused here: look whether it runs at the destination, and only if it does not, resume it with --force, not before %s",
		ErrOutcomeUnknown, e.Err, e.ForceAfter.Format(time.RFC3339))
}

// Is matches ErrOutcomeUnknown or ErrNotTaken.
func (e *OutcomeError) Is(target error) bool {
	if e.Known {
		return target == ErrNotTaken
	}
	return target == ErrOutcomeUnknown
}

// Unwrap gives the cause.
func (e *OutcomeError) Unwrap() error { return e.Err }

// also joins errors on one line; nil ones do not count.
func also(errs ...error) error {
	var all error
	for _, err := range errs {
		switch {
		case err == nil:
		case all == nil:
			all = err
		default:
			all = fmt.Errorf("%w; %w", all, err)
		}
	}
	return all
}
