package vmm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// groupFiles is the file system that cgroups are seen through.
type groupFiles interface {
	Read(path string) (string, error)
	Write(path, text string) error // in one piece, to a file that is there
	Mkdir(path string) error
	Remove(path string) error               // an empty group
	Children(path string) ([]string, error) // groups in a group
	Writable(path string) error
}

// osGroups is the host's own.
type osGroups struct{}

func newCPUGroups(threads []groupThread) *cpuGroups {
	return &cpuGroups{files: osGroups{}, proc: "/proc", pid: os.Getpid(), threads: threads}
}

func (osGroups) Read(path string) (string, error) {
	b, err := os.ReadFile(path)
	return string(b), err
}

func (osGroups) Write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func (osGroups) Mkdir(path string) error  { return os.Mkdir(path, 0o755) }
func (osGroups) Remove(path string) error { return unix.Rmdir(path) }

func (osGroups) Children(path string) (groups []string, err error) {
	entries, err := os.ReadDir(path)
	for _, e := range entries {
		if e.IsDir() {
			groups = append(groups, e.Name())
		}
	}
	return groups, err
}

func (osGroups) Writable(path string) error {
	if err := unix.Access(path, unix.W_OK); err != nil {
		return &fs.PathError{Op: "write to", Path: path, Err: err}
	}
	return nil
}

// check finds our own group and says why threads cannot be bounded below it. It
// changes nothing.
func (g *cpuGroups) check() (own string, err error) {
	fail := func(format string, args ...any) (string, error) {
		return "", fmt.Errorf("%w: %w; %s", errNoGroups, fmt.Errorf(format, args...), groupHelp)
	}
	if own, err = g.find(); err != nil {
		return fail("%w", err)
	}
	has, err := g.words(own, "cgroup.controllers")
	if err != nil {
		return fail("%w", err)
	}
	if !slices.Contains(has, "cpu") {
		return fail("group %s has no cpu controller (it has: %s), which is in use by cgroup v1 or not passed on to this group", own, strings.Join(has, " "))
	}
	kind, err := g.files.Read(filepath.Join(own, "cgroup.type"))
	root := errors.Is(err, fs.ErrNotExist) // only the root has none, and may do all
	if err != nil && !root {
		return fail("%w", err)
	}
	if kind = strings.TrimSpace(kind); kind == "domain invalid" {
		return fail("group %s is of type %q", own, kind)
	}
	on, err := g.words(own, "cgroup.subtree_control")
	if err != nil {
		return fail("%w", err)
	}
	// A group that bounds processes below it cannot bound threads (kernel:
	// cgroup_can_be_thread_root).
	for _, c := range on {
		if !root && !slices.Contains([]string{"cpu", "cpuset", "perf_event", "pids"}, c) {
			return fail("group %s has controller %s on for whole processes below it, so it can have no groups of threads", own, c)
		}
	}
	for _, name := range []string{"", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} {
		if err := g.files.Writable(filepath.Join(own, name)); err != nil {
			return fail("group is not ours to change: %w", err)
		}
	}
	return own, nil
}

// find is the folder of our own group.
func (g *cpuGroups) find() (string, error) {
	self := filepath.Join(g.proc, "self")
	groups, err := g.files.Read(filepath.Join(self, "cgroup"))
	if err != nil {
		return "", err
	}
	path, ok := ownGroup(groups)
	if !ok {
		return "", fmt.Errorf("%s/cgroup names no cgroup v2 group", self)
	}
	mounts, err := g.files.Read(filepath.Join(self, "mountinfo"))
	if err != nil {
		return "", err
	}
	dir, ok := groupDir(mounts, path)
	if !ok {
		return "", fmt.Errorf("no cgroup2 file system is mounted that shows group %q", path)
	}
	return dir, nil
}

// ownGroup finds the path of the cgroup v2 group in /proc/self/cgroup (cgroups(7)).
func ownGroup(text string) (string, bool) {
	for line := range strings.Lines(text) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::/"); ok {
			return "/" + path, true
		}
	}
	return "", false
}

// groupDir finds the folder of a group by its path, in /proc/self/mountinfo
// (proc(5)): ID PARENT DEVICE ROOT MOUNTPOINT OPTIONS [TAGS..] - TYPE SOURCE OPTIONS.
func groupDir(mounts, path string) (string, bool) {
	for line := range strings.Lines(mounts) {
		before, after, ok := strings.Cut(line, " - ")
		mount, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(mount) < 6 || len(kind) < 1 || kind[0] != "cgroup2" {
			continue
		}
		root, point := unescapeMount(mount[3]), unescapeMount(mount[4])
		if strings.Contains(root+path+"/", "/../") {
			continue // outside of our cgroup namespace
		}
		if rel, err := filepath.Rel(root, path); err == nil && filepath.IsLocal(rel) {
			return filepath.Join(point, rel), true
		}
	}
	return "", false
}

// unescapeMount undoes what the kernel does to blanks and backslashes: \ and three
// octal digits.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
