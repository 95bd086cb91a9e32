package vmm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"godwit/blockfile"
	"godwit/boot"
	"godwit/kvm/guestmem"
)

// ErrConfig marks a machine configuration that cannot be built.
var ErrConfig = errors.New("bad machine configuration")

// Limits of a configuration.
const (
	MinMemoryMiB = 8
	MaxMemoryMiB = 1 << 20 // 1 TiB
	MaxCPUs      = 64
	MaxDrives    = 16
)

// Config is a machine, in the shape of Firecracker's configuration file where
// that has a word for it. It is what `godwit run --config` reads and what a
// migration sends to its destination.
type Config struct {
	// ID names the instance: 1 to 64 letters, digits, '-', '_' or '.'.
	ID         string             `json:"id"`
	BootSource BootSource         `json:"boot-source"`
	Drives     []Drive            `json:"drives,omitempty"`
	Networks   []NetworkInterface `json:"network-interfaces,omitempty"`
	Balloon    *Balloon           `json:"balloon,omitempty"`
	Entropy    *Entropy           `json:"entropy,omitempty"`
	Consoles   []Console          `json:"consoles,omitempty"`
	Vsock      *Vsock             `json:"vsock,omitempty"`
	Machine    MachineConfig      `json:"machine-config"`
}

// BootSource says what to boot. Exactly one of Guest and KernelImagePath is
// set; both are unused at a migration's destination, which gets memory instead.
type BootSource struct {
	KernelImagePath string `json:"kernel_image_path,omitempty"`
	InitrdPath      string `json:"initrd_path,omitempty"`
	// BootArgs replaces the default command line when it is set.
	BootArgs string `json:"boot_args,omitempty"`
	// AppendArgs is added to the default command line, or to BootArgs.
	AppendArgs string `json:"append_args,omitempty"`
	// Guest names a built-in guest: "metronome".
	Guest string `json:"guest,omitempty"`
}

// Drive is a disk.
type Drive struct {
	// ID names the drive in CONFIG, in `receive --disk ID=path` and in info; the
	// guest reads it as the serial number.
	ID           string `json:"drive_id"`
	PathOnHost   string `json:"path_on_host"`
	IsRootDevice bool   `json:"is_root_device,omitempty"`
	IsReadOnly   bool   `json:"is_read_only,omitempty"`
	// Format is "raw", the default, or "qcow2". It is never guessed from the
	// image, where a guest may have written; but where it is left out, an image
	// that looks like another format's is refused.
	Format string `json:"format,omitempty"`
	// Snapshot has what the guest writes go to a temporary overlay, in TMPDIR,
	// which is lost when the process ends; the image stays as it is. A reset of
	// the guest keeps it. A machine with such a drive cannot be migrated.
	Snapshot bool `json:"snapshot,omitempty"`
	// Cache is "writeback" (the default), "writethrough" or "none" (O_DIRECT).
	Cache string `json:"cache_type,omitempty"`
	// Backing is "any" for a qcow2 image that may name any file of this host as its
	// backing file; else those in its own folder, and below Options.AllowPaths. It
	// is this host's, and does not travel with the machine.
	Backing string `json:"backing,omitempty"`
	// OnFull is "pause" (the default) or "report": what happens to a request for
	// which the host has no room. Pause has the machine stand still until it is
	// resumed, and the request tried again then; report tells the guest of an I/O error.
	OnFull string `json:"on_full,omitempty"`
	// Queues is the number of request queues, 1 to 16; 0 means one per vCPU, at
	// most 4.
	Queues int `json:"num_queues,omitempty"`
}

// BackingAny is the Drive.Backing of an image whose maker is trusted.
const BackingAny = "any"

// MachineConfig is the size of the machine.
type MachineConfig struct {
	VCPUCount  int `json:"vcpu_count"`
	MemSizeMiB int `json:"mem_size_mib"`
	// MemoryBacking is "anon" (the default) or "memfd".
	MemoryBacking string `json:"memory_backing,omitempty"`
	// Tracker is how a migration finds what the guest writes: "log" (the default)
	// or "ring". It is settled when the machine is made and travels with it.
	Tracker string `json:"tracker,omitempty"`
}

// GuestMetronome is the built-in guest of boot/metronome.
const GuestMetronome = "metronome"

var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// ParseConfig reads a configuration from JSON. Unknown fields are errors, so
// that a misspelt one does not silently do nothing.
func ParseConfig(data []byte) (Config, error) {
	var c Config
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return Config{}, fmt.Errorf("%w: %s", ErrConfig, jsonFault(data, d.InputOffset(), err))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Config{}, fmt.Errorf("%w: line %d: text behind the end of the machine", ErrConfig, lineOf(data, d.InputOffset()))
	}
	return c, nil
}

// jsonFault says where in data a text is no configuration, and why, in the words of its
// writer. at is how far the decoder came.
func jsonFault(data []byte, at int64, err error) string {
	why := strings.TrimPrefix(err.Error(), "json: ")
	syntax, kind := new(json.SyntaxError), new(json.UnmarshalTypeError)
	switch {
	case errors.As(err, &syntax):
		at = syntax.Offset
	case errors.As(err, &kind):
		at, why = kind.Offset, fmt.Sprintf("%q must be %s, not %s", kind.Field, jsonKind(kind.Type), kind.Value)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		at, why = int64(len(data)), "the file ends before the machine does: a bracket or a quote is missing"
	}
	return fmt.Sprintf("line %d: %s", lineOf(data, at), why)
}

// jsonKind is what JSON calls a Go type.
func jsonKind(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a text"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Struct, reflect.Map, reflect.Pointer:
		return "an object"
	}
	return "a whole number in range"
}

// lineOf is the line of an offset, from 1.
func lineOf(data []byte, at int64) int {
	at = min(max(at, 0), int64(len(data)))
	return 1 + bytes.Count(data[:at], []byte("\n"))
}

// withDefaults fills in what may be left out.
func (c Config) withDefaults() Config {
	if c.Machine.VCPUCount == 0 {
		c.Machine.VCPUCount = 1
	}
	if c.Machine.MemSizeMiB == 0 {
		c.Machine.MemSizeMiB = 512
	}
	if c.Machine.MemoryBacking == "" {
		c.Machine.MemoryBacking = guestmem.Anon.String()
	}
	if c.Machine.Tracker == "" {
		c.Machine.Tracker = TrackerLog
	}
	c.Consoles = withConsoleDefaults(c.Consoles)
	c.Drives = append([]Drive(nil), c.Drives...)
	for i := range c.Drives {
		d := &c.Drives[i]
		if d.ID == "" {
			d.ID = fmt.Sprintf("vd%c", 'a'+i)
		}
		if d.Format == "" {
			d.Format = "raw"
		}
		if d.Cache == "" {
			d.Cache = "writeback"
		}
		if d.Queues == 0 {
			d.Queues = min(c.Machine.VCPUCount, 4)
		}
	}
	c.Networks = append([]NetworkInterface(nil), c.Networks...)
	for i := range c.Networks {
		c.Networks[i] = c.Networks[i].withDefaults(c.ID, i)
	}
	return c
}

// validate checks everything that needs no file and no KVM. incoming machines
// have no boot source.
func (c Config) validate(incoming bool) error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: %s", ErrConfig, fmt.Sprintf(format, a...))
	}
	if !idPattern.MatchString(c.ID) {
		return bad("id %q; use 1 to 64 letters, digits, '.', '_' or '-'", c.ID)
	}
	m := c.Machine
	if m.VCPUCount < 1 || m.VCPUCount > MaxCPUs {
		return bad("%d vCPUs; give 1 to %d", m.VCPUCount, MaxCPUs)
	}
	if m.MemSizeMiB < MinMemoryMiB || m.MemSizeMiB > MaxMemoryMiB {
		return bad("%d MiB of memory; give %d MiB to %d GiB", m.MemSizeMiB, MinMemoryMiB, MaxMemoryMiB>>10)
	}
	if _, err := guestmem.ParseBacking(m.MemoryBacking); err != nil {
		return bad("%v", err)
	}
	if m.Tracker != TrackerLog && m.Tracker != TrackerRing {
		return bad("tracker %q; use %s or %s", m.Tracker, TrackerLog, TrackerRing)
	}
	if len(c.Drives) > MaxDrives {
		return bad("%d drives; at most %d", len(c.Drives), MaxDrives)
	}
	seen := map[string]bool{}
	for _, d := range c.Drives {
		switch {
		case !idPattern.MatchString(d.ID) || len(d.ID) > 20:
			return bad("drive id %q; use 1 to 20 letters, digits, '.', '_' or '-'", d.ID)
		case seen[d.ID]:
			return bad("two drives with id %q; give each its own", d.ID)
		case d.PathOnHost == "" && !incoming:
			return bad("drive %q has no path", d.ID)
		case d.Format != "raw" && d.Format != "qcow2":
			return bad("drive %q: format %q; use raw or qcow2", d.ID, d.Format)
		case d.Backing != "" && d.Backing != BackingAny:
			return bad("drive %q: backing %q; leave it out, or use %s", d.ID, d.Backing, BackingAny)
		case d.Backing != "" && d.Format != "qcow2":
			return bad("drive %q: backing=%s for a raw image, which has no backing file; give format=qcow2 or leave it out", d.ID, d.Backing)
		case d.Snapshot && d.IsReadOnly:
			return bad("drive %q: both read-only and a snapshot; give one", d.ID)
		case d.Snapshot && incoming:
			return bad("drive %q is a snapshot, whose changes lie in a temporary file of the source", d.ID)
		case d.OnFull != "" && d.OnFull != OnFullPause && d.OnFull != OnFullReport:
			return bad("drive %q: on-full %q; use %s or %s", d.ID, d.OnFull, OnFullPause, OnFullReport)
		case d.Queues < 1 || d.Queues > 16:
			return bad("drive %q: %d queues; give 1 to 16", d.ID, d.Queues)
		}
		seen[d.ID] = true
	}
	if err := validateNetworks(c.Networks, incoming); err != nil {
		return err
	}
	if err := c.Balloon.validate(m.MemSizeMiB); err != nil {
		return err
	}
	if err := c.Entropy.validate(); err != nil {
		return err
	}
	if err := validateConsoles(c.Consoles, incoming); err != nil {
		return err
	}
	if err := c.Vsock.validate(incoming); err != nil {
		return err
	}
	if incoming {
		return nil
	}
	return c.BootSource.validate()
}

func (b BootSource) validate() error {
	switch {
	case b.Guest == "" && b.KernelImagePath == "":
		return fmt.Errorf("%w: nothing to boot; give --kernel FILE or --guest metronome", ErrConfig)
	case b.Guest != "" && b.KernelImagePath != "":
		return fmt.Errorf("%w: both guest %q and kernel %q; give one", ErrConfig, b.Guest, b.KernelImagePath)
	case b.Guest != "" && b.Guest != GuestMetronome:
		return fmt.Errorf("%w: no built-in guest %q; there is metronome", ErrConfig, b.Guest)
	case b.Guest != "" && b.InitrdPath != "":
		return fmt.Errorf("%w: the built-in guest takes no initrd", ErrConfig)
	}
	return nil
}

// cmdline is the kernel command line without what the machine adds for its
// devices.
func (c Config) cmdline() string {
	line := c.BootSource.BootArgs
	if line == "" && c.BootSource.Guest == "" {
		o := boot.CmdlineOptions{}
		for i, d := range c.Drives {
			if d.IsRootDevice || i == 0 {
				o.Root, o.ReadOnly = fmt.Sprintf("/dev/vd%c", 'a'+i), d.IsReadOnly
			}
			if d.IsRootDevice {
				break
			}
		}
		line = boot.DefaultCmdline(o)
	}
	return boot.JoinCmdline(line, c.BootSource.AppendArgs)
}

// openImage opens a file to boot from.
func openImage(what, path string, open blockfile.Opener) (*os.File, boot.Image, error) {
	if open == nil {
		open = openAnywhere
	}
	fd, err := open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK) // a FIFO must not hang the open
	if err != nil {
		return nil, boot.Image{}, fmt.Errorf("open %s: %w", what, err)
	}
	f := os.NewFile(uintptr(fd), path)
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("open %s %q: not a regular file", what, path)
	}
	if err != nil {
		_ = f.Close()
		return nil, boot.Image{}, err
	}
	return f, boot.Image{Name: path, ReaderAt: f, Size: st.Size()}, nil
}
