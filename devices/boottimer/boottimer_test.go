package boottimer

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/devices/bus"
	"godwit/devices/bus/bustest"
	"godwit/devices/state"
	"godwit/devices/state/statetest"
)

// stopwatch is a clock that the test moves.
type stopwatch struct{ d time.Duration }

func (s *stopwatch) now() time.Duration { return s.d }

func TestMarks(t *testing.T) {
	var seen []Mark
	var w stopwatch
	d := New(w.now, func(m Mark) { seen = append(seen, m) })
	var b bus.Bus
	require.NoError(t, d.Attach(&b))
	require.Empty(t, d.Marks())
	for i, v := range []uint8{9, 0, 9, 255, 9} {
		w.d = time.Duration(i+1) * time.Millisecond
		b.Write(Port, []byte{v})
	}
	want := []Mark{
		{Code: 9, At: 1 * time.Millisecond, Count: 3},
		{Code: 0, At: 2 * time.Millisecond, Count: 1},
		{Code: 255, At: 4 * time.Millisecond, Count: 1},
	}
	require.Equal(t, want, d.Marks())
	want[0].Count = 1
	require.Equal(t, want, seen, "each code is reported once")
	p := []byte{9}
	b.Read(Port, p)
	require.Equal(t, []byte{0}, p)
}

func TestState(t *testing.T) {
	w := stopwatch{d: 5 * time.Millisecond}
	d := New(w.now, nil)
	d.Write(0, []byte{3})
	w.d = 70 * time.Millisecond
	d.Write(0, []byte{1})
	d.Write(0, []byte{1})
	statetest.Golden(t, d, func() state.Saver { return New((&stopwatch{}).now, nil) })

	// Time goes on at the destination from where it was saved.
	there := stopwatch{d: time.Hour}
	moved := New(there.now, nil)
	require.NoError(t, statetest.Restore(moved, statetest.Stream(t, d)))
	there.d += time.Millisecond
	moved.Write(0, []byte{200})
	require.Equal(t, []Mark{
		{Code: 3, At: 5 * time.Millisecond, Count: 1},
		{Code: 1, At: 70 * time.Millisecond, Count: 2},
		{Code: 200, At: 71 * time.Millisecond, Count: 1},
	}, moved.Marks())
}

func TestRestoreRejects(t *testing.T) {
	type m struct {
		code      uint8
		at, count uint64
	}
	for _, tc := range []struct {
		name    string
		elapsed uint64
		marks   []m
	}{
		{"negative time", 1 << 63, nil},
		{"too long", uint64(maxElapsed) + 1, nil},
		{"no count", 10, []m{{1, 5, 0}}},
		{"twice", 10, []m{{1, 5, 1}, {1, 6, 1}}},
		{"after the save", 10, []m{{1, 11, 1}}},
		{"before the start", 10, []m{{1, 1 << 63, 1}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var e state.Encoder
			e.U64(tc.elapsed)
			e.U16(uint16(len(tc.marks)))
			for _, m := range tc.marks {
				e.U8(m.code)
				e.U64(m.at)
				e.U64(m.count)
			}
			d := New((&stopwatch{}).now, nil)
			require.ErrorIs(t, d.Restore(1, state.NewDecoder(e.Data())), state.ErrFormat)
		})
	}
}

func FuzzAccesses(f *testing.F) {
	f.Add(append(bustest.Step(true, Port, 1, 3), bustest.Step(false, Port, 8, 0)...), make([]byte, 10))
	f.Fuzz(func(t *testing.T, program, saved []byte) {
		var w stopwatch
		d := New(w.now, nil)
		_ = d.Restore(1, state.NewDecoder(saved))
		var b bus.Bus
		require.NoError(t, d.Attach(&b))
		bustest.Play(&b, Port-8, 16, program, func() { w.d += time.Millisecond })
		require.LessOrEqual(t, len(d.Marks()), 256)
		require.NoError(t, statetest.Restore(New(w.now, nil), statetest.Stream(t, d)))
	})
}
