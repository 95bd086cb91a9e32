package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// steadyBeats is how many beats the guest gives before and after a move.
const steadyBeats = 5

// beatMS is the time between two of them, milliseconds.
const beatMS = 100

// metronomeGuest is the built-in guest: boot/metronome's README has its lines.
type metronomeGuest struct{ flags *demoFlags }

// beat is what the demo reads of a beat line.
type beat struct{ gapUS, bad, sweeps uint64 }

// parseBeat reads a beat line; ok is false for any other.
func parseBeat(line string) (b beat, ok bool) {
	rest, ok := strings.CutPrefix(line, "metronome beat ")
	if !ok {
		return b, false
	}
	for word := range strings.FieldsSeq(rest) {
		key, value, _ := strings.Cut(word, "=")
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return beat{}, false
		}
		switch key {
		case "gap_us":
			b.gapUS = n
		case "bad":
			b.bad = n
		case "sweeps":
			b.sweeps = n
		}
	}
	return b, true
}

func (g *metronomeGuest) args() []string {
	line := fmt.Sprintf("fill=%d ws=%d rate=%d beat=%d vcpus=%d", g.flags.fill, g.flags.ws, g.flags.rate, beatMS, g.flags.cpus)
	return append([]string{"--guest", "metronome"}, g.flags.bootArgs(line)...)
}

func (g *metronomeGuest) receiveArgs() []string { return nil }

func (g *metronomeGuest) booted(line string) bool { return line == "metronome up" }

func (g *metronomeGuest) steady(ctx context.Context, c *child) error {
	left := steadyBeats
	_, _, err := c.out.wait(ctx, 0, func(line string) bool {
		if _, ok := parseBeat(line); ok {
			left--
		}
		return left == 0
	})
	return err
}

func (g *metronomeGuest) after(m *demoMove, lines []string) error {
	for _, line := range lines {
		if b, ok := parseBeat(line); ok {
			m.GuestGapUS = max(m.GuestGapUS, b.gapUS)
		}
	}
	return nil
}

// finish lets the sweeper look at all of memory once more and stops the guest.
func (g *metronomeGuest) finish(ctx context.Context, c *child, r *demoResult) error {
	var first, last beat
	seen := false
	_, _, err := c.out.wait(ctx, 0, func(line string) bool {
		b, ok := parseBeat(line)
		if !ok {
			return false
		}
		if !seen {
			first, seen = b, true
		}
		last = b
		// The first sweep after the move may have begun before it.
		return b.sweeps >= first.sweeps+2 || b.bad > 0
	})
	if err != nil {
		return err
	}
	if r.BadPages, r.Sweeps = &last.bad, &last.sweeps; last.bad > 0 {
		r.OK, r.Detail = false, fmt.Sprintf("%d pages of the guest's memory are not what it wrote", last.bad)
	}
	if err := c.cmd.Process.Signal(unix.SIGTERM); err != nil {
		return err
	}
	return c.wait(ctx)
}
