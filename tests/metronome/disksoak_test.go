package metronome_test

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/boot/metronome"
	"godwit/vmm"
)

// diskLoad is what the guests of these tests do to their disk, beside their work
// in memory.
const diskLoad = "fill=8 ws=4 rate=2000 beat=20 io=blk,4k,depth=24,mixed,flush=50,span=4"

// A guest is moved again and again while it reads, writes and flushes its disk.
// No block is wrong, to the guest then and to us afterwards.
func TestDiskMovesUnderLoad(t *testing.T) {
	t.Parallel()
	for _, f := range diskFormats {
		t.Run(f.name, func(t *testing.T) {
			cfg := guest(2, 128, diskLoad)
			cfg.Drives = []vmm.Drive{f.drive(t, t.TempDir())}
			path := cfg.Drives[0].PathOnHost
			c := bootHere(t, cfg)
			flushed := uint64(0)
			for range shortOr(5, 20) {
				l, err := c.out.load(deadline(t), "blk", flushedPast(flushed+100))
				require.NoError(t, err)
				flushed = l.Flushed
				c, _, err = c.move(route{disks: map[string]string{"data": path}})
				require.NoError(t, err)
			}
			l, err := c.out.load(deadline(t), "blk", flushedPast(flushed+100))
			require.NoError(t, err)
			in := c.swept()
			require.Zero(t, in.Bad+in.IOBad, "%+v", c.out.badPages())
			require.NoError(t, c.m.Pause(context.Background()))
			require.NoError(t, c.m.Close())
			f.check(t, path, l.Flushed, false)
		})
	}
}

// The process is killed at any moment of the same load: the image is whole, and
// what was flushed is there. The next process goes on with what it finds.
func TestDiskKilledAtRandom(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	for _, f := range diskFormats {
		t.Run(f.name, func(t *testing.T) {
			s := newScene(t)
			cfg := guest(2, 128, diskLoad)
			cfg.Drives = []vmm.Drive{f.drive(t, t.TempDir())}
			flushed := uint64(0)
			for range shortOr(3, 67) {
				p := s.spawn()
				p.boot(cfg)
				var l metronome.IOLine
				p.tell("Load", flushed+50, &l)
				require.Zero(t, l.Bad)
				time.Sleep(time.Duration(random.Int64N(int64(100 * time.Millisecond)))) // the moment is what is random
				p.kill()
				f.check(t, cfg.Drives[0].PathOnHost, l.Flushed, true)
				flushed = l.Flushed
			}
		})
	}
}
