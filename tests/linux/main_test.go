package linux

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"godwit/lab"
)

// insideEnv is set in the lab: the tests run right here.
const insideEnv = "GODWIT_LINUX_INSIDE"

// soakEnv asks for the long forms of tests.
const soakEnv = "GODWIT_SOAK"

// What the tests boot, by name in the cache folder that `make` fills.
const (
	bzImagePath = "kernel/bzImage"
	vmlinuxPath = "kernel/vmlinux"
	rootfsPath  = "rootfs/rootfs.ext4"
	initrdPath  = "rootfs/initrd.cpio.gz"
	godwitPath  = "bin/godwit"
)

func TestMain(m *testing.M) {
	lab.Init()
	if os.Getenv(peerEnv) != "" {
		if err := runPeer(); err != nil {
			fmt.Fprintln(os.Stderr, "peer:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(insideEnv) != "" {
		os.Exit(m.Run())
	}
	code, err := runInLab()
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests/linux:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// runInLab runs this package's tests, with the flags that we got, in the lab.
func runInLab() (int, error) {
	cache, err := filepath.Abs("../../.cache")
	if err != nil {
		return 0, err
	}
	if c := os.Getenv("CACHE"); c != "" {
		cache = c
	}
	tmp, err := os.MkdirTemp("", "godwit-linux-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(tmp)
	// The race detector needs cgo, which the lab has no C library for.
	program := filepath.Join(tmp, "linux.test")
	if err := build("test", "-c", "-o", program, "godwit/tests/linux"); err != nil {
		return 0, err
	}
	// Tools that judge the disks afterwards come from the host, with what they
	// are linked against.
	godwit := filepath.Join(tmp, "godwit")
	if err := build("build", "-o", godwit, "godwit/cmd/godwit"); err != nil {
		return 0, err
	}
	files := []lab.File{{Host: program, Path: "/t/linux.test"}, {Host: godwit, Path: "/t/" + godwitPath}}
	for _, p := range []string{bzImagePath, vmlinuxPath, rootfsPath, initrdPath} {
		files = append(files, lab.File{Host: filepath.Join(cache, p), Path: "/t/" + p})
	}
	tools, err := withLibraries("/sbin/e2fsck", "/sbin/debugfs", "/usr/bin/qemu-img")
	if err != nil {
		return 0, err
	}
	files = append(files, tools...)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	cfg := lab.Config{
		CacheDir:  cache,
		Init:      program,
		Command:   append([]string{"/t/linux.test"}, innerFlags(os.Args[1:])...),
		Env:       []string{insideEnv + "=1", "TMPDIR=/t", soakEnv + "=" + os.Getenv(soakEnv)},
		Dir:       "/t",
		Files:     files,
		Modules:   []string{"tun", "bridge", "veth"},
		MemoryMiB: labMiB,
		// With more, QEMU 7.2 runs them side by side, and then nested guests were seen
		// to hang the machine and to panic its kernel after minutes of load.
		CPUs:     1,
		Stdout:   os.Stdout,
		Stderr:   os.Stderr,
		Progress: os.Stderr,
	}
	if twoLabs(os.Args[1:]) {
		return runHalves(ctx, cfg)
	}
	return lab.Run(ctx, cfg)
}

func build(args ...string) error {
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// innerFlags drops what the go command added for itself: files it wants
// written on this side.
func innerFlags(args []string) []string {
	var out []string
	for _, a := range args {
		switch {
		case strings.HasPrefix(a, "-test.testlogfile"), strings.HasPrefix(a, "-test.paniconexit0"),
			strings.HasPrefix(a, "-test.outputdir"), strings.HasPrefix(a, "-test.coverprofile"),
			strings.HasPrefix(a, "-test.gocoverdir"):
		default:
			out = append(out, a)
		}
	}
	return out
}

// withLibraries lists programs and the shared libraries that ldd names.
func withLibraries(programs ...string) ([]lab.File, error) {
	var files []lab.File
	seen := map[string]bool{}
	add := func(p string) {
		if !seen[p] {
			seen[p] = true
			files = append(files, lab.File{Host: p, Path: p})
		}
	}
	for _, p := range programs {
		add(p)
		out, err := exec.Command("ldd", p).Output()
		if err != nil {
			return nil, fmt.Errorf("ldd %s: %w; install e2fsprogs and qemu-utils", p, err)
		}
		for _, word := range strings.Fields(string(out)) {
			if strings.HasPrefix(word, "/") {
				add(word)
			}
		}
	}
	return files, nil
}
