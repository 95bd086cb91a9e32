package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// Errors of a run. Everything that Run returns wraps one of these or the
// context's error.
var (
	// ErrConfig: the configuration asks for something that cannot be.
	ErrConfig = errors.New("lab: bad configuration")
	// ErrHost: the host lacks a program, a package or the rights to get it.
	ErrHost = errors.New("lab: host not ready")
	// ErrMachine: the outer machine did not come up, crashed or went silent.
	ErrMachine = errors.New("lab: outer machine failed")
	// ErrCommand: the machine is up but the command could not be started.
	ErrCommand = errors.New("lab: command not started")
)

const (
	defaultMemoryMiB = 2048
	minMemoryMiB     = 256
	maxMemoryMiB     = 1 << 20
	// MaxCPUs is the most that Config.CPUs may be.
	MaxCPUs            = 64
	maxDisks           = 20 // slots of q35's root bus, with room for the rest
	defaultBootTimeout = 3 * time.Minute
	sectorSize         = 512
)

// File is a host file that the command can read. Path is absolute; empty
// means the host path made absolute. Only regular files are carried.
type File struct {
	Host, Path string
}

// Disk is a raw image on the host that the command sees as a block device.
// Writes land in the host's file as they happen. Its size must be a multiple
// of 512 bytes.
type Disk struct {
	Host, Path string // Path: a link to the block device; empty means as for File
	ReadOnly   bool
}

// Output is a file or folder that the command makes at Path and that is
// copied to Host after it has ended. Its parent folder exists inside. If the
// command made nothing there, Host is not touched.
type Output struct {
	Host, Path string
}

// Size is a terminal's size in characters.
type Size struct {
	Rows, Cols uint16
}

// Config describes one run. The zero value of every field but CacheDir and
// Command is usable.
type Config struct {
	CacheDir string // where the outer kernel is kept; made if missing
	Init     string // static program that calls Init; empty: the running one

	Command []string // Command[0] is looked up in PATH inside, where Init is by its base name
	Env     []string // added to PATH, HOME and TERM; a later value wins
	Dir     string   // working folder inside, made if missing; empty: "/"

	Files   []File
	Disks   []Disk
	Outputs []Output
	Modules []string // extra kernel modules, such as tun, bridge, veth; dependencies come along

	MemoryMiB int // of the outer machine; 0: 2048 and twice the size of what is carried in
	CPUs      int // 0: 1. Emulated CPUs run in parallel, a host thread each

	// Stdin is copied to the command until it ends or the command does. Run
	// does not wait for a Read that is still blocked; what that Read returns
	// later is lost. Nil is an empty input.
	Stdin          io.Reader
	Stdout, Stderr io.Writer // nil discards; called from one goroutine

	// Terminal, if set, gives the command a terminal of this size as its three
	// streams; all output then goes to Stdout. The caller puts its own terminal in raw
	// mode.
	Terminal *Size

	Console     io.Writer     // the outer kernel's console, for curiosity; nil discards
	Progress    io.Writer     // notes while the kernel package is fetched; nil discards
	BootTimeout time.Duration // until the command starts; 0: three minutes

	// Started, if set, is called once when the command is about to start.
	Started func(Boot)

	// For tests, which break the machine on purpose.
	tscKHz    int           // the kernel is told this rate, not the measured one
	earlyKVM  bool          // load kvm while that rate is still the kernel's
	unproven  bool          // start the command whatever the clocks are
	extraArgs []string      // of QEMU
	silence   time.Duration // after which the machine is taken for dead; 0: maxSilence
}

// Boot says how long the outer machine took.
type Boot struct {
	Total   time.Duration // host clock: from starting QEMU to the command's start
	Modules time.Duration // inside: loading all kernel modules
	Clock   time.Duration // inside: waiting for the kernel's final TSC rate
}

// Run prepares the outer kernel if needed, boots the machine, runs the
// command and gives its exit code; 128 and the signal's number if a signal
// ended it. When err is not nil the code means nothing. Cancelling ctx kills
// the machine, and so do two minutes in which it gave no sign of life. Run returns
// when it is gone.
func Run(ctx context.Context, cfg Config) (exitCode int, err error) {
	if err := cfg.normalize(); err != nil {
		return 0, err
	}
	qemu, err := findQEMU()
	if err != nil {
		return 0, err
	}
	kernel, err := Prepare(ctx, cfg.CacheDir, cfg.Progress)
	if err != nil {
		return 0, err
	}
	tmp, err := os.MkdirTemp("", "godwit-lab-")
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrHost, err)
	}
	defer os.RemoveAll(tmp)
	first := readPair()
	initrd := filepath.Join(tmp, "initramfs.cpio")
	size, err := writeInitramfs(initrd, kernel, &cfg)
	if err != nil {
		return 0, err
	}
	if err := cfg.fitMemory(size); err != nil {
		return 0, err
	}
	return runMachine(ctx, qemu, qemuArgs(kernel, initrd, tscRate(first), &cfg), &cfg)
}

// normalize fills defaults in and refuses what cannot work, before anything
// is started. It replaces slices rather than change the caller's.
func (c *Config) normalize() error {
	switch {
	case c.CacheDir == "":
		return fmt.Errorf("%w: no cache folder given", ErrConfig)
	case len(c.Command) == 0 || c.Command[0] == "":
		return fmt.Errorf("%w: no command given", ErrConfig)
	case c.MemoryMiB != 0 && (c.MemoryMiB < minMemoryMiB || c.MemoryMiB > maxMemoryMiB):
		return fmt.Errorf("%w: %d MiB of memory is outside %d to %d", ErrConfig, c.MemoryMiB, minMemoryMiB, maxMemoryMiB)
	case c.CPUs < 0 || c.CPUs > MaxCPUs:
		return fmt.Errorf("%w: %d CPUs is outside 1 to %d", ErrConfig, c.CPUs, MaxCPUs)
	case len(c.Disks) > maxDisks:
		return fmt.Errorf("%w: %d disks, at most %d fit", ErrConfig, len(c.Disks), maxDisks)
	}
	for _, s := range append(append([]string{c.Dir}, c.Command...), c.Env...) {
		if strings.ContainsRune(s, 0) {
			return fmt.Errorf("%w: %q holds a NUL byte", ErrConfig, s)
		}
	}
	c.CPUs = max(c.CPUs, 1)
	if c.BootTimeout <= 0 {
		c.BootTimeout = defaultBootTimeout
	}
	if c.silence <= 0 {
		c.silence = maxSilence
	}
	if c.Dir == "" {
		c.Dir = "/"
	}
	if c.Init == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("%w: find the running program: %w", ErrHost, err)
		}
		c.Init = self
	}
	if err := checkStatic(c.Init); err != nil {
		return err
	}
	for _, w := range []*io.Writer{&c.Stdout, &c.Stderr, &c.Console, &c.Progress} {
		if *w == nil {
			*w = io.Discard
		}
	}
	return c.normalizePaths()
}

func (c *Config) normalizePaths() error {
	seen := map[string]string{}
	claim := func(host, inside string) (string, string, error) {
		abs, err := filepath.Abs(host)
		if err != nil {
			return "", "", fmt.Errorf("%w: %q: %w", ErrConfig, host, err)
		}
		if inside == "" {
			inside = abs
		}
		if err := checkInside(inside); err != nil {
			return "", "", err
		}
		inside = path.Clean(inside)
		if other, dup := seen[inside]; dup {
			return "", "", fmt.Errorf("%w: both %q and %q would be %q inside", ErrConfig, other, host, inside)
		}
		seen[inside] = host
		return abs, inside, nil
	}
	var err error
	files := make([]File, len(c.Files))
	for i, f := range c.Files {
		if files[i].Host, files[i].Path, err = claim(f.Host, f.Path); err != nil {
			return err
		}
	}
	disks := make([]Disk, len(c.Disks))
	for i, d := range c.Disks {
		disks[i].ReadOnly = d.ReadOnly
		if disks[i].Host, disks[i].Path, err = claim(d.Host, d.Path); err != nil {
			return err
		}
		if err := checkDisk(disks[i].Host); err != nil {
			return err
		}
	}
	outputs := make([]Output, len(c.Outputs))
	for i, o := range c.Outputs {
		if outputs[i].Host, outputs[i].Path, err = claim(o.Host, o.Path); err != nil {
			return err
		}
	}
	c.Files, c.Disks, c.Outputs = files, disks, outputs
	if !path.IsAbs(c.Dir) {
		return fmt.Errorf("%w: working folder %q is not absolute", ErrConfig, c.Dir)
	}
	return nil
}

// reserved are the places that the machine itself uses inside.
var reserved = []string{"/dev", "/proc", "/sys", "/init", labDir}

func checkInside(p string) error {
	if !path.IsAbs(p) || path.Clean(p) == "/" || strings.ContainsRune(p, 0) {
		return fmt.Errorf("%w: %q is not an absolute path of a file inside", ErrConfig, p)
	}
	clean := path.Clean(p)
	for _, r := range reserved {
		if clean == r || strings.HasPrefix(clean, r+"/") {
			return fmt.Errorf("%w: %q cannot be used inside: %s belongs to the machine; use a copy elsewhere", ErrConfig, p, r)
		}
	}
	return nil
}

func checkDisk(host string) error {
	st, err := os.Stat(host)
	switch {
	case err != nil:
		return fmt.Errorf("%w: disk image: %w", ErrConfig, err)
	case !st.Mode().IsRegular():
		return fmt.Errorf("%w: disk image %q is not a regular file", ErrConfig, host)
	case st.Size() == 0 || st.Size()%sectorSize != 0:
		return fmt.Errorf("%w: disk image %q has %d bytes, not a multiple of %d, which a block device needs; extend it with truncate",
			ErrConfig, host, st.Size(), sectorSize)
	}
	return nil
}

// fitMemory chooses or checks the memory for an initramfs of size bytes: it
// lies in memory once as loaded and once more while it is unpacked.
func (c *Config) fitMemory(size int64) error {
	need := int(size>>20)*2 + minMemoryMiB
	if c.MemoryMiB == 0 {
		c.MemoryMiB = max(defaultMemoryMiB, need-minMemoryMiB+defaultMemoryMiB)
	}
	if c.MemoryMiB > maxMemoryMiB || c.MemoryMiB < need {
		return fmt.Errorf("%w: %d MiB of files are carried in, which takes %d MiB of memory, and the machine has %d; pass big images as disks",
			ErrConfig, size>>20, need, c.MemoryMiB)
	}
	return nil
}
