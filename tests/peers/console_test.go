package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func beatLine(tMS, writes, gapUS int) string {
	return fmt.Sprintf("metronome beat t_ms=%d writes=%d gap_us=%d max_gap_us=9 bad=0 sweeps=1\r\n", tMS, writes, gapUS)
}

// said is a console that got text in pieces of n bytes.
func said(text string, n int) *console {
	c := &console{}
	for len(text) > 0 {
		n := min(n, len(text))
		c.Write([]byte(text[:n]))
		text = text[n:]
	}
	return c
}

func times(beats []beatAt) (ms []uint64) {
	for _, b := range beats {
		ms = append(ms, b.TMs)
	}
	return ms
}

// However the move cuts what the guest prints, each beat is there once, and
// belongs to the end where its line began.
func TestReadJoinsTheLineThatTheMoveCut(t *testing.T) {
	head := "metronome up\r\nmetronome filled ms=9\r\n" + beatLine(200, 0, 1)
	second := beatLine(400, 0, 2)
	text := head + second + beatLine(600, 0, 3)
	for cut := len(head); cut < len(head)+len(second); cut++ {
		for _, n := range []int{1, 7, 1000} {
			s, err := read(said(text[:cut], n), said(text[cut:], n))
			require.NoError(t, err)
			require.True(t, s.filled)
			if cut == len(head) {
				require.Equal(t, []uint64{200}, times(s.source))
				require.Equal(t, []uint64{400, 600}, times(s.there))
				continue
			}
			// The line's last byte alone, LF, makes an empty line.
			require.Equal(t, []uint64{200, 400}, times(s.source), "cut at %d", cut)
			require.Equal(t, []uint64{600}, times(s.there), "cut at %d", cut)
		}
	}
}

func TestReadBelievesTheGuestsComplaints(t *testing.T) {
	for text, says := range map[string]string{
		"metronome beat t_ms=1 writes=1 gap_us=1 max_gap_us=1 bad=3 sweeps=1\r\n": "3 bad pages",
		"metronome bad page=0x407000 index=7 version=259 kind=torn\r\n":           "kind=torn",
		"metronome fault vector=0xe error=0x6 rip=0x10471d cr2=0x1000000000\r\n":  "fault vector=0xe",
		"metronome error: fil=3: unknown option\r\n":                              "unknown option",
	} {
		_, err := read(said(text, 100), nil)
		require.ErrorContains(t, err, says)
		_, err = read(said("", 1), said(text, 100))
		require.ErrorContains(t, err, says)
	}
}

func TestReadLeavesOutWhatIsMangled(t *testing.T) {
	s, err := read(said("noise\r\nmetronome beat t_ms=x\r\n"+beatLine(5, 0, 0)+strings.Repeat("x", 2*maxPartial), 4096), nil)
	require.NoError(t, err)
	require.Equal(t, []uint64{5}, times(s.source))
}

// beatsOf makes beats of t_ms and writes.
func beatsOf(pairs ...[2]uint64) []beatAt {
	var beats []beatAt
	for _, p := range pairs {
		b := beatAt{}
		b.TMs, b.Writes = p[0], p[1]
		beats = append(beats, b)
	}
	return beats
}

func TestSteady(t *testing.T) {
	const every = 200 * time.Millisecond
	for _, c := range []struct {
		name  string
		beats []beatAt
		rate  uint64
		want  bool
	}{
		{"too few", beatsOf([2]uint64{0, 0}, [2]uint64{200, 0}), 0, false},
		{"in time", beatsOf([2]uint64{0, 0}, [2]uint64{203, 0}, [2]uint64{398, 0}), 0, true},
		{"one lost", beatsOf([2]uint64{0, 0}, [2]uint64{400, 0}, [2]uint64{600, 0}), 0, false},
		{"only the last ones count", beatsOf([2]uint64{0, 0}, [2]uint64{900, 0}, [2]uint64{1100, 0}, [2]uint64{1300, 0}), 0, true},
		{"at the rate", beatsOf([2]uint64{0, 0}, [2]uint64{200, 190}, [2]uint64{400, 400}), 1000, true},
		{"too slow", beatsOf([2]uint64{0, 0}, [2]uint64{200, 100}, [2]uint64{400, 350}), 1000, false},
		{"too fast", beatsOf([2]uint64{0, 0}, [2]uint64{200, 300}, [2]uint64{400, 450}), 1000, false},
	} {
		require.Equal(t, c.want, steady(c.beats, 3, every, c.rate), c.name)
	}
}

func TestRatesAndGaps(t *testing.T) {
	require.Zero(t, perSecond(nil))
	require.Zero(t, perSecond(beatsOf([2]uint64{5, 5})))
	require.Zero(t, perSecond(beatsOf([2]uint64{5, 5}, [2]uint64{5, 9})), "no time, no rate")
	require.Zero(t, perSecond(beatsOf([2]uint64{5, 5}, [2]uint64{9, 3})), "counters that run backwards")
	require.InDelta(t, 500, perSecond(beatsOf([2]uint64{1000, 0}, [2]uint64{1100, 999}, [2]uint64{3000, 1000})), 1e-9)
	beats := beatsOf([2]uint64{0, 0}, [2]uint64{1, 0})
	beats[0].GapUs, beats[1].GapUs = 2500, 700
	require.InDelta(t, 2.5, longestGap(beats), 1e-9)
}

func TestBySecond(t *testing.T) {
	// n beats of 100 ms, each with 10 writes more than the one before: 100, 200 ... a second.
	ramp := func(n int) []beatAt {
		var beats []beatAt
		writes := uint64(0)
		for i := range n {
			writes += uint64(10 * i)
			beats = append(beats, beatsOf([2]uint64{uint64(100 * i), writes})...)
		}
		return beats
	}
	require.Empty(t, bySecond(nil))
	require.Empty(t, bySecond(ramp(1)))
	require.InDeltaSlice(t, []float64{150}, bySecond(ramp(3)), 1e-9, "all there is, however short")
	require.InDeltaSlice(t, []float64{550}, bySecond(ramp(11)), 1e-9)
	require.InDeltaSlice(t, []float64{550}, bySecond(ramp(14)), 1e-9, "0.3 s more are no second")
	require.InDeltaSlice(t, []float64{550, 1250}, bySecond(ramp(15)), 1e-9)
	require.InDeltaSlice(t, []float64{550, 1550}, bySecond(ramp(21)), 1e-9)
}

func TestBetween(t *testing.T) {
	t0 := time.Unix(100, 0)
	var beats []beatAt
	for i := range 5 {
		beats = append(beats, beatAt{at: t0.Add(time.Duration(i) * time.Second)})
	}
	require.Len(t, between(beats, t0.Add(time.Second), t0.Add(3*time.Second)), 3)
	require.Empty(t, between(beats, t0.Add(5*time.Second), t0.Add(9*time.Second)))
}
