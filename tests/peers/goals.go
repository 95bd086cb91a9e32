package main

import (
	"fmt"
	"math"
)

// row is all runs of one setting.
type row struct {
	Setting              string
	Side                 Side
	Apart                bool
	Runs, Failed         int
	Total, Downtime      spread
	Gap, GapCopy, MB     spread
	Rounds               spread
	Throttle             int     // the most in any run
	Pages                float64 // least of first_round_pages
	Undisturbed, During  spread
	Fraction, WorstBySec spread // of undisturbed
	BySecond             []float64
	Ops, MBPerS          spread // of loads
	P50, P99             spread // us
}

// table is all rows of one case, in the case's order.
type table struct {
	Case Case
	Rows []row
}

// tabulate makes the table of a case. Settings without a run have no row.
func tabulate(s *session, k Case) table {
	t := table{Case: k}
	for _, name := range settingNames(s, k) {
		r := row{Setting: name, Pages: math.Inf(1)}
		for _, set := range k.Settings {
			if set.Name == name {
				r.Apart = set.Apart
			}
		}
		r.collect(s, k.Name)
		t.Rows = append(t.Rows, r)
	}
	return t
}

// settingNames are those with runs, in the order of the case, then of the runs.
func settingNames(s *session, k Case) []string {
	there := map[string]bool{}
	var names, rest []string
	for _, r := range s.Results {
		if r.Case == k.Name && !there[r.Setting] {
			there[r.Setting] = true
			rest = append(rest, r.Setting)
		}
	}
	for _, set := range k.Settings {
		if there[set.Name] {
			names = append(names, set.Name)
			there[set.Name] = false
		}
	}
	for _, name := range rest {
		if there[name] {
			names = append(names, name)
		}
	}
	return names
}

func (r *row) collect(s *session, in string) {
	var good []Result
	for _, v := range s.Results {
		if v.Case != in || v.Setting != r.Setting {
			continue
		}
		r.Side = v.Side
		if v.Error != "" {
			r.Failed++
			continue
		}
		good = append(good, v)
	}
	r.Runs = len(good)
	if r.Runs == 0 {
		return
	}
	of := func(figure func(Result) float64) spread {
		var all []float64
		for _, v := range good {
			all = append(all, figure(v))
		}
		return spreadOf(all)
	}
	r.Total = of(func(v Result) float64 { return v.TotalMS })
	r.Downtime = of(func(v Result) float64 { return v.DowntimeMS })
	r.Gap = of(func(v Result) float64 { return v.GapMS })
	r.GapCopy = of(func(v Result) float64 { return v.GapCopyMS })
	r.MB = of(func(v Result) float64 { return float64(v.WireBytes) / 1e6 })
	r.Rounds = of(func(v Result) float64 { return float64(v.Rounds) })
	for _, v := range good {
		r.Throttle = max(r.Throttle, v.ThrottleMax)
		if v.FirstRoundPages > 0 {
			r.Pages = min(r.Pages, float64(v.FirstRoundPages))
		}
	}
	r.Ops = of(func(v Result) float64 { return v.OpsPerS })
	r.MBPerS = of(func(v Result) float64 { return v.BytesPerS / 1e6 })
	r.P50 = of(func(v Result) float64 { return v.P50US })
	r.P99 = of(func(v Result) float64 { return v.P99US })
	if good[0].UndisturbedPerS == 0 {
		return
	}
	r.Undisturbed = of(func(v Result) float64 { return v.UndisturbedPerS })
	r.During = of(func(v Result) float64 { return v.DuringPerS })
	r.Fraction = of(func(v Result) float64 { return v.DuringPerS / v.UndisturbedPerS })
	r.WorstBySec = of(func(v Result) float64 { return v.worstSecond() / v.UndisturbedPerS })
	nearest := -1.0
	for _, v := range good {
		// Of the run in the middle, or just below it.
		if f := v.DuringPerS / v.UndisturbedPerS; f <= r.Fraction.Median && f > nearest {
			nearest, r.BySecond = f, nil
			for _, second := range v.BySecond {
				r.BySecond = append(r.BySecond, second/v.UndisturbedPerS)
			}
		}
	}
}

func (r Result) worstSecond() float64 {
	worst := math.Inf(1)
	for _, v := range r.BySecond {
		worst = min(worst, v)
	}
	return worst
}

// best is the side's row with the shortest median total, of loads the one that got
// most done.
func (t table) best(side Side, is func(row) bool) (row, bool) {
	var best row
	found := false
	for _, r := range t.Rows {
		if r.Side != side || r.Apart || r.Runs == 0 || is != nil && !is(r) {
			continue
		}
		if !found || r.Total.Median < best.Total.Median || r.Ops.Median > best.Ops.Median {
			best, found = r, true
		}
	}
	return best, found
}

// floor is the least time that the link of the case allows, in ms, and how it was
// found.
func (t table) floor() (ms float64, how string) {
	pages := math.Inf(1)
	for _, r := range t.Rows {
		pages = min(pages, r.Pages)
	}
	how = "godwit's first round: pages sent less all zero pages, the least of all runs"
	if math.IsInf(pages, 1) {
		g := t.Case.Guest
		// The version table has 8 bytes for each page of the working set.
		pages = float64(t.Case.filledMiB()*mib/4096) + float64(g.WS*mib/4096*8/4096)
		how = "the guest's options: fill and version table"
	}
	return pages * 4096 / float64(t.Case.Link) * 1000, fmt.Sprintf("%.0f pages x 4096 / %s; pages by %s", pages, linkName(t.Case.Link), how)
}

// verdict is a goal and what was reached.
type verdict struct {
	Goal, Reached string
	Met, Known    bool
}

func judged(goal string, met bool, reached string, a ...any) verdict {
	return verdict{Goal: goal, Reached: fmt.Sprintf(reached, a...), Met: met, Known: true}
}

func (v verdict) String() string {
	switch {
	case !v.Known:
		return "NOT MEASURED: " + v.Goal + ": " + v.Reached
	case v.Met:
		return "PASS: " + v.Goal + ": " + v.Reached
	}
	return "MISS: " + v.Goal + ": " + v.Reached
}

// goals are what was to be reached, by case. Both rows are those with the
// shortest median total; other is there when QEMU is.
var goals = map[string]func(t table, ours, other row, both bool) []verdict{
	"idle-8g": func(_ table, ours, other row, both bool) []verdict {
		v := []verdict{judged("downtime at most 2 ms", ours.Downtime.Median <= 2, "%.2f ms", ours.Downtime.Median),
			judged("the guest's longest gap at most 5 ms", ours.Gap.Median <= 5, "%.2f ms", ours.Gap.Median)}
		if !both {
			return append(v, missing("total at most 1/10 of QEMU's best"), missing("gap at most QEMU's + 2 ms"))
		}
		return append(v,
			judged("total at most 1/10 of QEMU's best", ours.Total.Median <= other.Total.Median/10, "%.1f of %.0f ms, %.3f", ours.Total.Median, other.Total.Median, ours.Total.Median/other.Total.Median),
			judged("gap at most QEMU's + 2 ms", ours.Gap.Median <= other.Gap.Median+2, "%.2f and %.2f ms", ours.Gap.Median, other.Gap.Median))
	},
	"fill-1g": func(t table, ours, _ row, _ bool) []verdict {
		const goal = "total at most 0.7 of QEMU multifd's best setting"
		other, ok := t.best(QEMU, func(r row) bool { return r.Setting != "qemu plain" })
		if !ok {
			return []verdict{missing(goal)}
		}
		return []verdict{judged(goal, ours.Total.Median <= 0.7*other.Total.Median, "%.0f of %.0f ms, %.2f", ours.Total.Median, other.Total.Median, ours.Total.Median/other.Total.Median)}
	},
	"ws-20k": func(t table, ours, other row, both bool) []verdict { return overFloor(t, ours, other, both, 1.05) },
	"ws-50k": func(t table, ours, other row, both bool) []verdict {
		limit := float64(t.Case.Downtime.Milliseconds())
		return append(overFloor(t, ours, other, both, 1.1),
			judged("converges with no throttle", ours.Throttle == 0 && ours.Downtime.Median <= limit, "throttle %d %%, downtime %.1f ms of %.0f allowed", ours.Throttle, ours.Downtime.Median, limit))
	},
	"local": func(_ table, ours, _ row, _ bool) []verdict {
		return []verdict{judged("total at most 50 ms", ours.Total.Median <= 50, "%.1f ms", ours.Total.Median),
			judged("downtime at most 5 ms", ours.Downtime.Median <= 5, "%.2f ms", ours.Downtime.Median)}
	},
	"bulk-50k":   throughput,
	"bulk-read":  throughput,
	"bulk-write": throughput,

	"blk-4k-randread": atLeast(1.2),
	"blk-256k-read":   atLeast(1.0),
	"blk-256k-write":  atLeast(1.0),
	"net-64":          atLeast(1.0),
	"net-tso":         atLeast(1.0),
	"qcow2-4k-randread": func(t table, ours, other row, both bool) []verdict {
		const goal = "at least 0.90 of our raw"
		v := atLeast(1.0)(t, ours, other, both)
		for _, r := range t.Rows {
			if r.Side == Godwit && r.Apart && r.Runs > 0 {
				return append(v, judged(goal, ours.Ops.Median >= 0.9*r.Ops.Median, "%s of %s requests/s, %.3f", digits(ours.Ops.Median), digits(r.Ops.Median), ours.Ops.Median/r.Ops.Median))
			}
		}
		return append(v, verdict{Goal: goal, Reached: "no run of godwit raw that counts"})
	},
}

// atLeast judges a load: so much of what QEMU's best setting got done.
func atLeast(share float64) func(table, row, row, bool) []verdict {
	return func(t table, ours, other row, both bool) []verdict {
		goal, unit := fmt.Sprintf("at least %.2f of QEMU's best", share), "requests/s"
		mine, theirs := ours.Ops.Median, other.Ops.Median
		if t.Case.Load.Bytes {
			unit, mine, theirs = "MB/s", ours.MBPerS.Median, other.MBPerS.Median
		}
		if !both {
			return []verdict{missing(goal)}
		}
		return []verdict{judged(goal, mine >= share*theirs, "%s of %s %s (%s), %.3f", digits(mine), digits(theirs), unit, other.Setting, mine/theirs)}
	}
}

// throughput judges what the guest got done during the fastest move.
func throughput(_ table, ours, other row, both bool) []verdict {
	reached := fmt.Sprintf("%.2f, in its worst second %.2f (%s)", ours.Fraction.Median, ours.WorstBySec.Median, ours.Setting)
	if both {
		reached += fmt.Sprintf("; %s %.2f and %.2f", other.Setting, other.Fraction.Median, other.WorstBySec.Median)
	}
	return []verdict{judged("guest throughput at least 0.6 of undisturbed", ours.Fraction.Median >= 0.6, "%s", reached)}
}

func missing(goal string) verdict { return verdict{Goal: goal, Reached: "no run of QEMU that counts"} }

func overFloor(t table, ours, other row, both bool, most float64) []verdict {
	floor, how := t.floor()
	reached := fmt.Sprintf("%.0f ms over %.0f ms, %.3f", ours.Total.Median, floor, ours.Total.Median/floor)
	if both {
		reached += fmt.Sprintf(" (QEMU's best %.3f)", other.Total.Median/floor)
	}
	return []verdict{judged(fmt.Sprintf("total at most %.2f of the floor", most), ours.Total.Median <= most*floor, "%s; floor: %s", reached, how)}
}

// verdicts judges the case, if there is something to judge.
func (t table) verdicts() []verdict {
	judge := goals[t.Case.Name]
	if judge == nil || len(t.Rows) == 0 {
		return nil
	}
	ours, ok := t.best(Godwit, nil)
	if !ok {
		return []verdict{{Goal: "all goals of " + t.Case.Name, Reached: "no run of a setting of godwit that counts"}}
	}
	other, both := t.best(QEMU, nil)
	return judge(t, ours, other, both)
}
