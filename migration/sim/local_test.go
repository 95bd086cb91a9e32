package sim_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/migration"
	"godwit/migration/lz4codec"
	"godwit/migration/policy"
	"godwit/migration/sim"
	"godwit/migration/wire"
)

// localRig is a rig whose source's memory is a file that changes hands.
func localRig(t testing.TB, pages uint64) *rig {
	w := sim.NewWorld()
	src, err := sim.NewLocalMachine(w, layout(pages)...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, src.Close()) })
	r := rigOf(t, w, src.Machine, src, pages)
	r.send.Local = true
	for i := range pages {
		if i%3 > 0 {
			r.put(i, i)
		}
	}
	return r
}

func TestLocalMoves(t *testing.T) {
	for _, verify := range []bool{false, true} {
		r := localRig(t, 300)
		r.send.Verify = verify
		var phases []migration.Phase
		r.recv.OnProgress = func(p migration.Progress) { phases = append(phases, p.Phase) }
		res := r.migrate(context.Background())
		r.moved(res)
		require.Equal(t, []string{"MemoryFile", "Config", "Pause", "SaveState", "Release"}, slices.DeleteFunc(r.src.Calls(), func(c string) bool { return c == "Touched" }))
		require.NotContains(t, phases, migration.PhaseCopy)
		for name, rep := range map[string]*migration.Report{"source": res.sent, "destination": res.received} {
			require.True(t, rep.Local, name)
			require.Equal(t, migration.Completed, rep.Status, name)
			require.Equal(t, migration.PageCounts{Skipped: 300}, rep.Pages, name)
			require.Zero(t, rep.WireBytes, name)
			require.Zero(t, rep.Streams, name)
			require.Empty(t, rep.Rounds, name)
		}
		if verify {
			require.Equal(t, res.sent.Verify.Source, res.sent.Verify.Destination)
		}
		sum := res.sent.DowntimePhases
		require.InDelta(t, res.sent.DowntimeMS, sum.PauseMS+sum.PagesMS+sum.StateMS+sum.ResumeMS, 1e-6)
		require.Positive(t, res.sent.SetupMS)
	}
}

// A destination that does not use the memory that it got is found out.
func TestLocalVerifyFindsOtherMemory(t *testing.T) {
	r := localRig(t, 300)
	r.send.Verify = true
	build := func(ctx context.Context, o migration.Offer) (migration.Target, error) {
		o.Memory.Close()
		return r.host.Build(ctx, migration.Offer{Config: o.Config}) // other memory of the same shape
	}
	done := make(chan error, 1)
	go func() {
		_, _, err := migration.Receive(context.Background(), migration.AcceptFrom(r.ln), build, r.recv)
		done <- err
	}()
	_, err := migration.Send(context.Background(), r.from, r.dial, r.send)
	require.ErrorIs(t, err, migration.ErrVerify)
	require.Error(t, <-done)
	require.NoError(t, r.src.Unharmed())
}

// noGC keeps the collector from closing files that nobody closed.
func noGC(t *testing.T) {
	was := debug.SetGCPercent(-1)
	t.Cleanup(func() { debug.SetGCPercent(was) })
}

// localFaultRig is faultRig for a local hand-over.
func localFaultRig(t *testing.T, f *fault) (*rig, *network) {
	r := localRig(t, 120)
	nw := &network{fault: f}
	r.wrap = nw.wrap
	r.send.Verify = true
	r.send.Silence, r.recv.Silence = 150*time.Millisecond, 150*time.Millisecond
	r.recv.Lease = time.Second
	return r, nw
}

// As TestEveryFrame; what is more, a source that runs on has its memory as it
// was (strike compares nothing there, the mapping makes sure).
func TestEveryFrameOfALocalHandOver(t *testing.T) {
	everyFrame(t, localFaultRig, []wire.Type{wire.TypeHello, wire.TypeConfig, wire.TypeLayout, wire.TypeMemfd, wire.TypeBuilt, wire.TypeState,
		wire.TypeVerify, wire.TypeHash, wire.TypePrepare, wire.TypeReady, wire.TypeGo, wire.TypeRunning})
}

// Each method of both ends may fail, and the source runs on with its memory
// untouched.
func TestEveryMethodOfALocalHandOverMayFail(t *testing.T) {
	noGC(t)
	boom := errors.New("boom")
	for _, m := range []string{"MemoryFile", "Config", "Pause", "SaveState", "Release", "Build", "LoadState", "Acquire", "Run"} {
		t.Run(m, func(t *testing.T) {
			r := localRig(t, 60)
			var before [][]byte
			for i := range r.size {
				before = append(before, bytes.Clone(r.src.Page(r.gpa(i))))
			}
			running, fds := goroutines(), openFiles(t)
			r.src.Fail(m, boom)
			r.host.Fail(m, boom)
			ctx, stop := context.WithCancel(context.Background())
			defer stop()
			done := make(chan error, 1)
			go func() {
				_, _, err := migration.Receive(ctx, migration.AcceptFrom(r.ln), r.host.Build, r.recv)
				done <- err
			}()
			_, err := migration.Send(context.Background(), r.from, r.dial, r.send)
			require.ErrorIs(t, err, map[bool]error{true: boom, false: err}[m == "MemoryFile"])
			require.ErrorContains(t, err, "boom")
			if m == "MemoryFile" {
				require.ErrorIs(t, err, migration.ErrLocal)
				stop() // nobody has called
			}
			require.Error(t, <-done)
			for i, p := range before {
				require.True(t, bytes.Equal(p, r.src.Page(r.gpa(uint64(i)))), "page %d", i)
			}
			noLeak(t, running)
			require.Eventually(t, func() bool { return openFiles(t) <= fds }, time.Minute, time.Millisecond, "file descriptors leak")
			require.NoError(t, r.world.Check())
			if m == "Run" {
				require.ErrorIs(t, err, migration.ErrNotTaken)
				require.Empty(t, r.world.Running())
				return
			}
			require.NoError(t, r.src.Unharmed())
			r.src.Fail(m, nil)
			r.host.Fail(m, nil)
			r.moved(r.migrate(context.Background())) // a second attempt succeeds
		})
	}
}

// What has no meaning without copying is refused before anything begins, and so
// is a machine whose memory cannot change hands.
func TestLocalOptions(t *testing.T) {
	r := localRig(t, 16)
	codec := lz4codec.New(1)
	for says, change := range map[string]func(*migration.SendOptions){
		"3 streams":       func(o *migration.SendOptions) { o.Streams = 3 },
		"bandwidth limit": func(o *migration.SendOptions) { o.Bandwidth = 1 << 30 },
		"stop-and-copy":   func(o *migration.SendOptions) { o.Mode = migration.StopAndCopy },
		"page codec":      func(o *migration.SendOptions) { o.Policies.Codec = codec },
		"order of pages":  func(o *migration.SendOptions) { o.Policies.Order = &policy.HotLast{} },
		"a throttle":      func(o *migration.SendOptions) { o.Policies.Throttle = policy.Cap{Percent: 50} },
		"a stop rule":     func(o *migration.SendOptions) { o.Policies.Stop = policy.LastSync{MaxRounds: 3} },
		"downtime limit":  func(o *migration.SendOptions) { o.DowntimeLimit = time.Millisecond },
	} {
		o := migration.SendOptions{Local: true}
		change(&o)
		_, err := migration.NewSession(r.from, r.dial, o)
		require.ErrorIs(t, err, migration.ErrOptions, says)
		require.ErrorIs(t, err, migration.ErrLocal, says)
		require.ErrorContains(t, err, says)
	}
	_, err := migration.NewSession(newRig(t, 16).from, nil, migration.SendOptions{Local: true})
	require.ErrorContains(t, err, "no other process can have")
	_, err = migration.Save(context.Background(), r.from, new(bytes.Buffer), migration.SendOptions{Local: true})
	require.ErrorIs(t, err, migration.ErrLocal)
	require.Empty(t, r.src.Calls())
}

// Over TCP neither end begins.
func TestLocalNeedsAUnixSocket(t *testing.T) {
	r := localRig(t, 16)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	dial := func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", ln.Addr().String())
	}
	_, err = migration.Send(context.Background(), r.from, dial, r.send)
	require.ErrorIs(t, err, migration.ErrLocal)
	require.ErrorContains(t, err, "over tcp: it needs a unix socket")
	require.NoError(t, r.src.Unharmed())

	// A destination takes no such source's word for it. The connection of the source
	// above is first in line: it was hung up, and is passed over.
	done := make(chan error, 1)
	go func() {
		_, _, err := migration.Receive(context.Background(), migration.AcceptFrom(ln), r.host.Build, r.recv)
		done <- err
	}()
	conn, err := dial(context.Background())
	require.NoError(t, err)
	defer conn.Close()
	h := wire.Hello{MinVersion: 1, MaxVersion: 1, Role: wire.RoleControl, PageSize: pageSize, Streams: 1, Features: wire.FeatureLocal}
	require.NoError(t, wire.NewWriter(conn).Open(wire.TypeHello, h.Append(nil)))
	in := wire.NewReader(conn)
	require.NoError(t, in.Preamble())
	f, err := in.Next()
	require.NoError(t, err)
	require.Equal(t, wire.TypeError, f.Type)
	require.Contains(t, wire.DecodeText(f.Body), "unix socket")
	require.NoError(t, conn.Close())
	require.ErrorContains(t, <-done, "unix socket")
	require.Nil(t, r.host.Target())
}

// stranger speaks the protocol by hand, with files where it likes.
type stranger struct {
	t    *testing.T
	conn *net.UnixConn
	in   *wire.Reader
	out  *wire.Writer
	text bytes.Buffer // what out writes, until it is sent
}

// send sends what was written, and files with its first byte.
func (s *stranger) send(files ...*os.File) {
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, _ = s.conn.WriteMsgUnix(s.text.Bytes(), oob, nil) // the other side may have hung up
	s.text.Reset()
}

func (s *stranger) hello(features uint64, files ...*os.File) {
	h := wire.Hello{MinVersion: 1, MaxVersion: 1, Role: wire.RoleControl, PageSize: pageSize, Streams: 1, Features: features}
	require.NoError(s.t, s.out.Open(wire.TypeHello, h.Append(nil)))
	s.send(files...)
}

// greet says HELLO and hears the answer.
func (s *stranger) greet(features uint64) {
	s.hello(features)
	require.NoError(s.t, s.in.Preamble())
	f, err := s.in.Next()
	require.NoError(s.t, err)
	require.Equal(s.t, wire.TypeHello, f.Type)
}

// describe writes CONFIG and LAYOUT of 16 pages.
func (s *stranger) describe() {
	require.NoError(s.t, s.out.Frame(wire.TypeConfig, wire.FlagLast, []byte(`[{"GPA":0,"Len":65536}]`)))
	require.NoError(s.t, s.out.Frame(wire.TypeLayout, 0, wire.AppendExtents(nil, []wire.Extent{{GPA: 0, Len: 65536}})))
	s.send()
}

func (s *stranger) memfd(files ...*os.File) {
	require.NoError(s.t, s.out.Frame(wire.TypeMemfd, 0, nil))
	s.send(files...)
}

func (s *stranger) hangUp() { require.NoError(s.t, s.conn.CloseWrite()) }

// A stranger who sends files where none belong, none where one belongs, or
// another file than it should, is told so, and no descriptor is left behind.
func TestStrangersWithFiles(t *testing.T) {
	noGC(t)
	good := func(size int64) *os.File {
		fd, err := unix.MemfdCreate("good", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		require.NoError(t, err)
		f := os.NewFile(uintptr(fd), "good")
		t.Cleanup(func() { f.Close() })
		require.NoError(t, f.Truncate(size))
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
		require.NoError(t, err)
		return f
	}
	mem, small := good(65536), good(4096)
	null, err := os.OpenFile("/dev/zero", os.O_RDWR, 0)
	require.NoError(t, err)
	defer null.Close()
	many := slices.Repeat([]*os.File{null}, 200)
	for name, c := range map[string]struct {
		do   func(s *stranger)
		says string
	}{
		"with HELLO":                {func(s *stranger) { s.hello(wire.FeatureLocal, mem) }, "a file where none may come"},
		"with HELLO, many":          {func(s *stranger) { s.hello(0, many...) }, "several files at once"},
		"in an ordinary session":    {func(s *stranger) { s.greet(0); s.describe(); s.memfd(mem) }, "a file where none may come"},
		"MEMFD in an ordinary one":  {func(s *stranger) { s.greet(0); s.memfd() }, "MEMFD after 0 bytes of CONFIG"},
		"none":                      {func(s *stranger) { s.greet(wire.FeatureLocal); s.describe(); s.memfd() }, "MEMFD without a file"},
		"two at once":               {func(s *stranger) { s.greet(wire.FeatureLocal); s.describe(); s.memfd(mem, mem) }, "several files at once"},
		"two hundred":               {func(s *stranger) { s.greet(wire.FeatureLocal); s.describe(); s.memfd(many...) }, "several files at once"},
		"one after the other":       {func(s *stranger) { s.greet(wire.FeatureLocal); s.describe(); s.memfd(mem); s.memfd(mem) }, "a file where none may come"},
		"one, and then it hangs up": {func(s *stranger) { s.greet(wire.FeatureLocal); s.describe(); s.memfd(mem); s.hangUp() }, "closed by the other side"},
		"one, and never says MEMFD": {func(s *stranger) { s.greet(wire.FeatureLocal); s.text.WriteByte(2); s.send(mem); s.hangUp() }, "closed by the other side"},
		"a device":                  {func(s *stranger) { s.greet(wire.FeatureLocal); s.describe(); s.memfd(null) }, "seals"},
		"a small one":               {func(s *stranger) { s.greet(wire.FeatureLocal); s.describe(); s.memfd(small) }, "file of 4096 bytes"},
		"one, and then pages": {func(s *stranger) {
			s.greet(wire.FeatureLocal)
			s.describe()
			s.memfd(mem)
			require.NoError(t, s.out.Frame(wire.TypeExtents, wire.FlagLast, nil))
			s.send()
		}, "EXTENTS after 0 bytes of STATE"},
	} {
		t.Run(name, func(t *testing.T) {
			w := sim.NewWorld()
			host := sim.NewHost(w)
			ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
			require.NoError(t, err)
			defer ln.Close()
			running, fds := goroutines(), openFiles(t)
			done := make(chan error, 1)
			ctx, cancel := context.WithCancelCause(context.Background())
			defer cancel(nil)
			go func() {
				_, _, err := migration.Receive(ctx, migration.AcceptFrom(ln), host.Build, migration.ReceiveOptions{Silence: time.Minute, OnTurnedAway: cancel})
				done <- err
			}()
			conn, err := net.Dial("unix", ln.Addr().String())
			require.NoError(t, err)
			s := &stranger{t: t, conn: conn.(*net.UnixConn), in: wire.NewReader(conn)}
			s.out = wire.NewWriter(&s.text)
			c.do(s)
			for err == nil { // hear everything, as a source does
				_, err = s.conn.Read(make([]byte, 4096))
			}
			require.NoError(t, s.conn.CloseWrite())
			require.ErrorContains(t, <-done, c.says)
			require.NoError(t, s.conn.Close())
			require.NoError(t, w.Check())
			require.Empty(t, w.Running())
			if target := host.Target(); target != nil {
				require.True(t, target.Aborted())
			}
			noLeak(t, running)
			require.Eventually(t, func() bool { return openFiles(t) <= fds }, time.Minute, time.Millisecond, "file descriptors leak")
		})
	}
}

// Its user may cancel up to GO, and the source runs on.
func TestCancelALocalHandOver(t *testing.T) {
	for _, at := range []migration.Phase{migration.PhaseConfigure, migration.PhasePause, migration.PhaseState, migration.PhaseVerify, migration.PhasePrepare, migration.PhaseCommitted} {
		t.Run(string(at), func(t *testing.T) {
			r := localRig(t, 40)
			var s *migration.Session
			var cancelErr error
			r.send.Verify = true
			r.send.OnProgress = func(p migration.Progress) {
				if p.Phase == at && cancelErr == nil {
					cancelErr = s.Cancel("test")
				}
			}
			s, err := migration.NewSession(r.from, r.dial, r.send)
			require.NoError(t, err)
			done := make(chan error, 1)
			go func() {
				_, _, err := migration.Receive(context.Background(), migration.AcceptFrom(r.ln), r.host.Build, r.recv)
				done <- err
			}()
			_, err = s.Run(context.Background())
			recvErr := <-done
			require.NoError(t, r.world.Check())
			if at == migration.PhaseCommitted {
				require.ErrorIs(t, cancelErr, migration.ErrCommitted)
				require.NoError(t, errors.Join(err, recvErr))
				require.Equal(t, []string{"target"}, r.world.Running())
				require.NoError(t, r.host.Target().Close())
				return
			}
			require.NoError(t, cancelErr)
			require.ErrorIs(t, err, migration.ErrCancelled)
			require.ErrorIs(t, recvErr, migration.ErrCancelled)
			require.NoError(t, r.src.Unharmed())
			require.Equal(t, []string{"source"}, r.world.Running())
		})
	}
}
