package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"godwit/cmd/godwit/internal/plain"
	"godwit/lab"
	"godwit/vmm"
)

// diagnosis is what `doctor --json` prints.
type diagnosis struct {
	*vmm.Examination
	Lab     labFact  `json:"lab"`
	Verdict []string `json:"verdict"`
}

// labFact says whether `godwit lab` can run.
type labFact struct {
	Usable bool   `json:"usable"`
	Error  string `json:"error,omitempty"`
	Cache  string `json:"cache"`
}

func newDoctor() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out by measuring what this host can do, and what to do about what it cannot",
		Long: `Find out by measuring what this host can do, and what to do about what it cannot.

Runs small guests: each kernel-mode instruction that Linux needs in a virtual machine of its own, a loop for the speed
of kernel mode, exits, the dirty log, the TSC. Takes about a second. Ends with 1 if no guest can run, directly or in
the lab.`,
		Example: "  godwit doctor\n  godwit doctor --json",
		Args:    cobra.NoArgs,
		RunE: action(func(*cobra.Command, []string) error {
			ctx, stop := untilSignal()
			defer stop()
			d, err := diagnose(ctx)
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(d)
			} else {
				show(d.text())
			}
			if err == nil && !d.Metronome && !d.Lab.Usable {
				err = &exitError{code: exitFailed}
			}
			return err
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object, as in doctor --json")
	return cmd
}

func diagnose(ctx context.Context) (*diagnosis, error) {
	x, err := vmm.Examine(ctx)
	if err != nil {
		return nil, err
	}
	d := &diagnosis{Examination: x, Verdict: x.Verdict()}
	if d.Lab.Cache, err = cacheDir(""); err == nil {
		err = lab.Check(d.Lab.Cache)
	}
	if d.Lab.Usable = err == nil; err != nil {
		d.Lab.Error = err.Error()
	}
	switch {
	case d.Lab.Usable:
		d.Verdict = append(d.Verdict, "godwit lab: ready")
	default:
		d.Verdict = append(d.Verdict, "godwit lab: not ready: "+oneLine(d.Lab.Error))
	}
	return d, nil
}

// text is the diagnosis for people.
func (d *diagnosis) text() string {
	var b strings.Builder
	line := func(name, format string, a ...any) {
		fmt.Fprintf(&b, "%-13s %s\n", name, plain.Line(fmt.Sprintf(format, a...)))
	}
	if !d.KVM.Usable {
		line("/dev/kvm", "not usable: %s", d.KVM.Error)
	} else {
		line("/dev/kvm", "%s, API version %d, at most %d vCPUs", d.KVM.Kind, d.KVM.APIVersion, d.KVM.MaxVCPUs)
		line("capabilities", "%s", d.capabilities())
	}
	if len(d.Instructions) > 0 {
		line("kernel mode", "%s", d.instructions())
	}
	if s := d.Speed; s != nil {
		line("speed", "%.1f million kernel-mode instructions a second, an exit and back %.1f us", s.KernelMIPS, s.ExitMicros)
	}
	if l := d.DirtyLog; l != nil {
		line("dirty log", "%d of %d written pages seen, %d others", l.Seen, l.Written, l.Extra)
	}
	if t := d.TSC; t != nil {
		scaling := "no scaling"
		if t.Scaling {
			scaling = "scaling"
		}
		line("TSC", "%.3f GHz, offset %s, %s", float64(t.KHz)/1e6, t.Offset, scaling)
	}
	m := d.Memory
	line("memory", "%d MiB, %d available; huge pages: %s; PAGEMAP_SCAN: %s; userfaultfd: %s",
		m.TotalMiB, m.AvailableMiB, orNone(m.HugePages), yesNo(m.PagemapScan), m.Userfaultfd)
	fmt.Fprintln(&b)
	for _, v := range d.Verdict {
		fmt.Fprintln(&b, plain.Line(v))
	}
	return b.String()
}

func (d *diagnosis) capabilities() string {
	missing := d.MissingCapabilities()
	var optional []string
	for _, c := range d.KVM.Capabilities {
		if !c.Needed && c.Value == 0 {
			optional = append(optional, c.Name)
		}
	}
	text := "all that are needed"
	if len(missing) > 0 {
		text = "missing: " + strings.Join(missing, ", ")
	}
	if len(optional) > 0 {
		text += "; without " + strings.Join(optional, ", ")
	}
	return text
}

// instructions lists what is not ok.
func (d *diagnosis) instructions() string {
	var bad []string
	for _, i := range d.Instructions {
		if i.Result != "ok" {
			bad = append(bad, fmt.Sprintf("%s (%s)", i.Name, i.Result))
		}
	}
	if len(bad) == 0 {
		return fmt.Sprintf("all %d instructions tried work", len(d.Instructions))
	}
	return fmt.Sprintf("%d of %d instructions tried do not work: %s", len(bad), len(d.Instructions), strings.Join(bad, ", "))
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
