package sim_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"godwit/migration"
	"godwit/migration/policy"
)

// extent is page i of a rig.
func (r *rig) extent(i uint64) []migration.Extent {
	return []migration.Extent{{GPA: r.gpa(i), Len: pageSize}}
}

// arrived checks every page: those that the guest does not need are zeros or as
// they were, all others as they are at the source.
func (r *rig) arrived(t require.TestingT, res result, free map[uint64]bool) {
	require.NoError(t, res.sendErr)
	require.NoError(t, res.recvErr)
	require.NoError(t, r.world.Check())
	for i := range r.size {
		want, got := r.src.Page(r.gpa(i)), r.host.Target().Page(r.gpa(i))
		if free[i] && bytes.Equal(got, make([]byte, pageSize)) {
			continue
		}
		require.Equal(t, want[:8], got[:8], "page %d at the destination, free %v", i, free[i])
	}
	require.NoError(t, r.host.Target().Close())
}

// TestRuleHintOrder: a page is named, used again, and only then does the hint
// arrive. What the guest wrote arrives, too.
func TestRuleHintOrder(t *testing.T) {
	r := newRig(t, 64)
	r.put(5, 1)
	r.put(6, 1)
	r.put(7, 1)
	r.src.Hints = func(_ context.Context, found func([]migration.Extent)) error {
		r.put(5, 2)
		found(r.extent(5))
		found(r.extent(6))
		r.put(6, 3)
		found(r.extent(7))
		return nil
	}
	r.send.FreePageHint = true
	res := r.migrate(context.Background())
	r.arrived(t, res, map[uint64]bool{7: true})
	require.EqualValues(t, 1, res.sent.Pages.Free)
	require.EqualValues(t, 3, res.sent.Hint.Pages)
}

// TestHints is a guest that uses pages again at every moment at which it can.
func TestHints(t *testing.T) {
	const pages = 3 * 256
	const ( // when a page is written
		never = iota
		whileAsked
		afterFound
		inRound
		beforeHarvest
		beforePause
		moments
	)
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t, pages)
		r.src.AllSet = rapid.Bool().Draw(rt, "all set")
		r.send = migration.SendOptions{Verify: true, FreePageHint: true, Silence: time.Minute,
			Streams: rapid.IntRange(1, 3).Draw(rt, "streams"), Policies: policy.Set{Stop: policy.LastSync{MaxRounds: rapid.IntRange(1, 4).Draw(rt, "rounds")}}}
		pick := func(what string, share int) (out []uint64) {
			seed := rapid.Uint64().Draw(rt, what)
			for i := range uint64(pages) {
				if (seed+i*0x9e3779b97f4a7c15)>>33%100 < uint64(share) {
					out = append(out, i)
				}
			}
			return out
		}
		touched := map[uint64]bool{}
		for _, i := range pick("touched", 80) {
			r.put(i, 1)
			touched[i] = true
		}
		free := map[uint64]bool{}
		hinted := pick("hinted", 60)
		var reused [moments][]uint64
		for m := whileAsked; m < moments; m++ {
			reused[m] = pick("reused", 5)
		}
		write := func(moment int, v uint64) {
			for _, i := range reused[moment] {
				if r.put(i, v) {
					delete(free, i)
				}
			}
		}
		cut := rapid.IntRange(0, len(hinted)).Draw(rt, "cut")
		r.src.Hints = func(_ context.Context, found func([]migration.Extent)) error {
			for _, i := range hinted {
				if touched[i] {
					free[i] = true
				}
			}
			write(whileAsked, 10)
			for _, i := range hinted {
				found(r.extent(i))
			}
			// Not guest RAM, not whole pages, beyond everything: nothing to the engine.
			found([]migration.Extent{{GPA: pages / 2 * pageSize, Len: pageSize}, {GPA: 100, Len: 50}, {GPA: 1 << 60, Len: 1 << 12}, {GPA: ^uint64(0) &^ 4095, Len: 1 << 13}})
			write(afterFound, 20)
			if cut%5 == 0 {
				return errors.New("the guest has had enough")
			}
			return nil
		}
		rounds := uint64(0)
		asked := false
		r.src.Hook(func(method string) {
			switch {
			case method == "FreePages":
				asked = true
			case method == "Dirty":
				rounds++
				write(beforeHarvest, 40+rounds)
			case method == "Clear" && asked && r.send.Streams == 1:
				write(inRound, 30+rounds)
			case method == "Pause":
				write(beforePause, 50)
			}
		})
		res := r.migrate(context.Background())
		r.arrived(rt, res, free)
		require.EqualValues(rt, len(free), res.sent.Pages.Free, "all that stays free is left out")
		require.Equal(rt, res.sent.Verify.Source, res.sent.Verify.Destination)
		require.Equal(rt, cut%5 != 0, res.sent.Hint.Complete)
	})
}

func TestHintsRefused(t *testing.T) {
	r := newRig(t, 64)
	hints := func(context.Context, func([]migration.Extent)) error { return nil }
	for says, o := range map[string]migration.SendOptions{
		"local":         {FreePageHint: true, Local: true},
		"stop-and-copy": {FreePageHint: true, Mode: migration.StopAndCopy},
	} {
		_, err := migration.NewSession(r.src, r.dial, o)
		require.ErrorIs(t, err, migration.ErrOptions)
		require.ErrorIs(t, err, migration.ErrHint)
		require.ErrorContains(t, err, says)
	}
	_, err := migration.NewSession(struct{ migration.Source }{r.src}, r.dial, migration.SendOptions{FreePageHint: true})
	require.ErrorIs(t, err, migration.ErrHint)
	r.send.FreePageHint = true
	_, err = migration.Send(t.Context(), r.src, r.dial, r.send)
	require.ErrorIs(t, err, migration.ErrOptions)
	require.ErrorContains(t, err, "does not hint")
	require.NoError(t, r.src.Unharmed())
	require.NotContains(t, r.src.Calls(), "StartDirtyLog")

	// One that fails when it is asked costs nothing but its help.
	r.src.Hints = hints
	r.put(3, 4)
	r.src.Fail("FreePages", errors.New("it has gone"))
	res := r.migrate(context.Background())
	require.False(t, res.sent.Hint.Complete)
	r.moved(res)
}

// TestHintsCancelled: a guest that does not answer does not hold a cancel up.
func TestHintsCancelled(t *testing.T) {
	r := newRig(t, 64)
	r.put(3, 4)
	ctx, cancel := context.WithCancel(context.Background())
	over := false
	r.src.Hints = func(ctx context.Context, _ func([]migration.Extent)) error {
		cancel()
		<-ctx.Done()
		over = true
		return context.Cause(ctx)
	}
	go func() {
		_, _, _ = migration.Receive(context.Background(), migration.AcceptFrom(r.ln), r.host.Build, r.recv)
	}()
	r.send.FreePageHint = true
	_, err := migration.Send(ctx, r.src, r.dial, r.send)
	require.ErrorIs(t, err, migration.ErrCancelled)
	require.True(t, over, "the session is over")
	require.NoError(t, r.src.Unharmed())
	require.NoError(t, r.world.Check())
}

// TestHintsOfASilentGuest: it is not waited for, and what it has told counts.
func TestHintsOfASilentGuest(t *testing.T) { synctest.Test(t, hintsOfASilentGuest) }

func hintsOfASilentGuest(t *testing.T) {
	r := newRig(t, 64)
	r.inNoTime()
	for i := range uint64(64) {
		r.put(i, 1)
	}
	r.src.Hints = func(ctx context.Context, found func([]migration.Extent)) error {
		found(r.extent(9))
		<-ctx.Done()
		return context.Cause(ctx)
	}
	r.send.FreePageHint = true
	res := r.migrate(context.Background())
	r.arrived(t, res, map[uint64]bool{9: true})
	require.EqualValues(t, 1, res.sent.Pages.Free)
	require.False(t, res.sent.Hint.Complete)
}
