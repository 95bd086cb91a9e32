package metronome_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/boot/metronome"
	"godwit/tap/taptest"
	"godwit/vmm"
)

// echoWindow is how many frames the peer has under way. A frame that has not come
// back after echoPatience is lost, which a network may do.
const (
	echoWindow   = 16
	echoPatience = 50 * time.Millisecond
)

// echoPeer sends numbered frames to a guest and verifies what comes back.
type echoPeer struct {
	t     *testing.T
	fd    int // a packet socket
	guest [6]byte
	sent  atomic.Uint64
	back  atomic.Uint64
	gap   atomic.Int64 // the longest time between two echoes since it was set to 0, ns
	stop  chan struct{}
	done  sync.WaitGroup
}

func newEchoPeer(t *testing.T, fd int, guest [6]byte) *echoPeer {
	p := &echoPeer{t: t, fd: fd, guest: guest, stop: make(chan struct{})}
	wait := unix.NsecToTimeval(int64(echoPatience))
	require.NoError(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait))
	p.done.Go(p.run)
	return p
}

func (p *echoPeer) run() {
	var frame []byte
	buf := make([]byte, 2048)
	last := time.Now()
	for under := 0; ; {
		select {
		case <-p.stop:
			return
		default:
		}
		for ; under < echoWindow; under++ {
			n := p.sent.Add(1) - 1
			frame = metronome.NetFrame(frame[:0], p.guest, [6]byte{2, 0, 0, 0, 0, 0xaa}, metronome.Defaults().Seed, n, 64+int(n*37%1400))
			if _, err := unix.Write(p.fd, frame); err != nil && !errors.Is(err, unix.ENOBUFS) {
				p.t.Errorf("send frame %d: %v", n, err)
				return
			}
		}
		n, _, err := unix.Recvfrom(p.fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			under = 0 // lost
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			p.t.Errorf("receive an echo: %v", err)
			return
		}
		if [6]byte(buf[6:12]) != p.guest {
			continue // our own, on its way out
		}
		if _, err := metronome.ParseNetFrame(buf[:n], metronome.Defaults().Seed); err != nil {
			p.t.Errorf("an echo of %d bytes: %v", n, err)
		}
		now := time.Now()
		p.gap.Store(max(p.gap.Load(), int64(now.Sub(last)))) // a lost reset spoils a figure, no more
		last = now
		p.back.Add(1)
		under = max(under-1, 0)
	}
}

// echoes waits for n more.
func (p *echoPeer) echoes(n uint64) {
	p.t.Helper()
	ctx := deadline(p.t)
	for goal := p.back.Load() + n; p.back.Load() < goal; time.Sleep(time.Millisecond) {
		require.NoError(p.t, ctx.Err(), "%d frames sent, %d came back", p.sent.Load(), p.back.Load())
	}
}

// A guest that sends back what it is sent moves, with its tap, between a bridge's
// ports: it goes on with frames of all lengths, and neither it nor we see a wrong
// one. How long nothing came back is a figure: a frame that is lost costs
// echoPatience.
func TestNetworkLoadMoves(t *testing.T) {
	t.Parallel()
	enter := taptest.Namespace(t)
	taptest.Bridge(t, "br")
	taptest.Veth(t, "br", "port", "peer")
	mac := [6]byte{2, 0, 0, 0, 0, 7}
	cfg := guest(1, 128, "fill=8 ws=4 rate=2000 beat=50 io=net,echo,depth=32")
	cfg.Networks = []vmm.NetworkInterface{{ID: "net0", HostDevName: "vm0", Bridge: "br", GuestMAC: "02:00:00:00:00:07"}}
	c := bootHere(t, cfg)
	p := newEchoPeer(t, taptest.PacketsOf(t, "peer", 0x88b5), mac)
	defer p.done.Wait()
	defer close(p.stop)
	p.echoes(500)
	moves, kept := 2, 0
	if soak() {
		moves = 20
	}
	for i := range moves {
		tap := []string{"vm1", "vm0"}[i%2]
		p.gap.Store(0)
		next, rep, err := c.move(route{enter: enter, networks: map[string]vmm.HostNetwork{"net0": {Tap: tap, Bridge: "br"}}})
		require.NoError(t, err)
		c = next
		p.echoes(500)
		gap := float64(p.gap.Load()) / 1e6
		t.Logf("move %d: downtime %.1f ms, longest time without an echo %.1f ms", i+1, rep.DowntimeMS, gap)
		if gap <= rep.DowntimeMS+100 {
			kept++
		}
	}
	t.Logf("%d of %d moves: no longer without an echo than the downtime and 100 ms", kept, moves)
	l, err := c.out.load(deadline(t), "net", func(l metronome.IOLine) bool { return l.Received > 1500 })
	require.NoError(t, err)
	require.Zero(t, c.swept().Bad, "%+v", c.out.badPages())
	t.Logf("%d frames sent, %d came back; the guest lost %d, had %d twice or late, and %d of others", p.sent.Load(), p.back.Load(), l.Lost, l.Again, l.Other)
}
