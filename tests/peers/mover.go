package main

import (
	"context"
	"encoding/json"
	"time"
)

// end is one end of a move, a process with a guest or one that waits for it.
type end struct {
	p       *process
	console *console
	monitor *qmp   // QEMU's
	api     string // godwit's socket
	address string // where it listens
}

func (e *end) close() {
	if e.monitor != nil {
		e.monitor.close()
	}
	e.p.end()
}

// moved is what a program says of its move.
type moved struct {
	totalMS, downtimeMS float64
	wireBytes           uint64
	rounds              int
	throttleMax         int
	firstRoundPages     uint64 // godwit: sent in round 1 and not zero
	passFrom, passTo    time.Time
	report              json.RawMessage
}

// mover moves a guest with one program.
type mover interface {
	// source starts a process that boots the guest.
	source(ctx context.Context) (*end, error)
	// destination starts one that waits for it. It returns when it listens.
	destination(ctx context.Context) (*end, error)
	// move moves the guest and returns when it runs there.
	move(ctx context.Context, from, to *end) (moved, error)
}
