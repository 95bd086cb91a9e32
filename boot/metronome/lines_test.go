package metronome

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestKind(t *testing.T) {
	for line, want := range map[string]LineKind{
		"metronome up\r\n":       LineUp,
		"metronome up":           LineUp,
		"metronome upper":        LineOther,
		"metronome filled ms=3":  LineFilled,
		"metronome beat t_ms=1":  LineBeat,
		"metronome bad page=0x1": LineBad,
		"metronome io dev=blk":   LineIO,
		"metronome fault vector=0xe error=0x6 rip=0 cr2=0": LineFault,
		"metronome error: fil=3: unknown option":           LineError,
		"":                                                 LineOther,
	} {
		require.Equal(t, want, Kind(line), "%q", line)
	}
}

// Lines as the guest printed them.
func TestParseGuestLines(t *testing.T) {
	b, err := ParseBeat("metronome beat t_ms=1319 writes=21963 gap_us=357 max_gap_us=2757 bad=3 sweeps=7 reads=2298\r\n")
	require.NoError(t, err)
	require.Equal(t, Beat{TMs: 1319, Writes: 21963, GapUs: 357, MaxGapUs: 2757, Bad: 3, Sweeps: 7, Reads: 2298}, b)

	bad, err := ParseBad("metronome bad page=0x407000 index=7 version=259 kind=torn\r\n")
	require.NoError(t, err)
	require.Equal(t, Bad{Page: 0x407000, Index: 7, Version: 259, Kind: "torn"}, bad)

	bad, err = ParseBad("metronome bad page=0x407000 index=7 version=259 kind=error at=disk\r\n")
	require.NoError(t, err)
	require.Equal(t, Bad{Page: 0x407000, Index: 7, Version: 259, Kind: "error", At: "disk"}, bad)

	line, err := ParseIO("metronome io dev=blk phase=run t_ms=1052 ops=23304 bytes=95453184 ops_s=22152 bytes_s=90734965 p50_us=608 p99_us=7424 max_us=16790 bad=0 reads=11887 writes=11417 flushes=10 flushed=9385\r\n")
	require.NoError(t, err)
	require.Equal(t, IOLine{
		Dev: "blk", Phase: "run", TMs: 1052, Ops: 23304, Bytes: 95453184, OpsS: 22152, BytesS: 90734965,
		P50Us: 608, P99Us: 7424, MaxUs: 16790, Reads: 11887, Writes: 11417, Flushes: 10, Flushed: 9385,
	}, line)

	ms, err := ParseFilled("metronome filled ms=119\r\n")
	require.NoError(t, err)
	require.EqualValues(t, 119, ms)
}

func TestParseLineErrors(t *testing.T) {
	const good = "metronome beat t_ms=1 writes=2 gap_us=3 max_gap_us=4 bad=5 sweeps=6"
	for _, line := range []string{
		"", "metronome up", "metronome beat", "metronome beat ",
		strings.Replace(good, "writes=2", "", 1),
		strings.Replace(good, "writes=2", "writes=", 1),
		strings.Replace(good, "writes=2", "writes=-2", 1),
		strings.Replace(good, "writes=2", "writes=18446744073709551616", 1),
		good + " bad=5", good + " half", "x" + good,
		good + strings.Repeat(" a", 300),
	} {
		_, err := ParseBeat(line)
		require.ErrorIs(t, err, ErrLine, "%q", line)
	}
	_, err := ParseBeat(good + " later=word")
	require.NoError(t, err)
	_, err = ParseBad("metronome bad page=0x1 index=2 version=3 kind=odd")
	require.ErrorIs(t, err, ErrLine)
	for _, line := range []string{
		"metronome bad page=0x1 index=2 version=3 kind=error", "metronome bad page=0x1 index=2 version=3 kind=torn at=tape",
	} {
		_, err = ParseBad(line)
		require.ErrorIs(t, err, ErrLine)
	}
	const io = "metronome io dev=blk phase=run t_ms=1 ops=2 bytes=3 ops_s=4 bytes_s=5 p50_us=6 p99_us=7 max_us=8 bad=9"
	_, err = ParseIO(io + " later=word")
	require.NoError(t, err)
	for _, missing := range []string{" dev=blk", " phase=run", " ops=2", " bad=9"} {
		_, err = ParseIO(strings.Replace(io, missing, "", 1))
		require.ErrorIs(t, err, ErrLine, missing)
	}
	_, err = ParseFilled("metronome filled ")
	require.ErrorIs(t, err, ErrLine)
}

func TestParseBeatRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.SliceOfN(rapid.Uint64(), 8, 8).Draw(t, "values")
		got, err := ParseBeat(fmt.Sprintf("metronome beat t_ms=%d writes=%d gap_us=%d max_gap_us=%d bad=%d sweeps=%d reads=%d back=%d",
			v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]))
		require.NoError(t, err)
		require.Equal(t, Beat{v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]}, got)
	})
}

func FuzzParseBeat(f *testing.F) {
	f.Add("metronome beat t_ms=1319 writes=21963 gap_us=357 max_gap_us=2757 bad=3 sweeps=7 reads=2298\r\n")
	f.Add("metronome bad page=0x407000 index=7 version=259 kind=torn")
	f.Add("metronome filled ms=119")
	f.Add("metronome io dev=blk phase=run t_ms=1 ops=2 bytes=3 ops_s=4 bytes_s=5 p50_us=6 p99_us=7 max_us=8 bad=9")
	f.Fuzz(func(t *testing.T, line string) {
		if _, err := ParseBeat(line); err == nil {
			require.Equal(t, LineBeat, Kind(line))
		}
		if _, err := ParseBad(line); err == nil {
			require.Equal(t, LineBad, Kind(line))
		}
		if _, err := ParseIO(line); err == nil {
			require.Equal(t, LineIO, Kind(line))
		}
		if _, err := ParseFilled(line); err == nil {
			require.Equal(t, LineFilled, Kind(line))
		}
	})
}
