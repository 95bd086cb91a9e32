package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"godwit/boot/metronome"
)

// bench is what all runs share.
type bench struct {
	starter      *starter
	qemu, godwit string // programs
	dir          string // for sockets, certificates, the guest
	elf          string // the guest, as a file
	tscKHz       uint32
	timeout      time.Duration // of each stage of a run
	loads        *loader
	say          func(format string, a ...any)
}

// So many beats in a row, none lost and at the right rate, must the guest have had
// before it moves. Of cases with throughput they are what the move is compared with.
const (
	quietBeats      = 6
	throughputBeats = 21
)

// commandLine is the guest's, the same on both sides.
func (b *bench) commandLine(k *Case) string {
	o := k.Guest
	o.TSCKHz = uint64(b.tscKHz)
	return o.String()
}

func (b *bench) prepare() error {
	b.loads = &loader{b: b, images: map[string]string{}}
	b.elf = filepath.Join(b.dir, "metronome.elf")
	return os.WriteFile(b.elf, metronome.ELF(), 0o600)
}

// unfit says why a setting cannot be tried with this godwit.
func (b *bench) unfit(ctx context.Context, k *Case, s *Setting) (string, error) {
	if s.Needs == "" {
		return "", nil
	}
	command := "migrate"
	if k.Load != nil {
		command = "run"
	}
	help, err := exec.CommandContext(ctx, b.godwit, command, "--help").Output()
	if err != nil {
		return "", fmt.Errorf("run %s %s --help: %w", b.godwit, command, err)
	}
	for _, word := range strings.Fields(string(help)) {
		if word == s.Needs {
			return "", nil
		}
	}
	return fmt.Sprintf("%s %s has no flag %s", b.godwit, command, s.Needs), nil
}

// measure does the runs of one case, every setting in turn.
func (b *bench) measure(ctx context.Context, ses *session, k *Case, runs int) error {
	var fit []Setting
	for _, s := range k.Settings {
		reason, err := b.unfit(ctx, k, &s)
		if err != nil {
			return err
		}
		if reason == "" {
			fit = append(fit, s)
			continue
		}
		b.say("%s, %s: left out: %s", k.Name, s.Name, reason)
		out := skipped{Kind: "skipped", Case: k.Name, Setting: s.Name, Reason: reason}
		ses.Skipped = append(ses.Skipped, out)
		if err := ses.note(out); err != nil {
			return err
		}
	}
	for run := 1; run <= runs; run++ {
		for _, s := range fit {
			r := Result{Kind: "run", Case: k.Name, Setting: s.Name, Side: s.Side, Run: run, At: time.Now().UTC().Format(time.RFC3339)}
			once := b.once
			if k.Load != nil {
				once = b.loads.once
			}
			err := once(ctx, k, &s, &r)
			if ctx.Err() != nil {
				return context.Cause(ctx) // half a run is none
			}
			if err != nil {
				r.Error = err.Error()
			}
			b.say("%s", r.line())
			ses.Results = append(ses.Results, r)
			if err := ses.note(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// line is the run for who watches.
func (r Result) line() string {
	head := fmt.Sprintf("%s run %d, %s: ", r.Case, r.Run, r.Setting)
	if r.Error != "" {
		return head + "ERROR: " + r.Error
	}
	if r.OpsPerS > 0 {
		return head + fmt.Sprintf("%.0f requests/s, %.1f MB/s, median %.0f us, 99 %% %.0f us", r.OpsPerS, r.BytesPerS/1e6, r.P50US, r.P99US)
	}
	text := head + fmt.Sprintf("total %.0f ms, downtime %.2f ms, gap %.1f ms (%.1f before, %.1f while copying), %.0f MB, %d rounds",
		r.TotalMS, r.DowntimeMS, r.GapMS, r.GapBeforeMS, r.GapCopyMS, float64(r.WireBytes)/1e6, r.Rounds)
	if r.UndisturbedPerS > 0 {
		text += fmt.Sprintf(", %.0f operations/s of %.0f", r.DuringPerS, r.UndisturbedPerS)
	}
	return text
}

// stage is a context for one part of a run.
func (b *bench) stage(ctx context.Context, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, b.timeout, fmt.Errorf("%s took more than %v; -timeout sets that", what, b.timeout))
}

// once is one run. Nothing of it is left when it returns.
func (b *bench) once(ctx context.Context, k *Case, s *Setting, r *Result) (err error) {
	if err := k.enoughMemory(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(b.dir, "r")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	m, err := b.mover(k, s, dir)
	if err != nil {
		return err
	}
	from, err := b.boot(ctx, m)
	if err != nil {
		return err
	}
	defer from.close()
	to, err := b.ready(ctx, k, m, from, r)
	if err != nil {
		return err
	}
	defer to.close()
	v, err := b.move(ctx, m, from, to, r)
	if err != nil {
		return err
	}
	return b.afterwards(ctx, k, from, to, v, r)
}

func (b *bench) mover(k *Case, s *Setting, dir string) (mover, error) {
	if s.Side == QEMU {
		return &qemuMover{b: b, k: k, s: s, dir: dir}, nil
	}
	m := &godwitMover{b: b, k: k, s: s, dir: dir}
	if s.TLS {
		var err error
		if m.certs, err = certify(dir); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// enoughMemory refuses a case that would make the kernel kill somebody.
func (k *Case) enoughMemory() error {
	free, err := availableMiB()
	if err != nil {
		return fmt.Errorf("how much memory is free: %w", err)
	}
	if need := 2*k.filledMiB() + 2*warmSlack; free < need {
		return fmt.Errorf("two guests and their programs take %d MiB, and %d MiB are available; end something, or leave this case out with -cases", need, free)
	}
	return nil
}

func (k *Case) filledMiB() int { return int(max(k.Guest.Fill, k.Guest.WS) + k.Guest.Text) }

// boot starts the guest and waits until it beats.
func (b *bench) boot(ctx context.Context, m mover) (*end, error) {
	ctx, cancel := b.stage(ctx, "booting and filling")
	defer cancel()
	from, err := m.source(ctx)
	if err != nil {
		return nil, err
	}
	err = await(ctx, "the guest to fill its memory and beat", &from.console.watch, []*process{from.p}, func() (bool, error) {
		s, err := read(from.console, nil)
		return s.filled && len(s.source) >= 2, err
	})
	if err != nil {
		from.close()
		return nil, err
	}
	return from, nil
}

// ready starts the destination, warms memory and waits until the guest has been
// quiet since.
func (b *bench) ready(ctx context.Context, k *Case, m mover, from *end, r *Result) (*end, error) {
	ctx, cancel := b.stage(ctx, "getting ready")
	defer cancel()
	to, err := m.destination(ctx)
	if err != nil {
		return nil, err
	}
	if err := warm(ctx, b.starter, k.filledMiB()+warmSlack); err != nil {
		to.close()
		return nil, err
	}
	warmed := time.Now()
	want := quietBeats
	if k.Throughput {
		want = throughputBeats
	}
	var quiet []beatAt
	err = await(ctx, "the guest to beat steadily", &from.console.watch, []*process{from.p, to.p}, func() (bool, error) {
		s, err := read(from.console, nil)
		quiet = between(s.source, warmed, time.Now())
		if len(quiet) < want {
			return false, err
		}
		quiet = quiet[len(quiet)-want:]
		return steady(quiet, want, k.Guest.Beat, k.Guest.Rate), err
	})
	if err != nil {
		to.close()
		return nil, err
	}
	r.GapBeforeMS = longestGap(quiet[1:]) // the first one's began before
	if k.Throughput {
		r.UndisturbedPerS = perSecond(quiet)
	}
	return to, nil
}

// move moves the guest and keeps what the program says of it.
func (b *bench) move(ctx context.Context, m mover, from, to *end, r *Result) (moved, error) {
	ctx, cancel := b.stage(ctx, "the move")
	defer cancel()
	began := time.Now()
	v, err := m.move(ctx, from, to)
	r.WallMS = float64(time.Since(began).Microseconds()) / 1000
	r.TotalMS, r.DowntimeMS, r.WireBytes, r.Rounds = v.totalMS, v.downtimeMS, v.wireBytes, v.rounds
	r.ThrottleMax, r.FirstRoundPages, r.Report = v.throttleMax, v.firstRoundPages, v.report
	return v, err
}

// afterwards waits for a second of beats, and for one sweep over all memory that
// began after the move: the guest has then looked at every page.
func (b *bench) afterwards(ctx context.Context, k *Case, from, to *end, v moved, r *Result) error {
	ctx, cancel := b.stage(ctx, "the guest's look at its memory after the move")
	defer cancel()
	second := int(time.Second/k.Guest.Beat) + 1
	var s story
	err := await(ctx, "the guest to beat and sweep at the destination", &to.console.watch, []*process{to.p}, func() (bool, error) {
		var err error
		s, err = read(from.console, to.console)
		n := len(s.there)
		// The first sweep to end began before the move.
		return err == nil && n >= second && s.there[n-1].Sweeps >= s.there[0].Sweeps+2, err
	})
	if err != nil {
		return err
	}
	r.Sweeps = s.there[len(s.there)-1].Sweeps - s.there[0].Sweeps - 1
	r.GapMS = longestGap(s.there[:second])
	r.GapCopyMS = longestGap(between(s.source, v.passFrom, time.Now()))
	if k.Throughput {
		during := between(s.source, v.passFrom, v.passTo)
		r.DuringPerS, r.BySecond = perSecond(during), bySecond(during)
		if r.DuringPerS == 0 {
			return fmt.Errorf("the pass took %v, too short for two beats of the guest", v.passTo.Sub(v.passFrom).Round(time.Millisecond))
		}
	}
	return nil
}
