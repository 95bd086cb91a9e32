package bus

// Device is a bank of registers. The bus calls it from vCPU threads, several
// at a time on an SMP guest: a Device does its own locking. Offsets are
// relative to the range it was attached at, and off+len(p) never exceeds that
// range; len(p) is 1, 2, 4 or 8, at any alignment. Neither call may keep p,
// block for long, or panic whatever the guest sends. A Read fills all of p.
type Device interface {
	Read(off uint64, p []byte)
	Write(off uint64, p []byte)
}

// Interrupt is an edge that a device sends to the guest's interrupt
// controller. Trigger may be called from any goroutine, also while the device
// holds its own lock; it never blocks, never calls back into the device, and
// may coalesce with an edge that has not been delivered yet.
type Interrupt interface {
	Trigger() error
}

// InterruptFunc makes an Interrupt of a function, which then keeps the
// promises that Interrupt makes.
type InterruptFunc func() error

// Trigger calls f.
func (f InterruptFunc) Trigger() error { return f() }
