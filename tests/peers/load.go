package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"godwit/boot/metronome"
)

// Load is what a case asks that moves nothing: what the guest gets out of a
// device that it drives itself.
type Load struct {
	Bytes bool // bytes a second count, not requests
	Tap   bool // it is a network interface, in a namespace of its own; else a disk
}

// loadWindow is how long a run is looked at, by the guest's clock, after
// loadSettle lines of the running load.
const (
	loadWindow = 5 * time.Second
	loadSettle = 2
)

const (
	loadMemory = 256 // MiB
	diskSpan   = 512 // MiB, which stay in the page cache
)

// loadGuest has nothing to do but its load.
func loadGuest(change func(*metronome.Options)) metronome.Options {
	o := metronome.Defaults()
	o.Sample, o.Sweep = 0, 0
	change(&o)
	return o
}

func diskCase(name, about string, load Load, change func(*metronome.BlkLoad), settings ...Setting) Case {
	return Case{
		Name: name, About: about, MemoryMiB: loadMemory, Load: &load, Settings: settings,
		Guest: loadGuest(func(o *metronome.Options) {
			o.Blk = metronome.DefaultBlk()
			o.Blk.Span = diskSpan
			change(&o.Blk)
		}),
	}
}

func netCase(name, about string, load Load, change func(*metronome.NetLoad)) Case {
	load.Tap = true
	return Case{
		Name: name, About: about, MemoryMiB: loadMemory, Load: &load,
		Guest: loadGuest(func(o *metronome.Options) {
			o.Net = metronome.DefaultNet()
			change(&o.Net)
		}),
		Settings: []Setting{{Name: "qemu tap", Side: QEMU}, {Name: "godwit tap", Side: Godwit, Needs: "--net"}},
	}
}

// qemuDisks are the ways in which QEMU may serve a disk; its best one counts.
func qemuDisks(format string) []Setting {
	var all []Setting
	for _, aio := range []string{"threads", "io_uring"} {
		for _, thread := range []string{"", " iothread"} {
			all = append(all, Setting{Name: "qemu " + aio + thread, Side: QEMU, Format: format, AIO: aio, IOThread: thread != ""})
		}
	}
	return all
}

func loadCases() []Case {
	randread := func(b *metronome.BlkLoad) {}
	streaming := func(mode metronome.BlkMode) func(*metronome.BlkLoad) {
		return func(b *metronome.BlkLoad) { b.KiB, b.Depth, b.Mode, b.Sequential = 256, 8, mode, true }
	}
	raw := Setting{Name: "godwit raw", Side: Godwit, Format: "raw"}
	beside := raw
	beside.Apart = true
	qcow2 := Setting{Name: "godwit qcow2", Side: Godwit, Format: "qcow2"}
	return []Case{
		diskCase("blk-4k-randread", "virtio-blk, raw file in the page cache, 4 KiB random reads, 32 under way", Load{}, randread,
			append(qemuDisks("raw"), raw)...),
		diskCase("blk-256k-read", "the same, 256 KiB sequential reads, 8 under way", Load{Bytes: true}, streaming(metronome.BlkRead),
			append(qemuDisks("raw"), raw)...),
		diskCase("blk-256k-write", "the same, 256 KiB sequential writes, 8 under way", Load{Bytes: true}, streaming(metronome.BlkWrite),
			append(qemuDisks("raw"), raw)...),
		diskCase("qcow2-4k-randread", "virtio-blk, qcow2 file with all clusters allocated, in the page cache, 4 KiB random reads, 32 under way", Load{}, randread,
			append(qemuDisks("qcow2"), qcow2, beside)...),
		netCase("net-64", "virtio-net to a tap without vhost, 64-byte frames, 128 under way", Load{}, func(n *metronome.NetLoad) { n.Depth = 128 }),
		netCase("net-tso", "the same, frames of 45 TCP segments (64 KiB), 32 under way", Load{Bytes: true}, func(n *metronome.NetLoad) { n.TSO, n.Depth = true, 32 }),
	}
}

// loader is what runs of loads share: images, and the tap's namespace.
type loader struct {
	b      *bench
	images map[string]string // format of a case's image, with the case's name -> path
	tap    *tapHost
}

// image makes the case's disk in a format, once for all runs. It is in the page
// cache and on the medium when it returns.
func (l *loader) image(ctx context.Context, k *Case, format string) (string, error) {
	key := k.Name + "." + format
	if path, ok := l.images[key]; ok {
		return path, nil
	}
	path := filepath.Join(l.b.dir, key)
	var err error
	if format == "raw" {
		err = writeImage(path, k)
	} else {
		var from string
		if from, err = l.image(ctx, k, "raw"); err == nil {
			err = convert(ctx, from, path, format)
		}
	}
	if err != nil {
		return "", fmt.Errorf("make the image of %s: %w", k.Name, err)
	}
	l.images[key] = path
	return path, nil
}

func writeImage(path string, k *Case) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := metronome.WriteDisk(f, k.Guest.Seed, k.Guest.Blk); err != nil {
		return err
	}
	return f.Sync()
}

func convert(ctx context.Context, from, to, format string) error {
	out, err := exec.CommandContext(ctx, "qemu-img", "convert", "-f", "raw", "-O", format, from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("qemu-img convert: %w: %s", err, out)
	}
	f, err := os.Open(to)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// once is one run: boot, wait until the load runs, look at it, end.
func (l *loader) once(ctx context.Context, k *Case, s *Setting, r *Result) error {
	ctx, cancel := l.b.stage(ctx, "booting and measuring")
	defer cancel()
	dir, err := os.MkdirTemp(l.b.dir, "r")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	image, starter := "", l.b.starter
	if k.Load.Tap {
		if err := l.needTap(); err != nil {
			return err
		}
		starter = l.tap.starter
	} else if image, err = l.image(ctx, k, s.Format); err != nil {
		return err
	}
	before, err := l.frames(k)
	if err != nil {
		return err
	}
	program, args := l.b.loadCommand(k, s, dir, image)
	out := &console{}
	p, err := starter.launch(out, program, args...)
	if err != nil {
		return err
	}
	defer p.end()
	var lines []metronome.IOLine
	err = await(ctx, "the guest's load to run", &out.watch, []*process{p}, func() (bool, error) {
		lines, err = running(out)
		return err == nil && len(lines) > 0 && since(lines) >= loadWindow, err
	})
	if err != nil {
		return err
	}
	p.end()
	r.load(lines)
	if k.Load.Tap {
		return l.arrived(k, before, lines[len(lines)-1].Ops)
	}
	return sound(k, s, image)
}

// running are the lines of the load once it has settled. What the guest finds
// wrong is an error.
func running(c *console) ([]metronome.IOLine, error) {
	text, _ := c.text()
	var s story
	var beats []beatAt
	if err := s.add(text, &beats); err != nil {
		return nil, err
	}
	var lines []metronome.IOLine
	for _, t := range text {
		l, err := metronome.ParseIO(t.text)
		switch {
		case metronome.Kind(t.text) != metronome.LineIO || err != nil || l.Phase == "fill" || l.Phase == "verify":
		case l.Phase != "run":
			return nil, fmt.Errorf("the guest's load is in phase %q", l.Phase)
		default:
			lines = append(lines, l)
		}
	}
	return lines[min(loadSettle, len(lines)):], nil
}

func since(lines []metronome.IOLine) time.Duration {
	return time.Duration(lines[len(lines)-1].TMs-lines[0].TMs) * time.Millisecond
}

// load takes the figures from the first line to the last, by the guest's clock;
// percentiles are those of the line in the middle.
func (r *Result) load(lines []metronome.IOLine) {
	first, last := lines[0], lines[len(lines)-1]
	seconds := since(lines).Seconds()
	r.OpsPerS = float64(last.Ops-first.Ops) / seconds
	r.BytesPerS = float64(last.Bytes-first.Bytes) / seconds
	middle := func(of func(metronome.IOLine) uint64) float64 {
		var all []float64
		for _, l := range lines[1:] { // the first one's began before
			all = append(all, float64(of(l)))
		}
		return spreadOf(all).Median
	}
	r.P50US = middle(func(l metronome.IOLine) uint64 { return l.P50Us })
	r.P99US = middle(func(l metronome.IOLine) uint64 { return l.P99Us })
}

// sound looks at an image that was written. The guest has verified what it read.
func sound(k *Case, s *Setting, path string) error {
	if k.Guest.Blk.Mode == metronome.BlkRead || s.Format != "raw" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	rep, err := metronome.VerifyDisk(f, 0)
	return errors.Join(err, rep.Err())
}

// loadCommand is the whole command line of a run.
func (b *bench) loadCommand(k *Case, s *Setting, dir, image string) (program string, args []string) {
	if s.Side == Godwit {
		args = []string{"run", "--guest", "metronome", "--memory", fmt.Sprintf("%dM", k.MemoryMiB), "--append", b.commandLine(k),
			"--api-sock", filepath.Join(dir, "api"), "--serial", "stdio"}
		if k.Load.Tap {
			return b.godwit, append(args, "--net", "tap="+tapName)
		}
		disk := "path=" + image + ",id=data"
		if s.Format != "raw" {
			disk += ",format=" + s.Format
		}
		return b.godwit, append(args, "--disk", disk)
	}
	// acpi=off: QEMU then tells of its virtio-mmio devices on the command line.
	args = []string{"-M", "microvm,accel=kvm,acpi=off", "-cpu", "host,-arch-capabilities", "-m", fmt.Sprint(k.MemoryMiB),
		"-nodefaults", "-no-user-config", "-display", "none", "-global", "virtio-mmio.force-legacy=false",
		"-kernel", b.elf, "-append", b.commandLine(k), "-serial", "stdio"}
	if k.Load.Tap {
		return b.qemu, append(args, "-netdev", "tap,id=n,ifname="+tapName+",script=no,downscript=no,vhost=off", "-device", "virtio-net-device,netdev=n")
	}
	device := "virtio-blk-device,drive=d"
	if s.IOThread {
		args = append(args, "-object", "iothread,id=t")
		device += ",iothread=t"
	}
	return b.qemu, append(args, "-drive", "if=none,id=d,file="+image+",format="+s.Format+",cache=writeback,aio="+s.AIO, "-device", device)
}

// needTap makes the namespace with its tap, once.
func (l *loader) needTap() (err error) {
	if l.tap == nil {
		l.tap, err = newTapHost()
	}
	return err
}

// frames are those that came through the tap so far.
func (l *loader) frames(k *Case) (uint64, error) {
	if !k.Load.Tap {
		return 0, nil
	}
	return l.tap.frames()
}

// arrived says whether the host counted the frames that the guest had sent by its
// last line. It counts those that it drops, too: they are nobody's.
func (l *loader) arrived(k *Case, before, sent uint64) error {
	now, err := l.frames(k)
	if err == nil && now-before < sent {
		err = fmt.Errorf("the guest sent %d frames, and %d came out of the tap", sent, now-before)
	}
	return err
}
