package boottimer

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"godwit/devices/bus"
	"godwit/devices/state"
)

// Port is the device's only address.
const Port = 0x508

// Mark is one value that the guest has written.
type Mark struct {
	Code  uint8
	At    time.Duration // of the first write, since the machine started
	Count uint64        // of all writes
}

// maxElapsed bounds what Restore accepts, so that adding to it cannot overflow.
const maxElapsed = 50 * 365 * 24 * time.Hour

// Device is the port. Its methods may be called from any goroutine.
type Device struct {
	now    func() time.Duration
	onMark func(Mark)

	mu    sync.Mutex
	base  time.Duration // added to now: what passed before a restore
	marks [256]Mark     // by code; Count 0 is no mark
}

var (
	_ bus.Device  = (*Device)(nil)
	_ state.Saver = (*Device)(nil)
)

// New returns a device that takes the time from now: monotonic, since the
// machine started. If onMark is not nil, it is called once for every new code,
// on the vCPU's thread without a lock held; it must not block.
func New(now func() time.Duration, onMark func(Mark)) *Device {
	return &Device{now: now, onMark: onMark}
}

// Attach puts the port on a port I/O bus.
func (d *Device) Attach(b *bus.Bus) error { return b.Attach(Port, 1, "boot timer", d) }

// Read gives zeros: a guest can tell the port from an empty bus.
func (d *Device) Read(_ uint64, p []byte) { clear(p) }

// Write marks the code in the lowest byte.
func (d *Device) Write(_ uint64, p []byte) {
	at := d.now() // before the lock, which could be waited for
	d.mu.Lock()
	m := &d.marks[p[0]]
	m.Count++
	first := m.Count == 1
	if first {
		m.Code, m.At = p[0], d.base+at
	}
	mark := *m
	d.mu.Unlock()
	if first && d.onMark != nil {
		d.onMark(mark)
	}
}

// Marks returns what was marked so far, in the order of first writes. There
// are 256 at most.
func (d *Device) Marks() []Mark {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sorted()
}

func (d *Device) sorted() []Mark {
	var all []Mark
	for _, m := range d.marks {
		if m.Count > 0 {
			all = append(all, m)
		}
	}
	slices.SortStableFunc(all, func(a, b Mark) int { return cmp.Compare(a.At, b.At) })
	return all
}

// StateID is "boot-timer".
func (d *Device) StateID() string { return "boot-timer" }

// StateVersion is 1.
func (d *Device) StateVersion() uint32 { return 1 }

// Save writes the time and the marks.
func (d *Device) Save(e *state.Encoder) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	e.U64(uint64(d.base + d.now()))
	marks := d.sorted()
	e.U16(uint16(len(marks)))
	for _, m := range marks {
		e.U8(m.Code)
		e.U64(uint64(m.At))
		e.U64(m.Count)
	}
	return nil
}

// Restore reads version 1. Times must not be negative, nor later than the
// moment of the save, and that not 50 years after the start.
func (d *Device) Restore(_ uint32, dec *state.Decoder) error {
	elapsed := time.Duration(dec.U64())
	if elapsed < 0 || elapsed > maxElapsed {
		dec.Fail("boot timer stands at %d ns", elapsed)
	}
	var marks [256]Mark
	for n := dec.U16(); n > 0 && dec.Err() == nil; n-- {
		m := Mark{Code: dec.U8(), At: time.Duration(dec.U64()), Count: dec.U64()}
		switch {
		case m.Count == 0, marks[m.Code].Count != 0:
			dec.Fail("mark %#02x comes twice or without a count", m.Code)
		case m.At < 0 || m.At > elapsed:
			dec.Fail("mark %#02x at %d ns, outside the %d ns that the machine ran", m.Code, m.At, elapsed)
		}
		marks[m.Code] = m
	}
	if err := dec.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.base = elapsed - d.now()
	d.marks = marks
	return nil
}
