package serial

// writeTHR sends v. The THR is empty again at once, unless the ring is in a
// stall; roomAgain then says when.
func (u *UART) writeTHR(v uint8) {
	if u.reg.mcr&mcrLoop != 0 {
		u.loopBack(v)
		u.reg.thrEmpty = true
	} else {
		u.out.put(v)
		u.reg.thrEmpty = u.transmitterReady()
	}
	u.update()
}

// writeIER also raises the THR-empty interrupt when it is enabled and the THR
// is empty already. Linux tests for that (serial8250_do_startup) and starts to
// transmit this way.
func (u *UART) writeIER(v uint8) {
	enabled := v &^ u.reg.ier & ierMask
	u.reg.ier = v & ierMask
	if enabled&ierTHRE != 0 {
		u.reg.thrEmpty = u.transmitterReady()
	}
	u.update()
}

// writeFCR follows PC16550D 8.5: switching the FIFOs on or off empties them,
// and the other bits count only together with the enable bit. There is nothing
// to clear in the transmitter: sent bytes are on the line already.
func (u *UART) writeFCR(v uint8) {
	if v&fcrEnable == 0 {
		v = 0
	}
	if (v^u.reg.fcr)&fcrEnable != 0 || v&fcrClearReceive != 0 {
		u.fifo.reset()
	}
	u.reg.fcr = v & fcrKept
	u.fill()
	u.update()
}

// writeMCR can change the modem status, since loopback mode wires the outputs
// to the inputs, and can let input through.
func (u *UART) writeMCR(v uint8) {
	before := u.modemLines()
	u.reg.mcr = v & mcrMask
	after := u.modemLines()

	changed := before ^ after
	// Delta bits stand in the order of their lines, four bits lower. RI alone
	// reports only its trailing edge.
	deltas := changed >> 4 &^ msrTERI
	if changed&before&msrRI != 0 {
		deltas |= msrTERI
	}
	u.reg.msrDeltas |= deltas
	u.fill()
	u.update()
}

// modemLines is the upper half of MSR: what the host drives, or in loopback
// mode the outputs in the order of PC16550D 8.8.
func (u *UART) modemLines() uint8 {
	mcr := u.reg.mcr
	if mcr&mcrLoop == 0 {
		return msrHost
	}
	var lines uint8
	for _, wire := range [...]struct{ from, to uint8 }{
		{mcrRTS, msrCTS}, {mcrDTR, msrDSR}, {mcrOUT1, msrRI}, {mcrOUT2, msrDCD},
	} {
		if mcr&wire.from != 0 {
			lines |= wire.to
		}
	}
	return lines
}

// readMSR clears the delta bits.
func (u *UART) readMSR() uint8 {
	v := u.modemLines() | u.reg.msrDeltas
	u.reg.msrDeltas = 0
	u.update()
	return v
}

// readLSR clears the error bits. THRE and TEMT go together: the ring counts as
// the line, or else every printk would wait for the host's writer.
func (u *UART) readLSR() uint8 {
	v := u.reg.lsrErrors
	u.reg.lsrErrors = 0
	if u.fifo.len() > 0 {
		v |= lsrDataReady
	}
	if u.reg.mcr&mcrLoop != 0 || u.transmitterReady() {
		v |= lsrTHRE | lsrTEMT
	}
	u.update()
	return v
}

func (u *UART) transmitterReady() bool { return u.out.ready(u.reg.ier&ierTHRE != 0) }
