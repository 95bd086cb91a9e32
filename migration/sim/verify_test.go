package sim_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/migration"
)

// A page that was changed behind the log's back is named, with what is known
// about it; so is one that the guest's side wrote during the pause.
func TestVerifyNamesWhatDiffers(t *testing.T) {
	const pages = 1200
	r := newRig(t, pages)
	for i := range uint64(1000) {
		r.put(i, i+1)
	}
	r.put(1100, 0)
	r.send.Verify = true
	gfns := []uint64{0, 3, 599, 600, 1100}
	r.src.Hook(func(m string) {
		if m != "SaveState" {
			return
		}
		for _, i := range gfns { // straight into memory: no log sees it
			region := r.src.Memory()[i/(pages/2)]
			region.Bytes[i%(pages/2)*pageSize+9] ^= 0x80
		}
	})
	res := r.migrate(context.Background())
	require.ErrorIs(t, res.sendErr, migration.ErrVerify)
	require.Error(t, res.recvErr)
	v := res.sent.Verify
	require.NotEqual(t, v.Source, v.Destination)
	require.Len(t, v.Differing, len(gfns))
	for k, i := range gfns {
		d := v.Differing[k]
		require.Equal(t, r.gpa(i), d.GPA)
		require.False(t, d.DirtyAgain || d.ZeroSource, d)
		require.Equal(t, i == 1100, d.ZeroDestination, d)
		require.Equal(t, 1, d.Round, d)
	}
	require.False(t, v.SourceChanged || v.DestinationChanged)
	require.ErrorContains(t, res.sendErr, "0x3000 (round 1)")
	require.ErrorContains(t, res.sendErr, "zero at the destination")
}

// More pages than can be named cost a bounded search.
func TestVerifyNamesTheFirst(t *testing.T) {
	r := newRig(t, 4000)
	for i := range uint64(2000) {
		r.put(i, 0)
	}
	r.send.Verify = true
	r.src.Hook(func(m string) {
		if m == "SaveState" {
			for i := range uint64(2000) {
				r.src.Memory()[0].Bytes[i*pageSize] = 1
			}
		}
	})
	res := r.migrate(context.Background())
	require.ErrorIs(t, res.sendErr, migration.ErrVerify)
	require.NotEmpty(t, res.sent.Verify.Differing)
	for i, d := range res.sent.Verify.Differing {
		require.EqualValues(t, i*pageSize, d.GPA)
		require.True(t, d.ZeroDestination)
	}
}

// Memory that changes while it is looked at is told apart from pages that were
// not sent.
func TestVerifySeesChangesInThePause(t *testing.T) {
	r := newRig(t, 64)
	r.put(0, 0)
	r.put(5, 1)
	r.put(7, 1)
	r.send.Verify = true
	broken := false
	r.src.Hook(func(m string) {
		switch m {
		case "SaveState":
			r.src.Memory()[0].Bytes[0] = 1
			broken = true
		case "Dirty":
			if broken { // asked again: somebody writes on
				r.src.Memory()[0].Bytes[7*pageSize]++
			}
		}
	})
	res := r.migrate(context.Background())
	require.ErrorIs(t, res.sendErr, migration.ErrVerify)
	require.True(t, res.sent.Verify.SourceChanged)
	require.ErrorContains(t, res.sendErr, "the source's memory changed while it was paused")
}
