package serial

import (
	"fmt"

	"godwit/devices/state"
)

// StateID returns the id given to New.
func (u *UART) StateID() string { return u.id }

// StateVersion is 1.
func (u *UART) StateVersion() uint32 { return 1 }

// Save writes the registers, the FIFO and the input queue. It fails while
// output is queued: Drain first, else the guest's last words would be lost or
// come twice.
func (u *UART) Save(e *state.Encoder) error {
	if n := u.out.pending(); n > 0 {
		return fmt.Errorf("serial port %q: %d bytes of output not written yet; drain it first", u.id, n)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	r := &u.reg
	for _, v := range []uint8{r.ier, r.fcr, r.lcr, r.mcr, r.scr, r.dll, r.dlm, r.lsrErrors, r.msrDeltas} {
		e.U8(v)
	}
	e.Bool(r.thrEmpty)
	e.Bytes(u.fifo.bytes())
	e.Bytes(u.queue.bytes())
	return nil
}

// Restore reads version 1. It sends no edge; Rearm does.
func (u *UART) Restore(_ uint32, d *state.Decoder) error {
	var r registers
	for _, v := range []*uint8{&r.ier, &r.fcr, &r.lcr, &r.mcr, &r.scr, &r.dll, &r.dlm, &r.lsrErrors, &r.msrDeltas} {
		*v = d.U8()
	}
	r.thrEmpty = d.Bool()
	fifo := d.Bytes(fifoSize)
	queue := d.Bytes(queueSize)
	switch {
	case r.ier&^ierMask != 0, r.mcr&^mcrMask != 0, r.msrDeltas&^msrDeltas != 0, r.lsrErrors&^lsrOverrun != 0:
		d.Fail("register bits that a 16550A does not have: %+v", r)
	case r.fcr&^fcrKept != 0, r.fcr&fcrEnable == 0 && r.fcr != 0:
		d.Fail("FIFO control %#02x", r.fcr)
	case r.fcr&fcrEnable == 0 && len(fifo) > 1:
		d.Fail("%d bytes in the FIFO, which is off", len(fifo))
	}
	if err := d.Err(); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.reg = r
	u.fifo.reset()
	u.fifo.write(fifo)
	// What was typed here before the guest arrived comes after what it brought,
	// as far as there is room.
	typed := u.queue.bytes()
	u.queue.reset()
	u.queue.write(queue)
	u.queue.write(typed)
	return nil
}
