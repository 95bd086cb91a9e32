package guestmem

import "fmt"

// slice finds the n bytes at gpa. An empty range is found where gpa lies in RAM
// or just behind it. The result cannot be grown past the range.
func (m *Memory) slice(op string, gpa, n uint64) ([]byte, error) {
	if m.closed.Load() {
		return nil, rangeError(op, gpa, n, ErrClosed)
	}
	for i := range m.regions {
		r := &m.regions[i]
		// Both comparisons are against a difference that cannot wrap: gpa+n could.
		off, size := gpa-r.GPA, uint64(len(r.Bytes))
		if gpa >= r.GPA && off <= size && n <= size-off {
			return r.Bytes[off : off+n : off+n], nil
		}
	}
	return nil, rangeError(op, gpa, n, ErrOutOfRange)
}

// toWrite is slice for a range that will be written. The look at frozen costs
// what the one at closed does; what makes sure is the mapping, which cannot be
// written before Thaw.
func (m *Memory) toWrite(op string, gpa, n uint64) ([]byte, error) {
	if m.frozen.Load() {
		return nil, rangeError(op, gpa, n, ErrFrozen)
	}
	return m.slice(op, gpa, n)
}

func rangeError(op string, gpa, n uint64, cause error) error {
	return fmt.Errorf("%s of %#x bytes of guest memory at %#x: %w", op, n, gpa, cause)
}

// ReadAt fills p from gpa on. On error nothing was read. A guest that writes
// meanwhile can leave p torn.
func (m *Memory) ReadAt(p []byte, gpa uint64) error {
	b, err := m.slice("read", gpa, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(p, b)
	return nil
}

// WriteAt copies p to gpa on, then marks the pages dirty. On error nothing was
// written. The guest may see any part of p first, two bytes included: fields that
// it polls are for StoreUint16, StoreUint32 and StoreUint64.
func (m *Memory) WriteAt(p []byte, gpa uint64) error {
	b, err := m.toWrite("write", gpa, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(b, p)
	m.mark(gpa, uint64(len(p)))
	return nil
}

// View gives the n bytes at gpa without a copy, for reading only. It is valid
// until Close, and the guest can change it at any time.
func (m *Memory) View(gpa, n uint64) ([]byte, error) {
	return m.slice("view", gpa, n)
}

// Writable gives the n bytes at gpa for a file or a socket to be read into. The
// caller must call MarkDirty with the same range after the bytes have landed, and
// also when the transfer failed half-way. Valid until Close.
func (m *Memory) Writable(gpa, n uint64) ([]byte, error) {
	return m.toWrite("writable view", gpa, n)
}
