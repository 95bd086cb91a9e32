package balloon_test

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/kvm/guestmem"
	"godwit/virtio/balloon"
)

const hintQueue = 2 // as Linux counts, without statistics

// session is a call of FreePages.
type session struct {
	g      *guest
	id     uint32
	found  []guestmem.Extent
	cancel context.CancelCauseFunc
	done   chan error
}

// ask calls FreePages and waits for the driver to hear of it.
func (g *guest) ask() *session {
	ctx, cancel := context.WithCancelCause(context.Background())
	s := &session{g: g, cancel: cancel, done: make(chan error, 1)}
	old := g.regs.Get(cfgHint)
	go func() {
		s.done <- g.dev.FreePages(ctx, func(es []guestmem.Extent) { s.found = append(s.found, es...) })
	}()
	for s.id = old; s.id == old; s.id = g.regs.Get(cfgHint) {
		g.irq.Wait(g.t)
		g.regs.Acknowledge()
	}
	return s
}

func (g *guest) command(id uint32) {
	g.do(hintQueue, g.bytes(binary.LittleEndian.AppendUint32(nil, id)))
}

func TestHinting(t *testing.T) {
	g := boot(t, balloon.Config{Hinting: true}, 0, 0, 1, hintQueue)
	g.fill()
	require.EqualValues(t, 0, g.regs.Get(cfgHint))
	g.do(hintQueue, free(4<<20, 4096)) // nobody asked

	s := g.ask()
	require.Greater(t, s.id, uint32(1))
	g.do(hintQueue, free(5<<20, 4096)) // of no session
	g.command(s.id - 1)                // of another
	g.do(hintQueue, free(6<<20, 4096))
	g.command(s.id)
	g.do(hintQueue, free(8<<20, 4<<20))
	g.do(hintQueue, free(2<<20+1, 8191))
	g.command(0)
	require.NoError(t, <-s.done)
	g.do(hintQueue, free(7<<20, 4096)) // too late
	require.Equal(t, []guestmem.Extent{{GPA: 8 << 20, Len: 4 << 20}, {GPA: 2<<20 + 4096, Len: 4096}}, s.found)
	require.EqualValues(t, 1, g.regs.Get(cfgHint), "done")
	require.Empty(t, g.gone(), "a hint discards nothing")
	require.EqualValues(t, 4<<20+4096, g.dev.Stats().HintedBytes)

	// The next session has an id of its own, and ends when its owner wants.
	next := g.ask()
	require.NotEqual(t, s.id, next.id)
	g.command(s.id)
	g.do(hintQueue, free(4<<20, 4096))
	g.command(next.id)
	g.do(hintQueue, free(5<<20, 4096))
	why := errors.New("enough")
	next.cancel(why)
	require.ErrorIs(t, <-next.done, why)
	g.do(hintQueue, free(6<<20, 4096))
	require.Equal(t, []guestmem.Extent{{GPA: 5 << 20, Len: 4096}}, next.found)
	require.EqualValues(t, 1, g.regs.Get(cfgHint))
	g.do(hintQueue, g.bytes([]byte{1, 2}))
	require.EqualValues(t, 1, g.dev.Stats().GuestErrors)
}

func TestHintingIsNotToBeHad(t *testing.T) {
	nobody := func([]guestmem.Extent) { t.Error("called") }
	for name, g := range map[string]*guest{
		"--balloon hinting": boot(t, balloon.Config{}, 0, 0, 1),
		"no driver":         boot(t, balloon.Config{Hinting: true}, fHint, 0, 1),
	} {
		err := g.dev.FreePages(t.Context(), nobody)
		require.ErrorIs(t, err, balloon.ErrNoHinting)
		require.ErrorContains(t, err, name)
	}
	g := boot(t, balloon.Config{Hinting: true}, 0, 0, 1, hintQueue)
	s := g.ask()
	require.Error(t, g.dev.FreePages(t.Context(), nobody), "one at a time")
	g.regs.Set(0x70, 0)
	require.ErrorContains(t, <-s.done, "reset")
	require.ErrorIs(t, g.dev.FreePages(t.Context(), nobody), balloon.ErrNoHinting)
}

// TestHintsOfPoisonedPages: a copy that lacks them would lack the pattern.
func TestHintsOfPoisonedPages(t *testing.T) {
	g := boot(t, balloon.Config{Hinting: true}, 0, 0, 1, hintQueue)
	g.regs.Set(cfgPoison, 1)
	s := g.ask()
	g.command(s.id)
	g.do(hintQueue, free(8<<20, 4<<20))
	g.command(0)
	require.NoError(t, <-s.done)
	require.Empty(t, s.found)
}

// TestSessionDoesNotMove: a machine that is moved in the middle of one arrives
// without, its driver knows, and the next one has a new id.
func TestSessionDoesNotMove(t *testing.T) {
	g := boot(t, balloon.Config{Hinting: true}, 0, 0, 1, hintQueue)
	s := g.ask()
	g.command(s.id)
	g.irq.Lose()
	g.move()
	s.cancel(errors.New("moved"))
	require.Error(t, <-s.done)
	g.irq.Wait(t)
	require.EqualValues(t, 2, g.regs.Acknowledge()&2)
	require.EqualValues(t, 1, g.regs.Get(cfgHint))
	g.do(hintQueue, free(8<<20, 4<<20))
	next := g.ask()
	require.Equal(t, s.id+1, next.id)
	g.command(next.id)
	g.do(hintQueue, free(4<<20, 4096))
	g.command(0)
	require.NoError(t, <-next.done)
	require.Len(t, next.found, 1)
}
