package metronome_test

import (
	"time"

	"github.com/stretchr/testify/require"

	"godwit/vmm"
)

// end is what became of a migration that was disturbed.
type end string

const (
	moved  end = "moved"          // runs at the destination
	runsOn end = "runs on"        // at the source, as if nothing had happened
	forced end = "resumed"        // paused at the source, nobody could know; forced after the lease
	lost   end = "lost with host" // with the process that had it
)

// attempt is a migration that something happens to.
type attempt struct {
	from, to       *process
	sent, received <-chan *Outcome
}

func (s *scene) attempt(from, to *process, a SendArgs, r ReceiveArgs, via func(string) string) *attempt {
	s.t.Helper()
	r.Local = a.Local
	addr, received := to.receive(r)
	a.Addr = addr
	if via != nil {
		a.Addr = via(addr)
	}
	return &attempt{from: from, to: to, sent: from.start("Send", a), received: received}
}

// settle waits for what the living have to say, checks that they agree on who may
// run the guest, and shows that whoever has it has all of it. It returns that
// process, nil when there is none.
func (a *attempt) settle() (*process, end) {
	t := a.from.s.t
	t.Helper()
	sent := <-a.sent
	if a.from.gone || sent != nil && sent.Err != "" && !a.to.gone {
		// Nobody will call any more. One that is being served is not affected.
		a.to.tell("Hangup", 0, nil)
	}
	received := <-a.received
	holder, how := a.who(sent, received)
	if holder != nil {
		holder.healthy()
	}
	return holder, how
}

func (a *attempt) who(sent, received *Outcome) (*process, end) {
	t := a.from.s.t
	t.Helper()
	arrived := !a.to.gone && received.Err == ""
	if !a.to.gone && !arrived {
		require.Equal(t, "none", received.State, "a destination that failed holds nothing: %s", received.Err)
	}
	switch {
	case a.from.gone && arrived:
		return a.to, moved
	case a.from.gone:
		return nil, lost
	case sent.Err == "":
		require.Equal(t, vmm.StateEnded.String(), a.from.state())
		a.from.tell("Drop", 0, nil)
		if a.to.gone {
			return nil, lost
		}
		require.True(t, arrived, "the source says moved, the destination %s", received.Err)
		return a.to, moved
	case sent.Unknown, sent.NotTaken:
		require.Equal(t, vmm.StatePaused.String(), a.from.state(), sent.Err)
		require.False(t, arrived && sent.NotTaken, "the destination promised not to run the guest and does")
		if arrived {
			a.from.tell("Drop", 0, nil)
			return a.to, moved
		}
		time.Sleep(time.Until(sent.ForceAfter)) // what resume --force does
		a.from.s.forced()
		a.from.tell("Resume", 0, nil)
		return a.from, forced
	}
	require.Equal(t, vmm.StateRunning.String(), a.from.state(), sent.Err)
	require.False(t, arrived, "the guest runs on at the source and at the destination")
	return a.from, runsOn
}
