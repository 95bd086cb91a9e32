package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"

	"godwit/vmm"
)

// maxConfigFile bounds --config, bytes.
const maxConfigFile = 1 << 20

// defaultName is the id of a machine that nobody named.
const defaultName = "godwit"

// machineFlags describe a machine.
type machineFlags struct {
	config, kernel, guest, initrd, appendArgs, cmdline, name, backing, tracker string
	memory                                                                     memoryValue
	cpus                                                                       int
	disks                                                                      drivesValue
	networks                                                                   networksValue
	balloon                                                                    balloonValue
	entropy                                                                    entropyValue
	consoles                                                                   consolesValue
	vsock                                                                      vsockValue
	allow                                                                      pathsValue
}

func (m *machineFlags) add(f *pflag.FlagSet) {
	f.StringVar(&m.config, "config", "", "read the machine from a JSON `FILE` in Firecracker's shape; flags win over it; as in --config machine.json")
	f.StringVar(&m.guest, "guest", "", "boot the built-in guest `NAME`, as in --guest metronome")
	f.StringVar(&m.kernel, "kernel", "", "boot a Linux kernel, bzImage or vmlinux, from `FILE`, as in --kernel bzImage")
	f.StringVar(&m.initrd, "initrd", "", "initial RAM disk for the kernel, from `FILE`, as in --initrd initrd.img")
	f.StringVar(&m.appendArgs, "append", "", "add `TEXT` to the default kernel command line, as in --append 'loglevel=7'")
	f.StringVar(&m.cmdline, "cmdline", "", "replace the default kernel command line with `TEXT`, as in --cmdline 'console=ttyS0 root=/dev/vda'")
	mayBeEmpty(f, "append", "cmdline")
	f.Var(&m.disks, "disk", "attach a disk; may be repeated; the first is root (/dev/vda), as in --disk path=root.img,id=root,readonly or --disk path=root.qcow2,format=qcow2,snapshot; with snapshot the image stays as it is and what the guest writes is lost at the end, not at a reset; a comma in a name is written twice; on a full host the machine pauses until godwit resume, or with on-full=report the guest gets an I/O error")
	f.Var(&m.allow, "allow-path", "open backing files below this `FOLDER`, too, and not only in the folder of the image that names them; may be repeated, as in --allow-path /srv/bases")
	f.Var(&m.networks, "net", "attach a network card (virtio-net) to a tap, which is made where it does not exist, with the guest's address, a bridge to put the tap into, a number of queue pairs, an MTU and an id; may be repeated; as in --net tap=tap0,bridge=br0 or --net tap=tap0,mac=02:00:00:00:00:01,queues=2,mtu=1500,id=lan")
	f.Var(&m.balloon, "balloon", "give the machine a balloon (virtio-balloon), by which the guest gives memory back: of this size now, told to give way before the guest kills processes, with figures of the guest's memory, free pages given back by themselves, or told to a migration; as in --balloon size=256M,deflate-on-oom,stats=5s,reporting,hinting")
	f.Var(&m.entropy, "rng", "give the guest random numbers (virtio-rng), a number of bytes a second or without limit, as in --rng rate=64K,burst=1M or --rng unlimited")
	f.Var(&m.consoles, "console", "give the guest a console (hvc0) or, with a name, a channel; may be repeated; as in --console path=unix:agent.sock,name=org.example.0 or --serial none --console path=stdio")
	f.Var(&m.vsock, "vsock", "give the guest stream sockets to this host (virtio-vsock), in Firecracker's convention; as in --vsock cid=3,path=v.sock")
	f.Var(&m.memory, "memory", "guest memory, as in --memory 2G (default 512M)")
	addCount(f, &m.cpus, "cpus", 0, 1, vmm.MaxCPUs, "number of vCPUs, as in --cpus 4 (default 1)")
	f.StringVar(&m.name, "name", "", "`NAME` of the machine; also puts its API socket where the other commands' --name finds it; as in --name web")
	f.StringVar(&m.backing, "memory-backing", "", "`KIND` of guest memory: anon (the default, huge pages) or memfd, as in --memory-backing memfd")
	f.StringVar(&m.tracker, "tracker", "", "`KIND` of dirty tracking for migrations: log (the default); or ring, which --throttle dirty-limit needs, and with which a page written shortly before its turn is sent twice; as in --tracker ring")
}

// build merges file and flags.
func (m *machineFlags) build(f *pflag.FlagSet) (vmm.Config, error) {
	var cfg vmm.Config
	if m.config != "" {
		text, err := readBounded(m.config, maxConfigFile)
		if err != nil {
			return cfg, fmt.Errorf("read the configuration: %w", err)
		}
		if cfg, err = vmm.ParseConfig(text); err != nil {
			return cfg, fmt.Errorf("%q: %w", m.config, err)
		}
	}
	b := &cfg.BootSource
	set(f, "kernel", &b.KernelImagePath, m.kernel)
	set(f, "guest", &b.Guest, m.guest)
	set(f, "initrd", &b.InitrdPath, m.initrd)
	set(f, "append", &b.AppendArgs, m.appendArgs)
	set(f, "cmdline", &b.BootArgs, m.cmdline)
	// What to boot is one choice: a flag takes back the file's other one.
	if f.Changed("kernel") && !f.Changed("guest") {
		b.Guest = ""
	}
	if f.Changed("guest") && !f.Changed("kernel") {
		b.KernelImagePath = ""
	}
	set(f, "name", &cfg.ID, m.name)
	set(f, "cpus", &cfg.Machine.VCPUCount, m.cpus)
	set(f, "memory", &cfg.Machine.MemSizeMiB, int(m.memory))
	set(f, "memory-backing", &cfg.Machine.MemoryBacking, m.backing)
	set(f, "tracker", &cfg.Machine.Tracker, m.tracker)
	set(f, "disk", &cfg.Drives, []vmm.Drive(m.disks))
	set(f, "net", &cfg.Networks, []vmm.NetworkInterface(m.networks))
	set(f, "balloon", &cfg.Balloon, m.balloon.spec)
	set(f, "vsock", &cfg.Vsock, m.vsock.spec)
	set(f, "console", &cfg.Consoles, []vmm.Console(m.consoles))
	set(f, "rng", &cfg.Entropy, m.entropy.spec)
	if cfg.ID == "" {
		cfg.ID = defaultName
	}
	return cfg, nil
}

// set copies a flag's value when the flag was given.
func set[T any](f *pflag.FlagSet, flag string, to *T, value T) {
	if f.Changed(flag) {
		*to = value
	}
}

// readBounded reads a regular file of at most max bytes.
func readBounded(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(text)) > max {
		err = fmt.Errorf("%q has more than %d bytes", path, max)
	}
	return text, err
}
