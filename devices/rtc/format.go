package rtc

import "time"

// encode returns the clock's registers for t, in the format that register B
// asks for. Years beyond four digits show their last four.
func (c *Clock) encode(t time.Time) [memorySize]uint8 {
	var regs [memorySize]uint8
	year := (t.Year()%10000 + 10000) % 10000
	regs[addrSeconds] = c.number(t.Second())
	regs[addrMinutes] = c.number(t.Minute())
	regs[addrHours] = c.hours(t.Hour())
	regs[addrWeekday] = c.number(int(t.Weekday()) + 1) // Sunday is 1
	regs[addrDay] = c.number(t.Day())
	regs[addrMonth] = c.number(int(t.Month()))
	regs[addrYear] = c.number(year % 100)
	regs[addrCentury] = c.number(year / 100)
	return regs
}

// number encodes 0 to 99.
func (c *Clock) number(v int) uint8 {
	if c.mem[addrB]&bBinary != 0 {
		return uint8(v)
	}
	return uint8(v/10<<4 | v%10)
}

// hours encodes 0 to 23; on a 12-hour clock midnight and noon are 12.
func (c *Clock) hours(h int) uint8 {
	if c.mem[addrB]&b24Hours != 0 {
		return c.number(h)
	}
	v := c.number((h+11)%12 + 1)
	if h >= 12 {
		v |= hourPM
	}
	return v
}

// decode reads the registers in memory, and reports false if they are no date.
func (c *Clock) decode() (time.Time, bool) {
	sec, ok1 := c.value(c.mem[addrSeconds], 0, 59)
	minute, ok2 := c.value(c.mem[addrMinutes], 0, 59)
	hour, ok3 := c.hourValue(c.mem[addrHours])
	day, ok4 := c.value(c.mem[addrDay], 1, 31)
	month, ok5 := c.value(c.mem[addrMonth], 1, 12)
	year, ok6 := c.value(c.mem[addrYear], 0, 99)
	century, ok7 := c.value(c.mem[addrCentury], 0, 99)
	if !(ok1 && ok2 && ok3 && ok4 && ok5 && ok6 && ok7) {
		return time.Time{}, false
	}
	t := time.Date(century*100+year, time.Month(month), day, hour, minute, sec, 0, time.UTC)
	return t, t.Day() == day // no 31 April
}

// value decodes a number and checks that it lies between lo and hi.
func (c *Clock) value(v uint8, lo, hi int) (int, bool) {
	n := int(v)
	if c.mem[addrB]&bBinary == 0 {
		if v&0x0f > 9 || v>>4 > 9 {
			return 0, false
		}
		n = int(v>>4)*10 + int(v&0x0f)
	}
	return n, n >= lo && n <= hi
}

func (c *Clock) hourValue(v uint8) (int, bool) {
	if c.mem[addrB]&b24Hours != 0 {
		return c.value(v, 0, 23)
	}
	h, ok := c.value(v&^hourPM, 1, 12)
	h %= 12
	if v&hourPM != 0 {
		h += 12
	}
	return h, ok
}
