package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSpread(t *testing.T) {
	require.Equal(t, spread{3, 1, 9}, spreadOf([]float64{9, 1, 3}))
	require.Equal(t, spread{2.5, 1, 9}, spreadOf([]float64{9, 1, 3, 2}))
	require.Equal(t, "2.50 (1.00-9.00)", spread{2.5, 1, 9}.String())
	require.Equal(t, "12.3", spread{12.34, 12.34, 12.34}.String())
	require.Equal(t, "1234 (99.6-5000)", spread{1234.4, 99.6, 5000}.String())
}

func TestParseGodwit(t *testing.T) {
	t0 := time.Unix(1000, 0)
	v, err := parseGodwit([]byte(`progress
{"status":"completed","total_ms":270.5,"downtime_ms":1.5,"setup_ms":10,"wire_bytes":99,"throttle_max":3,"pages":{"zero":972,"raw":5},"rounds":[{"n":1,"ms":200,"sent_pages":1000},{"n":2,"ms":2,"sent_pages":7}],"new":1}
`), t0)
	require.NoError(t, err)
	require.Equal(t, 270.5, v.totalMS)
	require.Equal(t, 1.5, v.downtimeMS)
	require.Equal(t, uint64(99), v.wireBytes)
	require.Equal(t, 2, v.rounds)
	require.Equal(t, 3, v.throttleMax)
	require.Equal(t, uint64(28), v.firstRoundPages)
	require.Equal(t, t0.Add(10*time.Millisecond), v.passFrom)
	require.Equal(t, t0.Add(210*time.Millisecond), v.passTo)
	require.True(t, bytes.HasPrefix(v.report, []byte(`{"status"`)))
	_, err = parseGodwit([]byte(`{"status":"failed","error":"peer went silent"}`), t0)
	require.ErrorContains(t, err, `status "failed": peer went silent`)
	_, err = parseGodwit(nil, t0)
	require.ErrorContains(t, err, "read godwit's report")
}

// measured is a session with runs of total ms in each setting.
func measured(name string, totals map[string][]float64, change func(*Result)) *session {
	s := &session{Host: Host{Kind: "host", QEMU: "QEMU 7.2"}}
	for _, setting := range sortedKeys(totals) {
		side, _, _ := strings.Cut(setting, " ")
		for i, ms := range totals[setting] {
			r := Result{Kind: "run", Case: name, Setting: setting, Side: Side(side), Run: i + 1, TotalMS: ms, DowntimeMS: 1, GapMS: 4, WireBytes: 1e6}
			if change != nil {
				change(&r)
			}
			s.Results = append(s.Results, r)
		}
	}
	return s
}

func caseNamed(name string) Case {
	for _, k := range cases() {
		if k.Name == name {
			return k
		}
	}
	panic("no case " + name)
}

func wordsOf(t table) (words []string) {
	for _, v := range t.verdicts() {
		word, _, _ := strings.Cut(v.String(), ":")
		words = append(words, word+" "+v.Goal)
	}
	return words
}

func TestVerdicts(t *testing.T) {
	pages := func(r *Result) { r.FirstRoundPages = 262144 } // 8589.9 ms at 125 MB/s
	for _, c := range []struct {
		name, in string
		totals   map[string][]float64
		change   func(*Result)
		want     []string
	}{
		{"idle, reached", "idle-8g", map[string][]float64{"qemu plain": {400}, "godwit streams 1": {39, 40, 90}}, nil,
			[]string{"PASS downtime at most 2 ms", "PASS the guest's longest gap at most 5 ms", "PASS total at most 1/10 of QEMU's best", "PASS gap at most QEMU's + 2 ms"}},
		{"idle, all missed", "idle-8g", map[string][]float64{"qemu plain": {400}, "godwit streams 1": {41}}, func(r *Result) {
			if r.Side == Godwit {
				r.DowntimeMS, r.GapMS = 2.5, 6.5
			}
		}, []string{"MISS downtime at most 2 ms", "MISS the guest's longest gap at most 5 ms", "MISS total at most 1/10 of QEMU's best", "MISS gap at most QEMU's + 2 ms"}},
		{"idle, no QEMU", "idle-8g", map[string][]float64{"godwit streams 1": {41}}, nil,
			[]string{"PASS downtime at most 2 ms", "PASS the guest's longest gap at most 5 ms", "NOT MEASURED total at most 1/10 of QEMU's best", "NOT MEASURED gap at most QEMU's + 2 ms"}},
		{"multifd is what counts", "fill-1g", map[string][]float64{"qemu plain": {100}, "qemu multifd 2": {900}, "qemu multifd 4": {500, 700}, "godwit streams 2": {420}}, nil,
			[]string{"PASS total at most 0.7 of QEMU multifd's best setting"}},
		{"encrypted runs are apart", "fill-1g", map[string][]float64{"qemu multifd 2": {900}, "godwit streams 2": {700}, "godwit tls streams 2": {100}}, nil,
			[]string{"MISS total at most 0.7 of QEMU multifd's best setting"}},
		{"floor, met", "ws-20k", map[string][]float64{"qemu raw": {14956}, "godwit xbrle 512M": {9019}, "godwit raw": {15000}}, pages, []string{"PASS total at most 1.05 of the floor"}},
		{"floor, missed", "ws-20k", map[string][]float64{"godwit xbrle 512M": {9020}}, pages, []string{"MISS total at most 1.05 of the floor"}},
		{"throttled", "ws-50k", map[string][]float64{"godwit xbrle 512M": {9400}}, func(r *Result) { pages(r); r.ThrottleMax = 1 },
			[]string{"PASS total at most 1.10 of the floor", "MISS converges with no throttle"}},
		{"local", "local", map[string][]float64{"godwit local": {51}}, nil, []string{"MISS total at most 50 ms", "PASS downtime at most 5 ms"}},
		{"bulk", "bulk-write", map[string][]float64{"godwit streams 1": {1}}, func(r *Result) { r.UndisturbedPerS, r.DuringPerS, r.BySecond = 10, 6, []float64{5, 7} },
			[]string{"PASS guest throughput at least 0.6 of undisturbed"}},
		{"all failed", "local", map[string][]float64{"godwit local": {1}}, func(r *Result) { r.Error = "no" }, []string{"NOT MEASURED all goals of local"}},
		{"no runs", "local", nil, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want, wordsOf(tabulate(measured(c.in, c.totals, c.change), caseNamed(c.in))))
		})
	}
}

func TestFloorWithoutGodwit(t *testing.T) {
	ms, how := tabulate(measured("ws-20k", map[string][]float64{"qemu raw": {1}}, nil), caseNamed("ws-20k")).floor()
	require.InDelta(t, 8598, ms, 1) // 1 GiB and 1 MiB at 125 MB/s
	require.Contains(t, how, "the guest's options")
}

func TestRender(t *testing.T) {
	s := measured("bulk-write", map[string][]float64{"qemu plain": {4000, 5000, 3000}, "godwit streams 1": {2000}, "godwit --codec lz4": {9000}}, func(r *Result) {
		r.UndisturbedPerS, r.DuringPerS, r.BySecond = 1000, 700, []float64{500, 900}
		if r.Run == 3 {
			r.Error = "the move took more than 2m"
		}
	})
	s.Skipped = append(s.Skipped, skipped{"skipped", "local", "godwit local", "bin/godwit migrate has no flag --local"})
	text := render(s, cases())
	for _, part := range []string{
		"\n| qemu plain | 2, 1 failed | 4500 (4000-5000) | 1.00 | 4.00 | 0.00 | 1 | 0 |\n",
		"\n| godwit streams 1 | 1 | 2000 |",
		"| 0.70 | 0.50 | 0.50 0.90 |\n",
		"\nLeft out: godwit local, because bin/godwit migrate has no flag --local.\n",
		"- Ratio, godwit streams 1 to qemu plain: total **0.444** (2000 to 4500 ms), gap 1.00, bytes 1.000\n- PASS: guest throughput",
		"\nRun 3 of qemu plain failed: the move took more than 2m\n",
		"\n| godwit --codec lz4 |",
	} {
		require.Contains(t, text, part)
	}
	require.NotContains(t, text, "idle-8g")
}

// Raw lines say all that the tables need.
func TestRawLinesComeBack(t *testing.T) {
	s := measured("ws-20k", map[string][]float64{"qemu raw": {1, 2}, "godwit raw": {3}}, func(r *Result) {
		r.Report, r.FirstRoundPages, r.Error = []byte(`{"a":[1]}`), 7, "x"
	})
	s.Skipped = []skipped{{"skipped", "local", "godwit local", "why"}}
	var raw bytes.Buffer
	fmt.Fprintln(&raw, `{"kind":"host","kernel":"an older invocation"}`)
	fmt.Fprintln(&raw, `{"kind":"run","case":"ws-20k","setting":"qemu raw","total_ms":99}`)
	s.raw = &raw
	require.NoError(t, s.note(s.Host))
	require.NoError(t, s.note(s.Skipped[0]))
	for _, r := range s.Results {
		require.NoError(t, s.note(r))
	}
	back, err := parseSession(&raw)
	require.NoError(t, err)
	s.raw = nil
	require.Equal(t, s, back)

	for text, says := range map[string]string{
		"":                                  errNoSession.Error(),
		`{"kind":"run"}`:                    errNoSession.Error(),
		"{\"kind\":\"host\"}\n{\"kind\":1}": "line 2",
		"{\"kind\":\"host\"}\n{\"kind\":\"walk\"}": `kind "walk" is not known`,
		"no JSON": "line 1",
	} {
		_, err := parseSession(strings.NewReader(text))
		require.ErrorContains(t, err, says, text)
	}
}
