package metronome_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/boot/metronome"
	"godwit/vmm"
)

// diskSpan is what the guests of these tests use of their disk, in MiB.
const diskSpan = 4

// diskGuest is a guest that drives a disk of its own.
func diskGuest(t *testing.T, cpus int, args string) (cfg vmm.Config, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, metronome.DiskData+diskSpan<<20))
	cfg = guest(cpus, 128, args)
	cfg.Drives = []vmm.Drive{{ID: "data", PathOnHost: path}}
	return cfg, path
}

// verifyDisk looks at an image that nobody uses any more.
func verifyDisk(t *testing.T, path string, flushed uint64) metronome.DiskReport {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	r, err := metronome.VerifyDisk(f, flushed)
	require.NoError(t, err)
	return r
}

func flushedPast(n uint64) func(metronome.IOLine) bool {
	return func(l metronome.IOLine) bool { return l.Phase == "run" && l.Flushed > n }
}

// The guest fills its disk, reads and writes it while it moves twice, beside its
// work in memory, and finds no block wrong; nor do we when it has ended. Then it
// starts again and goes on with what it finds.
func TestDiskLoadMoves(t *testing.T) {
	t.Parallel()
	cfg, path := diskGuest(t, 2, "fill=8 ws=4 rate=2000 beat=50 io=blk,4k,depth=8,mixed,flush=50,span=4,queues=2")
	c := bootHere(t, cfg)
	var last metronome.IOLine
	for range 2 {
		l, err := c.out.load(deadline(t), "blk", flushedPast(last.Flushed+200))
		require.NoError(t, err)
		next, _, err := c.move(route{disks: map[string]string{"data": path}})
		require.NoError(t, err)
		c, last = next, l
	}
	l, err := c.out.load(deadline(t), "blk", flushedPast(last.Flushed+200))
	require.NoError(t, err)
	in := c.swept()
	require.Zero(t, in.Bad, "%+v", c.out.badPages())
	require.NotZero(t, l.Reads)
	require.NotZero(t, l.MaxUs)
	require.NoError(t, c.m.Pause(context.Background())) // as sudden as a crash for the guest
	require.NoError(t, verifyDisk(t, path, l.Flushed).Err())
	require.NoError(t, c.m.Close())

	c = bootHere(t, cfg)
	again, err := c.out.load(deadline(t), "blk", flushedPast(l.Flushed+100))
	require.NoError(t, err)
	require.Zero(t, again.Bad)
	require.NoError(t, c.m.Pause(context.Background()))
	require.NoError(t, verifyDisk(t, path, again.Flushed).Err())
}

// What is wrong on the disk is found, at the start and later, and named.
func TestDiskLoadFindsWrongBlocks(t *testing.T) {
	t.Parallel()
	cfg, path := diskGuest(t, 1, "beat=50 io=blk,16k,depth=4,read,span=4")
	load := metronome.DefaultBlk()
	load.Span = diskSpan
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, metronome.WriteDisk(f, metronome.Defaults().Seed, load))
	at := func(unit int64) int64 { return metronome.DiskData + unit*metronome.PageSize }
	spoil := func(unit int64, n int) {
		_, err := f.WriteAt(make([]byte, n), at(unit)+metronome.PageSize-int64(n))
		require.NoError(t, err)
	}
	spoil(5, metronome.PageSize)
	c := bootHere(t, cfg)
	_, err = c.out.load(deadline(t), "blk", func(l metronome.IOLine) bool { return l.Phase == "run" && l.Bad == 1 })
	require.NoError(t, err)
	spoil(70, metronome.PageSize/2)
	_, err = c.out.load(deadline(t), "blk", func(l metronome.IOLine) bool { return l.Bad == 2 })
	require.NoError(t, err)
	require.EqualValues(t, 2, c.info().IOBad)
	// The count may be printed before the line that names the block.
	require.NoError(t, c.out.until(deadline(t), func() bool { return len(c.out.bad) >= 2 }))
	var got []metronome.Bad
	for _, b := range c.out.badPages() {
		require.GreaterOrEqual(t, b.Page, c.info().IO.GPA)
		b.Page = 0
		got = append(got, b)
	}
	require.Equal(t, []metronome.Bad{{Index: 5, Kind: "zero", At: "disk"}, {Index: 70, Kind: "torn", At: "disk"}}, got)
	require.EqualValues(t, 2, verifyDisk(t, path, 0).Bad)
}

// A disk that holds something else is left alone.
func TestDiskLoadRefuses(t *testing.T) {
	t.Parallel()
	for want, args := range map[string]string{
		"smaller than span=":      "io=blk,span=64",
		"another seed or span":    "io=blk,span=4 seed=2",
		"another block size":      "io=blk,span=4,8k,write",
		"fewer queues":            "io=blk,span=4,queues=8",
		"more than the memory":    "io=blk,span=4,1024k,depth=128",
		"smaller than span= and ": "io=blk,span=5,prefill",
	} {
		cfg, path := diskGuest(t, 1, args)
		load := metronome.DefaultBlk()
		load.Span = diskSpan
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		require.NoError(t, err)
		require.NoError(t, metronome.WriteDisk(f, metronome.Defaults().Seed, load))
		require.NoError(t, f.Close())
		out := newConsole(nil)
		m, err := vmm.New(cfg, vmm.Options{Serial: out})
		require.NoError(t, err)
		require.NoError(t, m.Start())
		require.ErrorContains(t, out.until(deadline(t), func() bool { return false }), want)
		require.NoError(t, m.Close())
		require.NoError(t, verifyDisk(t, path, 0).Err())
	}
}
