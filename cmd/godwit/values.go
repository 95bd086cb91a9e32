package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"godwit/cmd/godwit/internal/units"
	"godwit/vmm"
)

// Flag values: what pflag needs to read and show our units.

// memoryValue is a size in MiB; 0 is not given.
type memoryValue int

func (v *memoryValue) Set(s string) error {
	mib, err := units.ParseMiB(s)
	*v = memoryValue(mib)
	return err
}

func (v *memoryValue) Type() string { return "SIZE" }

func (v *memoryValue) String() string {
	if *v == 0 {
		return ""
	}
	return units.FormatMiB(int(*v))
}

// countValue is a whole number from least to most; 0 is not given unless least is 0.
type countValue struct {
	n           *int
	least, most int
}

// addCount adds a flag that takes a whole number.
func addCount(f *pflag.FlagSet, to *int, name string, value, least, most int, text string) {
	*to = value
	f.Var(&countValue{to, least, most}, name, text)
}

func (v *countValue) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < v.least || n > v.most {
		return fmt.Errorf("number %.40q: %w; write a whole number from %d to %d", s, units.ErrSyntax, v.least, v.most)
	}
	*v.n = n
	return nil
}

func (v *countValue) Type() string { return "N" }

func (v *countValue) String() string {
	if v.n == nil || *v.n == 0 {
		return ""
	}
	return strconv.Itoa(*v.n)
}

// rateValue is bytes per second; 0 is no limit.
type rateValue int64

func (v *rateValue) Set(s string) error {
	rate, err := units.ParseRate(s)
	*v = rateValue(rate)
	return err
}

func (v *rateValue) Type() string { return "RATE" }

func (v *rateValue) String() string {
	if *v == 0 {
		return ""
	}
	return units.FormatRate(float64(*v))
}

// timeValue is a time of 0 or above.
type timeValue time.Duration

func (v *timeValue) Set(s string) error {
	d, err := parseTime(s)
	*v = timeValue(d)
	return err
}

func (v *timeValue) Type() string { return "TIME" }

func (v *timeValue) String() string {
	if *v == 0 {
		return ""
	}
	return time.Duration(*v).String()
}

func (v timeValue) ms() float64 { return float64(v) / float64(time.Millisecond) }

// longestTime bounds what a user may ask for: 30 days.
const longestTime = 30 * 24 * time.Hour

func parseTime(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil || d < 0:
		return 0, fmt.Errorf("time %.40q: %w; write for example 30ms or 2s", s, units.ErrSyntax)
	case d > longestTime:
		return 0, fmt.Errorf("time %.40q: %w: longer than %.0f hours", s, units.ErrSyntax, longestTime.Hours())
	}
	return d, nil
}

// drivesValue collects --disk.
type drivesValue []vmm.Drive

func (v *drivesValue) Set(s string) error {
	d, err := parseDrive(s)
	if err == nil {
		*v = append(*v, d)
	}
	return err
}

func (v *drivesValue) Type() string   { return "path=FILE[,..]" }
func (v *drivesValue) String() string { return "" }

// parseDrive reads path=F[,id=S][,format=raw|qcow2][,readonly][,snapshot][,cache=..][,on-full=..][,backing=any]. What a
// value may be is vmm's to say.
func parseDrive(s string) (vmm.Drive, error) {
	pairs, err := units.ParsePairs(s)
	if err != nil {
		return vmm.Drive{}, err
	}
	var d vmm.Drive
	for _, p := range pairs {
		switch {
		case p.Key == "readonly" && p.Value == "":
			d.IsReadOnly = true
			continue
		case p.Key == "snapshot" && p.Value == "":
			d.Snapshot = true
			continue
		case p.Value == "":
		case p.Key == "path":
			d.PathOnHost = p.Value
			continue
		case p.Key == "id":
			d.ID = p.Value
			continue
		case p.Key == "format":
			d.Format = p.Value
			continue
		case p.Key == "cache":
			d.Cache = p.Value
			continue
		case p.Key == "on-full":
			d.OnFull = p.Value
			continue
		case p.Key == "backing":
			d.Backing = p.Value
			continue
		}
		return vmm.Drive{}, fmt.Errorf("disk %.200q: %w: %.40q; write path=FILE[,id=NAME][,format=raw|qcow2][,readonly][,snapshot][,cache=none|writeback|writethrough][,on-full=pause|report][,backing=any]",
			s, units.ErrSyntax, p.Key)
	}
	if d.PathOnHost == "" {
		return vmm.Drive{}, fmt.Errorf("disk %.200q: %w: no path; write path=FILE", s, units.ErrSyntax)
	}
	return d, nil
}

// diskMapValue collects `receive --disk ID=PATH`.
type diskMapValue map[string]string

func (v diskMapValue) Set(s string) error {
	id, path, ok := strings.Cut(s, "=")
	if !ok || id == "" || path == "" {
		return fmt.Errorf("disk %.200q: %w; write ID=PATH, for example vda=/srv/root.img", s, units.ErrSyntax)
	}
	if id == "path" {
		return fmt.Errorf("disk %.200q: %w: here the source's name for the disk comes first; write ID=PATH, for example vda=%s", s, units.ErrSyntax, path)
	}
	if _, twice := v[id]; twice {
		return fmt.Errorf("disk %.200q: %w: %s given twice", s, units.ErrSyntax, id)
	}
	v[id] = path
	return nil
}

func (v diskMapValue) Type() string   { return "ID=PATH" }
func (v diskMapValue) String() string { return "" }
