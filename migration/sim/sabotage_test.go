package sim_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration/policy"
	"godwit/migration/sabotage"
	"godwit/migration/wire"
)

// A page is written just before its dirty bit is cleared. Only if the page is
// read after that does the write arrive.
func TestRuleClearOrder(t *testing.T) {
	r := newRig(t, 64)
	r.put(5, 1)
	var n atomic.Int32
	r.src.Hook(func(m string) {
		if m == "Clear" && n.Add(1) == 1 {
			r.put(5, 2)
		}
	})
	r.send.Policies.Stop = policy.LastSync{MaxRounds: 3}
	res := r.migrate(context.Background())
	r.moved(res)
	require.EqualValues(t, 1, res.sent.Pages.Raw, "a page that is dirtied before its turn goes once")
}

// What the guest writes at any moment of a round arrives: before the round's
// pages are cleared, between two chunks, and after the last.
func TestWritesDuringClear(t *testing.T) {
	const pages = 3 * 256
	r := newRig(t, pages)
	for i := range uint64(pages) {
		r.put(i, 1)
	}
	var n atomic.Uint64
	r.src.Hook(func(m string) {
		if m != "Clear" && m != "Dirty" {
			return
		}
		if k := n.Add(1); k < 40 {
			for _, i := range []uint64{0, 255, 256, 511, 512, pages - 1} {
				r.put(i, k)
			}
		}
	})
	r.send.Streams = 3
	r.send.DowntimeLimit = 1
	r.moved(r.migrate(context.Background()))
}

// One stream takes nearly all of round 1, and the network delivers it late. The
// other one takes nearly all of round 2, with newer copies of the same pages.
func TestRuleBarrier(t *testing.T) {
	const pages = 4 * 256 // four chunks
	r := newRig(t, pages)
	for i := range uint64(pages) {
		r.put(i, 1)
	}
	dirties := 0
	r.src.Hook(func(m string) {
		if m == "Dirty" {
			if dirties++; dirties == 1 {
				for i := range uint64(pages) {
					r.put(i, 2)
				}
			}
		}
	})
	hold := &holdUp{sent: make(chan struct{}), newer: make(chan struct{})}
	hold.landed = func() bool {
		n := 0
		for i := range uint64(pages) {
			if r.host.Target().Page(r.gpa(i))[0] == 2 {
				n++
			}
		}
		return n >= pages*3/4
	}
	r.wrap = func(c net.Conn, index int) net.Conn {
		switch index {
		case 1:
			late := make(chan []byte, 1<<14)
			go hold.deliver(c, late)
			return &heldConn{Conn: c, hold: hold, late: late}
		case 2:
			return &heldConn{Conn: c, hold: hold}
		}
		return c
	}
	r.send.Streams = 2
	r.send.Policies.Stop = policy.LastSync{MaxRounds: 2}
	r.moved(r.migrate(context.Background()))
}

// holdUp is a network that delivers one of two streams late.
type holdUp struct {
	sent   chan struct{} // closed when the late stream has written its share of round 1
	newer  chan struct{} // closed when the other one has written its share of round 2
	landed func() bool   // says that this share is in the destination's memory
}

// heldConn is one of the streams; late takes what the slow one writes.
type heldConn struct {
	net.Conn
	hold  *holdUp
	late  chan []byte
	round int // rounds written

	closed bool
}

func (c *heldConn) Write(p []byte) (int, error) {
	frame := wire.Type(0)
	if len(p) >= wire.HeaderSize && len(p) < pageSize {
		frame = wire.Type(p[0])
	}
	switch {
	case frame == wire.TypeRaw && c.late == nil && c.round == 0:
		<-c.hold.sent
	case frame == wire.TypeRaw && c.late != nil && c.round == 1:
		<-c.hold.newer
	case frame == wire.TypeRound:
		c.round++
		if c.late != nil && c.round == 1 {
			close(c.hold.sent)
		}
	}
	n, err := len(p), error(nil)
	if c.late != nil && string(p[:min(len(p), 8)]) != wire.Preamble {
		c.late <- append([]byte(nil), p...)
	} else {
		n, err = c.Conn.Write(p)
	}
	if frame == wire.TypeRound && c.late == nil && c.round == 2 {
		close(c.hold.newer)
	}
	return n, err
}

func (c *heldConn) Close() error {
	if c.late != nil && !c.closed {
		c.closed = true
		close(c.late)
	}
	return c.Conn.Close()
}

// deliver passes on what the slow stream wrote: with the barrier switched off
// after newer pages have landed, else a little late, when nothing newer can be
// on its way however long it took.
func (h *holdUp) deliver(to net.Conn, late <-chan []byte) {
	<-h.sent
	if sabotage.On(sabotage.Barrier) {
		<-h.newer
		for !h.landed() {
			time.Sleep(time.Millisecond)
		}
	}
	for b := range late {
		if _, err := to.Write(b); err != nil {
			return
		}
	}
}

// With a rule switched off the test that guards it must fail, and without it
// pass: shown in child processes of a sabotage build.
func TestSabotageIsNoticed(t *testing.T) {
	if sabotage.Built {
		t.Skip("this is the sabotage build that the test runs")
	}
	bin := t.TempDir() + "/sabotaged.test"
	out, err := exec.Command("go", "test", "-c", "-tags", "sabotage", "-o", bin, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	for rule, test := range map[sabotage.Rule]string{sabotage.ClearOrder: "TestRuleClearOrder", sabotage.Barrier: "TestRuleBarrier", sabotage.HintOrder: "TestRuleHintOrder"} {
		for _, off := range []sabotage.Rule{"", rule} {
			cmd := exec.Command(bin, "-test.run", "^"+test+"$")
			cmd.Env = append(os.Environ(), sabotage.Env+"="+string(off))
			out, err := cmd.CombinedOutput()
			if off == "" {
				require.NoError(t, err, "with every rule on: %s", out)
				continue
			}
			require.Error(t, err, "%s is switched off and %s passes", rule, test)
			require.Contains(t, string(out), "destination", "it must fail because memory differs: %s", out)
		}
	}
}
