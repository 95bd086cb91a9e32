package linux

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/vmm"
)

// balloonMemory is what the guest has: 1 GiB in the long form, where copying it
// through the lab takes minutes.
func balloonMemory() uint64 {
	if os.Getenv(soakEnv) != "" {
		return 1 << 30
	}
	return 1 << 29
}

// balloonGuest is a Linux guest of 1 GiB with a balloon.
type balloonGuest struct {
	t    *testing.T
	m    *vmm.Machine
	out  *console
	disk string
	n    int
}

func bootBalloon(t *testing.T, b vmm.Balloon) *balloonGuest {
	g := &balloonGuest{t: t, disk: diskCopy(t)}
	cfg := linuxConfig(g.disk, 1, "")
	cfg.Machine.MemSizeMiB = int(balloonMemory() >> 20)
	b.StatsPollingIntervalS = 1
	cfg.Balloon = &b
	g.m, g.out = boot(t, cfg)
	return g
}

// sh types a command and waits for its end.
func (g *balloonGuest) sh(command string) {
	g.t.Helper()
	g.n++
	typeLine(g.t, g.m, fmt.Sprintf("%s && echo did=$((%d+1000))", command, g.n))
	g.out.waitFor(g.t, fmt.Sprintf("did=%d", g.n+1000))
}

// Copies of 57 MiB for use: some, and as many as fit.
const some = 3

func nearlyAll() int { return int(balloonMemory()>>20-140) / 57 }

// use has the guest use memory for something that is not zeros, check it, and free
// it again. It gives the RSS while it is used.
func (g *balloonGuest) use(copies int) rss {
	g.t.Helper()
	g.sh(fmt.Sprintf("mkdir -p /m && mount -t tmpfs -o size=%dm none /m && cd /m", balloonMemory()>>20-60))
	g.sh("seq 1 150000 > a; for i in 1 2 3 4 5 6 7 8; do cat a; done > b; for i in 1 2 3 4 5 6 7 8; do cat b; done > c")
	g.sh(fmt.Sprintf("for i in $(seq %d); do cat c || break; done > d; tail -c $(wc -c < a) d | cmp - a", copies))
	used := g.rss()
	g.sh("cd /; umount /m")
	return used
}

func (g *balloonGuest) info() vmm.Info {
	i, err := g.m.Info()
	require.NoError(g.t, err)
	return i
}

// freeBytes is what the guest says it has free, asked anew.
func (g *balloonGuest) freeBytes() uint64 {
	g.t.Helper()
	// The answer that is under way when it is asked for may be older.
	for since := time.Now().Add(1500 * time.Millisecond); ; {
		if b := g.info().Balloon; b.Guest != nil && b.Guest.At.After(since) {
			require.NotNil(g.t, b.Guest.FreeBytes)
			return *b.Guest.FreeBytes
		}
		require.Less(g.t, time.Since(since), patience, "the guest gives no statistics")
		time.Sleep(50 * time.Millisecond)
	}
}

// rss is this process's resident memory, the guest's part of it apart.
type rss struct{ process, guest uint64 }

func (r rss) String() string {
	return fmt.Sprintf("%d MiB (process %d MiB)", r.guest>>20, r.process>>20)
}

func (g *balloonGuest) rss() rss {
	text, err := os.ReadFile("/proc/self/statm")
	require.NoError(g.t, err)
	pages, err := strconv.ParseUint(strings.Fields(string(text))[1], 10, 64)
	require.NoError(g.t, err)
	return rss{pages * uint64(os.Getpagesize()), g.info().ResidentBytes}
}

// enough is what the host may still hold for a guest that gave back 9 tenths of
// what it had free: the rest, and what it uses.
func enough(free uint64) uint64 { return balloonMemory() - free/10*9 }

// fallen waits until the RSS has fallen to that.
func (g *balloonGuest) fallen(before rss, free uint64) rss {
	g.t.Helper()
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		now := g.rss()
		if now.guest <= enough(free) && before.process-now.process >= (before.guest-now.guest)/10*9 {
			return now
		}
		require.Less(g.t, time.Since(began), patience, "RSS %v before and %v now with %d MiB free; %+v", before, now, free>>20, g.info().Balloon)
	}
}

func (g *balloonGuest) end() {
	g.t.Helper()
	typeLine(g.t, g.m, "poweroff")
	require.Equal(g.t, vmm.ExitPowerOff, waitEnd(g.t, g.m, g.out).Kind, g.out)
	s := g.info().Balloon.Stats
	require.Zero(g.t, s.GuestErrors+s.HostErrors+s.StrayPages, "%+v", s)
	require.NoError(g.t, g.m.Close())
	requireClean(g.t, g.disk)
}

// TestBalloonGivesBack: of 1 GiB that a guest has used and freed, inflating gives
// back at least 9 tenths; so does leaving hinted pages out of a migration,
// as the bytes sent and the RSS at the destination show.
func TestBalloonGivesBack(t *testing.T) {
	g := bootBalloon(t, vmm.Balloon{FreePageHinting: true})
	in := vmm.Incoming{Disks: map[string]string{"root": g.disk}}
	move := func(hint bool) *migration.Report {
		var rep *migration.Report
		g.m, rep = moveReported(t, g.m, g.out, in, migration.SendOptions{Streams: 2, Verify: hint, FreePageHint: hint})
		return rep
	}
	g.use(nearlyAll())
	free, before := g.freeBytes(), g.rss()
	t.Logf("free %d MiB, RSS %v", free>>20, before)
	require.Greater(t, free, balloonMemory()/100*88)
	// What the host holds although the guest has it free.
	held := before.guest + free - balloonMemory()
	require.Greater(t, held, free/10*8)

	without := move(false)
	arrived := g.rss()
	with := move(true)
	after := g.rss()
	t.Logf("hinting: %d bytes sent without, %d with; RSS there %v and %v; %d free pages, asked for %.0f ms",
		without.WireBytes, with.WireBytes, arrived, after, with.Pages.Free, with.Hint.MS)
	require.True(t, with.Hint.Complete)
	require.GreaterOrEqual(t, with.Pages.Free*4096, held/10*9)
	require.GreaterOrEqual(t, without.WireBytes-with.WireBytes, held/10*9)
	require.LessOrEqual(t, after.guest, enough(free))
	require.Greater(t, arrived.guest, free/10*8)

	g.use(nearlyAll())
	free, before = g.freeBytes(), g.rss()
	require.NoError(t, g.m.SetBalloon(int(free/100*95>>20)))
	after = g.fallen(before, free)
	b := g.info().Balloon
	t.Logf("inflating: free %d MiB, balloon %d MiB of %d; RSS %v before, %v after", free>>20, b.ActualMiB, b.TargetMiB, before, after)

	// Moved while it deflates.
	require.NoError(t, g.m.SetBalloon(0))
	move(false)
	for began := time.Now(); g.info().Balloon.ActualMiB != 0; time.Sleep(50 * time.Millisecond) {
		require.Less(t, time.Since(began), patience, "the balloon does not deflate: %+v", g.info().Balloon)
	}
	// The guest has its pages back. It does not call all of them free at once: some
	// 50 MiB stay on the lists of its processor, out of MemFree, until it needs them.
	g.use(some)
	g.end()
}

// TestReportingGivesBack: the same by free page reporting, with nobody asking.
func TestReportingGivesBack(t *testing.T) {
	g := bootBalloon(t, vmm.Balloon{FreePageReporting: true})
	before := g.use(nearlyAll())
	began := time.Now()
	free := g.freeBytes()
	require.Greater(t, before.guest, balloonMemory()/100*80)
	after := g.fallen(before, free)
	b := g.info().Balloon
	t.Logf("reporting: free %d MiB; RSS %v while it used it, %v after %.0f s; %d MiB reported, %d MiB discarded",
		free>>20, before, after, time.Since(began).Seconds(), b.Stats.ReportedBytes>>20, b.Stats.DiscardedBytes>>20)
	g.use(some)
	g.end()
}
