package rtc

import (
	"sync"
	"time"

	"godwit/devices/bus"
	"godwit/devices/state"
)

// Base is the index port; the data port follows.
const (
	Base  = 0x70
	Ports = 2
)

// Addresses inside the chip, MC146818A figure 11. Those that are not named are
// plain memory, the alarm registers included.
const (
	addrSeconds  = 0x00
	addrMinutes  = 0x02
	addrHours    = 0x04
	addrWeekday  = 0x06
	addrDay      = 0x07
	addrMonth    = 0x08
	addrYear     = 0x09
	addrA        = 0x0a
	addrB        = 0x0b
	addrC        = 0x0c
	addrD        = 0x0d
	addrCentury  = 0x32
	memorySize   = 128
	indexMask    = memorySize - 1 // bit 7 of the index port masks NMIs
	hourPM       = 0x80
	aUpdating    = 0x80 // UIP
	aDivider     = 0x26 // 32,768 Hz crystal, 1,024 Hz rate: what firmware leaves
	bSet         = 0x80
	bInterrupts  = 0x70 // PIE, AIE, UIE
	bBinary      = 0x04
	b24Hours     = 0x02
	dValid       = 0x80                   // VRT: the battery is good
	updateNotice = 244 * time.Microsecond // UIP comes this long before the update
)

// clockAddrs are the registers that hold the time while SET is on.
var clockAddrs = [...]uint8{addrSeconds, addrMinutes, addrHours, addrWeekday, addrDay, addrMonth, addrYear, addrCentury}

// Clock is the device. Its methods may be called from any goroutine.
type Clock struct {
	now func() time.Time

	mu    sync.Mutex
	index uint8
	// offset is the guest's time minus the host's, in seconds.
	offset int64
	// mem is the chip's memory. The clock's registers are in it only while SET
	// is on, frozen; otherwise they come from the time.
	mem [memorySize]uint8
}

var (
	_ bus.Device  = (*Clock)(nil)
	_ state.Saver = (*Clock)(nil)
)

// New returns a clock that shows now() in UTC, in BCD and 24 hours.
func New(now func() time.Time) *Clock {
	c := &Clock{now: now}
	c.mem[addrA] = aDivider
	c.mem[addrB] = b24Hours
	return c
}

// Attach puts both ports on a port I/O bus.
func (c *Clock) Attach(b *bus.Bus) error { return b.Attach(Base, Ports, "rtc", c) }

// Read gives the chosen register at the data port; the index port is
// write-only and reads as all ones. A wide access is split into bytes.
func (c *Clock) Read(off uint64, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range p {
		p[i] = 0xff
		if off+uint64(i) == 1 {
			p[i] = c.get(c.index)
		}
	}
}

// Write chooses a register at the index port and sets it at the data port.
func (c *Clock) Write(off uint64, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, v := range p {
		if off+uint64(i) == 0 {
			c.index = v & indexMask
		} else {
			c.set(c.index, v)
		}
	}
}

func isClock(addr uint8) bool {
	for _, a := range clockAddrs {
		if a == addr {
			return true
		}
	}
	return false
}

func (c *Clock) get(addr uint8) uint8 {
	switch {
	case addr == addrA:
		v := c.mem[addrA]
		// The update itself takes no time here, but its notice is kept: a guest
		// that sees UIP clear has 244 us for a consistent reading.
		if !c.frozen() && c.now().Nanosecond() >= int(time.Second-updateNotice) {
			v |= aUpdating
		}
		return v
	case addr == addrC:
		return 0 // no interrupt is ever pending
	case addr == addrD:
		return dValid
	case isClock(addr) && !c.frozen():
		return c.encode(c.guestTime())[addr]
	}
	return c.mem[addr]
}

func (c *Clock) set(addr, v uint8) {
	switch {
	case addr == addrA:
		c.mem[addrA] = v &^ aUpdating
	case addr == addrB:
		c.setB(v &^ bInterrupts)
	case addr == addrC, addr == addrD:
		// read-only
	case isClock(addr) && !c.frozen():
		c.freeze()
		c.mem[addr] = v
		c.thaw()
	default:
		c.mem[addr] = v
	}
}

// setB freezes the registers when SET goes on. When it goes off, they become
// the time, read in the format that stands in register B from now on.
func (c *Clock) setB(v uint8) {
	was := c.frozen()
	if v&bSet != 0 && !was {
		c.freeze()
	}
	c.mem[addrB] = v
	if was && !c.frozen() {
		c.thaw()
	}
}

func (c *Clock) frozen() bool { return c.mem[addrB]&bSet != 0 }

func (c *Clock) guestTime() time.Time {
	now := c.now()
	return time.Unix(now.Unix()+c.offset, int64(now.Nanosecond())).UTC()
}

func (c *Clock) freeze() {
	regs := c.encode(c.guestTime())
	for _, a := range clockAddrs {
		c.mem[a] = regs[a]
	}
}

// thaw sets the guest's time from the registers, or leaves it as it was when
// they hold no date. The fraction of the second stays that of the host.
func (c *Clock) thaw() {
	t, ok := c.decode()
	if ok {
		c.offset = t.Unix() - c.now().Unix()
	}
}
