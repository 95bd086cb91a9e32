package metronome

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options is the guest's command line. Start from Defaults: the zero value is not
// valid. Sizes are in MiB.
type Options struct {
	Mem  uint64 // cap on RAM; needed only where the loader passes no memory map; 0 is no cap
	Fill uint64 // incompressible memory
	Text uint64 // compressible memory, about 2:1
	WS   uint64 // working set: the first WS MiB of the fill, which grows to hold it

	Rate    uint64  // operations (page writes and reads) per second, all vCPUs; 0 is as fast as it can
	Bytes   uint64  // bytes changed per write, a multiple of 8 up to 4096
	Pattern Pattern // which page comes next
	Reads   uint64  // percent of the operations that read and verify instead of writing
	VCPUs   uint64  // vCPUs to use, 1..MaxVCPUs; APIC IDs must be 0..VCPUs-1

	Beat   time.Duration // time between two beat lines, whole milliseconds, 10 ms..1 h
	Seed   uint64        // of contents and of the random choices
	TSCKHz uint64        // TSC frequency; 0 lets the guest measure it against the PIT (50 ms)
	Sweep  uint64        // percent of the time that the sweeper may take, 0..90; 0 is no sweeper
	Sample uint64        // never-touched pages that are read, and must be zero, once a sweep
	Plant  []Plant       // faults that the guest puts into its own memory at the first beat

	// Loads on devices; a zero value is none.
	Blk BlkLoad
	Net NetLoad
}

// Plant names a fault that the guest makes itself, to show that it is seen.
type Plant string

// Faults to plant. All but PlantFault need a working set.
const (
	PlantZero  Plant = "zero"  // a page of the working set is zeroed
	PlantStale Plant = "stale" // a page goes back by two writes
	PlantTorn  Plant = "torn"  // half of a page is another page's
	PlantTable Plant = "table" // an entry of the version table goes back by one
	PlantFault Plant = "fault" // a page fault: ends in a "metronome fault" line
)

var plants = []Plant{PlantZero, PlantStale, PlantTorn, PlantTable, PlantFault}

// Defaults returns what the guest assumes for options that are not given.
func Defaults() Options {
	return Options{Bytes: 8, VCPUs: 1, Beat: time.Second, Seed: 1, Sweep: 20, Sample: 16}
}

// number describes one numeric option, as the table in guest/options.c does.
type number struct {
	name               string
	at                 func(*Options) *uint64
	min, max, multiple uint64
}

var numbers = []number{
	{"mem", func(o *Options) *uint64 { return &o.Mem }, 1, MaxMemory >> 20, 1},
	{"fill", func(o *Options) *uint64 { return &o.Fill }, 0, MaxMemory >> 20, 1},
	{"text", func(o *Options) *uint64 { return &o.Text }, 0, MaxMemory >> 20, 1},
	{"ws", func(o *Options) *uint64 { return &o.WS }, 0, MaxMemory >> 20, 1},
	{"rate", func(o *Options) *uint64 { return &o.Rate }, 0, 1e9, 1},
	{"bytes", func(o *Options) *uint64 { return &o.Bytes }, 8, PageSize, 8},
	{"reads", func(o *Options) *uint64 { return &o.Reads }, 0, 100, 1},
	{"vcpus", func(o *Options) *uint64 { return &o.VCPUs }, 1, MaxVCPUs, 1},
	{"seed", func(o *Options) *uint64 { return &o.Seed }, 0, 1<<64 - 1, 1},
	{"tsc_khz", func(o *Options) *uint64 { return &o.TSCKHz }, 1000, 100e6, 1},
	{"sweep", func(o *Options) *uint64 { return &o.Sweep }, 0, 90, 1},
	{"sample", func(o *Options) *uint64 { return &o.Sample }, 0, 65536, 1},
}

func (n number) check(v uint64) error {
	if v < n.min || v > n.max {
		return fmt.Errorf("%s=%d: out of range %d..%d", n.name, v, n.min, n.max)
	}
	if v%n.multiple != 0 {
		return fmt.Errorf("%s=%d: must be a multiple of %d", n.name, v, n.multiple)
	}
	return nil
}

// String writes the command line: every option that is not at its default.
func (o Options) String() string {
	var words []string
	def := Defaults()
	for _, n := range numbers {
		if v := *n.at(&o); v != *n.at(&def) {
			words = append(words, fmt.Sprintf("%s=%d", n.name, v))
		}
	}
	if o.Beat != def.Beat {
		words = append(words, fmt.Sprintf("beat=%d", o.Beat.Milliseconds()))
	}
	if o.Pattern != def.Pattern {
		words = append(words, "pattern="+o.Pattern.String())
	}
	if len(o.Plant) > 0 {
		list := make([]string, len(o.Plant))
		for i, p := range o.Plant {
			list[i] = string(p)
		}
		words = append(words, "plant="+strings.Join(list, ","))
	}
	if o.Blk.given() {
		words = append(words, "io="+o.Blk.String())
	}
	if o.Net.given() {
		words = append(words, "io="+o.Net.String())
	}
	return strings.Join(words, " ")
}

// Validate says which option the guest would refuse. Whether the sizes fit the
// memory only the guest can tell.
func (o Options) Validate() error {
	def := Defaults()
	for _, n := range numbers {
		v := *n.at(&o)
		if v == 0 && *n.at(&def) == 0 {
			continue // not given
		}
		if err := n.check(v); err != nil {
			return fmt.Errorf("metronome options: %w", err)
		}
	}
	if o.Beat < 10*time.Millisecond || o.Beat > time.Hour || o.Beat%time.Millisecond != 0 {
		return fmt.Errorf("metronome options: beat=%v: must be whole milliseconds, 10 ms to 1 h", o.Beat)
	}
	if err := errors.Join(o.Blk.validate(), o.Net.validate()); err != nil {
		return fmt.Errorf("metronome options: %w", err)
	}
	if err := o.Pattern.validate(); err != nil {
		return fmt.Errorf("metronome options: %w", err)
	}
	for _, p := range o.Plant {
		if !slices.Contains(plants, p) {
			return fmt.Errorf("metronome options: plant=%.40q: must be one of %v", p, plants)
		}
		if p != PlantFault && o.WS == 0 {
			return fmt.Errorf("metronome options: plant=%s: needs a working set: give ws=", p)
		}
	}
	return nil
}

// ParseOptions reads a command line by the guest's rules: a word whose key holds a
// dot is somebody else's and skipped, any other unknown key is an error. The
// result is valid.
func ParseOptions(line string) (Options, error) {
	o := Defaults()
	if len(line) >= PageSize {
		return Options{}, fmt.Errorf("metronome options: %d bytes, at most %d", len(line), PageSize-1)
	}
	for _, word := range strings.Split(line, " ") {
		key, value, _ := strings.Cut(word, "=")
		if word == "" || strings.Contains(key, ".") {
			continue
		}
		if err := o.set(key, value); err != nil {
			return Options{}, fmt.Errorf("metronome options: %w", err)
		}
	}
	return o, o.Validate()
}

func (o *Options) set(key, value string) (err error) {
	switch key {
	case "pattern":
		o.Pattern, err = ParsePattern(value)
		return err
	case "io":
		return o.setIO(value)
	case "plant":
		o.Plant = nil
		for p := range strings.SplitSeq(value, ",") {
			o.Plant = append(o.Plant, Plant(p))
		}
		return nil
	}
	v, err := strconv.ParseUint(value, 10, 64)
	if key == "beat" && err == nil {
		o.Beat = time.Duration(min(v, 1e9)) * time.Millisecond
		return nil
	}
	for _, n := range numbers {
		if n.name != key {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s=%.40q: not a number", key, value)
		}
		*n.at(o) = v
		return n.check(v)
	}
	if key == "beat" {
		return fmt.Errorf("beat=%.40q: not a number of milliseconds", value)
	}
	return fmt.Errorf("%.40q: unknown option", key)
}
