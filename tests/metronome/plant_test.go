package metronome_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/boot/metronome"
)

// versionOf reads how often a page of the working set has been written, from the
// guest's table: the low 40 bits of an entry.
func versionOf(t *testing.T, c *copyHere, in metronome.Info, index uint64) uint64 {
	t.Helper()
	var entry [8]byte
	require.NoError(t, c.m.Memory().ReadAt(entry[:], in.Table.GPA+8*index))
	return binary.LittleEndian.Uint64(entry[:]) & (1<<40 - 1)
}

// grown finds a page past from that has been written more often than version,
// letting the guest run until there is one. The guest is paused before and after.
func grown(t *testing.T, c *copyHere, in metronome.Info, index, version uint64) {
	t.Helper()
	for versionOf(t, c, in, index) <= version {
		require.NoError(t, c.m.Resume())
		c.beats(1)
		require.NoError(t, c.m.Pause(context.Background()))
	}
}

// Pages of a paused guest are spoilt from outside: the guest must find each, and
// say rightly what is wrong with it.
func TestPlantedPagesAreFound(t *testing.T) {
	t.Parallel()
	c := bootHere(t, guest(1, 128, "fill=8 ws=2 rate=2000 beat=20"))
	in := c.info()
	gpa := func(index uint64) uint64 {
		at, ok := in.WS.Page(index)
		require.True(t, ok)
		return at
	}
	mem := c.m.Memory()
	read := func(index uint64) []byte {
		page := make([]byte, metronome.PageSize)
		require.NoError(t, mem.ReadAt(page, gpa(index)))
		return page
	}
	const stale, torn, zero = 100, 200, 300
	require.NoError(t, c.m.Pause(context.Background()))
	for _, index := range []uint64{stale, torn, zero} {
		grown(t, c, in, index, 0) // a page never written has no write to miss
	}
	old, version := read(stale), versionOf(t, c, in, stale)
	grown(t, c, in, stale, version)
	before := c.info().Bad

	require.NoError(t, mem.WriteAt(old, gpa(stale)))
	require.NoError(t, mem.WriteAt(read(torn + 1)[:metronome.PageSize/2], gpa(torn)))
	require.NoError(t, mem.WriteAt(make([]byte, metronome.PageSize), gpa(zero)))
	require.NoError(t, c.m.Resume())

	require.Zero(t, before)
	require.NoError(t, c.out.until(deadline(t), func() bool { return len(c.out.bad) >= 3 }))
	after := c.swept()
	require.EqualValues(t, 3, after.Bad)
	require.Equal(t, metronome.BadPages{Zero: 1, Stale: 1, Torn: 1}, after.Kinds)
	kinds := map[uint64]string{}
	for _, b := range c.out.badPages() {
		kinds[b.Page] = b.Kind
	}
	require.Equal(t, map[uint64]string{gpa(stale): "stale", gpa(torn): "torn", gpa(zero): "zero"}, kinds)
	last := c.beats(1)
	require.EqualValues(t, 3, last[0].Bad)
}

// The guest's own faults are reported in the same way. Its working set is small
// and written in order, so that every page has been written before the first beat:
// a write to a page that was never written would make the zeroed one a torn one.
func TestPlantOption(t *testing.T) {
	t.Parallel()
	for kind, want := range map[metronome.Plant]metronome.BadPages{
		metronome.PlantZero: {Zero: 1}, metronome.PlantStale: {Stale: 1},
		metronome.PlantTorn: {Torn: 1}, metronome.PlantTable: {Table: 1},
	} {
		t.Run(string(kind), func(t *testing.T) {
			c := bootHere(t, guest(1, 128, fmt.Sprintf("fill=8 ws=1 rate=20000 pattern=sequential beat=100 plant=%s", kind)))
			require.NoError(t, c.out.until(deadline(t), func() bool { return len(c.out.bad) >= 1 }))
			in := c.swept()
			require.Equal(t, want, in.Kinds)
			require.Equal(t, string(kind), c.out.badPages()[0].Kind)
		})
	}
}
