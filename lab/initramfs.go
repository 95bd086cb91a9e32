package lab

import (
	"bufio"
	"bytes"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// Places inside.
const (
	labDir     = "/.lab"
	jobPath    = labDir + "/job"
	portPath   = "/dev/vport0p1" // first port of the only virtio-serial device
	diskSerial = "lab"           // disk n has the serial "lab<n>"
)

// job tells process 1 what to do. It travels as gob, which keeps every byte of
// an argument, valid UTF-8 or not; no shell ever sees one.
type job struct {
	Command  []string
	Env      []string
	Dir      string
	Modules  []string // loaded first
	KVM      []string // modules loaded when the kernel's TSC rate is final
	EarlyKVM bool     // for a test: they are loaded before
	Unproven bool     // for a test: the command starts with any clock
	Disks    []string // links to make; the index is in the disk's serial
	Outputs  []string // the index is the first part of names in the tar
	Terminal *Size
}

// rootTree adds entries to the archive with their parent folders, which the
// kernel's unpacker wants first. The first claim on a name wins.
type rootTree struct {
	cpio *cpioWriter
	seen map[string]bool
}

func (t *rootTree) add(p string, mode uint32, size int64, body io.Reader) error {
	name := strings.TrimPrefix(path.Clean(p), "/")
	if t.seen[name] {
		return nil
	}
	if parent := path.Dir(name); parent != "." {
		if err := t.add(parent, cpioDir|0o755, 0, nil); err != nil {
			return err
		}
	}
	t.seen[name] = true
	return t.cpio.entry(name, mode, size, body)
}

func (t *rootTree) dir(p string) error { return t.add(p, cpioDir|0o755, 0, nil) }

func (t *rootTree) link(p, target string) error {
	return t.add(p, cpioSymlink|0o777, int64(len(target)), strings.NewReader(target))
}

func (t *rootTree) file(p, host string) error {
	f, err := os.Open(host)
	if err != nil {
		return fmt.Errorf("%w: carry in: %w", ErrConfig, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("%w: carry in: %w", ErrConfig, err)
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%w: carry in %q: not a regular file", ErrConfig, host)
	}
	return t.add(p, cpioRegular|uint32(st.Mode().Perm()), st.Size(), f)
}

// writeInitramfs makes the first root of the machine and gives its size in
// bytes. It is not compressed: decompression would be emulated.
func writeInitramfs(to string, k Kernel, cfg *Config) (int64, error) {
	ix, err := indexModules(k)
	if err != nil {
		return 0, err
	}
	names := []string{"virtio_pci", "virtio_console"}
	if len(cfg.Disks) > 0 {
		names = append(names, "virtio_blk")
	}
	names = append(append(names, cfg.Modules...), "kvm-amd")
	modules, err := ix.closure(names)
	if err != nil {
		return 0, err
	}
	f, err := os.Create(to)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrHost, err)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	tree := &rootTree{cpio: newCPIOWriter(w), seen: map[string]bool{}}
	err = tree.fill(modules, cfg)
	if err = errors.Join(err, w.Flush(), f.Close()); err != nil {
		return 0, fmt.Errorf("build the initramfs: %w", err)
	}
	return tree.cpio.n, nil
}

func (t *rootTree) fill(modules []string, cfg *Config) error {
	for _, d := range []string{"/dev", "/proc", "/sys", "/tmp", "/run", "/root", "/var/tmp", "/etc", "/bin"} {
		if err := t.dir(d); err != nil {
			return err
		}
	}
	self := "/bin/" + filepath.Base(cfg.Init)
	if err := t.file(self, cfg.Init); err != nil {
		return err
	}
	if err := t.link("/init", self); err != nil {
		return err
	}
	j := newJob(cfg)
	late := false // kvm, and what comes after it: some of that needs kvm
	for i, m := range modules {
		inside := labDir + "/" + strconv.Itoa(i) + "-" + filepath.Base(m)
		if late = late || moduleName(m) == "kvm"; late {
			j.KVM = append(j.KVM, inside)
		} else {
			j.Modules = append(j.Modules, inside)
		}
		if err := t.file(inside, m); err != nil {
			return err
		}
	}
	var text bytes.Buffer
	if err := gob.NewEncoder(&text).Encode(j); err != nil {
		return err
	}
	if err := t.add(jobPath, cpioRegular|0o600, int64(text.Len()), &text); err != nil {
		return err
	}
	for _, f := range cfg.Files {
		if err := t.file(f.Path, f.Host); err != nil {
			return err
		}
	}
	if err := t.busybox(); err != nil {
		return err
	}
	return t.cpio.close()
}

func newJob(cfg *Config) job {
	j := job{Command: cfg.Command, Dir: cfg.Dir, Terminal: cfg.Terminal, Outputs: []string{}, Disks: []string{}, EarlyKVM: cfg.earlyKVM, Unproven: cfg.unproven}
	j.Env = append([]string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/root", "TERM=linux"}, cfg.Env...)
	for _, d := range cfg.Disks {
		j.Disks = append(j.Disks, d.Path)
	}
	for _, o := range cfg.Outputs {
		j.Outputs = append(j.Outputs, o.Path)
	}
	return j
}

// busybox adds the host's busybox and its applets if there is a static one.
func (t *rootTree) busybox() error {
	host, err := exec.LookPath("busybox")
	if err != nil || checkStatic(host) != nil {
		return nil
	}
	list, err := exec.Command(host, "--list").Output()
	if err != nil {
		return nil
	}
	if err := t.file("/bin/busybox", host); err != nil {
		return err
	}
	for _, applet := range strings.Fields(string(list)) {
		if err := t.link("/bin/"+path.Base(applet), "busybox"); err != nil {
			return err
		}
	}
	return nil
}
