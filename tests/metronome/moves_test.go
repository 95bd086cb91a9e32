package metronome_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/vmm"
)

// A guest moves back and forth between two processes, with and without the
// hashes of both ends compared. The gap is the guest's own longest; where hashes
// are compared it holds the time that this takes.
func TestMovesBackAndForth(t *testing.T) {
	load := fmt.Sprintf("fill=%d ws=%d rate=20000 beat=40", shortOr(128, 512), shortOr(64, 128))
	type row struct {
		name    string
		cfg     vmm.Config
		streams int
		storm   bool // signals pour on the source, as in TestRingMovesInAStorm
	}
	ring := guest(2, 1<<10, load)
	ring.Machine.Tracker = vmm.TrackerRing
	rows := []row{
		{"8 GiB idle", guest(1, 8<<10, "fill=16 ws=8 rate=500 sample=0 beat=40"), 1, false},
		{"1 GiB loaded, 2 vCPUs", guest(2, 1<<10, load+" reads=20"), 2, false},
		{"1 GiB loaded, 2 vCPUs, rings in a storm", ring, 2, true},
	}
	if soak() {
		rows = append(rows, row{"1 GiB loaded", guest(1, 1<<10, load), 2, false})
	}
	for _, c := range rows {
		t.Run(c.name, func(t *testing.T) {
			s := newScene(t)
			here, there := s.spawn(), s.spawn()
			here.boot(c.cfg)
			var table strings.Builder
			fmt.Fprintf(&table, "\n%4s %8s %6s %6s %6s %6s %8s\n", "move", "total ms", "down", "gap", "rounds", "MiB", "verified")
			for i := range shortOr(4, 50) {
				before := here.info()
				end := func() {}
				if c.storm {
					end = here.storm()
				}
				sent, _ := here.move(there, SendArgs{Streams: c.streams, Verify: i%2 == 0})
				end()
				here, there = there, here

				// A line that was waiting at the source leaves here; the gap is in one
				// of the first that were made here. On a busy host a vCPU may get its
				// turn, and tell its gap, some beats after another.
				gap := uint64(0)
				for n := 3; n <= 20 && (n == 3 || float64(gap)/1000 < sent.Report.DowntimePhases.PagesMS); n++ {
					for _, b := range here.first(n) {
						gap = max(gap, b.GapUs)
					}
				}
				require.GreaterOrEqual(t, float64(gap)/1000, sent.Report.DowntimePhases.PagesMS, "the guest saw itself stand still")
				after := here.info()
				require.Greater(t, writes(after), writes(before))
				here.healthy()
				r := sent.Report
				fmt.Fprintf(&table, "%4d %8.0f %6.1f %6.1f %6d %6d %8v\n", i+1, r.TotalMS, r.DowntimeMS, float64(gap)/1000,
					len(r.Rounds), r.WireBytes>>20, r.Verify != nil)
			}
			t.Log(table.String())
			// What came with the last move is looked at whole once more.
			sweeps := here.info().Sweeps
			for here.info().Sweeps < sweeps+2 {
				here.beats(1)
			}
			here.healthy()
		})
	}
}
