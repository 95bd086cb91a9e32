package main

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// steadyCounts is how many counts the witness gives before and after a move.
const steadyCounts = 10

// linuxGuest is Linux with the root disk of boot/rootfs, whose README has the
// lines of init and witness.
type linuxGuest struct{ flags *demoFlags }

// countLine may stand behind a prompt.
var countLine = regexp.MustCompile(`count (\d+) t=\d`)

// witnessGap is in the witness's last line.
var witnessGap = regexp.MustCompile(`gap_ms=(\d+)`)

func parseCount(line string) (uint64, bool) {
	m := countLine.FindStringSubmatch(line)
	if m == nil {
		return 0, false
	}
	n, err := strconv.ParseUint(m[1], 10, 64)
	return n, err == nil
}

func (g *linuxGuest) args() []string {
	args := append([]string{"--kernel", g.flags.kernel}, g.flags.bootArgs("godwit.run=witness")...)
	for _, d := range g.flags.disks {
		args = append(args, "--disk", d)
	}
	return args
}

// receiveArgs let the receiver open the same images.
func (g *linuxGuest) receiveArgs() []string {
	var args []string
	for i, s := range g.flags.disks {
		d, err := parseDrive(s)
		if err != nil {
			continue // it was read before
		}
		if d.ID == "" {
			d.ID = fmt.Sprintf("vd%c", 'a'+i) // vmm's default
		}
		args = append(args, "--disk", d.ID+"="+d.PathOnHost)
	}
	return args
}

func (g *linuxGuest) booted(line string) bool { return strings.Contains(line, "godwit init: reached") }

func (g *linuxGuest) steady(ctx context.Context, c *child) error {
	left := steadyCounts
	line, _, err := c.out.wait(ctx, 0, func(line string) bool {
		if _, ok := parseCount(line); ok {
			left--
		}
		return left == 0 || witnessFailed(line)
	})
	if err == nil && witnessFailed(line) {
		err = fmt.Errorf("the guest says %q", line)
	}
	return err
}

func witnessFailed(line string) bool {
	return strings.Contains(line, "witness ERROR") || strings.Contains(line, "Kernel panic")
}

// after checks that the count goes on without a gap or a repeat.
func (g *linuxGuest) after(m *demoMove, lines []string) error {
	var last uint64
	for _, line := range lines {
		n, ok := parseCount(line)
		switch {
		case !ok:
			continue
		case last == 0:
			m.Counts[0] = n
		case n != last+1:
			return fmt.Errorf("the witness's count went from %d to %d over the move", last, n)
		}
		last = n
	}
	m.Counts[1] = last
	return nil
}

// finish powers the guest off through its console: the witness checks its file,
// and disks are left clean.
func (g *linuxGuest) finish(ctx context.Context, c *child, r *demoResult) error {
	if _, err := io.WriteString(c.stdin, "\npoweroff\n"); err != nil {
		return fmt.Errorf("type poweroff: %w", err)
	}
	line, _, err := c.out.wait(ctx, 0, func(line string) bool { return strings.Contains(line, "witness done ") })
	if err != nil {
		return err
	}
	r.Witness = line[strings.Index(line, "witness done "):]
	if m := witnessGap.FindStringSubmatch(r.Witness); m != nil {
		if ms, err := strconv.ParseFloat(m[1], 64); err == nil {
			r.WitnessGapMS = &ms
		}
	}
	if !strings.Contains(r.Witness, " errors=0 ") {
		r.OK, r.Detail = false, "the witness found errors"
	}
	return c.wait(ctx)
}
