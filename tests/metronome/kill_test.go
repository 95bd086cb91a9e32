package metronome_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/vmm"
)

// victim is a guest under load, small so that many migrations fit into a test.
var victim = guest(2, 128, "fill=32 ws=16 rate=20000 beat=20")

// aLease is short, because a destination killed after GO makes the test wait for
// its end; and long enough for a busy machine to come to GO within it.
const aLease = 4 * time.Second

// couple is the guest's host and a process for it to go to. Processes that died
// are replaced, and so is a guest that died with one.
type couple struct {
	s           *scene
	cfg         vmm.Config
	how         SendArgs // how the guest moves when nothing happens
	here, spare *process
}

func (c *couple) ready() (from, to *process) {
	if c.here == nil || c.here.gone {
		c.here = c.s.spawn()
		c.here.boot(c.cfg)
	}
	if c.spare == nil || c.spare.gone {
		c.spare = c.s.spawn()
	}
	return c.here, c.spare
}

// after notes who has the guest now, and shows that it can still be moved.
func (c *couple) after(a *attempt, holder *process) {
	switch {
	case holder == nil && a.from.gone:
		c.here, c.spare = nil, a.to
		return
	case holder == nil:
		c.here, c.spare = nil, a.from
		return
	case holder == a.to:
		c.here, c.spare = a.to, a.from
	}
	from, to := c.ready()
	from.move(to, c.how)
	to.healthy()
	c.here, c.spare = to, from
}

// Either process is killed by SIGKILL as it enters each phase.
func TestKilledAtEveryPhase(t *testing.T) {
	t.Parallel()
	sources := []killed{
		{Moment{migration.PhaseConnect, 0}, []end{lost}}, {Moment{migration.PhaseConfigure, 0}, []end{lost}},
		{Moment{migration.PhaseCopy, 1}, []end{lost}}, {Moment{migration.PhaseCopy, 2}, []end{lost}},
		{Moment{migration.PhasePause, 0}, []end{lost}}, {Moment{migration.PhaseLastPages, 0}, []end{lost}},
		{Moment{migration.PhaseState, 0}, []end{lost}}, {Moment{migration.PhasePrepare, 0}, []end{lost}},
		// GO has been written, but the network may not have taken it.
		{Moment{migration.PhaseCommitted, 0}, []end{moved, lost}},
		{Moment{migration.PhaseCleanUp, 0}, []end{moved}},
	}
	destinations := []killed{
		{Moment{migration.PhaseConnect, 0}, []end{runsOn}}, {Moment{migration.PhaseConfigure, 0}, []end{runsOn}},
		{Moment{migration.PhaseCopy, 0}, []end{runsOn}}, {Moment{migration.PhaseState, 0}, []end{runsOn}},
		{Moment{migration.PhasePrepare, 0}, []end{runsOn}}, {Moment{migration.PhaseReady, 0}, []end{runsOn}},
		{Moment{migration.PhaseCommitted, 0}, []end{forced}}, // has GO, has not run the guest
		{Moment{migration.PhaseCompleted, 0}, []end{lost}},
	}
	c := couple{s: newScene(t), cfg: victim, how: SendArgs{Streams: 2, Verify: true}}
	c.killAt(sources, destinations, SendArgs{Streams: 2, Rounds: 3})
}

// killed is a moment to die at, and how it may end.
type killed struct {
	at   Moment
	want []end
}

// killAt goes through the rows of both sides, each in a migration of its own.
func (c *couple) killAt(sources, destinations []killed, how SendArgs) {
	t := c.s.t
	for side, rows := range map[string][]killed{"source": sources, "destination": destinations} {
		for _, r := range rows {
			what := fmt.Sprintf("%s killed at %s, round %d", side, r.at.Phase, r.at.Round)
			from, to := c.ready()
			send, receive := how, ReceiveArgs{Lease: aLease}
			dies := from
			if side == "source" {
				send.Die = r.at
			} else {
				receive.Die, dies = r.at, to
			}
			a := c.s.attempt(from, to, send, receive, nil)
			dies.buried()
			holder, got := a.settle()
			require.Contains(t, r.want, got, what)
			c.after(a, holder)
		}
	}
}

// Either process is killed at any moment of a migration.
func TestKilledAtRandom(t *testing.T) {
	t.Parallel()
	c := couple{s: newScene(t), cfg: victim, how: SendArgs{Streams: 2, Verify: true}}
	from, to := c.ready()
	// Slow enough that the copying, where most of the code runs, gets most kills.
	send := SendArgs{Streams: 2, Rounds: 3, Bandwidth: 400 << 20}
	sent, _ := from.move(to, send)
	c.here, c.spare = to, from
	whole := time.Duration(sent.Report.TotalMS * float64(time.Millisecond))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, a whole migration takes %v", seed, whole)
	random := rand.New(rand.NewPCG(seed, 0))
	ends := map[string]int{}
	for range shortOr(6, 400) {
		from, to := c.ready()
		a := c.s.attempt(from, to, send, ReceiveArgs{Lease: aLease}, nil)
		dies, side := from, "source"
		if random.IntN(2) == 0 {
			dies, side = to, "destination"
		}
		time.Sleep(time.Duration(random.Int64N(int64(whole * 5 / 4)))) // the moment is what is random
		dies.kill()
		holder, got := a.settle()
		ends[side+" killed: "+string(got)]++
		c.after(a, holder)
	}
	t.Log(ends)
}
