package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"godwit/boot/metronome"
)

// Side is the program that moves the guest.
type Side string

// The two sides.
const (
	QEMU   Side = "qemu"
	Godwit Side = "godwit"
)

// Setting is one way to move a guest. Settings are data: what is in them goes to
// the program as it stands.
type Setting struct {
	Name string
	Side Side

	// QEMU: capabilities switched on at both ends, and parameters set at both.
	Capabilities []string
	Parameters   map[string]any

	// godwit: flags of run, receive and migrate.
	Run, Receive, Migrate []string

	// Loads: the disk's format, and how QEMU serves it.
	Format   string
	AIO      string
	IOThread bool

	Needs string // a flag of `godwit migrate`, of a load `godwit run`, without which the row is left out
	TLS   bool   // certificates are made and given to both ends
	Unix  bool   // a unix socket instead of TCP on loopback
	Slow  bool   // only run when asked for by name or with -slow
	Apart bool   // a row of its own, never the side's best
}

// Case is a guest, and the ways in which it is moved.
type Case struct {
	Name, About string
	MemoryMiB   int
	Guest       metronome.Options
	Link        int64         // bytes per second; 0 is unlimited
	Downtime    time.Duration // limit that both sides aim at
	Throughput  bool          // what the guest gets done is measured too
	Load        *Load         // nothing moves, and what a device gets done is measured
	Settings    []Setting
}

const (
	mib       = 1 << 20
	linkLimit = 125_000_000 // 1 Gbit/s
	// beatEvery is dense enough to see a move of half a second, and sparse enough
	// that printing takes a hundredth of the guest's time.
	beatEvery       = 200 * time.Millisecond
	defaultDowntime = 30 * time.Millisecond
)

// guest is metronome with the options that all cases share. No page is sampled:
// a look at never-touched memory populates it.
func guest(change func(*metronome.Options)) metronome.Options {
	o := metronome.Defaults()
	o.Beat, o.Sample = beatEvery, 0
	change(&o)
	return o
}

func multifd(n int) Setting {
	return Setting{Name: fmt.Sprintf("qemu multifd %d", n), Side: QEMU, Capabilities: []string{"multifd"}, Parameters: map[string]any{"multifd-channels": n}}
}

func xbzrle(cacheMiB int) Setting {
	return Setting{Name: fmt.Sprintf("qemu xbzrle %dM", cacheMiB), Side: QEMU, Capabilities: []string{"xbzrle"}, Parameters: map[string]any{"xbzrle-cache-size": cacheMiB * mib}}
}

// patient is the setting with QEMU's own default for the downtime, 300 ms. In its
// last round QEMU does not keep to max-bandwidth: what would take 300 ms on such a
// link leaves at the speed of loopback, and what the limit allows costs no time.
func patient(s Setting) Setting {
	s.Name += " limit 300ms"
	s.Parameters = maps.Clone(s.Parameters)
	s.Parameters["downtime-limit"] = 300
	return s
}

func streams(n int) Setting {
	return Setting{Name: fmt.Sprintf("godwit streams %d", n), Side: Godwit, Migrate: []string{"--streams", fmt.Sprint(n)}}
}

func xbrle(cache string) Setting {
	return Setting{Name: "godwit xbrle " + cache, Side: Godwit, Migrate: []string{"--codec", "xbrle,cache=" + cache}}
}

// cases is the whole matrix.
func cases() []Case {
	writing := func(rate uint64) metronome.Options {
		return guest(func(o *metronome.Options) { o.Fill, o.WS, o.Rate = 1024, 512, rate })
	}
	qemuPlain := Setting{Name: "qemu plain", Side: QEMU}
	qemuRaw := Setting{Name: "qemu raw", Side: QEMU}
	godwitRaw := Setting{Name: "godwit raw", Side: Godwit}
	autoConverge := Setting{Name: "qemu auto-converge", Side: QEMU, Capabilities: []string{"auto-converge"}, Slow: true}
	encrypted := streams(2)
	encrypted.Name, encrypted.Needs, encrypted.TLS, encrypted.Apart = "godwit tls streams 2", "--tls-cert", true, true
	handOver := Setting{
		Name: "godwit local", Side: Godwit, Needs: "--local", Unix: true,
		Run: []string{"--memory-backing", "memfd"}, Migrate: []string{"--local"},
	}
	moves := []Case{
		{
			Name: "idle-8g", About: "8 GiB, never touched, no writes", MemoryMiB: 8192, Downtime: defaultDowntime,
			Guest:    guest(func(*metronome.Options) {}),
			Settings: []Setting{qemuPlain, streams(1)},
		},
		{
			Name: "fill-1g", About: "2 GiB, 1 GiB of it random words, no writes", MemoryMiB: 2048, Downtime: defaultDowntime,
			Guest:    guest(func(o *metronome.Options) { o.Fill = 1024 }),
			Settings: []Setting{qemuPlain, multifd(2), multifd(4), multifd(8), streams(1), streams(2), streams(4), streams(8), encrypted},
		},
		{
			Name: "ws-20k", About: "2 GiB, 1 GiB of it random words, 20,000 writes of 8 bytes a second all over 512 MiB, link 125 MB/s",
			MemoryMiB: 2048, Downtime: defaultDowntime, Guest: writing(20_000), Link: linkLimit,
			Settings: []Setting{qemuRaw, xbzrle(64), xbzrle(512), patient(xbzrle(512)), godwitRaw, xbrle("64M"), xbrle("512M")},
		},
		{
			Name: "ws-50k", About: "the same with 50,000 writes a second, which is above the link",
			MemoryMiB: 2048, Downtime: defaultDowntime, Guest: writing(50_000), Link: linkLimit,
			Settings: []Setting{xbzrle(512), patient(xbzrle(512)), autoConverge, xbrle("512M")},
		},
		{
			Name: "local", About: "8 GiB, 7.9 GiB of it random words, handed to a process on the same host", MemoryMiB: 8192, Downtime: defaultDowntime,
			Guest:    guest(func(o *metronome.Options) { o.Fill = 8080 }),
			Settings: []Setting{handOver},
		},
		bulk("bulk-50k", "50,000 writes of 8 bytes a second", func(o *metronome.Options) { o.Rate = 50_000 }),
		bulk("bulk-read", "reads and verifies pages as fast as it can", func(o *metronome.Options) { o.Reads = 100 }),
		bulk("bulk-write", "writes to pages as fast as it can", func(*metronome.Options) {}),
	}
	return append(moves, loadCases()...)
}

// bulk is a case that asks what the guest gets done meanwhile. The downtime limit
// lets both sides stop after the first pass: what follows is 512 MiB at most,
// and would only repeat it.
func bulk(name, doing string, change func(*metronome.Options)) Case {
	return Case{
		Name: name, About: "6 GiB, 5 GiB of it random words, one pass; the guest " + doing + ", all over 512 MiB",
		MemoryMiB: 6144, Downtime: 2 * time.Second, Throughput: true,
		Guest: guest(func(o *metronome.Options) {
			o.Fill, o.WS, o.Beat = 5120, 512, 100*time.Millisecond
			change(o)
		}),
		Settings: []Setting{multifd(4), streams(1), streams(4)},
	}
}

// choice is what the user wants of the matrix.
type choice struct {
	cases    []string // names; empty is all
	settings []string // parts of names; empty is all that are not slow
	slow     bool
	tries    []string // CASE:FLAGS, a godwit setting more
}

// choose cuts the matrix down. A name that fits nothing is an error.
func choose(all []Case, c choice) ([]Case, error) {
	for _, t := range c.tries {
		name, flags, ok := strings.Cut(t, ":")
		i := slices.IndexFunc(all, func(k Case) bool { return k.Name == name })
		if !ok || i < 0 || strings.TrimSpace(flags) == "" || all[i].Load != nil {
			return nil, fmt.Errorf("-try %q: write CASE:FLAGS, as in -try 'ws-20k:--codec xbrle,cache=auto'; cases: %s", t, caseNames(all))
		}
		all[i].Settings = append(all[i].Settings, Setting{Name: "godwit " + strings.Join(strings.Fields(flags), " "), Side: Godwit, Migrate: strings.Fields(flags)})
	}
	var chosen []Case
	for _, k := range all {
		if len(c.cases) > 0 && !slices.Contains(c.cases, k.Name) {
			continue
		}
		k.Settings = slices.DeleteFunc(slices.Clone(k.Settings), func(s Setting) bool { return !c.wants(s) })
		if len(k.Settings) > 0 {
			chosen = append(chosen, k)
		}
	}
	for _, name := range c.cases {
		if !slices.ContainsFunc(all, func(k Case) bool { return k.Name == name }) {
			return nil, fmt.Errorf("no case %q; cases: %s", name, caseNames(all))
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no setting of these cases has a name with %s in it; see -list", strings.Join(c.settings, " or "))
	}
	return chosen, nil
}

func (c choice) wants(s Setting) bool {
	if len(c.settings) == 0 {
		return c.slow || !s.Slow
	}
	return slices.ContainsFunc(c.settings, func(part string) bool {
		return strings.Contains(s.Name, part) && (c.slow || !s.Slow || part != string(s.Side))
	})
}

func caseNames(all []Case) string {
	var names []string
	for _, k := range all {
		names = append(names, k.Name)
	}
	return strings.Join(names, ", ")
}

// list prints the matrix.
func list(all []Case) string {
	var b strings.Builder
	for _, k := range all {
		fmt.Fprintf(&b, "%s: %s\n  memory %d MiB, guest %q%s\n", k.Name, k.About, k.MemoryMiB, k.Guest.String(), k.limits(", "))
		for _, s := range k.Settings {
			fmt.Fprintf(&b, "    %-24s %s\n", s.Name, s.describe())
		}
	}
	return b.String()
}

// limits are those of a move, each after sep.
func (k *Case) limits(sep string) string {
	if k.Load != nil {
		return ""
	}
	return fmt.Sprintf("%slink %s%sdowntime limit %v", sep, linkName(k.Link), sep, k.Downtime)
}

func linkName(bytes int64) string {
	if bytes == 0 {
		return "unlimited"
	}
	return fmt.Sprintf("%g MB/s", float64(bytes)/1e6)
}

// describe is what the setting gives its program.
func (s Setting) describe() string {
	var words []string
	if len(s.Capabilities) > 0 {
		words = append(words, "capabilities "+strings.Join(s.Capabilities, ", "))
	}
	for _, name := range sortedKeys(s.Parameters) {
		words = append(words, fmt.Sprintf("%s=%v", name, s.Parameters[name]))
	}
	if len(s.Run) > 0 {
		words = append(words, "run "+strings.Join(s.Run, " "))
	}
	if len(s.Migrate) > 0 {
		words = append(words, "migrate "+strings.Join(s.Migrate, " "))
	}
	if s.Format != "" {
		words = append(words, "format="+s.Format)
	}
	if s.AIO != "" {
		words = append(words, "aio="+s.AIO+", cache=writeback")
	}
	if s.IOThread {
		words = append(words, "a thread of its own")
	}
	if s.TLS {
		words = append(words, "certificates at both ends")
	}
	if s.Needs != "" {
		words = append(words, "(left out where godwit has no "+s.Needs+")")
	}
	if s.Slow {
		words = append(words, "(slow: only with -slow or by name)")
	}
	if len(words) == 0 {
		return "defaults"
	}
	return strings.Join(words, "; ")
}
