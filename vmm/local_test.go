package vmm

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/kvm"
	"godwit/kvm/guestmem"
	"godwit/migration"
)

// MSRs by which a guest gives KVM pages to write (Linux
// Documentation/virt/kvm/x86/msr.rst).
const (
	msrKVMWallClock  = 0x4b564d00
	msrKVMSystemTime = 0x4b564d01
	msrKVMStealTime  = 0x4b564d03
	msrKVMPVEOI      = 0x4b564d04
)

// handOver gives m's memory to a machine in this process. around, if not nil,
// stands between the engine and the new machine.
func handOver(t testing.TB, m *Machine, o migration.SendOptions, out *console, around func(migration.Target, *Machine) migration.Target) (*Machine, *migration.Report, error) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	defer l.Close()
	var arrived *Machine
	build := BuildTarget(Incoming{Options: Options{Serial: out}}, func(m *Machine) { arrived = m })
	done := make(chan error, 1)
	go func() {
		_, _, err := migration.Receive(context.Background(), migration.AcceptFrom(l),
			func(ctx context.Context, offer migration.Offer) (migration.Target, error) {
				target, err := build(ctx, offer)
				if err == nil && around != nil {
					target = around(target, arrived)
				}
				return target, err
			}, migration.ReceiveOptions{Silence: time.Minute})
		done <- err
	}()
	dial := func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", l.Addr().String())
	}
	o.Local, o.Silence = true, time.Minute
	rep, err := migration.Send(context.Background(), m.Source(), dial, o)
	recvErr := <-done
	if err != nil {
		require.Error(t, recvErr)
		return nil, rep, err
	}
	require.NoError(t, recvErr)
	t.Cleanup(func() { require.NoError(t, arrived.Close()) })
	m.MigratedTo()
	return arrived, rep, nil
}

// brittle is a target that breaks at a method, after having done its work but for
// Run.
type brittle struct {
	migration.Target
	at string
	m  *Machine
	t  testing.TB
}

var errBrittle = errors.New("broken on purpose")

func (b *brittle) breaks(at string, err error) error {
	// Whatever was done so far: the memory is the source's.
	require.ErrorIs(b.t, b.m.mem.WriteAt([]byte{1}, 0), guestmem.ErrFrozen)
	if err == nil && at == b.at {
		return errBrittle
	}
	return err
}

func (b *brittle) Acquire() error { return b.breaks("Acquire", b.Target.Acquire()) }

func (b *brittle) Run() error {
	if err := b.breaks("Run", nil); err != nil {
		return err
	}
	if err := b.Target.Run(); err != nil || b.at != "Ran" {
		return err
	}
	return errBrittle
}

// sumOf hashes all of guest memory.
func sumOf(t testing.TB, m *Machine) [32]byte {
	h := sha256.New()
	for _, r := range m.mem.Regions() {
		b, err := m.mem.View(r.GPA, uint64(len(r.Bytes)))
		require.NoError(t, err)
		h.Write(b)
	}
	return [32]byte(h.Sum(nil))
}

func memfdConfig(args string) Config {
	cfg := metronomeConfig(args)
	cfg.Machine.MemoryBacking = guestmem.Memfd.String()
	return cfg
}

// A hand-over that ends before GO leaves the memory as it was, byte by byte, also
// where restoring the state makes KVM write pages that the guest has given it;
// and KVM finds these again once the guest runs.
func TestLocalAbortLeavesMemoryAlone(t *testing.T) {
	m, out := start(t, memfdConfig("fill=16 ws=8 rate=5000 beat=50"))
	lastBeat(t, out, 2)
	require.NoError(t, m.Pause(context.Background())) // by its operator: it stays so, here and there
	page := m.mem.Size() - guestmem.PageSize
	wall, clock, steal, eoi := page, page+0x100, page+0x200, page+0x300
	require.NoError(t, m.vcpus[0].fd.SetMSRs([]kvm.MSREntry{
		{Index: msrKVMWallClock, Data: wall},
		{Index: msrKVMSystemTime, Data: clock | 1},
		{Index: msrKVMStealTime, Data: steal | 1},
		{Index: msrKVMPVEOI, Data: eoi | 1},
	}))
	version := func(m *Machine, gpa uint64) uint32 {
		b, err := m.mem.View(gpa, 4)
		require.NoError(t, err)
		return binary.LittleEndian.Uint32(b)
	}
	require.NotZero(t, version(m, wall), "KVM writes the wall clock at once, so it would there, too")
	before := sumOf(t, m)
	for _, at := range []string{"Acquire", "Run"} {
		for _, verify := range []bool{false, true} {
			_, _, err := handOver(t, m, migration.SendOptions{Verify: verify}, out, func(target migration.Target, n *Machine) migration.Target {
				return &brittle{target, at, n, t}
			})
			require.ErrorContains(t, err, errBrittle.Error())
			require.Equal(t, before, sumOf(t, m), "broken at %s", at)
			require.NoError(t, m.Source().Reclaim()) // where the engine left that to its user
		}
	}
	next, rep, err := handOver(t, m, migration.SendOptions{Verify: true}, out, func(target migration.Target, n *Machine) migration.Target {
		return &brittle{target, "", n, t}
	})
	require.NoError(t, err)
	require.Equal(t, rep.Verify.Source, rep.Verify.Destination)
	require.Equal(t, StatePaused, next.State())
	require.Equal(t, before, sumOf(t, next))
	require.NoError(t, next.mem.WriteAt([]byte{1}, page+0x400), "also a paused machine's memory is thawed: it is its own now")
	now := sumOf(t, next)
	require.NoError(t, m.Close())
	require.Equal(t, now, sumOf(t, next), "the source writes nothing on its way out")
	was := version(next, clock)
	require.NoError(t, next.Resume())
	require.Zero(t, lastBeat(t, out, 3).Bad)
	require.NotEqual(t, was, version(next, clock), "KVM keeps the guest's clock again")
}

// A destination that had the guest running before it broke leaves memory that
// fits no registers: whoever asks, by force or not, the source never runs on it.
func TestTakenMemoryIsNotResumed(t *testing.T) {
	m, out := start(t, memfdConfig("fill=16 ws=8 rate=5000 beat=50"))
	lastBeat(t, out, 2)
	_, _, err := handOver(t, m, migration.SendOptions{}, out, func(target migration.Target, n *Machine) migration.Target {
		return &brittle{target, "Ran", n, t}
	})
	require.ErrorIs(t, err, migration.ErrNotTaken)
	require.ErrorContains(t, m.Source().Reclaim(), "has taken its memory")
	m.released = false // had they been taken back before
	require.ErrorContains(t, m.Resume(), "has taken its memory")
	require.Equal(t, StatePaused, m.State())
}

// The guest moves from machine to machine, each on the memory of the last.
func TestMetronomeIsHandedOver(t *testing.T) {
	cfg := memfdConfig("fill=64 ws=32 rate=5000 beat=50")
	cfg.Machine.VCPUCount = 2
	m, out := start(t, cfg)
	before := lastBeat(t, out, 2)
	for i := range 3 {
		next, rep, err := handOver(t, m, migration.SendOptions{Verify: i == 1}, out, nil)
		require.NoError(t, err)
		js, err := json.Marshal(rep)
		require.NoError(t, err)
		t.Logf("%s", js)
		require.NoError(t, m.Close())
		after := lastBeat(t, out, 3)
		require.Greater(t, after.Writes, before.Writes)
		require.Zero(t, after.Bad)
		m, before = next, after
	}
	// An ordinary migration takes it from there, and gives it memory of its own.
	next, _ := move(t, m, migration.SendOptions{Verify: true}, out)
	require.Zero(t, lastBeat(t, out, 3).Bad)
	last, _, err := handOver(t, next, migration.SendOptions{}, out, nil)
	require.NoError(t, err)
	require.Zero(t, lastBeat(t, out, 3).Bad)
	require.Equal(t, StateRunning, last.State())
}

// A machine whose memory is its own says what to do.
func TestLocalNeedsMemfd(t *testing.T) {
	m, _ := start(t, metronomeConfig("beat=50"))
	_, err := migration.Send(context.Background(), m.Source(), nil, migration.SendOptions{Local: true})
	require.ErrorIs(t, err, migration.ErrLocal)
	require.ErrorContains(t, err, "--memory-backing memfd")
	require.Equal(t, StateRunning, m.State())
}

// What a stranger offers in place of memory, or memory for a machine that asks
// for none, is refused, and no descriptor is kept.
func TestBuildTargetRefusesOffers(t *testing.T) {
	m, _ := start(t, memfdConfig("beat=50"))
	config, err := m.Source().Config()
	require.NoError(t, err)
	anon, _ := start(t, metronomeConfig("beat=50"))
	anonConfig, err := anon.Source().Config()
	require.NoError(t, err)
	files := func() int {
		es, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(es)
	}
	for name, c := range map[string]struct {
		config []byte
		memory func() *os.File
		says   string
		is     error
	}{
		"a device": {config, func() *os.File { f, err := os.OpenFile("/dev/zero", os.O_RDWR, 0); require.NoError(t, err); return f }, "no memfd", guestmem.ErrForeign},
		"too small": {config, func() *os.File {
			fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
			require.NoError(t, err)
			_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
			require.NoError(t, err)
			return os.NewFile(uintptr(fd), "x")
		}, "has 0 bytes", guestmem.ErrForeign},
		"not asked for": {anonConfig, func() *os.File { f, err := m.mem.File(); require.NoError(t, err); return f }, "whose memory is anon", ErrConfig},
		"no machine":    {[]byte("{}"), func() *os.File { f, err := m.mem.File(); require.NoError(t, err); return f }, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			// The collector closes what an earlier test dropped: not while descriptors are counted.
			defer debug.SetGCPercent(debug.SetGCPercent(-1))
			before := files()
			_, err := BuildTarget(Incoming{}, nil)(context.Background(), migration.Offer{Config: c.config, Memory: c.memory()})
			require.Error(t, err)
			require.ErrorContains(t, err, c.says)
			if c.is != nil {
				require.ErrorIs(t, err, c.is)
			}
			require.Equal(t, before, files())
		})
	}
}
