package vmm

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// groupThread is a vCPU's thread.
type groupThread struct{ id, tid int }

// cpuGroups bounds what the vCPUs' threads get of the processors by cgroup v2
// (kernel: Documentation/admin-guide/cgroup-v2.rst, "Threads" and "CPU Interface
// Files"). Every thread gets a group of its own, so that cpu.max bounds each vCPU
// and never a stream:
//
//	own group                 cgroup.subtree_control: +cpu, if it was not there
//	├─ godwit-PID-vcpu0-TID   cgroup.type: threaded; cpu.max; cgroup.threads: TID
//	└─ godwit-PID-vcpu1-TID   ...
//
// The names say whose the groups are, should the process be killed. A thread's
// group lives as long as the slowing. One goroutine at a time, but for check.
type cpuGroups struct {
	files   groupFiles
	proc    string // "/proc"
	pid     int
	threads []groupThread

	// What there is to undo:
	own     string   // our own group's folder
	made    []string // groups, in the order of threads
	moved   []groupThread
	enabled bool // the cpu controller was switched on for our children
}

// errNoGroups says that threads cannot be bounded by cgroup here.
var errNoGroups = errors.New("cgroup v2 cannot slow the vCPUs here")

// groupHelp is what to do about it.
const groupHelp = "use by=duty, or run godwit in a cgroup of its own that is delegated to it, as with: systemd-run --user --scope -p Delegate=yes godwit run ..."

// A quota must not be under 1 ms (kernel: min_cfs_quota_period).
const (
	leastQuota = 1_000   // microseconds
	longPeriod = 100_000 // microseconds
)

// cpuMax is the content of cpu.max for a share of one processor, 1 to 100
// percent: microseconds in each period. The period is short, as that of the duty
// cycle, unless the quota would be too small.
func cpuMax(percent int) string {
	period := int(dutyPeriod.Microseconds())
	if period*percent/100 < leastQuota {
		period = longPeriod
	}
	return fmt.Sprintf("%d %d", period*percent/100, period)
}

// limit gives each thread a share of one processor, 1 to 100 percent. When it
// fails to set the groups up, none is left; when it fails to change them, they
// stay as they are until free.
func (g *cpuGroups) limit(percent int) error {
	var errs []error
	if len(g.moved) == len(g.threads) {
		for _, dir := range g.made {
			errs = append(errs, g.write(dir, "cpu.max", cpuMax(percent)))
		}
	} else if err := g.free(); err != nil { // what an earlier one could not undo
		errs = append(errs, err)
	} else if err := g.set(percent); err != nil {
		errs = append(errs, err, g.free())
	}
	err := errors.Join(errs...)
	if err == nil || errors.Is(err, errNoGroups) {
		return err
	}
	return fmt.Errorf("%w: %w; %s", errNoGroups, err, groupHelp)
}

// set makes the groups, complete, and moves the threads then.
func (g *cpuGroups) set(percent int) error {
	own, err := g.check()
	if err != nil {
		return err
	}
	g.own = own
	on, err := g.words(own, "cgroup.subtree_control")
	if err != nil {
		return err
	}
	if !slices.Contains(on, "cpu") {
		if err := g.write(own, "cgroup.subtree_control", "+cpu"); err != nil {
			return err
		}
		g.enabled = true
	}
	for _, t := range g.threads {
		dir := filepath.Join(own, fmt.Sprintf("godwit-%d-vcpu%d-%d", g.pid, t.id, t.tid))
		// One that is there already has our own process and thread in its name: it was
		// left by one that was killed.
		if err := g.files.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make group: %w", err)
		}
		g.made = append(g.made, dir)
		if err := g.write(dir, "cgroup.type", "threaded"); err != nil {
			return err
		}
		if err := g.write(dir, "cpu.max", cpuMax(percent)); err != nil {
			return err
		}
	}
	for i, t := range g.threads {
		if err := g.write(g.made[i], "cgroup.threads", strconv.Itoa(t.tid)); err != nil {
			return err
		}
		g.moved = append(g.moved, t)
	}
	return nil
}

// free moves the threads back and removes the groups. What it cannot undo it
// tries again when it is called again.
func (g *cpuGroups) free() error {
	var errs []error
	g.moved = slices.DeleteFunc(g.moved, func(t groupThread) bool {
		err := g.write(g.own, "cgroup.threads", strconv.Itoa(t.tid))
		if err != nil && !errors.Is(err, syscall.ESRCH) { // a thread that has ended is nowhere
			errs = append(errs, fmt.Errorf("move vCPU %d back: %w", t.id, err))
			return false
		}
		return true
	})
	g.made = slices.DeleteFunc(g.made, func(dir string) bool {
		if err := g.files.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove group: %w", err))
			return false
		}
		return true
	})
	if g.enabled && len(g.made) == 0 {
		// Another machine's groups may have come to depend on the controller.
		others, err := g.files.Children(g.own)
		if err == nil && len(others) == 0 {
			err = g.write(g.own, "cgroup.subtree_control", "-cpu")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("switch the cpu controller off again: %w", err))
		} else {
			g.enabled = false
		}
	}
	return errors.Join(errs...)
}

func (g *cpuGroups) write(dir, name, text string) error {
	path := filepath.Join(dir, name)
	if err := g.files.Write(path, text); err != nil {
		return fmt.Errorf("write %q to %s: %w", text, path, err)
	}
	return nil
}

// words reads a list of words.
func (g *cpuGroups) words(dir, name string) ([]string, error) {
	text, err := g.files.Read(filepath.Join(dir, name))
	return strings.Fields(text), err
}
