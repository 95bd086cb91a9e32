package serial

import (
	"bytes"
	"context"
	"io"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/devices/bus"
)

// buffer is a writer that can be looked at meanwhile.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *buffer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *buffer) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// port is a UART with a driver's view of it.
type port struct {
	*UART
	edges atomic.Int64
}

func newPort(t testing.TB, out io.Writer) *port {
	p := &port{}
	p.UART = New("serial/0", bus.InterruptFunc(func() error { p.edges.Add(1); return nil }), out)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func (p *port) in(reg uint64) uint8 {
	var b [1]byte
	p.Read(reg, b[:])
	return b[0]
}

func (p *port) out8(reg uint64, v uint8) { p.Write(reg, []byte{v}) }

func (p *port) input(t testing.TB, s string) {
	n, err := p.Input(context.Background(), []byte(s))
	require.NoError(t, err)
	require.Equal(t, len(s), n)
}

// open does what a driver does to talk: RTS, DTR and OUT2 on, FIFOs on.
func (p *port) open() {
	p.out8(regFCR, fcrEnable)
	p.out8(regMCR, mcrDTR|mcrRTS|mcrOUT2)
}

func (p *port) newEdges() int64 { return p.edges.Swap(0) }

// PC16550D table 1 (reset) and the bits that each register keeps.
func TestRegisters(t *testing.T) {
	for _, tc := range []struct {
		name         string
		reg          uint64
		dlab         bool
		reset, after uint8 // before and after 0xff was written
	}{
		{"RBR", regData, false, 0x00, 0x00},
		{"DLL", regData, true, 0x01, 0xff},
		{"IER", regIER, false, 0x00, 0x0f},
		{"DLM", regIER, true, 0x00, 0xff},
		{"IIR", regIIR, false, 0x01, 0xc1},
		{"LCR", regLCR, false, 0x00, 0xff},
		{"MCR", regMCR, false, 0x00, 0x1f},
		{"LSR", regLSR, false, 0x60, 0x60},
		{"MSR", regMSR, false, 0xb0, 0xb0},
		{"SCR", regSCR, false, 0x00, 0xff},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPort(t, io.Discard)
			if tc.dlab {
				p.out8(regLCR, lcrDLAB)
			}
			require.Equal(t, tc.reset, p.in(tc.reg))
			p.out8(tc.reg, 0xff)
			require.Equal(t, tc.after, p.in(tc.reg))
		})
	}
}

// A wide access is a series of byte accesses, as on an ISA bus.
func TestWideAccess(t *testing.T) {
	p := newPort(t, io.Discard)
	p.out8(regLCR, lcrDLAB)
	p.Write(regData, []byte{0x34, 0x12})
	b := make([]byte, 8)
	p.Read(0, b)
	require.Equal(t, []byte{0x34, 0x12, 0x01, lcrDLAB, 0x00, 0x60, 0xb0, 0x00}, b)
}

// The steps of autoconfig and autoconfig_16550a (Linux 6.1, 8250_port.c) and
// the tests of serial8250_do_startup, with the answers that make the driver
// choose a 16550A without bugs.
func TestLinuxProbe(t *testing.T) {
	p := newPort(t, io.Discard)
	p.out8(regIER, 0)
	require.Zero(t, p.in(regIER))
	p.out8(regIER, 0x0f)
	require.Equal(t, uint8(0x0f), p.in(regIER))
	p.out8(regIER, 0)

	p.out8(regMCR, mcrLoop|0x0a)
	require.Equal(t, uint8(0x90), p.in(regMSR)&0xf0, "loopback test")
	p.out8(regMCR, 0)

	p.out8(regLCR, 0xbf)
	p.out8(regFCR, 0)
	p.out8(regLCR, 0)
	p.out8(regFCR, fcrEnable)
	require.Equal(t, uint8(3), p.in(regIIR)>>6, "FIFOs that work")
	for _, lcr := range []uint8{lcrDLAB, 0xbf} {
		p.out8(regLCR, lcr)
		require.NotZero(t, p.in(regIIR), "no EFR")
	}
	for _, lcr := range []uint8{0, lcrDLAB} {
		p.out8(regLCR, lcr)
		p.out8(regFCR, fcrEnable|0x20)
		require.Equal(t, uint8(6), p.in(regIIR)>>5, "no 64-byte FIFO")
	}
	p.out8(regLCR, 0)
	p.out8(regIER, 0x40)
	require.Zero(t, p.in(regIER), "no XScale UUE bit")

	// size_fifo counts what fits in loopback mode.
	p.out8(regFCR, fcrEnable|fcrClearReceive)
	p.out8(regMCR, mcrLoop)
	for i := range 256 {
		p.out8(regData, uint8(i))
	}
	count := 0
	for p.in(regLSR)&lsrDataReady != 0 {
		p.in(regData)
		count++
	}
	require.Equal(t, 16, count)
	p.out8(regMCR, 0)

	for range 2 { // "THRE reasserts"; and once more is the test for UART_BUG_TXEN
		p.out8(regIER, ierTHRE)
		require.NotZero(t, p.in(regLSR)&lsrTEMT)
		require.Equal(t, uint8(iirFIFO|iirTHRE), p.in(regIIR))
		require.Equal(t, uint8(iirFIFO|iirNone), p.in(regIIR), "reading IIR acknowledges")
		p.out8(regIER, 0)
	}
}

// PC16550D table 4: priority, and what clears each cause.
func TestInterruptPriority(t *testing.T) {
	p := newPort(t, io.Discard)
	p.out8(regFCR, fcrEnable)
	p.out8(regMCR, mcrLoop|mcrOUT1)
	for range 17 {
		p.out8(regData, 'x')
	}
	p.out8(regMCR, mcrLoop) // RI falls
	require.Zero(t, p.newEdges(), "nothing is enabled")
	p.out8(regIER, 0x0f)
	require.Equal(t, int64(1), p.newEdges())

	require.Equal(t, uint8(iirFIFO|iirLine), p.in(regIIR))
	require.Equal(t, uint8(iirFIFO|iirLine), p.in(regIIR), "looking clears nothing")
	require.Equal(t, uint8(lsrOverrun|lsrDataReady|lsrTHRE|lsrTEMT), p.in(regLSR))
	require.Equal(t, uint8(iirFIFO|iirReceived), p.in(regIIR))
	for range 16 {
		require.Equal(t, uint8('x'), p.in(regData))
	}
	require.Zero(t, p.newEdges(), "the line stayed up all the time")
	require.Equal(t, uint8(iirFIFO|iirTHRE), p.in(regIIR))
	require.Equal(t, int64(1), p.newEdges(), "one cause was acknowledged, another is left")
	require.Equal(t, uint8(iirFIFO|iirModem), p.in(regIIR))
	require.Equal(t, uint8(msrTERI), p.in(regMSR)&msrTERI)
	require.Equal(t, uint8(iirFIFO|iirNone), p.in(regIIR))
	require.Zero(t, p.newEdges())
}

// PC16550D 8.5 and 8.6: below the trigger level the timeout reports data.
func TestTriggerLevels(t *testing.T) {
	for i, level := range triggerLevel {
		p := newPort(t, io.Discard)
		p.open()
		p.out8(regFCR, fcrEnable|uint8(i)<<6)
		p.out8(regIER, ierReceived)
		for n := 1; n <= fifoSize; n++ {
			p.input(t, "x")
			want := uint8(iirFIFO | iirTimeout)
			if n >= level {
				want = iirFIFO | iirReceived
			}
			require.Equal(t, want, p.in(regIIR), "%d bytes, level %d", n, level)
		}
		require.Equal(t, int64(fifoSize), p.newEdges(), "an edge for every arrival")
	}
}

func TestModemStatus(t *testing.T) {
	p := newPort(t, io.Discard)
	for _, tc := range []struct {
		name       string
		mcr, lines uint8
		deltas     uint8
	}{
		{"host", 0, msrHost, 0},
		{"loop, all off", mcrLoop, 0, msrDeltaCTS | msrDeltaDSR | msrDeltaDCD},
		{"RTS is CTS", mcrLoop | mcrRTS, msrCTS, msrDeltaCTS},
		{"DTR is DSR", mcrLoop | mcrDTR, msrDSR, msrDeltaCTS | msrDeltaDSR},
		{"OUT1 is RI", mcrLoop | mcrOUT1, msrRI, msrDeltaDSR},
		{"OUT2 is DCD", mcrLoop | mcrOUT2, msrDCD, msrTERI | msrDeltaDCD},
		{"no change", mcrLoop | mcrOUT2, msrDCD, 0},
	} {
		p.out8(regMCR, tc.mcr)
		require.Equal(t, tc.lines|tc.deltas, p.in(regMSR), tc.name)
		require.Equal(t, tc.lines, p.in(regMSR), "reading clears the deltas")
	}
}

func TestLoopback(t *testing.T) {
	var w buffer
	p := newPort(t, &w)
	p.out8(regMCR, mcrLoop|mcrRTS)
	p.input(t, "from outside")
	p.out8(regData, 'a')
	p.out8(regData, 'b')
	require.Equal(t, uint8(lsrOverrun), p.in(regLSR)&lsrOverrun)
	require.Zero(t, p.in(regLSR)&lsrOverrun, "reading LSR clears the error")
	require.Equal(t, uint8('b'), p.in(regData), "without FIFO the newer byte wins")
	require.Zero(t, p.in(regLSR)&lsrDataReady)
	p.out8(regMCR, mcrRTS)
	require.Equal(t, uint8('f'), p.in(regData), "the line is connected again")
	require.NoError(t, p.Drain(t.Context()))
	require.Empty(t, w.String())
}

func TestInputWaitsForRTS(t *testing.T) {
	p := newPort(t, io.Discard)
	p.out8(regIER, ierReceived)
	p.input(t, "typed during boot")
	require.Zero(t, p.in(regLSR)&lsrDataReady)
	p.out8(regFCR, fcrEnable|fcrClearReceive)
	require.Zero(t, p.newEdges())
	p.open()
	require.Equal(t, int64(1), p.newEdges())
	var got []byte
	for p.in(regLSR)&lsrDataReady != 0 {
		got = append(got, p.in(regData))
	}
	require.Equal(t, "typed during boot", string(got))
	require.Zero(t, p.newEdges(), "the line never fell before it was empty")

	// Clearing and switching the FIFOs empties them (8.5).
	for _, fcr := range []uint8{fcrEnable | fcrClearReceive, 0, fcrEnable} {
		p.input(t, "z")
		p.out8(regFCR, fcr)
		require.Zero(t, p.in(regLSR)&lsrDataReady)
	}
}

func TestInputBlocksItsCaller(t *testing.T) {
	p := newPort(t, io.Discard)
	long := bytes.Repeat([]byte("0123456789"), 1000)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n, err := p.Input(ctx, long)
	require.Zero(t, n)
	require.ErrorIs(t, err, context.Canceled)

	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := p.Input(t.Context(), long)
		done <- result{n, err}
	}()
	p.open()
	for i := range long {
		for p.in(regLSR)&lsrDataReady == 0 {
			p.in(regSCR)
		}
		require.Equal(t, long[i], p.in(regData))
	}
	require.Equal(t, result{len(long), nil}, <-done)

	p.out8(regMCR, 0)
	go func() {
		n, err := p.Input(t.Context(), long)
		done <- result{n, err}
	}()
	for {
		p.mu.Lock()
		full := p.queue.free() == 0
		p.mu.Unlock()
		if full {
			break
		}
	}
	require.NoError(t, p.Close())
	require.Equal(t, result{queueSize, ErrClosed}, <-done)
	_, err = p.Input(t.Context(), []byte("x"))
	require.ErrorIs(t, err, ErrClosed)
}

func TestInterruptErrorsAreCounted(t *testing.T) {
	u := New("serial/0", bus.InterruptFunc(func() error { return io.ErrClosedPipe }), io.Discard)
	defer u.Close()
	u.Write(regIER, []byte{ierTHRE})
	require.Equal(t, uint64(1), u.Stats().InterruptErrors)
}

func TestAttach(t *testing.T) {
	p := newPort(t, io.Discard)
	var b bus.Bus
	require.NoError(t, p.Attach(&b, COM1))
	b.Write(COM1+regSCR, []byte{0x5a})
	require.Equal(t, uint8(0x5a), p.in(regSCR))
	require.ErrorIs(t, p.Attach(&b, COM1+7), bus.ErrAttach)
}
