package serial

// cause is the pending interrupt of the highest priority, PC16550D table 4.
func (u *UART) cause() uint8 {
	r := &u.reg
	switch {
	case r.ier&ierLine != 0 && r.lsrErrors != 0:
		return iirLine
	case r.ier&ierReceived != 0 && u.fifo.len() > 0:
		if r.fcr&fcrEnable != 0 && u.fifo.len() < triggerLevel[r.fcr>>6] {
			return iirTimeout
		}
		return iirReceived
	case r.ier&ierTHRE != 0 && r.thrEmpty:
		return iirTHRE
	case r.ier&ierModem != 0 && r.msrDeltas != 0:
		return iirModem
	}
	return iirNone
}

// update follows every change that can move the interrupt line, and sends the
// edge when the line rises.
func (u *UART) update() {
	pending := u.cause() != iirNone
	if pending && !u.raised {
		if err := u.irq.Trigger(); err != nil {
			u.interruptErrs++
		}
	}
	u.raised = pending
}

// readIIR acknowledges the THR-empty interrupt if it is the one reported. The
// line may stay up for a modem status change below it; the edge for that one
// may have been taken for the first, so another is sent.
func (u *UART) readIIR() uint8 {
	v := u.cause()
	if v == iirTHRE {
		u.reg.thrEmpty = false
		u.raised = false
		u.update()
	}
	if u.reg.fcr&fcrEnable != 0 {
		v |= iirFIFO
	}
	return v
}

// roomAgain is called by the output when a stall is over or given up.
func (u *UART) roomAgain() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.reg.thrEmpty = true
	u.update()
}

// Rearm sends the edge for a pending interrupt again. Call it after Restore,
// once the interrupt controllers are restored and before vCPUs run: the edge
// may have been under way when the machine was saved.
func (u *UART) Rearm() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.raised = false
	u.update()
}
