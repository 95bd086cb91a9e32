package i8042

import (
	"sync"

	"godwit/devices/bus"
	"godwit/devices/state"
)

// The controller's two ports and its interrupt. Port 0x61 between them is the
// timer's.
const (
	DataPort    = 0x60
	CommandPort = 0x64
	IRQ         = 1
)

// Status register.
const (
	statusOutputFull = 1 << 0 // a byte waits at the data port
	statusSystem     = 1 << 2 // the self test has passed
	statusCommand    = 1 << 3 // the last write was to the command port
	statusNotLocked  = 1 << 4
	statusTimeout    = 1 << 6 // the byte says that the keyboard did not answer
)

// Commands, written to the command port.
const (
	cmdReadControl  = 0x20
	cmdWriteControl = 0x60 // takes a byte
	cmdDisableAux   = 0xa7
	cmdEnableAux    = 0xa8
	cmdTestAux      = 0xa9
	cmdSelfTest     = 0xaa
	cmdTestKeyboard = 0xab
	cmdDisableKbd   = 0xad
	cmdEnableKbd    = 0xae
	cmdReadInput    = 0xc0
	cmdReadOutput   = 0xd0
	cmdWriteOutput  = 0xd1 // takes a byte
	cmdLoopKeyboard = 0xd2 // takes a byte
	cmdLoopAux      = 0xd3 // takes a byte
	cmdWriteAux     = 0xd4 // takes a byte
	cmdPulse        = 0xf0 // to 0xff: pulses the output lines whose bit is 0
)

// Bits of the control byte (commands 0x20 and 0x60) and of the output port.
const (
	controlInterrupt = 1 << 0
	controlSystem    = 1 << 2
	controlNoKbd     = 1 << 4
	controlNoAux     = 1 << 5

	outputNoReset = 1 << 0 // the reset line is active when this is 0
	outputA20     = 1 << 1
)

// Replies.
const (
	selfTestPassed   = 0x55
	clockStuckLow    = 0x01 // to cmdTestAux: there is no working port
	noAnswer         = 0xfe // from the controller, with statusTimeout
	inputNotLocked   = 0x80
	controlAtReset   = controlSystem | controlNoAux
	outputPortAtInit = outputNoReset | outputA20 | 0xcc
)

// Controller is the device. Its methods may be called from any goroutine.
type Controller struct {
	irq     bus.Interrupt
	onReset func()

	mu  sync.Mutex
	reg registers
}

type registers struct {
	control uint8
	output  uint8 // output port; A20 is stored and has no effect
	status  uint8
	data    uint8 // the byte at the data port
	pending uint8 // command that waits for its byte, or 0
}

var _ state.Saver = (*Controller)(nil)

// New returns a controller after power-on. It calls onReset on the vCPU's
// thread, without a lock held, each time the guest pulses the reset line;
// onReset must not block. The interrupt is for replies in place of a keyboard;
// neither may be nil.
func New(irq bus.Interrupt, onReset func()) *Controller {
	return &Controller{irq: irq, onReset: onReset, reg: registers{
		control: controlAtReset,
		output:  outputPortAtInit,
		status:  statusSystem | statusNotLocked,
	}}
}

// Attach puts both ports on a port I/O bus.
func (c *Controller) Attach(b *bus.Bus) error {
	if err := b.Attach(DataPort, 1, "i8042 data", dataPort{c}); err != nil {
		return err
	}
	return b.Attach(CommandPort, 1, "i8042 command", commandPort{c})
}

type dataPort struct{ c *Controller }

// Read takes the byte that waits; without one the last is read again.
func (p dataPort) Read(_ uint64, buf []byte) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	fill(buf, p.c.reg.data)
	p.c.reg.status &^= statusOutputFull | statusTimeout
}

func (p dataPort) Write(_ uint64, buf []byte) {
	p.c.run(func() (reset bool) { return p.c.dataWritten(buf[0]) })
}

type commandPort struct{ c *Controller }

func (p commandPort) Read(_ uint64, buf []byte) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	fill(buf, p.c.reg.status)
}

func (p commandPort) Write(_ uint64, buf []byte) {
	p.c.run(func() (reset bool) { return p.c.command(buf[0]) })
}

// fill answers a read: the ports are one byte wide.
func fill(buf []byte, v uint8) {
	clear(buf)
	buf[0] = v
}

func (c *Controller) run(step func() (reset bool)) {
	c.mu.Lock()
	reset := step()
	c.mu.Unlock()
	if reset {
		c.onReset()
	}
}

func (c *Controller) command(cmd uint8) (reset bool) {
	r := &c.reg
	r.status |= statusCommand
	r.pending = 0
	switch cmd {
	case cmdReadControl:
		c.reply(r.control)
	case cmdWriteControl, cmdWriteOutput, cmdLoopKeyboard, cmdLoopAux, cmdWriteAux:
		r.pending = cmd
	case cmdDisableAux:
		r.control |= controlNoAux
	case cmdEnableAux:
		// Linux looks whether this bit obeys to tell a mouse port from none.
	case cmdTestAux:
		c.reply(clockStuckLow)
	case cmdSelfTest:
		r.status |= statusSystem
		c.reply(selfTestPassed)
	case cmdTestKeyboard:
		c.reply(0)
	case cmdDisableKbd:
		r.control |= controlNoKbd
	case cmdEnableKbd:
		r.control &^= controlNoKbd
	case cmdReadInput:
		c.reply(inputNotLocked)
	case cmdReadOutput:
		c.reply(r.output)
	default:
		// Bit 0 of a pulse command is the reset line; unknown commands do nothing.
		return cmd >= cmdPulse && cmd&outputNoReset == 0
	}
	return false
}

func (c *Controller) dataWritten(v uint8) (reset bool) {
	r := &c.reg
	r.status &^= statusCommand
	cmd := r.pending
	r.pending = 0
	switch cmd {
	case cmdWriteControl:
		r.control = v | controlNoAux
	case cmdWriteOutput:
		r.output = v | outputNoReset
		return v&outputNoReset == 0
	case cmdLoopKeyboard:
		c.replyFromKeyboard(v, 0)
	case cmdLoopAux:
		// Without a second port the byte comes back unmarked, and a driver that
		// looks for the mark knows.
		c.reply(v)
	default: // a byte for the keyboard, or cmdWriteAux
		c.replyFromKeyboard(noAnswer, statusTimeout)
	}
	return false
}

// reply leaves a byte of the controller's own at the data port.
func (c *Controller) reply(v uint8) {
	c.reg.data = v
	c.reg.status = c.reg.status&^statusTimeout | statusOutputFull
}

// replyFromKeyboard also raises the keyboard's interrupt where that is on.
func (c *Controller) replyFromKeyboard(v, flags uint8) {
	c.reply(v)
	c.reg.status |= flags
	if c.reg.control&controlInterrupt != 0 {
		// A failed edge leaves the byte for a driver that polls.
		_ = c.irq.Trigger()
	}
}

// Rearm sends the edge for a byte that waits at the data port again. Call it
// after Restore, before vCPUs run.
func (c *Controller) Rearm() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reg.status&statusOutputFull != 0 && c.reg.control&controlInterrupt != 0 {
		_ = c.irq.Trigger()
	}
}

// StateID is "i8042".
func (c *Controller) StateID() string { return "i8042" }

// StateVersion is 1.
func (c *Controller) StateVersion() uint32 { return 1 }

// Save writes the registers.
func (c *Controller) Save(e *state.Encoder) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range []uint8{c.reg.control, c.reg.output, c.reg.status, c.reg.data, c.reg.pending} {
		e.U8(v)
	}
	return nil
}

// Restore reads version 1. Every byte is a value that the registers can hold,
// except for a pending command that takes no byte.
func (c *Controller) Restore(_ uint32, d *state.Decoder) error {
	var r registers
	for _, v := range []*uint8{&r.control, &r.output, &r.status, &r.data, &r.pending} {
		*v = d.U8()
	}
	switch r.pending {
	case 0, cmdWriteControl, cmdWriteOutput, cmdLoopKeyboard, cmdLoopAux, cmdWriteAux:
	default:
		d.Fail("i8042 waits for a byte of command %#02x, which takes none", r.pending)
	}
	const statusBits = statusOutputFull | statusSystem | statusCommand | statusNotLocked | statusTimeout
	if r.status&^statusBits != 0 || r.output&outputNoReset == 0 || r.control&controlNoAux == 0 {
		d.Fail("i8042 registers %+v cannot come about", r)
	}
	if err := d.Err(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reg = r
	return nil
}
