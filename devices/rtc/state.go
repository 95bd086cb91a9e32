package rtc

import "godwit/devices/state"

// maxOffset is more than any two four-digit years are apart, in seconds.
const maxOffset = 20000 * 366 * 86400

// StateID is "rtc".
func (c *Clock) StateID() string { return "rtc" }

// StateVersion is 1.
func (c *Clock) StateVersion() uint32 { return 1 }

// Save writes the index, the offset and the memory. Not the time: that is the
// other host's, plus the offset.
func (c *Clock) Save(e *state.Encoder) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.U8(c.index)
	e.U64(uint64(c.offset))
	e.Raw(c.mem[:])
	return nil
}

// Restore reads version 1.
func (c *Clock) Restore(_ uint32, d *state.Decoder) error {
	index := d.U8()
	offset := int64(d.U64())
	var mem [memorySize]uint8
	d.Raw(mem[:])
	switch {
	case index > indexMask:
		d.Fail("rtc index %#02x, at most %#02x", index, indexMask)
	case offset < -maxOffset || offset > maxOffset:
		d.Fail("rtc offset of %d seconds", offset)
	case mem[addrA]&aUpdating != 0, mem[addrB]&bInterrupts != 0, mem[addrC] != 0, mem[addrD] != 0:
		d.Fail("rtc registers A to D % x cannot come about", mem[addrA:addrD+1])
	}
	if err := d.Err(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.index, c.offset, c.mem = index, offset, mem
	return nil
}
