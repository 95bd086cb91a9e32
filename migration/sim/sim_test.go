package sim_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"godwit/migration"
	"godwit/migration/policy"
	"godwit/migration/sim"
)

const pageSize = 4096

// rig is two ends in one world, on a unix socket.
type rig struct {
	t     testing.TB
	world *sim.World
	src   *sim.Machine
	from  migration.Source // what is migrated: src, or what is around it
	host  *sim.Host
	ln    net.Listener
	size  uint64

	send migration.SendOptions
	recv migration.ReceiveOptions
	wrap func(c net.Conn, index int) net.Conn // of the source's connections
	seq  int
	mu   sync.Mutex

	// These stand for the socket in a bubble with its own time (testing/synctest), in
	// which nothing but what sleeps takes any; nil elsewhere.
	caller   migration.Dialer
	acceptor migration.Acceptor
}

type result struct {
	sendErr, recvErr error
	sent, received   *migration.Report
	target           migration.Target
}

// layout is that of a rig's memory: two halves with a hole between.
func layout(pages uint64) []migration.Extent {
	half := pages / 2
	return []migration.Extent{{GPA: 0, Len: half * pageSize}, {GPA: (half + 100) * pageSize, Len: (pages - half) * pageSize}}
}

func newRig(t testing.TB, pages uint64) *rig {
	w := sim.NewWorld()
	src, err := sim.NewMachine(w, layout(pages)...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, src.Close()) })
	return rigOf(t, w, src, src, pages)
}

// rigOf is a rig around a machine.
func rigOf(t testing.TB, w *sim.World, src *sim.Machine, from migration.Source, pages uint64) *rig {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	r := &rig{t: t, world: w, src: src, from: from, host: sim.NewHost(w), ln: ln, size: pages}
	r.send = migration.SendOptions{Silence: time.Minute} // nobody is silent but where a test says so
	r.recv = migration.ReceiveOptions{Silence: time.Minute}
	return r
}

// gpa is the address of page i of RAM, the hole left out.
func (r *rig) gpa(i uint64) uint64 {
	if i >= r.size/2 {
		i += 100
	}
	return i * pageSize
}

func (r *rig) put(i uint64, v uint64) bool {
	return r.src.Write(r.gpa(i), func(p []byte) {
		for k := 0; k < pageSize; k += 512 {
			binary.LittleEndian.PutUint64(p[k:], v)
		}
	})
}

func (r *rig) dial(ctx context.Context) (net.Conn, error) {
	c, err := r.connect(ctx)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wrap != nil {
		c = r.wrap(c, r.seq)
	}
	r.seq++
	return c, nil
}

func (r *rig) connect(ctx context.Context) (net.Conn, error) {
	if r.caller != nil {
		return r.caller(ctx)
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", r.ln.Addr().String())
}

// inNoTime makes the rig one for a bubble.
func (r *rig) inNoTime() {
	r.caller, r.acceptor = pipes(plain)
	epoch := time.Now()
	r.send.Clock = func() time.Duration { return time.Since(epoch) }
	r.recv.Clock = r.send.Clock
}

func (r *rig) accept(ctx context.Context) (net.Conn, error) {
	if r.acceptor != nil {
		return r.acceptor(ctx)
	}
	return migration.AcceptFrom(r.ln)(ctx)
}

func (r *rig) migrate(ctx context.Context) result {
	var res result
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan struct{})
	recv, began := r.recv, new(atomic.Bool)
	recv.OnProgress = func(p migration.Progress) {
		began.Store(true)
		if r.recv.OnProgress != nil {
			r.recv.OnProgress(p)
		}
	}
	go func() {
		defer close(done)
		res.target, res.received, res.recvErr = migration.Receive(ctx, r.accept, r.host.Build, recv)
	}()
	res.sent, res.sendErr = migration.Send(context.Background(), r.from, r.dial, r.send)
	if !began.Load() {
		stop() // no source has said HELLO, and none will
	}
	<-done
	return res
}

// same compares all of memory.
func (r *rig) same() error {
	for i := range r.size {
		if a, b := r.src.Page(r.gpa(i)), r.host.Target().Page(r.gpa(i)); !bytes.Equal(a, b) {
			return fmt.Errorf("page %d: source %x, destination %x", i, a[:8], b[:8])
		}
	}
	return nil
}

func (r *rig) moved(res result) {
	r.t.Helper()
	require.NoError(r.t, res.sendErr)
	require.NoError(r.t, res.recvErr)
	require.NoError(r.t, r.world.Check())
	require.Equal(r.t, []string{"target"}, r.world.Running())
	require.Equal(r.t, r.src.State, r.host.Target().State)
	require.NoError(r.t, r.same())
	require.True(r.t, r.src.Pace().Free(), "the source is slowed to %v", r.src.Pace())
	require.NoError(r.t, r.host.Target().Close())
}

func TestMoves(t *testing.T) {
	for _, mode := range []migration.Mode{migration.PreCopy, migration.StopAndCopy} {
		for _, streams := range []int{1, 2, 5, 16} {
			t.Run(fmt.Sprintf("%s/%d", mode, streams), func(t *testing.T) {
				r := newRig(t, 3000)
				for i := uint64(0); i < 2000; i += 1 + i%7 {
					r.put(i, i)
				}
				r.send.Mode, r.send.Streams, r.send.Verify = mode, streams, true
				res := r.migrate(context.Background())
				r.moved(res)
				require.Equal(t, migration.Completed, res.sent.Status)
				require.NotNil(t, res.sent.Verify)
				require.Equal(t, res.sent.Verify.Source, res.sent.Verify.Destination)
				require.Equal(t, streams, res.sent.Streams)
				require.Equal(t, res.sent.Pages.Raw, res.received.Pages.Raw)
				require.Less(t, res.sent.Pages.Raw+res.sent.Pages.Zero, uint64(2000))
				require.Greater(t, res.sent.Pages.Skipped, uint64(1000))
				require.Greater(t, res.sent.DowntimeMS, 0.0)
				sum := res.sent.DowntimePhases
				require.InDelta(t, res.sent.DowntimeMS, sum.PauseMS+sum.PagesMS+sum.StateMS+sum.ResumeMS, 1e-6)
			})
		}
	}
}

// Random writers on goroutines of their own, random sizes and streams: what
// arrives is what the source had when it was paused.
func TestRandomWriters(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		pages := rapid.Uint64Range(2, 2000).Draw(rt, "pages")
		r := newRig(t, pages)
		seed := rapid.Uint64().Draw(rt, "seed")
		for i := range rapid.Uint64Range(0, pages).Draw(rt, "filled") {
			r.put(i, seed+i)
		}
		r.send.Streams = rapid.IntRange(1, 8).Draw(rt, "streams")
		r.send.Verify = rapid.Bool().Draw(rt, "verify")
		var err error
		r.send.Policies.Codec, err = policy.Codecs.Parse(rapid.SampledFrom([]string{"raw", "rle", "lz4", "xbrle", "xbrle,cache=128K", "xbrle,cache=auto", "auto,cache=256K"}).Draw(rt, "codec"))
		require.NoError(t, err)
		r.send.Policies.Order, err = policy.Orders.Parse(rapid.SampledFrom(policy.Orders.Names()).Draw(rt, "order"))
		require.NoError(t, err)
		r.send.Policies.Stop = policy.LastSync{MaxRounds: rapid.IntRange(1, 5).Draw(rt, "rounds")}
		if rapid.Bool().Draw(rt, "limited") {
			r.send.Bandwidth = 400 << 20
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for k := range 2 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(seed, uint64(k)))
				for {
					select {
					case <-stop:
						return
					default:
					}
					v := rng.Uint64()
					if rng.IntN(4) == 0 {
						v = 0
					}
					if !r.put(rng.Uint64N(pages), v) {
						return
					}
					runtime.Gosched()
				}
			})
		}
		res := r.migrate(context.Background())
		close(stop)
		wg.Wait()
		r.moved(res)
	})
}

// A page that is zero at first, then data, then zero again, round after round.
func TestPageBecomesZeroAgain(t *testing.T) {
	r := newRig(t, 64)
	r.put(3, 7)
	n := uint64(0)
	r.src.Hook(func(m string) {
		if m == "Dirty" && n < 8 {
			n++
			r.put(3, n%2*9)
			r.put(40, (n+1)%2*9)
		}
	})
	r.send.DowntimeLimit = 1
	r.moved(r.migrate(context.Background()))
}

func TestEveryMethodMayFail(t *testing.T) {
	boom := errors.New("boom")
	for _, side := range []string{"source", "target"} {
		methods := []string{"Config", "StartDirtyLog", "SetPace", "Touched", "Clear", "Dirty", "Pause", "SaveState", "Release"}
		if side == "target" {
			methods = []string{"Build", "Populate", "LoadState", "Acquire", "Run"}
		}
		for _, m := range methods {
			t.Run(side+"/"+m, func(t *testing.T) {
				r := newRig(t, 600)
				for i := range uint64(600) {
					r.put(i, i)
				}
				before := goroutines()
				r.send.Policies.Throttle = policy.Cap{Percent: 60} // undone on every way out
				if m == "SetPace" {
					once(r.src, m, boom) // what undoes a pace is SetPace too
				} else if side == "source" {
					r.src.Fail(m, boom)
				} else {
					r.host.Fail(m, boom)
				}
				res := r.migrate(context.Background())
				require.Error(t, res.sendErr)
				require.ErrorContains(t, res.sendErr, "boom")
				require.ErrorContains(t, res.recvErr, "boom")
				require.NoError(t, r.world.Check())
				noLeak(t, before)
				if m == "Run" {
					require.True(t, r.src.Pace().Free())
					require.ErrorIs(t, res.sendErr, migration.ErrNotTaken)
					require.Empty(t, r.world.Running())
					return
				}
				require.NoError(t, r.src.Unharmed())
				require.Equal(t, []string{"source"}, r.world.Running())
				r.src.Fail(m, nil)
				r.host.Fail(m, nil)
				r.moved(r.migrate(context.Background())) // a second attempt succeeds
			})
		}
	}
}

func TestDisksThatCannotBeReclaimed(t *testing.T) {
	synctest.Test(t, disksThatCannotBeReclaimed)
}

func disksThatCannotBeReclaimed(t *testing.T) {
	r := newRig(t, 64)
	r.inNoTime()
	r.src.Fail("Reclaim", errors.New("gone"))
	r.host.Fail("Acquire", errors.New("other disk"))
	res := r.migrate(context.Background())
	require.ErrorIs(t, res.sendErr, migration.ErrStaysPaused)
	require.ErrorContains(t, res.sendErr, "other disk")
	require.Empty(t, r.world.Running())
	require.NoError(t, r.world.Check())
}

func TestCancel(t *testing.T) {
	for _, at := range []migration.Phase{migration.PhaseConnect, migration.PhaseConfigure, migration.PhaseCopy, migration.PhasePause,
		migration.PhaseLastPages, migration.PhaseState, migration.PhaseVerify, migration.PhasePrepare, migration.PhaseCommitted, migration.PhaseCleanUp} {
		t.Run(string(at), func(t *testing.T) {
			r := newRig(t, 400)
			for i := range uint64(400) {
				r.put(i, i)
			}
			var s *migration.Session
			var cancelErr error
			r.send.Verify = true
			r.send.Policies.Throttle = policy.Cap{Percent: 60}
			asked := false
			r.send.OnProgress = func(p migration.Progress) {
				if p.Phase == at && !asked {
					asked = true
					cancelErr = s.Cancel("test")
				}
			}
			var err error
			s, err = migration.NewSession(r.src, r.dial, r.send)
			require.NoError(t, err)
			require.ErrorIs(t, s.Cancel("too early"), migration.ErrNotRunning)
			ctx, stop := context.WithCancel(context.Background())
			defer stop()
			var recvErr error
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _, recvErr = migration.Receive(ctx, migration.AcceptFrom(r.ln), r.host.Build, r.recv)
			}()
			rep, err := s.Run(context.Background())
			if at == migration.PhaseConnect {
				stop()
			}
			<-done
			require.NoError(t, r.world.Check())
			require.True(t, s.Progress().Done)
			require.True(t, r.src.Pace().Free())
			if at == migration.PhaseCommitted || at == migration.PhaseCleanUp {
				require.ErrorIs(t, cancelErr, migration.ErrCommitted)
				require.NoError(t, err)
				require.NoError(t, recvErr)
				require.Equal(t, []string{"target"}, r.world.Running())
				require.NoError(t, r.host.Target().Close())
				return
			}
			require.NoError(t, cancelErr)
			require.ErrorIs(t, err, migration.ErrCancelled)
			require.ErrorIs(t, recvErr, migration.ErrCancelled)
			require.Equal(t, migration.Cancelled, rep.Status)
			require.NoError(t, r.src.Unharmed())
			require.Equal(t, []string{"source"}, r.world.Running())
		})
	}
}

func TestGuestEnds(t *testing.T) {
	for _, at := range []string{"StartDirtyLog", "SetPace", "Dirty", "Pause", "SaveState"} {
		t.Run(at, func(t *testing.T) {
			r := newRig(t, 64)
			r.send.Policies.Throttle = policy.Cap{Percent: 60}
			n := 0
			r.src.Hook(func(m string) {
				if m == at {
					if n++; n == 1 {
						r.src.End(errors.New("triple fault"))
					}
				}
			})
			res := r.migrate(context.Background())
			require.ErrorIs(t, res.sendErr, migration.ErrGuestEnded)
			require.ErrorContains(t, res.sendErr, "triple fault")
			require.Error(t, res.recvErr)
			require.NoError(t, r.world.Check())
			require.NoError(t, r.src.Unharmed())
		})
	}
}

func TestTimeout(t *testing.T) {
	r := newRig(t, 2000)
	for i := range uint64(2000) {
		r.put(i, i+1)
	}
	r.send.Timeout, r.send.Bandwidth = 50*time.Millisecond, migration.MinBandwidth
	r.send.Policies.Throttle = policy.Cap{Percent: 60}
	res := r.migrate(context.Background())
	require.ErrorIs(t, res.sendErr, migration.ErrTimeout)
	require.Error(t, res.recvErr)
	require.NoError(t, r.src.Unharmed())
}

// Knobs turn while it runs, and any number of clients watch.
func TestRetuneAndWatch(t *testing.T) {
	r := newRig(t, 4000)
	for i := range uint64(4000) {
		r.put(i, i+1)
	}
	r.send.Bandwidth, r.send.Streams = 3*migration.MinBandwidth, 3
	s, err := migration.NewSession(r.src, r.dial, r.send)
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _, err := migration.Receive(context.Background(), migration.AcceptFrom(r.ln), r.host.Build, r.recv)
		require.NoError(t, err)
	}()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for seen := uint64(0); ; runtime.Gosched() {
				select {
				case <-stop:
					return
				default:
				}
				p := s.Progress()
				if p.WireBytes < seen {
					t.Errorf("wire bytes fell from %d to %d", seen, p.WireBytes)
				}
				seen = p.WireBytes
				if p.WireBytes > 0 && p.Limit != 0 {
					_ = s.SetBandwidth(0) // refused only when it has ended
					_ = s.SetDowntimeLimit(time.Second)
				}
			}
		})
	}
	_, err = s.Run(context.Background())
	require.NoError(t, err)
	close(stop)
	wg.Wait()
	<-done
	require.ErrorIs(t, s.SetBandwidth(0), migration.ErrNotRunning)
	require.ErrorIs(t, s.SetBandwidth(1), migration.ErrOptions)
	require.NoError(t, r.same())
	require.NoError(t, r.host.Target().Close())
}

// Options that cannot be meant are refused before anything happens.
func TestOptions(t *testing.T) {
	for name, o := range map[string]migration.SendOptions{
		"streams":   {Streams: 17},
		"mode":      {Mode: "teleport"},
		"bandwidth": {Bandwidth: 5},
		"downtime":  {DowntimeLimit: -1},
		"timeout":   {Timeout: -1},
		"silence":   {Silence: time.Microsecond},
		"id":        {VMID: strings.Repeat("x", 65)},
	} {
		_, err := migration.NewSession(nil, nil, o)
		require.ErrorIs(t, err, migration.ErrOptions, name)
	}
	for _, o := range []migration.ReceiveOptions{{Lease: 1}, {Timeout: -1}} {
		_, _, err := migration.Receive(context.Background(), nil, nil, o)
		require.ErrorIs(t, err, migration.ErrOptions)
	}
}

func TestFile(t *testing.T) {
	for _, verify := range []bool{false, true} {
		r := newRig(t, 3000)
		for i := uint64(0); i < 1000; i++ {
			r.put(i*3, i%5)
		}
		path := filepath.Join(t.TempDir(), "vm")
		rep, err := migration.SaveFile(context.Background(), r.src, path, migration.SendOptions{Verify: verify})
		require.NoError(t, err)
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.InDelta(t, float64(info.Size()), float64(rep.WireBytes), 200)
		f, err := os.Open(path)
		require.NoError(t, err)
		defer f.Close()
		_, got, err := migration.Restore(context.Background(), f, r.host.Build, migration.ReceiveOptions{Verify: verify})
		require.NoError(t, err)
		require.Equal(t, rep.Pages.Raw, got.Pages.Raw)
		require.NoError(t, r.world.Check())
		require.Equal(t, []string{"target"}, r.world.Running())
		require.NoError(t, r.same())
		require.NoError(t, r.host.Target().Close())
	}
}

// A file cut anywhere or changed anywhere is refused, and nothing is left.
func TestDamagedFile(t *testing.T) {
	r := newRig(t, 64)
	for i := range uint64(6) {
		r.put(i*2, i)
	}
	var buf bytes.Buffer
	_, err := migration.Save(context.Background(), r.src, &buf, migration.SendOptions{Verify: true})
	require.NoError(t, err)
	whole := buf.Bytes()
	restore := func(b []byte) error {
		_, _, err := migration.Restore(context.Background(), bytes.NewReader(b), r.host.Build, migration.ReceiveOptions{})
		return err
	}
	for n := 0; n < len(whole); n += 1 + n%97 {
		require.Error(t, restore(whole[:n]), "cut to %d of %d bytes", n, len(whole))
	}
	for n := 0; n < len(whole); n += 1 + n%89 {
		bad := bytes.Clone(whole)
		bad[n] ^= 0x41
		require.Error(t, restore(bad), "byte %d changed", n)
	}
	require.NoError(t, r.world.Check())
	require.NoError(t, restore(whole))
	require.NoError(t, r.host.Target().Close())
}

// FuzzDecodeFile restores anything: an error or a machine, never a panic.
func FuzzDecodeFile(f *testing.F) {
	r := newRig(f, 8)
	r.put(1, 7)
	r.put(2, 0)
	var buf bytes.Buffer
	_, err := migration.Save(context.Background(), r.src, &buf, migration.SendOptions{Verify: true})
	require.NoError(f, err)
	f.Add(buf.Bytes())
	f.Add(buf.Bytes()[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		host := sim.NewHost(sim.NewWorld())
		build := func(ctx context.Context, _ migration.Offer) (migration.Target, error) {
			return host.Build(ctx, migration.Offer{Config: []byte(`[{"GPA":0,"Len":16384},{"GPA":425984,"Len":16384}]`)})
		}
		if target, _, err := migration.Restore(context.Background(), bytes.NewReader(b), build, migration.ReceiveOptions{}); err == nil {
			require.NoError(t, target.(*sim.Target).Close())
		}
	})
}

// A file that cannot be written leaves nothing behind, and the guest running.
func TestSaveFails(t *testing.T) {
	dir := t.TempDir()
	for _, m := range []string{"Config", "Pause", "Touched", "SaveState", "Release"} {
		r := newRig(t, 64)
		r.src.Fail(m, errors.New("boom"))
		_, err := migration.SaveFile(context.Background(), r.src, filepath.Join(dir, "vm"), migration.SendOptions{})
		require.ErrorContains(t, err, "boom", m)
		require.NoError(t, r.src.Unharmed(), m)
		require.NoError(t, r.world.Check(), m)
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, left, m)
	}
}

// goroutines lists the stacks of goroutines that run migration code.
func goroutines() int {
	buf := make([]byte, 1<<20)
	n := 0
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "godwit/migration.") {
			n++
		}
	}
	return n
}

func noLeak(t *testing.T, before int) {
	t.Helper()
	require.Eventually(t, func() bool { return goroutines() <= before }, time.Minute, time.Millisecond, "goroutines leak")
}
