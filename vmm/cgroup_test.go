package vmm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/migration/policy"
)

// fakeGroups is a tree of files that keeps the kernel's rules for threaded groups
// as far as cpuGroups meets them, and notes every change.
type fakeGroups struct {
	osGroups
	t       *testing.T
	root    string
	done    []string       // changes, paths without root
	at      map[int]string // thread's group
	gone    map[int]bool   // threads that have ended
	failing int            // the change that fails, from 1; 0 for none
	broken  bool           // and all after it
}

const ownName = "user.slice/app.scope"

// newFakeGroups has a process with three threads, 11 to 13, in a delegated group.
func newFakeGroups(t *testing.T) (*fakeGroups, *cpuGroups) {
	f := &fakeGroups{t: t, root: t.TempDir(), at: map[int]string{}, gone: map[int]bool{}}
	own := filepath.Join(f.root, "sys", ownName)
	for tid := 11; tid <= 13; tid++ {
		f.at[tid] = own
	}
	f.file("proc/self/cgroup", "4:memory:/x\n0::/"+ownName+"\n")
	f.file("proc/self/mountinfo", "22 1 0:21 / /proc rw - proc proc rw\n"+
		fmt.Sprintf("30 23 0:26 / %s rw,nosuid shared:4 - cgroup2 cgroup2 rw\n", filepath.Join(f.root, "sys")))
	f.populate(own, "domain", "cpu memory pids")
	return f, &cpuGroups{files: f, proc: filepath.Join(f.root, "proc"), pid: 7, threads: []groupThread{{0, 12}, {1, 13}}}
}

func (f *fakeGroups) file(name, text string) {
	path := filepath.Join(f.root, name)
	require.NoError(f.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(f.t, os.WriteFile(path, []byte(text), 0o644))
}

func (f *fakeGroups) own(name, text string) { f.file(filepath.Join("sys", ownName, name), text) }

// populate makes the files of a group.
func (f *fakeGroups) populate(dir, kind, controllers string) {
	require.NoError(f.t, os.MkdirAll(dir, 0o755))
	for name, text := range map[string]string{"cgroup.type": kind + "\n", "cgroup.controllers": controllers + "\n",
		"cgroup.subtree_control": "\n", "cgroup.procs": "", "cgroup.threads": ""} {
		require.NoError(f.t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	if filepath.Base(dir) != filepath.Base(ownName) && strings.Contains(controllers, "cpu") {
		require.NoError(f.t, os.WriteFile(filepath.Join(dir, "cpu.max"), []byte("max 100000\n"), 0o644))
	}
}

func (f *fakeGroups) text(path ...string) string {
	b, err := os.ReadFile(filepath.Join(path...))
	require.NoError(f.t, err)
	return strings.TrimSpace(string(b))
}

// change notes a change and says whether it must fail.
func (f *fakeGroups) change(what, path, text string) error {
	rel, err := filepath.Rel(filepath.Join(f.root, "sys", ownName), path)
	require.NoError(f.t, err)
	f.done = append(f.done, strings.TrimSpace(what+" "+rel+" "+text))
	if n := len(f.done); f.failing > 0 && (n == f.failing || f.broken && n > f.failing) {
		return &fs.PathError{Op: what, Path: path, Err: syscall.EPERM}
	}
	return nil
}

func (f *fakeGroups) Mkdir(path string) error {
	if err := f.change("mkdir", path, ""); err != nil {
		return err
	}
	if _, err := os.Stat(path); err == nil {
		return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.EEXIST}
	}
	f.populate(path, "domain", f.text(filepath.Dir(path), "cgroup.subtree_control"))
	return nil
}

func (f *fakeGroups) Remove(path string) error {
	if err := f.change("rmdir", path, ""); err != nil {
		return err
	}
	for tid, at := range f.at {
		if at == path && !f.gone[tid] {
			return &fs.PathError{Op: "rmdir", Path: path, Err: syscall.EBUSY}
		}
	}
	return os.RemoveAll(path)
}

func (f *fakeGroups) Write(path, text string) error {
	if err := f.change("write", path, text); err != nil {
		return err
	}
	dir := filepath.Dir(path)
	switch filepath.Base(path) {
	case "cgroup.threads":
		var tid int
		_, err := fmt.Sscan(text, &tid)
		require.NoError(f.t, err)
		if f.gone[tid] {
			return &fs.PathError{Op: "write", Path: path, Err: syscall.ESRCH}
		}
		if dir != filepath.Join(f.root, "sys", ownName) && f.text(dir, "cgroup.type") != "threaded" {
			return &fs.PathError{Op: "write", Path: path, Err: syscall.EOPNOTSUPP}
		}
		f.at[tid] = dir
		return nil
	case "cgroup.subtree_control":
		on := strings.Fields(f.text(path))
		if sign, c := text[:1], text[1:]; sign == "+" {
			on = append(on, c)
		} else {
			on = slices.DeleteFunc(on, func(have string) bool { return have == c })
		}
		text = strings.Join(on, " ")
	}
	if err := f.osGroups.Write(path, ""); err != nil { // it must be there
		return err
	}
	return os.WriteFile(path, []byte(text+"\n"), 0o644)
}

// pristine checks that nothing of the slowing is left.
func (f *fakeGroups) pristine() {
	f.t.Helper()
	own := filepath.Join(f.root, "sys", ownName)
	for tid, at := range f.at {
		if !f.gone[tid] {
			require.Equal(f.t, own, at, "thread %d", tid)
		}
	}
	children, err := f.Children(own)
	require.NoError(f.t, err)
	require.Empty(f.t, children)
	require.Empty(f.t, f.text(own, "cgroup.subtree_control"))
}

func TestCPUGroups(t *testing.T) {
	f, g := newFakeGroups(t)
	own, err := g.check()
	require.NoError(t, err)
	require.Equal(t, filepath.Join(f.root, "sys", ownName), own)
	require.Empty(t, f.done, "looking changes nothing")
	require.NoError(t, g.limit(30))
	set := []string{
		"write cgroup.subtree_control +cpu",
		"mkdir godwit-7-vcpu0-12",
		"write godwit-7-vcpu0-12/cgroup.type threaded",
		"write godwit-7-vcpu0-12/cpu.max 3000 10000",
		"mkdir godwit-7-vcpu1-13",
		"write godwit-7-vcpu1-13/cgroup.type threaded",
		"write godwit-7-vcpu1-13/cpu.max 3000 10000",
		"write godwit-7-vcpu0-12/cgroup.threads 12",
		"write godwit-7-vcpu1-13/cgroup.threads 13",
	}
	require.Equal(t, set, f.done, "bounded before anything is moved")
	require.Equal(t, own, f.at[11], "no other thread moves")
	require.Equal(t, filepath.Join(own, "godwit-7-vcpu1-13"), f.at[13])
	f.done = nil
	_, err = g.check()
	require.NoError(t, err, "while in force")
	require.NoError(t, g.limit(5))
	require.Equal(t, []string{"write godwit-7-vcpu0-12/cpu.max 5000 100000", "write godwit-7-vcpu1-13/cpu.max 5000 100000"}, f.done)
	f.done = nil
	require.NoError(t, g.free())
	require.Equal(t, []string{
		"write cgroup.threads 12",
		"write cgroup.threads 13",
		"rmdir godwit-7-vcpu0-12",
		"rmdir godwit-7-vcpu1-13",
		"write cgroup.subtree_control -cpu",
	}, f.done)
	f.pristine()
	f.done = nil
	require.NoError(t, g.free(), "freed already")
	require.Empty(t, f.done)
	require.NoError(t, g.limit(99))
	require.NoError(t, g.free())
	f.pristine()
}

func TestCPUMax(t *testing.T) {
	for percent, want := range map[int]string{1: "1000 100000", 9: "9000 100000", 10: "1000 10000", 50: "5000 10000", 100: "10000 10000"} {
		require.Equal(t, want, cpuMax(percent))
	}
}

// Whichever change fails, nothing is left; and when nothing can be undone either,
// a later free does it.
func TestCPUGroupsFailAnywhere(t *testing.T) {
	f, g := newFakeGroups(t)
	require.NoError(t, g.limit(30))
	changes := len(f.done)
	require.NoError(t, g.free())
	for n := 1; n <= changes; n++ {
		for _, broken := range []bool{false, true} {
			f, g := newFakeGroups(t)
			f.failing, f.broken = n, broken
			err := g.limit(30)
			require.ErrorIs(t, err, errNoGroups)
			require.ErrorIs(t, err, fs.ErrPermission)
			require.ErrorContains(t, err, "by=duty")
			f.failing = 0
			if !broken {
				f.pristine()
				require.Empty(t, g.made)
			}
			require.NoError(t, g.free())
			f.pristine()
			require.NoError(t, g.limit(30), "and it can be tried again")
			require.NoError(t, g.free())
			f.pristine()
		}
	}
	// Undoing fails half-way.
	for n := 1; n <= 5; n++ {
		f, g := newFakeGroups(t)
		require.NoError(t, g.limit(30))
		f.failing, f.done = n, nil
		require.Error(t, g.free(), n)
		f.failing = 0
		if n%2 == 0 {
			require.NoError(t, g.limit(20), "a new limit undoes the rest first, or changes what stands")
		}
		require.NoError(t, g.free())
		f.pristine()
	}
}

func TestCPUGroupsOfOthers(t *testing.T) {
	f, g := newFakeGroups(t)
	f.own("cgroup.subtree_control", "cpu pids\n")
	require.NoError(t, g.limit(30))
	require.NoError(t, g.free())
	require.Equal(t, "cpu pids", f.text(f.root, "sys", ownName, "cgroup.subtree_control"), "not ours to switch off")

	f, g = newFakeGroups(t)
	other := &cpuGroups{files: f, proc: g.proc, pid: 7, threads: []groupThread{{0, 11}}}
	require.NoError(t, g.limit(30))
	require.NoError(t, other.limit(40))
	require.NoError(t, g.free())
	require.Equal(t, "cpu", f.text(f.root, "sys", ownName, "cgroup.subtree_control"), "another machine needs it")
	require.Equal(t, "4000 10000", f.text(f.root, "sys", ownName, "godwit-7-vcpu0-11", "cpu.max"))
	require.NoError(t, other.free())

	// A thread that has ended, and a group that a killed process left.
	f, g = newFakeGroups(t)
	f.populate(filepath.Join(f.root, "sys", ownName, "godwit-7-vcpu0-12"), "threaded", "cpu")
	require.NoError(t, g.limit(30))
	f.gone[12] = true
	require.NoError(t, g.free())
	f.pristine()
}

func TestCPUGroupsRefuse(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(f *fakeGroups)
		says  string
	}{
		"v1 only":     {func(f *fakeGroups) { f.file("proc/self/cgroup", "1:cpu:/x\n") }, "names no cgroup v2 group"},
		"no proc":     {func(f *fakeGroups) { require.NoError(f.t, os.Remove(filepath.Join(f.root, "proc/self/cgroup"))) }, "no such file"},
		"not mounted": {func(f *fakeGroups) { f.file("proc/self/mountinfo", "31 23 0:28 / /sys rw - tmpfs tmpfs rw\n") }, "no cgroup2 file system"},
		"mounted in part": {func(f *fakeGroups) {
			f.file("proc/self/mountinfo", "31 23 0:28 /system.slice /sys rw - cgroup2 x rw\n")
		}, `shows group "/user.slice/app.scope"`},
		"other namespace": {func(f *fakeGroups) { f.file("proc/self/cgroup", "0::/../user.slice/app.scope\n") }, "no cgroup2 file system"},
		"cpu on v1":       {func(f *fakeGroups) { f.own("cgroup.controllers", "pids hugetlb\n") }, "has no cpu controller (it has: pids hugetlb), which is in use by cgroup v1 or not passed on"},
		"invalid type":    {func(f *fakeGroups) { f.own("cgroup.type", "domain invalid\n") }, `of type "domain invalid"`},
		"domain":          {func(f *fakeGroups) { f.own("cgroup.subtree_control", "cpu memory\n") }, "controller memory on for whole processes"},
		"not delegated": {func(f *fakeGroups) {
			require.NoError(f.t, os.Remove(filepath.Join(f.root, "sys", ownName, "cgroup.procs")))
		}, "not ours to change"},
	} {
		t.Run(name, func(t *testing.T) {
			f, g := newFakeGroups(t)
			tc.spoil(f)
			for _, err := range []error{func() error { _, err := g.check(); return err }(), g.limit(50)} {
				require.ErrorIs(t, err, errNoGroups)
				require.ErrorContains(t, err, tc.says)
				require.Equal(t, 1, strings.Count(err.Error(), "use by=duty"), err)
			}
			require.Empty(t, f.done)
		})
	}
	// The root of all groups has no type and no such rules.
	f, g := newFakeGroups(t)
	require.NoError(t, os.Remove(filepath.Join(f.root, "sys", ownName, "cgroup.type")))
	f.own("cgroup.subtree_control", "cpu memory\n")
	require.NoError(t, g.limit(50))
	require.NoError(t, g.free())
}

func TestGroupDir(t *testing.T) {
	for _, tc := range []struct{ mounts, path, want string }{
		{"1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "/", "/sys/fs/cgroup"},
		{"1 2 0:3 / /sys/fs/cgroup rw master:1 shared:9 - cgroup2 cgroup2 rw\n", "/a/b", "/sys/fs/cgroup/a/b"},
		{"1 2 0:3 /a /my\\040groups rw - cgroup2 cgroup2 rw\n", "/a/b", "/my groups/b"},
		{"1 2 0:3 /a /x rw - cgroup2 c rw\n1 2 0:3 / /y rw - cgroup2 c rw\n", "/ab", "/y/ab"},
		{"1 2 0:3 /.. /x rw - cgroup2 c rw\n", "/ab", ""},
		{"1 2 0:3 / /x\\0 rw - cgroup2 c rw\n", "/a", "/x\\0/a"},
		{"1 2 0:3 / - cgroup2 c rw\n - \n\n1 2 3 4 5 6 - \n", "/a", ""},
	} {
		dir, ok := groupDir(tc.mounts, tc.path)
		require.Equal(t, tc.want, dir, tc.mounts)
		require.Equal(t, tc.want != "", ok)
	}
}

func FuzzDecodeMountinfo(f *testing.F) {
	f.Add("1 2 0:3 /a /my\\040groups rw - cgroup2 cgroup2 rw\n", "0::/a/b\n")
	f.Fuzz(func(t *testing.T, mounts, groups string) {
		if path, ok := ownGroup(groups); ok {
			if dir, ok := groupDir(mounts, path); ok && dir == "" {
				t.Fatal("a group without a folder")
			}
		}
	})
}

// On this host: either it works and leaves nothing, or it says why not.
func TestCPUGroupsHere(t *testing.T) {
	m, _ := start(t, metronomeConfig("ws=8"))
	pace := policy.Pace{By: policy.ByCgroup, Percent: 40}
	if err := m.Source().CanPace(pace); err != nil {
		require.ErrorIs(t, err, errNoGroups)
		require.ErrorContains(t, err, "by=duty")
		require.EqualError(t, m.Source().SetPace(pace), err.Error())
		t.Log(err)
		return
	}
	err := m.Source().SetPace(pace)
	if errors.Is(err, errNoGroups) {
		t.Skip(err) // another process in our group may forbid it
	}
	require.NoError(t, err)
	dir := m.throttle.groups.made[0]
	got, err := os.ReadFile(filepath.Join(dir, "cpu.max"))
	require.NoError(t, err)
	require.Equal(t, "4000 10000\n", string(got))
	require.NoError(t, m.Source().SetPace(policy.FullSpeed))
	require.NoDirExists(t, dir)
}
