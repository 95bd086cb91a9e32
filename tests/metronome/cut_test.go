package metronome_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration/wire"
)

// fault is what a proxy does to a migration: at one place of one connection.
type fault struct {
	silence bool // nothing passes any more on any connection; otherwise all are closed
	back    bool // the place is in what the destination says, not the source
	// On the control connection the place is in the first frame of this type,
	// after so many bytes of it: all of them where it has less.
	frame wire.Type
	// On a data stream it is after so many bytes of it, frame being 0.
	stream int // from 1, in the order they come
	bytes  int64
}

func (f fault) String() string {
	what := map[bool]string{false: "cut", true: "silence"}[f.silence]
	whose := map[bool]string{false: "source's", true: "destination's"}[f.back]
	if f.frame == 0 {
		return fmt.Sprintf("%s after %d bytes of the %s half of stream %d", what, f.bytes, whose, f.stream)
	}
	return fmt.Sprintf("%s after %d bytes of the %s %s", what, f.bytes, whose, f.frame)
}

// whole is more than any control frame.
const whole = 1 << 20

// proxy stands between source and destination and makes one fault, or none.
type proxy struct {
	l     net.Listener
	to    string
	fault fault
	hit   chan struct{} // closed when the fault happens
	once  sync.Once
	ctx   context.Context
	end   context.CancelFunc
	wg    sync.WaitGroup
}

func newProxy(t *testing.T, to string, f fault) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, end := context.WithCancel(context.Background())
	p := &proxy{l: l, to: to, fault: f, hit: make(chan struct{}), ctx: ctx, end: end}
	p.wg.Go(p.accept)
	return p
}

func (p *proxy) close() {
	p.end()
	_ = p.l.Close() // may be closed by the fault
	p.wg.Wait()
}

func (p *proxy) accept() {
	for n := 0; ; n++ {
		in, err := p.l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.to)
		if err != nil {
			_ = in.Close()
			continue
		}
		p.wg.Go(func() { p.pump(n, false, in, out) })
		p.wg.Go(func() { p.pump(n, true, out, in) })
		p.wg.Go(func() {
			<-p.ctx.Done()
			_, _ = in.Close(), out.Close()
		})
	}
}

// pump passes one direction of a connection on until it ends or the fault comes.
func (p *proxy) pump(conn int, back bool, from, to net.Conn) {
	var err error
	switch f := p.fault; {
	case conn == 0 && f.frame != 0 && f.back == back:
		err = p.frames(from, to)
	case conn > 0 && f.frame == 0 && f.stream == conn && f.back == back:
		if err = p.pass(from, to, f.bytes); err == nil {
			err = p.happen()
		}
	default:
		err = p.pass(from, to, math.MaxInt64)
	}
	if err != nil && !p.silent() {
		_ = to.(*net.TCPConn).CloseWrite() // may be gone altogether
	}
}

// frames passes frames on up to the fault's.
func (p *proxy) frames(from, to net.Conn) error {
	err := p.pass(from, to, int64(len(wire.Preamble)))
	var head [wire.HeaderSize]byte
	for err == nil {
		if _, err = io.ReadFull(from, head[:]); err != nil {
			break
		}
		frame := append([]byte(nil), head[:]...)
		frame = append(frame, make([]byte, binary.LittleEndian.Uint32(head[4:]))...)
		if _, err = io.ReadFull(from, frame[wire.HeaderSize:]); err != nil {
			break
		}
		here := wire.Type(head[0]) == p.fault.frame
		if here {
			frame = frame[:min(p.fault.bytes, int64(len(frame)))]
		}
		if err = p.pass(bytes.NewReader(frame), to, int64(len(frame))); err == nil && here {
			err = p.happen()
		}
	}
	return err
}

// pass passes n bytes on.
func (p *proxy) pass(from io.Reader, to io.Writer, n int64) error {
	buf := make([]byte, 64<<10)
	for n > 0 {
		k, err := from.Read(buf[:min(n, int64(len(buf)))])
		if p.silent() {
			return errFault // what arrives now arrives nowhere
		}
		n -= int64(k)
		if _, werr := to.Write(buf[:k]); werr != nil {
			return werr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var errFault = errors.New("the fault has happened")

// happen makes the fault.
func (p *proxy) happen() error {
	p.once.Do(func() { close(p.hit) })
	if !p.fault.silence {
		_ = p.l.Close() // later streams are refused
		p.end()
	}
	return errFault
}

func (p *proxy) silent() bool {
	select {
	case <-p.hit:
		return p.fault.silence
	default:
		return false
	}
}

// Connections break or fall silent before, in and after every frame of the
// control connection, and anywhere in the data streams.
func TestConnectionsCut(t *testing.T) {
	t.Parallel()
	c := couple{s: newScene(t), cfg: victim}
	try := func(f fault, silence time.Duration) (end, bool) {
		from, to := c.ready()
		var p *proxy
		a := c.s.attempt(from, to, SendArgs{Streams: 2, Rounds: 3, Verify: true, Silence: silence}, ReceiveArgs{Lease: aLease, Silence: silence},
			func(addr string) string {
				p = newProxy(t, addr, f)
				return p.l.Addr().String()
			})
		defer p.close()
		holder, got := a.settle()
		require.NotNil(t, holder)
		if holder == a.to {
			c.here, c.spare = a.to, a.from
		}
		select {
		case <-p.hit:
			return got, true
		default:
			return got, false
		}
	}
	got, _ := try(fault{}, 0)
	require.Equal(t, moved, got)
	ends := map[end]int{}
	for _, r := range cuts() {
		silence := time.Duration(0)
		if r.fault.silence {
			silence = 500 * time.Millisecond
		}
		got, hit := try(r.fault, silence)
		if silence > 0 && got == runsOn {
			ends[got]++ // also where a busy machine was silent too long by itself
			continue
		}
		require.True(t, hit, "%v did not happen", r.fault)
		require.Contains(t, r.want, got, "%v", r.fault)
		ends[got]++
	}
	t.Log(ends)
	got, _ = try(fault{}, 0)
	require.Equal(t, moved, got)
}

// cut is a fault and what may come of it.
type cut struct {
	fault
	want []end
}

// cuts are all faults of the long form. In the short form most frames have
// one of the places before, in and after, in turns, and every third fault is a
// silence, which takes longest.
func cuts() (list []cut) {
	add := func(f fault, want ...end) {
		f.silence = len(list)%3 == 2
		list = append(list, cut{f, want})
		if soak() {
			f.silence = !f.silence
			list = append(list, cut{f, want})
		}
	}
	turn := 0
	frame := func(back bool, typ wire.Type, cutShort, passed []end) {
		at := []int64{0, 1, wire.HeaderSize - 1, wire.HeaderSize, 30, whole}
		if !soak() {
			at = []int64{0, 30, whole}
			if slices.Equal(cutShort, passed) && typ != wire.TypeRunning {
				at = at[turn%3:][:1]
				turn++
			}
		}
		for _, n := range at {
			if n == whole {
				add(fault{back: back, frame: typ, bytes: n}, passed...)
			} else {
				add(fault{back: back, frame: typ, bytes: n}, cutShort...)
			}
		}
	}
	early := []end{runsOn}
	for _, typ := range []wire.Type{wire.TypeHello, wire.TypeConfig, wire.TypeLayout, wire.TypeExtents, wire.TypeState, wire.TypeVerify, wire.TypePrepare} {
		frame(false, typ, early, early)
	}
	for _, typ := range []wire.Type{wire.TypeHello, wire.TypeBuilt, wire.TypePassed, wire.TypeHash} {
		frame(true, typ, early, early)
	}
	// READY that came may be answered by GO, which may be lost or just make it. GO
	// that left and did not come leaves nobody to know; RUNNING that was lost
	// leaves the destination running.
	frame(true, wire.TypeReady, early, []end{forced, runsOn, moved})
	frame(false, wire.TypeGo, []end{forced}, []end{moved})
	frame(true, wire.TypeRunning, []end{moved}, []end{moved})
	for stream := 1; stream <= 2; stream++ {
		for n := int64(1); n <= 1<<20; n *= int64(shortOr(1000, 32)) {
			add(fault{stream: stream, bytes: n}, early...)
		}
		add(fault{stream: stream, back: true, bytes: 30}, early...)
	}
	return list
}
