package metronome_test

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/vmm"
)

// storm sends SIGURG to every thread of p again and again until end is called.
// It does nothing to a Go program, which sends it to itself; but it ends system
// calls early.
func (p *process) storm() (end func()) {
	stop, done := make(chan struct{}), make(chan struct{})
	pid := p.cmd.Process.Pid
	go func() {
		defer close(done)
		pause := time.NewTicker(200 * time.Microsecond) // a vCPU gets into its guest in between
		defer pause.Stop()
		for {
			threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
			for _, e := range threads {
				if tid, err := strconv.Atoi(e.Name()); err == nil {
					_ = unix.Tgkill(pid, tid, unix.SIGURG) // the thread may have ended
				}
			}
			select {
			case <-stop:
				return
			case <-pause.C:
			}
		}
	}()
	end = sync.OnceFunc(func() { close(stop); <-done })
	p.s.t.Cleanup(end) // where a move fails: before p has gone
	return end
}

// A guest whose writes are followed by dirty rings moves back and forth while
// signals pour on its source: no write is lost. The guest itself looks, and
// every other move compares hashes.
//
// The long form alone, 2,000 moves:
//
//	GODWIT_SOAK=1 go test -timeout 3h -run TestRingMovesInAStorm ./tests/metronome
func TestRingMovesInAStorm(t *testing.T) {
	cfg := guest(1, 256, "fill=64 ws=64 rate=20000 beat=100 bytes=8 sample=0")
	cfg.Machine.Tracker = vmm.TrackerRing
	s := newScene(t)
	here, there := s.spawn(), s.spawn()
	here.boot(cfg)
	moves := shortOr(12, 2000)
	began := time.Now()
	for i := range moves {
		before := here.info()
		end := here.storm()
		here.move(there, SendArgs{Streams: 1 + i%2, Rounds: 3, Verify: i%2 == 0})
		end()
		here, there = there, here
		here.beats(2)
		after := here.info()
		require.Zero(t, after.Bad, "move %d: %+v", i+1, after.Kinds)
		require.Greater(t, writes(after), writes(before))
	}
	sweeps := here.info().Sweeps
	for here.info().Sweeps < sweeps+2 {
		here.beats(1)
	}
	here.healthy()
	t.Logf("%d moves in %v", moves, time.Since(began).Round(time.Second))
}
