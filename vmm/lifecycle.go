package vmm

import (
	"errors"
	"fmt"
)

// State is where a machine stands in its life.
type State int

// The states of a machine.
const (
	StateBuilt   State = iota // assembled or restored, has not run here
	StateRunning              // vCPUs run
	StatePaused               // vCPUs and devices stand still
	StateEnded                // the guest ended or was stopped; see Machine.Exit
	StateClosed               // everything given back
)

// String gives the state's name as `info` shows it.
func (s State) String() string {
	switch s {
	case StateBuilt:
		return "built"
	case StateRunning:
		return "running"
	case StatePaused:
		return "paused"
	case StateEnded:
		return "ended"
	case StateClosed:
		return "closed"
	}
	return fmt.Sprintf("state %d", int(s))
}

// transitions are the legal steps; everything else is ErrState.
var transitions = map[State][]State{
	StateBuilt:   {StateRunning, StatePaused, StateEnded, StateClosed},
	StateRunning: {StatePaused, StateEnded},
	StatePaused:  {StateRunning, StateEnded},
	StateEnded:   {StateClosed},
	StateClosed:  nil,
}

// ErrState marks a call that the machine's state does not allow.
var ErrState = errors.New("not possible in this state")

func legal(from, to State) error {
	for _, s := range transitions[from] {
		if s == to {
			return nil
		}
	}
	return fmt.Errorf("%w: the machine is %s and cannot become %s", ErrState, from, to)
}

// ExitKind says how a machine ended.
type ExitKind int

// How a machine ends.
const (
	ExitPowerOff ExitKind = iota // the guest powered off
	ExitReset                    // the guest asked for a reset
	ExitFault                    // the guest or the host's KVM gave up; Err says how
	ExitStopped                  // Stop was called
	ExitMigrated                 // it runs elsewhere now
)

// String gives the kind in words.
func (k ExitKind) String() string {
	switch k {
	case ExitPowerOff:
		return "powered off"
	case ExitReset:
		return "reset"
	case ExitFault:
		return "fault"
	case ExitStopped:
		return "stopped"
	case ExitMigrated:
		return "migrated"
	}
	return fmt.Sprintf("exit kind %d", int(k))
}

// Exit is how a machine ended.
type Exit struct {
	Kind ExitKind
	Err  error // set for ExitFault
}

// Error puts the exit in words, so that a migration can carry it as a reason.
func (e Exit) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("the guest ended: %s: %v", e.Kind, e.Err)
	}
	return fmt.Sprintf("the guest ended: %s", e.Kind)
}

// Unwrap gives the fault.
func (e Exit) Unwrap() error { return e.Err }
