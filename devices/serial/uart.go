package serial

import (
	"context"
	"errors"
	"io"
	"sync"

	"godwit/devices/bus"
	"godwit/devices/state"
)

// Where a PC has its first port, and how many addresses a port takes.
const (
	COM1    = 0x3f8
	COM1IRQ = 4
	Ports   = 8
)

// queueSize is how much input waits for the guest before Input blocks.
const queueSize = 4 << 10

// ErrClosed is returned by Input after Close.
var ErrClosed = errors.New("serial port closed")

var (
	_ bus.Device  = (*UART)(nil)
	_ state.Saver = (*UART)(nil)
)

// UART is one serial port. Make it with New, end it with Close. All methods
// may be called from any goroutine, Save and Restore as state.Saver says.
type UART struct {
	id  string
	irq bus.Interrupt
	out *output

	inputTurn chan struct{} // holds a token while an Input call is at work
	inputRoom chan struct{} // the queue has shrunk
	closed    chan struct{}
	closeOnce sync.Once
	closeErr  error

	mu     sync.Mutex
	reg    registers
	fifo   ring // received, for the guest to read
	queue  ring // from Input, for the FIFO
	raised bool // the interrupt line after the last update

	interruptErrs uint64
}

// registers is what a guest can read back or notice, apart from the FIFO.
type registers struct {
	ier, fcr, lcr, mcr, scr, dll, dlm uint8
	lsrErrors                         uint8 // until LSR is read
	msrDeltas                         uint8 // until MSR is read
	thrEmpty                          bool  // THR-empty interrupt not yet acknowledged
}

// Stats counts what happened on the host's side since New.
type Stats struct {
	Written         uint64 // bytes that the writer took
	Lost            uint64 // bytes that the guest wrote and nobody got
	WriteErr        error  // the writer's last error
	InterruptErrors uint64 // edges that could not be sent
}

// New returns a UART in its state after reset (PC16550D 8.2) and starts the
// goroutine that writes the guest's output to out. The id is its StateID. Only
// that goroutine calls out.Write, one call at a time; a call may block, and if
// out has SetWriteDeadline, Close uses it to end such a call.
func New(id string, irq bus.Interrupt, out io.Writer) *UART {
	u := &UART{
		id:        id,
		irq:       irq,
		inputTurn: make(chan struct{}, 1),
		inputRoom: make(chan struct{}, 1),
		closed:    make(chan struct{}),
		// The data sheet leaves the divisor undefined; 1 is 115200 baud.
		reg:   registers{dll: 1},
		fifo:  newRing(fifoSize),
		queue: newRing(queueSize),
	}
	u.out = newOutput(out, u.roomAgain)
	return u
}

// Attach puts the port at base on a port I/O bus, usually COM1.
func (u *UART) Attach(b *bus.Bus, base uint64) error {
	return b.Attach(base, Ports, u.id, u)
}

// Read reads len(p) registers from off on, lowest first, as an ISA bus splits
// a wide access to a device of bytes.
func (u *UART) Read(off uint64, p []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range p {
		p[i] = u.readRegister(off + uint64(i))
	}
}

// Write writes p to the registers from off on, lowest first. It may take up to
// 10 ms when the other end does not keep up; see the package comment.
func (u *UART) Write(off uint64, p []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, v := range p {
		u.writeRegister(off+uint64(i), v)
	}
}

func (u *UART) readRegister(off uint64) uint8 {
	r := &u.reg
	dlab := r.lcr&lcrDLAB != 0
	switch {
	case off == regData && dlab:
		return r.dll
	case off == regIER && dlab:
		return r.dlm
	case off == regData:
		return u.readRBR()
	case off == regIER:
		return r.ier
	case off == regIIR:
		return u.readIIR()
	case off == regLCR:
		return r.lcr
	case off == regMCR:
		return r.mcr
	case off == regLSR:
		return u.readLSR()
	case off == regMSR:
		return u.readMSR()
	case off == regSCR:
		return r.scr
	}
	return 0xff
}

func (u *UART) writeRegister(off uint64, v uint8) {
	r := &u.reg
	dlab := r.lcr&lcrDLAB != 0
	switch {
	case off == regData && dlab:
		r.dll = v
	case off == regIER && dlab:
		r.dlm = v
	case off == regData:
		u.writeTHR(v)
	case off == regIER:
		u.writeIER(v)
	case off == regFCR:
		u.writeFCR(v)
	case off == regLCR:
		r.lcr = v
	case off == regMCR:
		u.writeMCR(v)
	case off == regSCR:
		r.scr = v
	}
	// LSR and MSR are read-only as far as a driver is concerned: writing LSR is
	// for factory tests (8.4), and MSR's delta bits are ours to set.
}

// Drain waits until everything that the guest has sent so far is written out.
// Call it with the guest paused, before Save. It fails with ctx's cause when
// the writer does not take the bytes in time; they stay queued then.
func (u *UART) Drain(ctx context.Context) error { return u.out.drain(ctx) }

// Flow waits until the writer has taken some of what the guest has sent, or all of
// it is written out: then Drain is worth a try. The guest may run. It fails as
// Drain does.
func (u *UART) Flow(ctx context.Context) error { return u.out.flow(ctx) }

// Stats returns the counters. Lost bytes and write errors are worth a log line.
func (u *UART) Stats() Stats {
	s := u.out.stats()
	u.mu.Lock()
	defer u.mu.Unlock()
	s.InterruptErrors = u.interruptErrs
	return s
}

// Close ends pending and future Input calls, writes out what is queued and
// waits for the goroutine. It takes 2 s at most; an error says that output was
// dropped or that the writer still blocks. Registers go on working, and what
// the guest sends is dropped and counted.
func (u *UART) Close() error {
	u.closeOnce.Do(func() {
		close(u.closed)
		u.closeErr = u.out.close()
	})
	return u.closeErr
}
