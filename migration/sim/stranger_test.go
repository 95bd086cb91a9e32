package sim_test

import (
	"bytes"
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/migration/sim"
	"godwit/migration/wire"
)

// strangerRig is a rig whose Receive is under way. turned gives why connections
// were turned away; end waits for the migration.
func strangerRig(t *testing.T, change func(*migration.ReceiveOptions)) (r *rig, turned chan error, end func() (migration.Target, error)) {
	r = newRig(t, 16)
	turned = make(chan error, 1000)
	r.recv.OnTurnedAway = func(err error) {
		select {
		case turned <- err:
		default: // a crowd, which nobody counts
		}
	}
	if change != nil {
		change(&r.recv)
	}
	done := make(chan result, 1)
	go func() {
		var res result
		res.target, res.received, res.recvErr = migration.Receive(context.Background(), migration.AcceptFrom(r.ln), r.host.Build, r.recv)
		done <- res
	}()
	return r, turned, func() (migration.Target, error) { res := <-done; return res.target, res.recvErr }
}

// arrives migrates the rig's machine into the Receive that is under way.
func (r *rig) arrives(end func() (migration.Target, error)) {
	r.t.Helper()
	r.put(1, 1)
	var res result
	res.sent, res.sendErr = migration.Send(context.Background(), r.from, r.dial, r.send)
	require.NoError(r.t, res.sendErr)
	res.target, res.recvErr = end()
	r.moved(res)
}

// call connects to the rig's destination.
func (r *rig) call() net.Conn {
	conn, err := net.Dial("unix", r.ln.Addr().String())
	require.NoError(r.t, err)
	r.t.Cleanup(func() { conn.Close() })
	return conn
}

// helloBytes is a control connection's first words.
func helloBytes(t *testing.T, change func(*wire.Hello)) []byte {
	h := wire.Hello{MinVersion: 1, MaxVersion: 1, Role: wire.RoleControl, PageSize: pageSize, Streams: 1}
	change(&h)
	var b bytes.Buffer
	require.NoError(t, wire.NewWriter(&b).Open(wire.TypeHello, h.Append(nil)))
	return b.Bytes()
}

func nothing(*wire.Hello) {}

// say writes b, shuts the sending side, and waits for the end of the connection.
func say(conn net.Conn, b []byte) {
	_, err := conn.Write(b) // the other side may have hung up
	_ = conn.(*net.UnixConn).CloseWrite()
	var sink [4096]byte
	for err == nil {
		_, err = conn.Read(sink[:])
	}
	conn.Close()
}

// What comes in place of a HELLO is turned away for a reason, nothing is built, and
// whoever comes next is served by the same Receive.
func TestGarbageOnThePort(t *testing.T) {
	long := helloBytes(t, nothing)
	copy(long[12:], []byte{0xff, 0xff, 0xff, 0xff})
	for name, c := range map[string]struct {
		bytes []byte
		says  string
	}{
		"http":        {[]byte("GET / HTTP/1.1\r\n\r\n"), "not a godwit"},
		"nothing":     {nil, "closed"},
		"cut":         {helloBytes(t, nothing)[:20], "closed"},
		"wrong magic": {[]byte("GODWIT\n\n" + strings.Repeat("x", 100)), "not a godwit"},
		"noise":       {append([]byte(wire.Preamble), bytes.Repeat([]byte{0xa5}, 200)...), "checksum"},
		"huge length": {long, "checksum"},
		"data stream": {helloBytes(t, func(h *wire.Hello) { h.Role = wire.RoleData }), "does not exist"},
	} {
		t.Run(name, func(t *testing.T) {
			before := goroutines()
			r, turned, end := strangerRig(t, nil)
			say(r.call(), c.bytes)
			require.ErrorContains(t, <-turned, c.says)
			require.Nil(t, r.host.Target())
			r.arrives(end)
			noLeak(t, before)
		})
	}
}

// A source that cannot be served ends its own migration, with the reason at both
// ends.
func TestSourceThatCannotBeServed(t *testing.T) {
	for name, c := range map[string]struct {
		hello func(h *wire.Hello)
		says  string
	}{
		"newer version": {func(h *wire.Hello) { h.MinVersion, h.MaxVersion = 2, 9 }, "same release"},
		"page size":     {func(h *wire.Hello) { h.PageSize = 16384 }, "pages of 16384"},
		"feature":       {func(h *wire.Hello) { h.Features = 1 << 40 }, "features"},
		"codec":         {func(h *wire.Hello) { h.Codec = 200 }, "codec 200"},
	} {
		t.Run(name, func(t *testing.T) {
			before := goroutines()
			r, _, end := strangerRig(t, nil)
			say(r.call(), helloBytes(t, c.hello))
			target, err := end()
			require.ErrorIs(t, err, migration.ErrHandshake)
			require.ErrorContains(t, err, c.says)
			require.Nil(t, target)
			require.Nil(t, r.host.Target())
			noLeak(t, before)
			r.put(1, 1)
			r.moved(r.migrate(context.Background())) // the port still serves
		})
	}
}

// A stranger who connects and says nothing, or not all, is given up on, and holds
// nobody up.
func TestSilentStranger(t *testing.T) {
	r, turned, end := strangerRig(t, func(o *migration.ReceiveOptions) { o.Silence = 50 * time.Millisecond })
	r.call()
	_, err := r.call().Write(helloBytes(t, nothing)[:30])
	require.NoError(t, err)
	for range 2 {
		require.ErrorIs(t, <-turned, migration.ErrSilence)
	}
	_, err = r.call().Write(helloBytes(t, func(h *wire.Hello) { h.Codec = 200 }))
	require.NoError(t, err)
	_, err = end()
	require.ErrorContains(t, err, "codec 200", "the same Receive has heard this one")
}

// More strangers than there is room for, all silent, before the source comes and
// whenever it opens a connection: the source gets in, and so do its streams.
func TestCrowd(t *testing.T) {
	const crowd = 300
	before := goroutines()
	r, _, end := strangerRig(t, nil)
	for range crowd {
		r.call()
	}
	r.send.Streams = 16
	r.host.Hook(func(m string) {
		if m == "Build" {
			for range crowd {
				r.call()
			}
		}
	})
	r.wrap = func(c net.Conn, index int) net.Conn {
		for range 50 {
			r.call()
		}
		return c
	}
	r.arrives(end)
	noLeak(t, before)
}

// A data stream that was one too many tries again.
func TestCrowdedOutStreamComesAgain(t *testing.T) {
	r, _, end := strangerRig(t, nil)
	r.send.Streams = 4
	deaf, err := net.Listen("unix", t.TempDir()+"/s")
	require.NoError(t, err)
	defer deaf.Close()
	go func() {
		for {
			conn, err := deaf.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	var turned atomic.Int32
	r.put(1, 1)
	rep, err := migration.Send(context.Background(), r.from, func(ctx context.Context) (net.Conn, error) {
		if r.host.Target() != nil && turned.Add(1) <= 6 {
			return net.Dial("unix", deaf.Addr().String())
		}
		return r.dial(ctx)
	}, r.send)
	require.NoError(t, err)
	require.Equal(t, 4, rep.Streams)
	_, err = end()
	require.NoError(t, err)
	require.NoError(t, r.host.Target().Close())
}

// A second source hears at once that the destination is busy, and the first is not
// disturbed; once the first has failed, the next Receive serves another.
func TestSecondSourceHearsBusy(t *testing.T) {
	r, turned, end := strangerRig(t, nil)
	other := newRig(t, 16)
	var second error
	r.host.Hook(func(m string) {
		if m == "LoadState" { // the first is nearly there
			dial := func(context.Context) (net.Conn, error) { return net.Dial("unix", r.ln.Addr().String()) }
			_, second = migration.Send(context.Background(), other.from, dial, other.send)
		}
	})
	r.arrives(end)
	peer := new(migration.PeerError)
	require.ErrorAs(t, second, &peer)
	require.ErrorContains(t, second, "busy with another migration")
	require.NoError(t, other.src.Unharmed())
	require.ErrorContains(t, <-turned, "busy with another migration")
}

// Strangers in the middle of a session are turned away and do no harm.
func TestStrangersDuringASession(t *testing.T) {
	r := newRig(t, 600)
	for i := range uint64(600) {
		r.put(i, i)
	}
	answers := make(chan error, 8)
	strangers := 0
	r.host.Hook(func(m string) {
		if m != "Build" {
			return
		}
		for _, role := range []wire.Role{wire.RoleData, wire.RoleControl, wire.RoleFile} {
			strangers++
			conn, err := net.Dial("unix", r.ln.Addr().String())
			require.NoError(t, err)
			h := wire.Hello{MinVersion: 1, MaxVersion: 1, Role: role, PageSize: pageSize, Streams: 1, Nonce: [16]byte{1}}
			require.NoError(t, wire.NewWriter(conn).Open(wire.TypeHello, h.Append(nil)))
			go func() {
				defer conn.Close()
				in := wire.NewReader(conn)
				err := in.Preamble()
				if err == nil {
					var f wire.Frame
					if f, err = in.Next(); err == nil && f.Type == wire.TypeError {
						err = &migration.PeerError{Text: wire.DecodeText(f.Body)}
					}
				}
				answers <- err
			}()
		}
	})
	r.moved(r.migrate(context.Background()))
	for range strangers {
		require.Regexp(t, "busy with another migration|not a stream of the session|a session that does not exist", (<-answers).Error())
	}
}

// evil is a source that speaks the protocol up to a point.
type evil struct {
	ctl, data *wire.Writer
	conn      net.Conn      // of data
	passed    chan struct{} // the destination said PASSED
}

func runs(rs ...wire.Run) []byte {
	var b []byte
	for _, r := range rs {
		b = wire.AppendRun(b, r)
	}
	return b
}

func (e *evil) raw(bulk int, rs ...wire.Run) {
	b := e.data.Append(nil, wire.TypeRaw, 0, runs(rs...), uint32(bulk))
	e.put(append(b, make([]byte, bulk)...))
}

func (e *evil) put(b []byte) { _, _ = e.conn.Write(b) } // the other side may have hung up

func (e *evil) round(n uint32, pages uint64, last bool) {
	flags := uint8(0)
	if last {
		flags = wire.FlagLast
	}
	r := wire.Round{N: n, Pages: pages}
	_ = e.data.Frame(wire.TypeRound, flags, r.Append(nil)) // the other side may have hung up
}

// Everything a source may say at the wrong time, of the wrong size or about the
// wrong memory ends the migration in words, with the target thrown away.
func TestEvilSource(t *testing.T) {
	const pages = 64
	state := []byte("state")
	prepare := func(e *evil, p wire.Prepare) {
		e.round(1, 0, true)
		<-e.passed
		_ = e.ctl.Frame(wire.TypeState, wire.FlagLast, state)
		_ = e.ctl.Frame(wire.TypePrepare, 0, p.Append(nil))
	}
	for name, c := range map[string]struct {
		do   func(e *evil)
		says string
	}{
		"page in the hole":      {func(e *evil) { e.raw(pageSize, wire.Run{GPA: 40 * pageSize, Pages: 1}) }, "not guest RAM"},
		"page beyond RAM":       {func(e *evil) { e.raw(pageSize, wire.Run{GPA: 1 << 40, Pages: 1}) }, "not guest RAM"},
		"run across regions":    {func(e *evil) { e.raw(2*pageSize, wire.Run{GPA: 31 * pageSize, Pages: 2}) }, "not guest RAM"},
		"zero run beyond RAM":   {func(e *evil) { _ = e.data.Frame(wire.TypeZero, 0, runs(wire.Run{GPA: 0, Pages: 1 << 31})) }, "not guest RAM"},
		"overflowing run":       {func(e *evil) { _ = e.data.Frame(wire.TypeZero, 0, runs(wire.Run{GPA: ^uint64(4095), Pages: 2})) }, "run of 2 pages"},
		"empty run":             {func(e *evil) { _ = e.data.Frame(wire.TypeZero, 0, runs(wire.Run{GPA: 0})) }, "run of 0 pages"},
		"unaligned run":         {func(e *evil) { e.raw(pageSize, wire.Run{GPA: 1, Pages: 1}) }, "run of 1 pages"},
		"bulk and runs differ":  {func(e *evil) { e.raw(pageSize, wire.Run{GPA: 0, Pages: 2}) }, "carries 4096"},
		"page twice in a round": {func(e *evil) { e.raw(2*pageSize, wire.Run{GPA: 0, Pages: 1}, wire.Run{GPA: 0, Pages: 1}) }, "twice in one round"},
		"page zero and raw": {func(e *evil) {
			e.raw(pageSize, wire.Run{GPA: 0, Pages: 1})
			_ = e.data.Frame(wire.TypeZero, 0, runs(wire.Run{GPA: 0, Pages: 1}))
		}, "twice in one round"},
		"codec frame":            {func(e *evil) { e.put(append(e.data.Append(nil, wire.TypeCodec, 0, make([]byte, 16), 5), "12345"...)) }, "CODEC in a session without a codec"},
		"round out of turn":      {func(e *evil) { e.round(2, 0, false) }, "ROUND 2"},
		"round miscounted":       {func(e *evil) { e.round(1, 7, false) }, "ROUND 1 with 7 pages"},
		"pages after the last":   {func(e *evil) { e.round(1, 0, true); e.round(2, 0, true) }, "after the last round"},
		"GO on a data stream":    {func(e *evil) { _ = e.data.Frame(wire.TypeGo, 0, make([]byte, 16)) }, "GO on a data stream"},
		"GO before READY":        {func(e *evil) { _ = e.ctl.Frame(wire.TypeGo, 0, make([]byte, 16)) }, "GO"},
		"state too early":        {func(e *evil) { _ = e.ctl.Frame(wire.TypeState, wire.FlagLast, state) }, "not the last"},
		"skipped sequence":       {func(e *evil) { e.data.Append(nil, wire.TypeRound, 0, nil, 0); e.round(1, 0, false) }, "sequence"},
		"data stream closed":     {func(e *evil) { e.conn.Close() }, "closed by the other side"},
		"page totals differ":     {func(e *evil) { prepare(e, wire.Prepare{Zero: 3, StateLen: 5, StateCRC: wire.Checksum(state)}) }, "source sent 3 zero"},
		"state length differs":   {func(e *evil) { prepare(e, wire.Prepare{StateLen: 6, StateCRC: wire.Checksum(state)}) }, "state of 6 bytes"},
		"state checksum differs": {func(e *evil) { prepare(e, wire.Prepare{StateLen: 5}) }, "checksum"},
		"GO of another session": {func(e *evil) {
			prepare(e, wire.Prepare{StateLen: 5, StateCRC: wire.Checksum(state)})
			_ = e.ctl.Frame(wire.TypeGo, 0, make([]byte, 16))
		}, "GO of another session"},
	} {
		t.Run(name, func(t *testing.T) {
			w := sim.NewWorld()
			// A fifth of it is waited for where a stream breaks and the other connection says nothing.
			r := &rig{t: t, world: w, host: sim.NewHost(w), recv: migration.ReceiveOptions{Silence: 10 * time.Second}}
			ln, err := net.Listen("unix", t.TempDir()+"/s")
			require.NoError(t, err)
			defer ln.Close()
			r.ln = ln
			before := goroutines()
			done := make(chan error, 1)
			go func() {
				_, _, err := migration.Receive(context.Background(), migration.AcceptFrom(ln), r.host.Build, r.recv)
				done <- err
			}()
			c.do(openByHand(t, r, pages, 0))
			require.ErrorContains(t, <-done, c.says)
			require.True(t, r.host.Target().Aborted())
			require.Empty(t, w.Running())
			require.NoError(t, w.Check())
			noLeak(t, before)
		})
	}
}

// coded sends a CODEC frame of entries that all carry data.
func (e *evil) coded(data string, cs ...wire.Coded) {
	var body, bulk []byte
	for _, c := range cs {
		c.Len = uint16(len(data))
		body, bulk = wire.AppendCoded(body, c), append(bulk, data...)
	}
	e.put(append(e.data.Append(nil, wire.TypeCodec, 0, body, uint32(len(bulk))), bulk...))
}

// The same for what a codec's frames may say.
func TestEvilEncodings(t *testing.T) {
	const xbrle, auto = 2, 4
	blank := wire.Checksum(make([]byte, pageSize))
	for name, c := range map[string]struct {
		do   func(e *evil)
		says string
	}{
		"auto, not a choice":    {func(e *evil) { e.coded("x", wire.Coded{Codec: 3}) }, "by codec 3, the session has 4"},
		"auto, the chooser":     {func(e *evil) { e.coded("x", wire.Coded{Codec: auto}) }, "by codec 4, the session has 4"},
		"auto, nobody":          {func(e *evil) { e.coded("x", wire.Coded{}) }, "by codec 0"},
		"auto, another base":    {func(e *evil) { e.coded("", wire.Coded{Codec: xbrle, Base: 77}) }, "the delta builds on"},
		"auto, a delta of junk": {func(e *evil) { e.coded("\xff\xff\xff", wire.Coded{Codec: xbrle, Base: blank}) }, "malformed"},
		"auto, lz4 with a base": {func(e *evil) { e.coded("x", wire.Coded{Codec: 1, Base: blank}) }, "builds on none"},
		"auto, lz4 of junk":     {func(e *evil) { e.coded("\x0f\x01\x00", wire.Coded{Codec: 1}) }, "bad lz4"},
		"auto, twice, two codecs": {func(e *evil) {
			e.coded("", wire.Coded{Codec: xbrle, Base: blank})
			e.coded("x", wire.Coded{Codec: 1})
		}, "twice in one round"},
		"page in the hole": {func(e *evil) { e.coded("", wire.Coded{GPA: 40 * pageSize, Codec: xbrle, Base: blank}) }, "not guest RAM"},
		"another codec":    {func(e *evil) { e.coded("x", wire.Coded{Codec: 1}) }, "by codec 1, the session has 2"},
		"twice": {func(e *evil) {
			e.coded("", wire.Coded{Codec: xbrle, Base: blank}, wire.Coded{Codec: xbrle, Base: blank})
		}, "twice in one round"},
		"raw and encoded": {func(e *evil) {
			e.raw(pageSize, wire.Run{Pages: 1})
			e.coded("", wire.Coded{Codec: xbrle, Base: blank})
		}, "twice in one round"},
		"another base":        {func(e *evil) { e.coded("", wire.Coded{Codec: xbrle, Base: 77}) }, "the delta builds on"},
		"no base":             {func(e *evil) { e.coded("", wire.Coded{Codec: xbrle}) }, "without the CRC"},
		"an encoding of junk": {func(e *evil) { e.coded("\xff\xff\xff", wire.Coded{Codec: xbrle, Base: blank}) }, "malformed"},
		"pages miscounted":    {func(e *evil) { e.coded("", wire.Coded{Codec: xbrle, Base: blank}); e.round(1, 0, false) }, "ROUND 1 with 0 pages, received were 1"},
	} {
		t.Run(name, func(t *testing.T) {
			w := sim.NewWorld()
			r := &rig{t: t, world: w, host: sim.NewHost(w)}
			ln, err := net.Listen("unix", t.TempDir()+"/s")
			require.NoError(t, err)
			defer ln.Close()
			r.ln = ln
			done := make(chan error, 1)
			go func() {
				_, _, err := migration.Receive(context.Background(), migration.AcceptFrom(ln), r.host.Build, migration.ReceiveOptions{Silence: time.Minute})
				done <- err
			}()
			codec := uint8(xbrle)
			if strings.HasPrefix(name, "auto") {
				codec = auto
			}
			c.do(openByHand(t, r, 64, codec))
			require.ErrorContains(t, <-done, c.says)
			require.True(t, r.host.Target().Aborted())
			require.NoError(t, w.Check())
		})
	}
}

// openByHand opens a session up to the announced extents.
func openByHand(t *testing.T, r *rig, pages uint64, codec uint8) *evil {
	open := func(h wire.Hello) (net.Conn, *wire.Writer, *wire.Reader, wire.Hello) {
		conn, err := net.Dial("unix", r.ln.Addr().String())
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		out, in := wire.NewWriter(conn), wire.NewReader(conn)
		require.NoError(t, out.Open(wire.TypeHello, h.Append(nil)))
		require.NoError(t, in.Preamble())
		f, err := in.Next()
		require.NoError(t, err)
		require.Equal(t, wire.TypeHello, f.Type)
		var answer wire.Hello
		require.NoError(t, answer.Decode(f.Body))
		return conn, out, in, answer
	}
	h := wire.Hello{MinVersion: 1, MaxVersion: 1, Role: wire.RoleControl, PageSize: pageSize, Streams: 1, Codec: codec}
	conn, ctl, in, answer := open(h)
	require.NoError(t, ctl.Frame(wire.TypeConfig, wire.FlagLast, []byte(`[{"GPA":0,"Len":131072},{"GPA":1048576,"Len":131072}]`)))
	layout := []wire.Extent{{GPA: 0, Len: pages / 2 * pageSize}, {GPA: 1 << 20, Len: pages / 2 * pageSize}}
	require.NoError(t, ctl.Frame(wire.TypeLayout, 0, wire.AppendExtents(nil, layout)))
	f, err := in.Next()
	require.NoError(t, err)
	require.Equal(t, wire.TypeBuilt, f.Type)
	h.Role, h.Nonce = wire.RoleData, answer.Nonce
	dconn, data, din, _ := open(h)
	e := &evil{ctl: ctl, data: data, conn: dconn, passed: make(chan struct{}, 1)}
	for _, c := range []struct {
		conn net.Conn
		in   *wire.Reader
	}{{conn, in}, {dconn, din}} { // hear everything, then hang up, as a source does
		go func() {
			for {
				f, err := c.in.Next()
				if err != nil || f.Type == wire.TypeError {
					c.conn.Close()
					return
				}
				if f.Type == wire.TypePassed {
					e.passed <- struct{}{}
				}
			}
		}()
	}
	require.NoError(t, ctl.Frame(wire.TypeExtents, wire.FlagLast, wire.AppendExtents(nil, layout)))
	return e
}

// A destination that answers nonsense leaves the source as it was.
func TestEvilDestination(t *testing.T) {
	for name, answer := range map[string][]byte{
		"http":   []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"noise":  append([]byte(wire.Preamble), bytes.Repeat([]byte{7}, 100)...),
		"hangup": nil,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 16)
			go func() {
				conn, err := r.ln.Accept()
				if err == nil {
					_, _ = conn.Write(answer) // the source may have hung up
					conn.Close()
				}
			}()
			_, err := migration.Send(context.Background(), r.src, r.dial, r.send)
			require.ErrorIs(t, err, migration.ErrHandshake)
			require.NoError(t, r.src.Unharmed())
			require.NoError(t, r.world.Check())
		})
	}
}

// A destination with another memory layout, or that demands what the source
// does not offer, says so.
func TestRefusals(t *testing.T) {
	r := newRig(t, 16)
	r.recv.Verify = true
	res := r.migrate(context.Background())
	require.ErrorContains(t, res.sendErr, "--verify")
	require.ErrorContains(t, res.recvErr, "--verify")
	require.NoError(t, r.src.Unharmed())

	_, err := migration.Send(context.Background(), r.src, func(context.Context) (net.Conn, error) {
		return net.Dial("unix", "/nonexistent/socket")
	}, r.send)
	require.ErrorIs(t, err, migration.ErrConnect)
	require.NoError(t, r.src.Unharmed())
}
