package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"godwit/blockfile"
	"godwit/devices/boottimer"
	"godwit/devices/debugexit"
	"godwit/devices/i8042"
	"godwit/devices/rtc"
	"godwit/devices/serial"
	"godwit/devices/state"
	"godwit/kvm"
	"godwit/virtio/blk"
	"godwit/virtio/mmio"
)

// devices is everything on the machine's buses.
type devices struct {
	serial *serial.UART
	rtc    *rtc.Clock
	timer  *boottimer.Device
	exit   *debugexit.Device
	reset  *i8042.Controller
	drives []*drive
	slots  []slot
	lines  []*irqLine
}

// drive is a disk: its image and the device that shows it.
type drive struct {
	Drive
	path string // what was opened here
	file blockfile.File
	dev  *blk.Device
}

// slot is a virtio device in its place.
type slot struct {
	transport *mmio.Transport
	base      uint64
	gsi       uint32
}

// createDevices puts the devices on the buses.
func (m *Machine) createDevices(o Options, a assembly) error {
	d := &m.dev
	line, err := m.newLine(serial.COM1IRQ)
	if err != nil {
		return err
	}
	out := o.Serial
	if out == nil {
		out = io.Discard
	}
	d.serial = serial.New("serial", line, out)
	keyboard, err := m.newLine(i8042.IRQ)
	if err != nil {
		return err
	}
	d.rtc = rtc.New(time.Now)
	d.timer = boottimer.New(func() time.Duration { return time.Since(m.began) }, nil)
	d.exit = debugexit.New(m.debugExit)
	d.reset = i8042.New(keyboard, func() { m.end(Exit{Kind: ExitReset}) })
	if err := errors.Join(
		d.serial.Attach(&m.pio, serial.COM1),
		d.rtc.Attach(&m.pio),
		d.timer.Attach(&m.pio),
		d.exit.Attach(&m.pio),
		d.reset.Attach(&m.pio),
	); err != nil {
		return err
	}
	for i, spec := range m.cfg.Drives {
		if err := m.createDrive(i, spec, a); err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) newLine(gsi uint32) (*irqLine, error) {
	line, err := newIRQLine(m.vm, gsi)
	if err == nil {
		m.dev.lines = append(m.dev.lines, line)
	}
	return line, err
}

// debugExit ends the guest as it asks through the debug exit port.
func (m *Machine) debugExit(code uint8) {
	if code == 0 {
		m.end(Exit{Kind: ExitPowerOff})
		return
	}
	m.end(Exit{Kind: ExitFault, Err: fmt.Errorf("the guest gave exit code %d", code)})
}

// createDrive opens an image and puts its device into place i.
func (m *Machine) createDrive(i int, spec Drive, a assembly) error {
	path := spec.PathOnHost
	if a.incoming {
		path = a.disks[spec.ID]
	}
	cache, err := blockfile.ParseCache(spec.Cache)
	if err != nil {
		return fmt.Errorf("%w: drive %q: %w", ErrConfig, spec.ID, err)
	}
	file, err := blockfile.Open(path, blockfile.Options{ReadOnly: spec.IsReadOnly, Cache: cache, NoLock: a.incoming})
	if err != nil {
		return err
	}
	d := &drive{Drive: spec, path: path, file: file}
	m.dev.drives = append(m.dev.drives, d)
	if a.incoming && !spec.IsReadOnly {
		if err := checkLock(file, spec.ID, path, a.saved); err != nil {
			return err
		}
	}
	if d.dev, err = blk.New(blk.Config{Backend: file, Serial: spec.ID, Queues: spec.Queues}); err != nil {
		return err
	}
	line, err := m.newLine(virtioGSIs[i])
	if err != nil {
		return err
	}
	t, err := mmio.New(mmio.Config{ID: fmt.Sprintf("virtio/%d", i), Memory: m.mem.Memory, Device: d.dev, Interrupt: line, Log: m.log})
	if err != nil {
		return err
	}
	s := slot{transport: t, base: virtioBase + uint64(i)*virtioStep, gsi: line.gsi}
	m.dev.slots = append(m.dev.slots, s)
	if err := m.mmio.Attach(s.base, mmio.Size, spec.ID, t); err != nil {
		return err
	}
	for q, fd := range t.Kicks() {
		e := kvm.IOEvent{Addr: s.base + mmio.NotifyOffset, Len: 4, Match: true, Data: uint64(q)}
		if err := m.vm.AddIOEvent(fd, e); err != nil {
			return err
		}
	}
	return nil
}

// checkLock looks at who holds the lock of a machine's disk before the machine
// arrives. A source holds it until the last moment: an image that nobody has
// locked is another image under the same name. A saved machine has no source.
func checkLock(file blockfile.File, id, path string, saved bool) error {
	held, err := file.LockedElsewhere()
	switch {
	case err != nil:
		return err
	case saved && held:
		return fmt.Errorf("%w: disk %q: another process holds the lock of %q; end what uses it, or map another with --disk %s=PATH",
			ErrIncompatible, id, path, id)
	case !saved && !held:
		return fmt.Errorf("%w: disk %q: the source does not hold the lock of %q, so it is not the disk that the guest uses; map the right one with --disk %s=PATH",
			ErrIncompatible, id, path, id)
	}
	return nil
}

// cmdline tells Linux where the virtio devices are (Linux's
// Documentation/admin-guide/kernel-parameters.txt, virtio_mmio.device).
func (d *devices) cmdline() string {
	var words []string
	for _, s := range d.slots {
		words = append(words, fmt.Sprintf("virtio_mmio.device=4K@%#x:%d", s.base, s.gsi))
	}
	return strings.Join(words, " ")
}

// pause drains everything: requests under way are answered, and the console's
// output has left. The vCPUs stand still already.
func (d *devices) pause(ctx context.Context) error {
	for _, s := range d.slots {
		if err := s.transport.Pause(); err != nil {
			return err
		}
	}
	if d.serial != nil {
		return d.serial.Drain(ctx)
	}
	return nil
}

// resume lets the devices work again.
func (d *devices) resume() {
	for _, s := range d.slots {
		// A device that cannot go on tells its driver (DEVICE_NEEDS_RESET).
		_ = s.transport.Resume()
	}
}

// unlockDisks flushes writable images and gives their locks up.
func (d *devices) unlockDisks() error {
	for _, v := range d.drives {
		if v.IsReadOnly {
			continue
		}
		if err := v.file.Flush(); err != nil {
			return err
		}
	}
	for _, v := range d.drives {
		if err := v.file.Unlock(); err != nil {
			return err
		}
	}
	return nil
}

// lockDisks takes the locks (again).
func (d *devices) lockDisks() error {
	for _, v := range d.drives {
		if err := v.file.Lock(); err != nil {
			return err
		}
	}
	return nil
}

// savers lists the devices with state, in a fixed order.
func (d *devices) savers() []state.Saver {
	list := []state.Saver{d.serial, d.rtc, d.timer, d.exit, d.reset}
	for _, s := range d.slots {
		list = append(list, s.transport)
	}
	return list
}

// rearm sends the interrupts of restored devices again: an edge that was on its
// way when the state was saved is in nobody's section.
func (d *devices) rearm() {
	d.serial.Rearm()
	d.reset.Rearm()
}

// close gives back what the devices hold, in the reverse order of making.
func (d *devices) close() error {
	var errs []error
	for _, s := range d.slots {
		errs = append(errs, s.transport.Close())
	}
	if d.serial != nil {
		errs = append(errs, d.serial.Close())
	}
	for _, v := range d.drives {
		errs = append(errs, v.file.Close())
	}
	for _, l := range d.lines {
		errs = append(errs, l.close())
	}
	return errors.Join(errs...)
}
