package vmm

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"godwit/boot/metronome"
	"godwit/migration"
	"godwit/migration/policy"
)

// A guest of any temper under a bucket: what it dirties is never more than the
// bucket promises, it gets to run again and again, and one that stays below the
// rate never sleeps.
func TestDirtyBucket(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Uint64Range(1, 1e7).Draw(t, "rate")
		speed := rapid.Float64Range(0, 1e6).Draw(t, "speed") // pages a second while it runs
		late := rapid.Float64Range(0, 3).Draw(t, "late")     // how late a look is, in looks
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		b := newDirtyBucket(rate)
		var now, nap, longest time.Duration
		var total, owed float64
		for range 2000 {
			ran := b.look + time.Duration(rng.Float64()*late*float64(b.look))
			owed += speed * ran.Seconds()
			pages := float64(uint64(owed))
			owed -= pages
			total += pages
			now += nap + ran
			nap = b.spend(uint64(pages), nap+ran)
			longest = max(longest, nap)
			debt := max(-b.pages, 0)
			if most := float64(rate)*now.Seconds() + b.most + debt; total > most*1.000001+1 {
				t.Fatalf("%v pages in %v at %d a second, at most %v", total, now, rate, most)
			}
			if b.look < shortLook || b.look > dutyPeriod || nap < 0 || nap > longNap {
				t.Fatalf("look %v, nap %v", b.look, nap)
			}
			if nap == 0 && debt > 0 {
				t.Fatal("debt and no nap")
			}
		}
		// No debt is left after a nap that pays for the longest run before it.
		if worst := speed*dutyPeriod.Seconds()*(1+late) + 1; worst < float64(rate)*longNap.Seconds() {
			if total > float64(rate)*now.Seconds()+b.most+worst {
				t.Fatalf("%v pages in %v at %d a second", total, now, rate)
			}
		}
		if speed*(1+late) < float64(rate)*0.5 && longest > 0 && rate > 1000 {
			t.Fatalf("a guest at half the rate slept %v", longest)
		}
	})
}

// meter measures a running guest.
type meter struct {
	t *testing.T
	m *Machine
	// harvest: somebody looks at the dirty set and clears it, as a migration does.
	harvest bool
	bits    []uint64
}

// newDirty is how many pages a second the rings get in the next tenth of a second, all
// vCPUs together.
func (m *meter) newDirty() float64 {
	ring := m.m.mem.ring()
	count := func() (n uint64) {
		for i := range m.m.vcpus {
			n += ring.published(i)
		}
		return n
	}
	from, began := count(), time.Now()
	for time.Since(began) < 100*time.Millisecond {
		if m.harvest {
			clear(m.bits)
			require.NoError(m.t, m.m.mem.dirty(m.bits))
			require.NoError(m.t, m.m.mem.clear(list(m.bits)))
		}
		time.Sleep(time.Millisecond) // the time is what is measured
	}
	return float64(count()-from) / time.Since(began).Seconds()
}

// until waits for three measurements in a row that are all right.
func until(t *testing.T, what string, measure func() float64, ok func(float64) bool) {
	t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	var seen []float64
	for row := 0; row < 3; {
		v := measure()
		seen = append(seen, v)
		if row++; !ok(v) {
			row = 0
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in 90 s: %.2f", what, seen[max(len(seen)-40, 0):])
		}
	}
	t.Logf("%s: %.2f", what, seen[len(seen)-3:])
}

// A guest that dirties pages as fast as it can is held to a limit, whether its
// ring is emptied all the time or only when it is full, and let go again.
func TestDirtyLimit(t *testing.T) {
	const limit = 1000
	for _, tc := range []struct {
		name    string
		cpus    int
		entries int
		harvest bool
	}{{"harvested", 1, ringEntries, true}, {"two vCPUs", 2, ringEntries, true}, {"ring full", 1, 1024, false}} {
		t.Run(tc.name, func(t *testing.T) {
			defer func(n int) { ringEntries = n }(ringEntries)
			ringEntries = tc.entries
			cfg := metronomeConfig("fill=48 ws=48 rate=0 sweep=0 beat=100")
			cfg.Machine.VCPUCount, cfg.Machine.Tracker = tc.cpus, TrackerRing
			m, out := start(t, cfg)
			lastBeat(t, out, 2)
			src := m.Source()
			require.NoError(t, src.StartDirtyLog())
			w := &meter{t: t, m: m, harvest: tc.harvest, bits: make([]uint64, m.mem.words())}
			fast := func(rate float64) bool { return rate > 5*limit*float64(tc.cpus) }
			until(t, "free", w.newDirty, fast)
			for _, pages := range []uint64{limit, limit / 2} {
				p := policy.Pace{By: policy.ByDirtyLimit, PagesPerSecond: pages}
				require.NoError(t, src.CanPace(p))
				require.NoError(t, src.SetPace(p))
				var last [10]float64 // naps are longer than one measurement
				n := 0
				until(t, p.String(), func() (mean float64) {
					last[n%len(last)] = w.newDirty()
					n++
					for _, v := range last {
						mean += v / float64(len(last))
					}
					return mean
				}, func(rate float64) bool {
					return n > len(last) && rate > 0 && rate < 1.3*float64(pages)*float64(tc.cpus)
				})
			}
			require.NoError(t, src.SetPace(policy.FullSpeed))
			until(t, "free again", w.newDirty, fast)
			require.NoError(t, src.StopDirtyLog())
			require.Zero(t, lastBeat(t, out, 2).Bad)
		})
	}
}

// The duty cycle slows, and ends; a change of means ends the one before.
func TestDuty(t *testing.T) {
	cfg := metronomeConfig("fill=16 ws=16 rate=0 beat=20")
	cfg.Machine.Tracker = TrackerRing
	m, out := start(t, cfg)
	var before metronome.Beat
	writes := func() float64 { // a second
		b := lastBeat(t, out, 3)
		defer func() { before = b }()
		return float64(b.Writes-before.Writes) / (float64(max(b.TMs-before.TMs, 1)) / 1000)
	}
	writes()
	src := m.Source()
	// paced gives the speed at a pace, as a part of full speed. That is measured anew
	// from time to time: a busy host has other work now and then.
	paced := func(p policy.Pace) func() float64 {
		tries, free := 0, 1.
		return func() float64 {
			if tries%20 == 0 {
				require.NoError(t, src.SetPace(policy.FullSpeed))
				writes() // what began at the pace before
				free = max(writes(), writes(), writes(), 1)
				require.NoError(t, src.SetPace(p))
				writes()
			}
			tries++
			return writes() / free
		}
	}
	slowed := func(share float64) bool { return share < 1./3 }
	free := func(share float64) bool { return share > 1./3 }
	slow := policy.Pace{Percent: 5}
	until(t, "at 5 %", paced(slow), slowed)
	require.NoError(t, src.StartDirtyLog())
	until(t, "with a limit that is none", paced(policy.Pace{By: policy.ByDirtyLimit, PagesPerSecond: 1e9}), free)
	until(t, "at 5 % again", paced(slow), slowed)
	until(t, "free again", paced(policy.FullSpeed), free)
	require.NoError(t, src.StopDirtyLog())
}

func TestPacesRefused(t *testing.T) {
	m, _ := start(t, metronomeConfig(""))
	src := m.Source()
	require.Equal(t, 1, src.VCPUs())
	for _, n := range []uint64{0, 500} {
		p := policy.Pace{By: policy.ByDirtyLimit, PagesPerSecond: n}
		require.ErrorContains(t, src.CanPace(p), "--tracker ring")
		require.ErrorContains(t, src.SetPace(p), "--tracker ring")
	}
	require.NoError(t, src.CanPace(policy.Pace{}))
	for _, p := range []policy.Pace{{}, {Percent: 101}, {Percent: -1}} {
		require.ErrorContains(t, src.SetPace(p), "out of range")
	}
	require.ErrorContains(t, src.CanPace(policy.Pace{By: 9}), "means 9")
	require.ErrorContains(t, src.SetPace(policy.Pace{By: 9}), "means 9")
}

// A machine closes and pauses whatever slows it, and a nap holds neither up.
func TestSlowedMachineStops(t *testing.T) {
	for _, p := range []policy.Pace{{Percent: 1}, {By: policy.ByDirtyLimit, PagesPerSecond: 1}} {
		cfg := metronomeConfig("fill=32 ws=32 rate=0 beat=50")
		cfg.Machine.Tracker = TrackerRing
		m, out := start(t, cfg)
		lastBeat(t, out, 2)
		src := m.Source()
		require.NoError(t, src.StartDirtyLog())
		require.NoError(t, src.SetPace(p))
		var wg sync.WaitGroup
		for range 4 { // anyone may ask
			wg.Go(func() {
				for range 20 {
					if err := src.CanPace(p); err != nil {
						t.Error(err)
					}
				}
			})
		}
		asleep := func() bool { return m.vcpus[0].napLeft() > 0 }
		paused := false // in the middle of a nap
		for deadline := time.Now().Add(time.Minute); !paused; {
			require.Eventually(t, asleep, time.Minute, 100*time.Microsecond)
			require.NoError(t, m.Pause(context.Background()))
			paused = asleep()
			require.NoError(t, m.Resume())
			require.True(t, time.Now().Before(deadline), "a pause waits for the end of the nap")
		}
		require.NoError(t, src.SetPace(policy.FullSpeed))
		require.LessOrEqual(t, m.vcpus[0].napLeft(), time.Duration(0))
		lastBeat(t, out, 2)
		require.NoError(t, src.SetPace(p))
		wg.Wait()
		require.NoError(t, m.Close(), "with the pace in force")
	}
}

// A migration under each throttle that this host has.
func TestMovesThrottled(t *testing.T) {
	for _, text := range []string{"cap:40", "dirty-limit", "dirty-limit:4", "auto-converge"} {
		cfg := metronomeConfig("fill=64 ws=32 rate=5000 beat=50")
		cfg.Machine.Tracker = TrackerRing
		m, out := start(t, cfg)
		before := lastBeat(t, out, 2)
		th, err := policy.Throttles.Parse(text)
		require.NoError(t, err)
		_, rep := move(t, m, migration.SendOptions{Verify: true, Policies: policy.Set{Throttle: th}}, out)
		require.Equal(t, rep.Verify.Source, rep.Verify.Destination)
		after := lastBeat(t, out, 3)
		require.Greater(t, after.Writes, before.Writes)
		require.Zero(t, after.Bad)
		switch text {
		case "cap:40":
			require.Equal(t, 60, rep.ThrottleMax)
		case "dirty-limit:4":
			require.EqualValues(t, 977, rep.DirtyLimit)
		}
	}
}
