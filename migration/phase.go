package migration

import (
	"fmt"
	"slices"
)

// Phase is where a migration stands, at either end.
type Phase string

const (
	PhaseIdle      Phase = "idle"       // not begun
	PhaseConnect   Phase = "connect"    // HELLO
	PhaseConfigure Phase = "configure"  // CONFIG and building the machine
	PhaseCopy      Phase = "copy"       // rounds while the guest runs
	PhasePause     Phase = "pause"      // stopping vCPUs and draining devices (source)
	PhaseLastPages Phase = "last-pages" // the round after the pause (source)
	PhaseState     Phase = "state"      // device state
	PhaseVerify    Phase = "verify"     // comparing hashes
	PhasePrepare   Phase = "prepare"    // PREPARE sent or received, READY not yet
	PhaseReady     Phase = "ready"      // READY sent, waiting for GO (destination)
	PhaseCommitted Phase = "committed"  // past the point of no return
	PhaseCleanUp   Phase = "clean-up"   // runs there; slow clean-up here
	PhaseCompleted Phase = "completed"
	PhaseFailed    Phase = "failed"
	PhaseCancelled Phase = "cancelled"
	PhaseUndo      Phase = "undo" // bringing the source back (source)
)

// sourceNext is every legal step of a source. Undo can follow any phase before
// the point of no return and none after it.
var sourceNext = map[Phase][]Phase{
	PhaseIdle:      {PhaseConnect, PhaseUndo},
	PhaseConnect:   {PhaseConfigure, PhaseUndo},
	PhaseConfigure: {PhaseCopy, PhasePause, PhaseUndo},
	PhaseCopy:      {PhasePause, PhaseUndo},
	PhasePause:     {PhaseLastPages, PhaseState, PhaseUndo}, // no last pages in a local hand-over
	PhaseLastPages: {PhaseState, PhaseUndo},
	PhaseState:     {PhaseVerify, PhasePrepare, PhaseUndo},
	PhaseVerify:    {PhasePrepare, PhaseUndo},
	PhasePrepare:   {PhaseCommitted, PhaseUndo},
	PhaseCommitted: {PhaseCleanUp, PhaseFailed},
	PhaseCleanUp:   {PhaseCompleted},
	PhaseUndo:      {PhaseFailed, PhaseCancelled},
	PhaseCompleted: {}, PhaseFailed: {}, PhaseCancelled: {},
}

// targetNext is every legal step of a destination. Only Ready leads to
// Committed: nothing but a GO inside the lease lets the guest run.
var targetNext = map[Phase][]Phase{
	PhaseIdle:      {PhaseConnect, PhaseFailed, PhaseCancelled},
	PhaseConnect:   {PhaseConfigure, PhaseFailed, PhaseCancelled},
	PhaseConfigure: {PhaseCopy, PhaseState, PhaseFailed, PhaseCancelled}, // no copy in a local hand-over
	PhaseCopy:      {PhaseState, PhaseFailed, PhaseCancelled},
	PhaseState:     {PhaseVerify, PhasePrepare, PhaseFailed, PhaseCancelled},
	PhaseVerify:    {PhasePrepare, PhaseFailed, PhaseCancelled},
	PhasePrepare:   {PhaseReady, PhaseFailed, PhaseCancelled},
	PhaseReady:     {PhaseCommitted, PhaseFailed, PhaseCancelled},
	PhaseCommitted: {PhaseCompleted, PhaseFailed},
	PhaseCompleted: {}, PhaseFailed: {}, PhaseCancelled: {},
}

// step checks a move against a table of legal ones.
func step(table map[Phase][]Phase, from, to Phase) error {
	if !slices.Contains(table[from], to) {
		return fmt.Errorf("migration: illegal step from phase %q to %q", from, to)
	}
	return nil
}
