package vmm

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"godwit/blockfile"
)

// What Drive.OnFull may be.
const (
	OnFullPause  = "pause"
	OnFullReport = "report"
)

// ErrUnwritten marks what could not be written to a disk at the end: the guest
// may have been told that it was.
var ErrUnwritten = errors.New("not all of what the guest wrote is on its disk")

// A drive whose host is full goes round like this, unless it reports:
//
//	request ── no room ──> parked ──> foundFull ──> pauseFull ──> paused
//	   ^                                                             │
//	   └───────────────────── Resume: again <────────────────────────┘
//
// A migration and a saved machine take the parked requests along, and do them
// where the guest goes on: see virtio/blk.

// foundFull hears that a drive has parked a request for want of room at where. It
// waits for nothing: the device calls it with a queue held.
func (m *Machine) foundFull(id, where string, err error) {
	cause := unix.ENOSPC
	_ = errors.As(err, &cause)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state == StateEnded || m.state == StateClosed {
		return
	}
	if m.full == nil {
		m.full = fmt.Errorf("disk %q: no room for %s: %w", id, where, cause)
	}
	if !m.pausing {
		m.pausing = true
		m.pausers.Go(m.pauseFull)
	}
}

// pauseFull pauses a machine with parked requests, and tells its owner.
func (m *Machine) pauseFull() {
	if err := m.pauseParked(); err != nil && m.onFull != nil {
		m.onFull(err)
	}
}

// pauseParked gives the reason if it has paused the machine. Where somebody else
// has, perhaps to move it, that one's resume tries again and pauses it by us; and
// one that was resumed meanwhile may have found room.
func (m *Machine) pauseParked() error {
	m.op.Lock()
	defer m.op.Unlock()
	m.mu.Lock()
	m.pausing = false
	m.mu.Unlock()
	if m.State() != StateRunning || !m.dev.parked() {
		return nil
	}
	err := m.pause(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), consoleHold)
		defer cancel()
		_ = m.dev.serial.Drain(ctx) // it stays queued
		return nil
	})
	if err != nil {
		m.log.Error("a machine whose disk has no room could not be paused", "error", err)
		return nil
	}
	m.fullPaused = true
	return m.foundBy()
}

func (m *Machine) foundBy() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.full
}

// pauseReason says why a machine is paused, where that is a disk without room. A
// machine that arrived with parked requests has not tried them here.
func (m *Machine) pauseReason() string {
	if m.State() != StatePaused || !m.dev.parked() {
		return ""
	}
	if err := m.foundBy(); err != nil {
		return err.Error()
	}
	return "a disk had no room where the guest came from; its requests are done again when it is resumed"
}

// PausedByOperator reports whether the machine stands paused by somebody's wish, and
// not because a disk has no room: then it arrives paused where it is moved. It waits
// for a pause or resume that is under way.
func (m *Machine) PausedByOperator() bool {
	m.op.Lock()
	defer m.op.Unlock()
	return m.State() == StatePaused && !m.fullPaused
}

// tryAgain is called before parked requests are done again.
func (m *Machine) tryAgain() {
	m.fullPaused = false
	m.mu.Lock()
	defer m.mu.Unlock()
	m.full = nil
}

// parked says whether a drive has requests that wait for room.
func (d *devices) parked() bool {
	for _, p := range d.parts {
		if v, ok := p.(*drive); ok && v.dev.Parked() > 0 {
			return true
		}
	}
	return false
}

// parks says what a drive's device does about a host that is full.
func (d *drive) parks(found func(id, where string, err error)) (full func(error) bool, on func(error)) {
	if found == nil || d.OnFull == OnFullReport || d.IsReadOnly {
		return nil, nil
	}
	where := fmt.Sprintf("%q", d.path)
	if d.Snapshot {
		where = fmt.Sprintf("the changes to %q, in the folder for temporary files (TMPDIR)", d.path)
	}
	return blockfile.Full, func(err error) { found(d.ID, where, err) }
}
