package serial

// Register offsets, PC16550D table 2. Offsets 0 and 1 are the divisor latch
// while LCR has DLAB set.
const (
	regData = 0 // RBR on read, THR on write; DLL
	regIER  = 1 // DLM
	regIIR  = 2 // on read; FCR on write
	regFCR  = 2
	regLCR  = 3
	regMCR  = 4
	regLSR  = 5
	regMSR  = 6
	regSCR  = 7
)

// Interrupt enable, PC16550D 8.7.
const (
	ierReceived = 1 << 0
	ierTHRE     = 1 << 1
	ierLine     = 1 << 2
	ierModem    = 1 << 3
	ierMask     = 0x0f
)

// Interrupt identification, PC16550D 8.6 and table 4, in order of priority.
const (
	iirNone     = 0x01
	iirLine     = 0x06
	iirReceived = 0x04
	iirTimeout  = 0x0c
	iirTHRE     = 0x02
	iirModem    = 0x00
	iirFIFO     = 0xc0 // both bits: the FIFOs are on
)

// FIFO control, PC16550D 8.5.
const (
	fcrEnable       = 1 << 0
	fcrClearReceive = 1 << 1
	fcrTrigger      = 0xc0
	// fcrKept are the bits with a lasting meaning. DMA mode is none of ours.
	fcrKept = fcrEnable | fcrTrigger
)

// triggerLevel is how many bytes make a full received-data interrupt, by the
// top two bits of FCR.
var triggerLevel = [4]int{1, 4, 8, 14}

// fifoSize is the depth of both FIFOs.
const fifoSize = 16

// lcrDLAB selects the divisor latch, PC16550D 8.1.
const lcrDLAB = 1 << 7

// Modem control, PC16550D 8.8.
const (
	mcrDTR  = 1 << 0
	mcrRTS  = 1 << 1
	mcrOUT1 = 1 << 2
	mcrOUT2 = 1 << 3
	mcrLoop = 1 << 4
	mcrMask = 0x1f
)

// Line status, PC16550D 8.4.
const (
	lsrDataReady = 1 << 0
	lsrOverrun   = 1 << 1
	lsrTHRE      = 1 << 5
	lsrTEMT      = 1 << 6
)

// Modem status, PC16550D 8.9: the lines, and below them one bit per change.
const (
	msrDeltaCTS = 1 << 0
	msrDeltaDSR = 1 << 1
	msrTERI     = 1 << 2
	msrDeltaDCD = 1 << 3
	msrCTS      = 1 << 4
	msrDSR      = 1 << 5
	msrRI       = 1 << 6
	msrDCD      = 1 << 7

	msrDeltas = 0x0f
	// msrHost is what the host drives: ready, clear to send, carrier there.
	msrHost = msrCTS | msrDSR | msrDCD
)
