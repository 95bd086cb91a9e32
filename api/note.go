package api

import (
	"errors"
	"fmt"
	"time"

	"godwit/migration"
	"godwit/vmm"
)

// Where a guest is after a migration from here has ended.
const (
	GuestHere        = "here"        // it is here as before: it runs on, or stands as its operator left it
	GuestEnded       = "ended"       // it has ended here
	GuestPaused      = "paused here" // it is here alone and stands still
	GuestDestination = "destination" // it is there, and runs unless it was paused here
	GuestFile        = "file"        // it is in the file; what is left here stands still
	GuestUnknown     = "unknown"     // it may run at the destination: see Text
)

// Note says how the last migration ended, where that left the guest and what
// its operator can do. `godwit run` prints it, `godwit info` shows it.
type Note struct {
	To     string           `json:"to"`
	Status migration.Status `json:"status"`
	Guest  string           `json:"guest"` // one of the Guest constants
	Text   string           `json:"text"`
	// ForceAfter is when the destination can no longer take a guest that nobody
	// knows the place of: `resume --force` waits until then.
	ForceAfter *time.Time `json:"force_after,omitempty"`
}

// note describes a migration that has ended. Its report and error are set.
func (v *move) note() Note {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := Note{To: v.to.String(), Status: migration.Failed, Guest: GuestHere}
	if v.report != nil {
		n.Status = v.report.Status
	}
	lost := new(migration.OutcomeError)
	switch {
	case v.resumed:
		n.Text = "after the migration to " + n.To + " the guest was resumed here"
		if v.err == nil && v.to.IsFile() {
			n.Text += "; the saved machine is a copy of its past and does not fit its disks any more"
		}
	case v.err == nil && v.to.IsFile():
		n.Guest = GuestFile
		n.Text = "the guest is saved in " + v.to.Target + "; godwit receive --listen " + n.To + " lets it run on"
		if v.keep {
			n.Text += "; it is also kept here, paused: godwit resume lets it run on here instead, godwit stop ends it"
		}
	case v.err == nil:
		n.Guest = GuestDestination
		n.Text = "the guest runs at " + n.To + " now"
		if v.paused {
			n.Text = "the guest is at " + n.To + " now, paused as it was here: godwit resume there lets it run on"
		}
		if v.keep {
			n.Text += "; what is kept here stays paused until godwit stop ends it"
		}
	case errors.As(v.err, &lost) && lost.Known:
		n.Guest = GuestPaused
		n.Text = fmt.Sprintf("the migration to %s failed: %v: godwit resume lets it run on at once", n.To, v.err)
	case errors.As(v.err, &lost):
		n.Guest, n.ForceAfter = GuestUnknown, &lost.ForceAfter
		n.Text = fmt.Sprintf("the migration to %s: %v", n.To, v.err)
	case errors.Is(v.err, migration.ErrStaysPaused):
		n.Guest = GuestPaused
		n.Text = fmt.Sprintf("the migration to %s failed: %v; when that is put right, godwit resume lets it run on", n.To, v.err)
	default:
		var where string
		n.Guest, where = whereLeft(v.left, v.paused)
		n.Text = fmt.Sprintf("the migration to %s %s, %s: %v", n.To, n.Status, where, v.err)
	}
	return n
}

// whereLeft says where the guest is after a migration that left it with its machine
// here, whose state is given. paused is by its operator's wish, before the migration.
func whereLeft(s vmm.State, paused bool) (guest, text string) {
	switch {
	case s == vmm.StateEnded || s == vmm.StateClosed:
		return GuestEnded, "the guest has ended here"
	case s == vmm.StatePaused && paused:
		return GuestHere, "the guest is here, paused as before"
	case s == vmm.StatePaused:
		return GuestHere, "the guest is here, paused; godwit resume lets it run on"
	}
	return GuestHere, "the guest runs on here"
}
