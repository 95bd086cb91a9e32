package main

import (
	"fmt"
	"strings"
)

// render writes all tables as Markdown, which a terminal shows well enough.
func render(s *session, all []Case) string {
	var b strings.Builder
	h := s.Host
	changed := ""
	if h.Modified {
		changed = ", with changes"
	}
	fmt.Fprintf(&b, "Measured %s with `%s`: %s, %d cores, %d MiB, Linux %s, KVM modules %s; %s; godwit %.12s%s.\n",
		h.Date, h.Command, h.CPU, h.Cores, h.MemoryMiB, h.Kernel, h.KVM, h.QEMU, h.Commit, changed)
	b.WriteString("Memory of both ends was warmed before each move. Figures are medians, with least and most in brackets.\n")
	for _, k := range all {
		t := tabulate(s, k)
		left := leftOut(s, k.Name)
		if len(t.Rows) == 0 && left == "" {
			continue
		}
		fmt.Fprintf(&b, "\n### %s\n\n%s. Guest: `%s`%s.\n\n", k.Name, k.About, k.Guest.String(), k.limits("; "))
		switch {
		case len(t.Rows) == 0:
		case k.Load != nil:
			t.loads(&b)
		default:
			t.moves(&b)
		}
		if k.Throughput && len(t.Rows) > 0 {
			t.throughput(&b)
		}
		b.WriteString(left)
		t.conclusions(&b)
		t.errors(&b, s)
	}
	return b.String()
}

// digits says how many a figure needs: three that mean something.
func digits(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (s spread) String() string {
	if s.Min == s.Max {
		return digits(s.Median)
	}
	return fmt.Sprintf("%s (%s-%s)", digits(s.Median), digits(s.Min), digits(s.Max))
}

func counted(r row) string {
	if r.Failed > 0 {
		return fmt.Sprintf("%d, %d failed", r.Runs, r.Failed)
	}
	return fmt.Sprint(r.Runs)
}

func (t table) moves(b *strings.Builder) {
	b.WriteString("| setting | runs | total ms | downtime ms | gap ms | gap while copying ms | MB | rounds |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range t.Rows {
		if r.Runs == 0 {
			fmt.Fprintf(b, "| %s | %s | | | | | | |\n", r.Setting, counted(r))
			continue
		}
		fmt.Fprintf(b, "| %s | %s | %v | %v | %v | %v | %.0f | %.0f |\n", r.Setting, counted(r), r.Total, r.Downtime, r.Gap, r.GapCopy, r.MB.Median, r.Rounds.Median)
	}
}

func (t table) loads(b *strings.Builder) {
	b.WriteString("| setting | runs | requests/s | MB/s | median us | 99 % us |\n|---|---|---|---|---|---|\n")
	for _, r := range t.Rows {
		if r.Runs == 0 {
			fmt.Fprintf(b, "| %s | %s | | | | |\n", r.Setting, counted(r))
			continue
		}
		fmt.Fprintf(b, "| %s | %s | %v | %v | %v | %v |\n", r.Setting, counted(r), r.Ops, r.MBPerS, r.P50, r.P99)
	}
}

func (t table) throughput(b *strings.Builder) {
	b.WriteString("\n| setting | operations/s undisturbed | in the first pass | fraction | worst second | by second, of undisturbed |\n|---|---|---|---|---|---|\n")
	for _, r := range t.Rows {
		if r.Runs == 0 || r.Undisturbed.Median == 0 {
			continue
		}
		var seconds []string
		for _, v := range r.BySecond {
			seconds = append(seconds, fmt.Sprintf("%.2f", v))
		}
		fmt.Fprintf(b, "| %s | %v | %v | %v | %v | %s |\n", r.Setting, r.Undisturbed, r.During, r.Fraction, r.WorstBySec, strings.Join(seconds, " "))
	}
}

func leftOut(s *session, name string) string {
	var b strings.Builder
	for _, k := range s.Skipped {
		if k.Case == name {
			fmt.Fprintf(&b, "\nLeft out: %s, because %s.\n", k.Setting, k.Reason)
		}
	}
	return b.String()
}

// conclusions are the ratios and the goals.
func (t table) conclusions(b *strings.Builder) {
	ours, ok := t.best(Godwit, nil)
	other, both := t.best(QEMU, nil)
	var lines []string
	switch {
	case !ok || !both:
	case t.Case.Load != nil:
		lines = append(lines, fmt.Sprintf("Ratio, %s to %s: requests/s **%.3f** (%s to %s), median latency %.2f",
			ours.Setting, other.Setting, ours.Ops.Median/other.Ops.Median, digits(ours.Ops.Median), digits(other.Ops.Median), ours.P50.Median/other.P50.Median))
	default:
		lines = append(lines, fmt.Sprintf("Ratio, %s to %s: total **%.3f** (%s to %s ms), gap %.2f, bytes %.3f", ours.Setting, other.Setting,
			ours.Total.Median/other.Total.Median, digits(ours.Total.Median), digits(other.Total.Median), ours.Gap.Median/other.Gap.Median, ours.MB.Median/other.MB.Median))
	}
	for _, v := range t.verdicts() {
		lines = append(lines, v.String())
	}
	if len(lines) > 0 {
		b.WriteString("\n- " + strings.Join(lines, "\n- ") + "\n")
	}
}

func (t table) errors(b *strings.Builder, s *session) {
	for _, r := range s.Results {
		if r.Case == t.Case.Name && r.Error != "" {
			fmt.Fprintf(b, "\nRun %d of %s failed: %s\n", r.Run, r.Setting, r.Error)
		}
	}
}
