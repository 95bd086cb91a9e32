package vmm

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"godwit/devices/boottimer"
	"godwit/devices/debugexit"
	"godwit/devices/i8042"
	"godwit/devices/rtc"
	"godwit/devices/serial"
	"godwit/devices/state"
	"godwit/kvm"
	"godwit/virtio/mmio"
)

// devices is everything on the machine's buses.
type devices struct {
	serial *serial.UART
	rtc    *rtc.Clock
	timer  *boottimer.Device
	exit   *debugexit.Device
	reset  *i8042.Controller
	parts  []part // by slot
	slots  []slot
	lines  []*irqLine
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
	a.stdio = o.Stdio
	a.foundFull = m.foundFull
	return m.createParts(a)
}

// createParts makes what the configuration asks for on the virtio side. The
// order is the order of the slots: a guest and its saved state know a device by
// its slot.
func (m *Machine) createParts(a assembly) error {
	for _, spec := range m.cfg.Drives {
		if err := m.add(newDrive(spec, a)); err != nil {
			return err
		}
	}
	for _, spec := range m.cfg.Networks {
		if err := m.add(newNIC(spec, a)); err != nil {
			return err
		}
	}
	if b := m.cfg.Balloon; b != nil {
		if err := m.add(newBalloon(*b, m.mem.Memory)); err != nil {
			return err
		}
	}
	if e := m.cfg.Entropy; e != nil {
		if err := m.add(newEntropy(*e)); err != nil {
			return err
		}
	}
	if list := m.cfg.Consoles; len(list) > 0 {
		if err := m.add(newConsoles(list, a)); err != nil {
			return err
		}
	}
	if v := m.cfg.Vsock; v != nil {
		if err := m.add(newVsock(*v, a)); err != nil {
			return err
		}
	}
	return nil
}

// add takes a part into the machine, which closes it from then on.
func (m *Machine) add(p part, err error) error {
	if err != nil {
		return err
	}
	m.dev.parts = append(m.dev.parts, p)
	return m.place(p)
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

// place puts a part's device into the next slot.
func (m *Machine) place(p part) error {
	i := len(m.dev.slots)
	if i == len(virtioGSIs) {
		return fmt.Errorf("%w: %s %q is one device too many; a machine has room for %d", ErrConfig, p.kind(), p.name(), i)
	}
	line, err := m.newLine(virtioGSIs[i])
	if err != nil {
		return err
	}
	t, err := mmio.New(mmio.Config{ID: fmt.Sprintf("virtio/%d", i), Memory: m.mem.Memory, Device: p.device(), Interrupt: line, Log: m.log})
	if err != nil {
		return err
	}
	s := slot{transport: t, base: virtioBase + uint64(i)*virtioStep, gsi: line.gsi}
	m.dev.slots = append(m.dev.slots, s)
	if err := m.mmio.Attach(s.base, mmio.Size, p.kind()+" "+p.name(), t); err != nil {
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

// cmdline tells Linux where the virtio devices are (Linux's
// Documentation/admin-guide/kernel-parameters.txt, virtio_mmio.device).
func (d *devices) cmdline() string {
	var words []string
	for _, s := range d.slots {
		words = append(words, fmt.Sprintf("virtio_mmio.device=4K@%#x:%d", s.base, s.gsi))
	}
	return strings.Join(words, " ")
}

// pause drains the devices: requests under way are answered. The vCPUs stand
// still already.
func (d *devices) pause() error {
	for _, s := range d.slots {
		if err := s.transport.Pause(); err != nil {
			return err
		}
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

// release gives up what a destination must have for itself. The devices are
// paused.
func (d *devices) release() error {
	for _, p := range d.parts {
		if err := p.release(); err != nil {
			return err
		}
	}
	return nil
}

// expect tells the parts that the guest is on its way.
func (d *devices) expect() {
	for _, p := range d.parts {
		p.expect()
	}
}

// claim takes it (again).
func (d *devices) claim() error { return errors.Join(d.claimParts(true), d.claimParts(false)) }

// claimParts is claim for those parts that the guest must have, or for the others.
func (d *devices) claimParts(vital bool) error {
	var errs []error
	for _, p := range d.parts {
		if p.vital() == vital {
			errs = append(errs, p.claim())
		}
	}
	return errors.Join(errs...)
}

// follow tells the parts that the guest runs here now.
func (d *devices) follow() {
	for _, p := range d.parts {
		p.follow()
	}
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
	for _, p := range d.parts {
		errs = append(errs, p.close())
	}
	for _, l := range d.lines {
		errs = append(errs, l.close())
	}
	return errors.Join(errs...)
}
