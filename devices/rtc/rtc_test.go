package rtc

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"godwit/devices/bus"
	"godwit/devices/bus/bustest"
	"godwit/devices/state"
	"godwit/devices/state/statetest"
)

// host is a clock that the test moves.
type host struct{ t time.Time }

func (h *host) now() time.Time { return h.t }

// Saturday
var start = time.Date(2026, 11, 21, 15, 4, 5, 0, time.UTC)

func newClock() (*Clock, *host) {
	h := &host{t: start}
	return New(h.now), h
}

func (c *Clock) in(addr uint8) uint8 {
	c.Write(0, []byte{addr})
	var p [1]byte
	c.Read(1, p[:])
	return p[0]
}

func (c *Clock) out(addr, v uint8) {
	c.Write(0, []byte{addr})
	c.Write(1, []byte{v})
}

// MC146818A table 3: the same moment in every format.
func TestFormats(t *testing.T) {
	for _, tc := range []struct {
		name string
		b    uint8
		hour int
		want uint8 // of the hours register
		rest [7]uint8
	}{
		{"BCD 24 h", b24Hours, 15, 0x15, [7]uint8{0x05, 0x04, 0x07, 0x21, 0x11, 0x26, 0x20}},
		{"BCD 12 h", 0, 15, 0x83, [7]uint8{0x05, 0x04, 0x07, 0x21, 0x11, 0x26, 0x20}},
		{"binary 24 h", bBinary | b24Hours, 15, 15, [7]uint8{5, 4, 7, 21, 11, 26, 20}},
		{"binary 12 h", bBinary, 15, 0x83, [7]uint8{5, 4, 7, 21, 11, 26, 20}},
		{"midnight 12 h", 0, 0, 0x12, [7]uint8{0x05, 0x04, 0x07, 0x21, 0x11, 0x26, 0x20}},
		{"noon 12 h", 0, 12, 0x92, [7]uint8{0x05, 0x04, 0x07, 0x21, 0x11, 0x26, 0x20}},
		{"11 pm 12 h", bBinary, 23, 0x8b, [7]uint8{5, 4, 7, 21, 11, 26, 20}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, h := newClock()
			h.t = time.Date(2026, 11, 21, tc.hour, 4, 5, 0, time.UTC)
			c.out(addrB, tc.b)
			require.Equal(t, tc.want, c.in(addrHours))
			for i, a := range []uint8{addrSeconds, addrMinutes, addrWeekday, addrDay, addrMonth, addrYear, addrCentury} {
				require.Equal(t, tc.rest[i], c.in(a), "register %#x", a)
			}
		})
	}
}

func TestRegistersAtReset(t *testing.T) {
	c, h := newClock()
	require.Equal(t, uint8(0x26), c.in(addrA))
	require.Equal(t, uint8(0x02), c.in(addrB))
	require.Equal(t, uint8(0), c.in(addrC))
	require.Equal(t, uint8(0x80), c.in(addrD))

	c.out(addrA, 0xff)
	require.Equal(t, uint8(0x7f), c.in(addrA), "UIP is read-only")
	c.out(addrB, 0x7f)
	require.Equal(t, uint8(0x0f), c.in(addrB), "there are no interrupts to enable")
	c.out(addrC, 0xff)
	c.out(addrD, 0)
	require.Equal(t, uint8(0), c.in(addrC))
	require.Equal(t, uint8(0x80), c.in(addrD))

	// Update in progress: announced 244 us ahead, not while SET is on.
	h.t = start.Add(time.Second - 244*time.Microsecond)
	require.Equal(t, uint8(0xff), c.in(addrA))
	c.out(addrB, bSet)
	require.Equal(t, uint8(0x7f), c.in(addrA))
	h.t = start.Add(time.Second - 245*time.Microsecond)
	c.out(addrB, 0)
	require.Equal(t, uint8(0x7f), c.in(addrA))

	// The index port: bit 7 is not part of the index, and it cannot be read.
	c.Write(0, []byte{0x80 | 0x40})
	c.Write(1, []byte{0x5a})
	require.Equal(t, uint8(0x5a), c.in(0x40))
	p := []byte{0}
	c.Read(0, p)
	require.Equal(t, uint8(0xff), p[0])
	// One 16-bit access is index and data.
	c.Write(0, []byte{0x41, 0xa5})
	require.Equal(t, uint8(0xa5), c.in(0x41))
}

// The order in which Linux sets the time (mc146818_set_time).
func TestSetTime(t *testing.T) {
	c, h := newClock()
	save := c.in(addrB)
	c.out(addrB, save|bSet)
	h.t = start.Add(3 * time.Second)
	require.Equal(t, uint8(0x05), c.in(addrSeconds), "SET stops the clock")
	for _, w := range [][2]uint8{
		{addrYear, 0x99}, {addrMonth, 0x12}, {addrDay, 0x31}, {addrHours, 0x23},
		{addrMinutes, 0x59}, {addrSeconds, 0x58}, {addrCentury, 0x19},
	} {
		c.out(w[0], w[1])
	}
	c.out(addrB, save)
	require.Equal(t, uint8(0x58), c.in(addrSeconds))
	h.t = h.t.Add(2 * time.Second)
	require.Equal(t, []uint8{0x20, 0x00, 0x01, 0x01, 0x00, 0x00},
		[]uint8{c.in(addrCentury), c.in(addrYear), c.in(addrMonth), c.in(addrDay), c.in(addrHours), c.in(addrSeconds)},
		"the clock goes on from there")
	require.Equal(t, uint8(7), c.in(addrWeekday), "1 January 2000 was a Saturday")

	// Without SET one register changes the time too.
	c.out(addrMinutes, 0x30)
	require.Equal(t, uint8(0x30), c.in(addrMinutes))
	// What is no date changes nothing.
	for _, w := range [][2]uint8{{addrMonth, 0x13}, {addrDay, 0}, {addrSeconds, 0x5a}, {addrMinutes, 0x60}, {addrHours, 0x24}} {
		before := c.in(w[0])
		c.out(w[0], w[1])
		require.Equal(t, before, c.in(w[0]))
	}
	c.out(addrDay, 0x31)
	c.out(addrMonth, 0x04)
	require.Equal(t, uint8(0x01), c.in(addrMonth), "there is no 31 April")
}

func TestFormatsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, h := newClock()
		c.mem[addrB] = rapid.SampledFrom([]uint8{0, bBinary, b24Hours, bBinary | b24Hours}).Draw(t, "B")
		want := time.Unix(rapid.Int64Range(-62135596800+1, 253402300799-1).Draw(t, "time"), 0).UTC()
		h.t = want
		c.freeze()
		got, ok := c.decode()
		if !ok || !got.Equal(want) {
			t.Fatalf("%v came back as %v, %v", want, got, ok)
		}
	})
}

func TestState(t *testing.T) {
	c, _ := newClock()
	c.out(0x40, 0x77)
	c.out(addrMonth, 0x05)
	c.out(addrB, bSet|bBinary)
	c.out(addrDay, 9)
	statetest.Golden(t, c, func() state.Saver { c, _ := newClock(); return c })
}

// The guest's own time survives a move to a host with another clock.
func TestOffsetMoves(t *testing.T) {
	c, _ := newClock()
	c.out(addrYear, 0x30)
	there := &host{t: start.Add(time.Hour)}
	moved := New(there.now)
	require.NoError(t, statetest.Restore(moved, statetest.Stream(t, c)))
	require.Equal(t, uint8(0x30), moved.in(addrYear))
	require.Equal(t, uint8(0x16), moved.in(addrHours))
}

func TestRestoreRejects(t *testing.T) {
	good, _ := newClock()
	for _, tc := range []struct {
		name string
		at   int
		v    byte
	}{
		{"index", 0, 0x80},
		{"offset", 8, 0x7f},
		{"UIP", 9 + addrA, 0x80},
		{"interrupt enable", 9 + addrB, 0x10},
		{"register C", 9 + addrC, 1},
		{"register D", 9 + addrD, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			data := append([]byte(nil), statetest.Data(t, good)...)
			data[tc.at] = tc.v
			c, _ := newClock()
			require.ErrorIs(t, c.Restore(1, state.NewDecoder(data)), state.ErrFormat)
		})
	}
}

func FuzzAccesses(f *testing.F) {
	var seed []byte
	for _, w := range []uint8{addrB, 0x82, addrSeconds, 0x59, addrB, 0x06} {
		seed = append(seed, bustest.Step(true, 0x70, 1, w)...)
		seed = append(seed, bustest.Step(false, 0x71, 1, 0)...)
		seed = append(seed, bustest.Step(true, 0x70, 2, w)...)
	}
	good, _ := newClock()
	f.Add(seed, statetest.Data(f, good))
	f.Fuzz(func(t *testing.T, program, saved []byte) {
		c, h := newClock()
		_ = c.Restore(1, state.NewDecoder(saved))
		var b bus.Bus
		require.NoError(t, c.Attach(&b))
		bustest.Play(&b, Base, Ports, program, func() { h.t = h.t.Add(100 * time.Millisecond) })
		// Whatever state that left, it can move.
		there, _ := newClock()
		require.NoError(t, statetest.Restore(there, statetest.Stream(t, c)))
	})
}
