package boot

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"godwit/kvm/guestmem"
)

// Sentinels for errors.Is; each wraps a message that says what to do.
var (
	// ErrKernel marks a file that is no kernel we can start.
	ErrKernel = errors.New("not a bootable kernel")
	// ErrMemory marks a guest with too little memory for what it should load.
	ErrMemory = errors.New("guest memory too small")
	// ErrCmdline marks an unusable command line.
	ErrCmdline = errors.New("bad kernel command line")
)

// Image is a file to load: what it is called in errors, its bytes, its length.
type Image struct {
	Name string
	io.ReaderAt
	Size int64 // bytes
}

// Config is what Load needs to know of the machine.
type Config struct {
	Kernel  Image
	Initrd  *Image // nil for none
	Cmdline string
	CPUs    int // vCPUs with local APIC ids 0 to CPUs-1
}

// Mode is the processor state a kernel is entered in.
type Mode int

const (
	// Long64 is 64-bit mode with paging on, as the Linux 64-bit protocol asks.
	Long64 Mode = iota
	// Protected32 is 32-bit protected mode without paging, as PVH asks.
	Protected32
)

// Entry is how the first vCPU starts.
type Entry struct {
	Mode     Mode
	RIP      uint64
	RBX      uint64 // PVH: address of hvm_start_info
	RSI      uint64 // Linux: address of boot_params
	CR3      uint64 // Long64: address of the PML4
	GDT      uint64 // address of the descriptor table
	GDTLimit uint16 // its limit, bytes - 1
	Code     uint16 // selector for CS, a flat code segment of the mode's size
	Data     uint16 // selector for DS, ES, SS, FS and GS, a flat data segment
	Task     uint16 // selector for TR
}

// Load places everything into guest memory and returns how to start it. The
// machine must not be running. On an error guest memory may have been written
// in part, and the machine must not be started.
func Load(mem *guestmem.Memory, cfg Config) (Entry, error) {
	low := lowEnd(mem)
	if low < minMemory {
		return Entry{}, fmt.Errorf("load kernel %q: %w: %d KiB; give at least %d MiB with --memory",
			cfg.Kernel.Name, ErrMemory, low>>10, minMemory>>20)
	}
	if err := writeMPTable(mem, cfg.CPUs); err != nil {
		return Entry{}, err
	}
	var magic [4]byte
	if _, err := cfg.Kernel.ReadAt(magic[:], 0); err != nil {
		return Entry{}, fmt.Errorf("load kernel %q: %w: shorter than 4 bytes (%d); is the file whole?", cfg.Kernel.Name, ErrKernel, cfg.Kernel.Size)
	}
	if string(magic[:]) == "\x7fELF" {
		return loadELF(mem, low, cfg)
	}
	return loadBzImage(mem, low, cfg)
}

// writeCmdline puts the command line with its final NUL at cmdlineAddr. limit
// is the longest the kernel takes, without the NUL.
func writeCmdline(mem *guestmem.Memory, s string, limit int) error {
	if len(s) > limit {
		return fmt.Errorf("%w: %d bytes, the kernel takes %d; shorten --append or --cmdline", ErrCmdline, len(s), limit)
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }); i >= 0 {
		return fmt.Errorf("%w: control character %#x at byte %d", ErrCmdline, s[i], i)
	}
	return mem.WriteAt(append([]byte(s), 0), cmdlineAddr)
}

// moreMemory says what helps a kernel or an initrd that needs n bytes from start
// on: more memory, if a guest can have any there below the hole for devices.
func moreMemory(start, n uint64) string {
	if start < highMemory || start >= guestmem.HoleStart || n > guestmem.HoleStart-start {
		return fmt.Sprintf("no amount of memory helps: a guest has room for it from %#x to %#x at most; use another kernel or initrd", highMemory, uint64(guestmem.HoleStart))
	}
	return "raise --memory"
}

// copyIn reads n bytes of img at off straight into guest memory at gpa.
func copyIn(mem *guestmem.Memory, gpa uint64, img Image, off, n int64) error {
	if n == 0 {
		return nil
	}
	dst, err := mem.Writable(gpa, uint64(n))
	if err != nil {
		return fmt.Errorf("load %q: %w: %d bytes for address %#x do not fit (%v); %s", img.Name, ErrMemory, n, gpa, err, moreMemory(gpa, uint64(n)))
	}
	if _, err := io.ReadFull(io.NewSectionReader(img, off, n), dst); err != nil {
		return fmt.Errorf("load %q: %w: read %d bytes at offset %d: %w; is the file whole?", img.Name, ErrKernel, n, off, err)
	}
	mem.MarkDirty(gpa, uint64(n))
	return nil
}

// placeInitrd puts the initrd as high as possible below limit (exclusive), on
// a page boundary and above floor, and returns where.
func placeInitrd(mem *guestmem.Memory, img Image, floor, limit uint64) (uint64, error) {
	size := uint64(img.Size)
	if img.Size <= 0 {
		return 0, fmt.Errorf("load initrd %q: empty file; leave --initrd out or give one that holds an archive", img.Name)
	}
	if size > limit || (limit-size)&^(guestmem.PageSize-1) < floor {
		return 0, fmt.Errorf("load initrd %q: %w: %d MiB do not fit between the kernel's end %#x and %#x; %s",
			img.Name, ErrMemory, size>>20, floor, limit, moreMemory(floor, size))
	}
	gpa := (limit - size) &^ (guestmem.PageSize - 1)
	return gpa, copyIn(mem, gpa, img, 0, img.Size)
}
