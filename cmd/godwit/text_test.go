package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/api"
	"godwit/migration"
	"godwit/vmm"
)

func TestInfoText(t *testing.T) {
	info := api.Info{Info: vmm.Info{ID: "web", State: "paused", VCPUs: 2, MemoryMiB: 512, MemoryBacking: "anon", ResidentBytes: 20 << 20,
		Exits: []uint64{7, 9}, BootMarks: []vmm.BootMark{{Code: 1, AtUS: 12345, Count: 1}, {Code: 2, AtUS: 20000, Count: 3}},
		Drives: []vmm.DriveInfo{{ID: "vda", Path: "root.img", Format: "qcow2", SizeBytes: 64 << 20, ReadOnly: true}}},
		LastMigration: &api.Note{Text: "the guest is saved in x"}}
	require.Equal(t, `web  paused
  migration the guest is saved in x
  memory    512 MiB anon, 20 MiB of it resident
  vcpu 0    7 exits to this process
  vcpu 1    9 exits to this process
  disk vda  root.img (qcow2), 64 MiB, read-only
  serial    0 bytes written, 0 lost
  boot mark 1 after 12.3 ms
  boot mark 2 after 20.0 ms, 3 times by now
`, infoText(info))
}

func TestDemoText(t *testing.T) {
	bad, sweeps, gap := uint64(0), uint64(4), 120.
	rep := migration.Report{TotalMS: 300, DowntimeMS: 1.5, WireBytes: 1 << 20, Rounds: make([]migration.RoundReport, 3),
		Pages: migration.PageCounts{Raw: 256, Skipped: 9}}
	verified := rep
	verified.Verify = &migration.Verified{Source: "abcdef0123456789", Destination: "abcdef0123456789"}
	r := demoResult{OK: true, Guest: "metronome, 1G of memory, 1 vCPU", BootMS: 20, BadPages: &bad, Sweeps: &sweeps,
		Moves: []demoMove{{Report: &rep, GuestGapUS: 2500}, {Report: &verified, Verified: true, Counts: [2]uint64{4, 30}}}}
	text := r.text()
	for _, want := range []string{"boot               20.00 ms", "total              300 ms", "downtime           1.50 ms", "gap    2.50 ms",
		"256 raw, 9 never touched", "4 to 30", "abcdef012345 ", "bad pages          0 "} {
		require.Contains(t, text, want)
	}
	require.Equal(t, 3, strings.Count(text, "hashing"), "only the second move")
	r.BadPages, r.WitnessGapMS, r.OK, r.Detail = nil, &gap, false, "the witness found errors"
	require.Contains(t, r.text(), "120 ms")
	require.Contains(t, r.text(), "the witness found errors")
}

func TestMigrationSummary(t *testing.T) {
	rep := &migration.Report{Status: migration.Completed, DowntimeMS: 1.5, Rounds: []migration.RoundReport{{SentPages: 900}, {SentPages: 41}}}
	st := api.MigrationStatus{To: "tcp:host2:7000", Report: rep}
	require.NotContains(t, summary(st), "promised")
	rep.Promise = &migration.Promise{DowntimeMS: 1.27, Pages: 39}
	require.Contains(t, summary(st), "promised  1.27 ms and 39 pages, took 1.50 ms and 41 pages\n")
}

func TestRestoreMark(t *testing.T) {
	path := filepath.Join(t.TempDir(), "saved")
	look := func(content string) restoreMark {
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		f, err := os.Open(path)
		require.NoError(t, err)
		defer f.Close()
		m, err := readMark(f)
		require.NoError(t, err)
		return m
	}
	long := strings.Repeat("x", 3*printedTail)
	require.Empty(t, look(long).last)
	day := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	require.NoError(t, look(long).write(day))
	require.NoError(t, look(long).write(day.Add(time.Hour)))
	require.Equal(t, "2026-01-02T04:04:05Z", look(long).last, "the last time counts")
	for _, other := range []string{"", "x", long + "x", long[1:], long[1:] + "y"} {
		require.Empty(t, look(other).last, "another machine under the same name")
	}
	for _, garbage := range []string{"", "\n \n", "now " + look(long).print, "\x00\xff", strings.Repeat("y", 1000)} {
		require.NoError(t, os.WriteFile(path+markSuffix, []byte(garbage), 0o600))
		require.Empty(t, look(long).last)
	}
	require.NoError(t, os.WriteFile(path+markSuffix, make([]byte, maxMark+1), 0o600))
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	_, err = readMark(f)
	require.ErrorContains(t, err, "restored before", "a mark that cannot be read is no reason for silence")

	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	m, err := readMark(r)
	require.NoError(t, err)
	require.NoError(t, m.write(day), "a pipe has nothing beside it")
}
