package vmm

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"godwit/blockfile"
	"godwit/boot"
	"godwit/boot/metronome"
	"godwit/kvm"
	"godwit/kvm/guestmem"
)

// assembly is how building for a migration differs from building to boot.
type assembly struct {
	incoming bool
	saved    bool                   // from a file, so there is no source
	cpuid    []kvm.CPUIDEntry       // the source's, where there is one
	disks    map[string]string      // drive id to the path to open here
	networks map[string]HostNetwork // card id to what to use here
	consoles map[string]string      // console id to what is behind it here
	vsock    string                 // the vsock's path here, if it has one
	memory   *os.File               // the source's guest memory, where that is handed over

	open     blockfile.Opener                                                  // Options.Open
	backing  func(drive, image, path string) (string, blockfile.Opener, error) // Options.AllowBacking
	allow    []string                                                          // Options.AllowPaths
	unsaid   map[string]bool                                                   // drives whose format nobody said
	overlays *Overlays
	// foundFull hears of a drive whose host has no room.
	foundFull func(id, where string, err error)
	stdio     func() (fd int, err error) // Options.Stdio
}

// assemble builds a machine in the order that KVM asks for: interrupt
// controllers and timer before the first vCPU, CPUID before any other vCPU
// state, memory and devices before the guest runs.
func assemble(cfg Config, o Options, a assembly) (_ *Machine, err error) {
	a.overlays, a.open, a.backing, a.allow = o.Overlays, o.Open, o.AllowBacking, o.AllowPaths
	m := &Machine{cfg: cfg, log: o.Log, onFull: o.OnFull, began: time.Now(), ended: make(chan struct{})}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	if m.sys, err = kvm.Open(); err != nil {
		return nil, err
	}
	if m.vm, err = m.sys.CreateVM(); err != nil {
		return nil, err
	}
	if err := m.createChips(); err != nil {
		return nil, err
	}
	if err := m.createMemory(a.memory); err != nil {
		return nil, err
	}
	if m.cpuid = a.cpuid; m.cpuid == nil {
		if m.cpuid, err = baseCPUID(m.sys); err != nil {
			return nil, err
		}
	}
	if err := m.createVCPUs(a.cpuid != nil); err != nil {
		return nil, err
	}
	if err := m.createDevices(o, a); err != nil {
		return nil, err
	}
	if !a.incoming {
		m.markImages()
	}
	for _, v := range m.vcpus {
		v.start()
	}
	m.throttle = newThrottle(m.vcpus, m.mem.ring())
	return m, nil
}

// createChips makes the in-kernel interrupt controllers and the timer.
func (m *Machine) createChips() error {
	if err := m.vm.SetTSSAddr(tssAddr); err != nil {
		return err
	}
	if err := m.vm.SetIdentityMapAddr(identityMapAddr); err != nil {
		return err
	}
	if err := m.vm.CreateIRQChip(); err != nil {
		return err
	}
	if err := m.vm.CreatePIT2(kvm.PITSpeakerDummy); err != nil {
		return err
	}
	caps, err := m.sys.CheckExtension(kvm.CapAdjustClock)
	m.clock = clockSaver{vm: m.vm, caps: caps}
	return err
}

// createMemory makes guest RAM, or maps the source's.
func (m *Machine) createMemory(given *os.File) error {
	backing, err := guestmem.ParseBacking(m.cfg.Machine.MemoryBacking)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	var ram *guestmem.Memory
	size := uint64(m.cfg.Machine.MemSizeMiB) << 20
	switch {
	case given == nil:
		ram, err = guestmem.New(size, guestmem.Options{Backing: backing})
	case backing != guestmem.Memfd:
		err = fmt.Errorf("%w: a memory file for a machine whose memory is %v", ErrConfig, backing)
	default:
		ram, err = guestmem.Attach(given, size, guestmem.Options{})
	}
	if err != nil {
		return err
	}
	m.mem = &memory{Memory: ram, vm: m.vm}
	if err := m.mem.track(m.cfg.Machine.Tracker); err != nil {
		return err
	}
	return m.mem.setFlags(0)
}

func (m *Machine) createVCPUs(incoming bool) error {
	n := m.cfg.Machine.VCPUCount
	if most, err := m.sys.CheckExtension(kvm.CapMaxVCPUs); err == nil && most > 0 && n > most {
		return fmt.Errorf("%w: %d vCPUs; this host's KVM has at most %d", ErrConfig, n, most)
	}
	for id := range n {
		fd, err := m.vm.CreateVCPU(id)
		if err != nil {
			return err
		}
		m.vcpus = append(m.vcpus, newVCPU(m, id, fd))
		if ring := m.mem.ring(); ring != nil {
			if err := ring.attach(fd); err != nil {
				return err
			}
		}
		if err := m.setCPUID(fd, id, n, incoming); err != nil {
			return err
		}
	}
	var err error
	if m.msrs, err = savedMSRs(m.sys, m.vcpus[0].fd); err != nil {
		return err
	}
	m.tscKHz, err = m.vcpus[0].fd.TSCKHz()
	return err
}

// setCPUID gives a vCPU its table. A peer's is judged once more by what KVM says
// that it has made of it, beside what it makes of this host's own: some KVMs add to
// a table (PVM shows a guest the processor's features whatever was set).
func (m *Machine) setCPUID(fd *kvm.VCPU, id, cpus int, incoming bool) error {
	if !incoming {
		return fd.SetCPUID(vcpuCPUID(m.cpuid, id, cpus))
	}
	base, err := baseCPUID(m.sys)
	if err != nil {
		return err
	}
	own, err := setAndRead(fd, vcpuCPUID(base, id, cpus))
	if err != nil {
		return err
	}
	taken, err := setAndRead(fd, vcpuCPUID(m.cpuid, id, cpus))
	if err != nil {
		return err
	}
	return checkTaken(taken, own)
}

func setAndRead(fd *kvm.VCPU, table []kvm.CPUIDEntry) ([]kvm.CPUIDEntry, error) {
	if err := fd.SetCPUID(table); err != nil {
		return nil, err
	}
	return fd.CPUID()
}

// load places what boots into memory and sets the first vCPU's registers; the
// others wait for the guest to start them (INIT, SIPI).
func (m *Machine) load(open blockfile.Opener) error {
	cfg := boot.Config{CPUs: len(m.vcpus), Cmdline: boot.JoinCmdline(m.cfg.cmdline(), m.dev.cmdline())}
	if m.cfg.BootSource.Guest == GuestMetronome {
		own, err := m.metronomeArgs()
		if err != nil {
			return err
		}
		elf := metronome.ELF()
		cfg.Kernel = boot.Image{Name: GuestMetronome, ReaderAt: bytes.NewReader(elf), Size: int64(len(elf))}
		cfg.Cmdline = boot.JoinCmdline(own, m.dev.cmdline())
	} else {
		f, img, err := openImage("kernel", m.cfg.BootSource.KernelImagePath, open)
		if err != nil {
			return err
		}
		defer f.Close()
		cfg.Kernel = img
	}
	if path := m.cfg.BootSource.InitrdPath; path != "" {
		f, img, err := openImage("initrd", path, open)
		if err != nil {
			return err
		}
		defer f.Close()
		cfg.Initrd = &img
	}
	entry, err := boot.Load(m.mem.Memory, cfg)
	if err != nil {
		return err
	}
	for _, v := range m.vcpus {
		if err := errors.Join(wireLAPIC(v.fd), presetXCR0(v.fd, m.cpuid)); err != nil {
			return err
		}
	}
	return enter(m.vcpus[0].fd, entry)
}

// metronomeArgs checks the user's options for the built-in guest and adds what
// it cannot find out quickly by itself: the TSC's rate, and the number of vCPUs
// where the user does not say.
func (m *Machine) metronomeArgs() (string, error) {
	line := m.cfg.cmdline()
	o, err := metronome.ParseOptions(line)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if o.TSCKHz == 0 {
		line = boot.JoinCmdline(line, fmt.Sprintf("tsc_khz=%d", m.tscKHz))
	}
	if !strings.Contains(" "+line, " vcpus=") {
		line = boot.JoinCmdline(line, fmt.Sprintf("vcpus=%d", len(m.vcpus)))
	}
	return line, nil
}
