// Package serial is a 16550A UART with the host on the other end of its line.
//
// Registers, interrupts and FIFOs follow National Semiconductor's PC16550D
// data sheet (section 8, "Registers"); where that leaves a choice, what the
// 8250 driver of Linux expects decides. The line has no speed: a byte that the
// guest writes is sent at once, and the divisor latch is only remembered.
//
//	            ┌────────────── UART ──────────────┐
//	vCPU ─THR──>│ put ─> ring (64 KiB) ─> goroutine│─> io.Writer
//	vCPU <─RBR──│ FIFO (16) <── queue (4 KiB)      │<─ Input (blocks its caller)
//	            └──────────────────────────────────┘
//
// # Output
//
// One goroutine per UART drains the ring, in chunks of at most 4 KiB and
// gathered for up to a millisecond unless a line ends. A writer that cannot
// keep up fills the ring; that is a stall, and it lasts until the ring is half
// empty. What a stall does depends on how the guest sends:
//
//	waits for the THR-empty   gets no interrupt, so only the process that
//	interrupt (Linux tty)     writes is held. Once the writer has taken
//	                          nothing for a second, bytes are dropped.
//	polls LSR for THRE        sees it clear for 10 ms at most, then its bytes
//	(Linux printk)            are dropped.
//	writes without looking    its vCPU is held until there is room, 10 ms at
//	(metronome)               most per stall, then its bytes are dropped.
//
// When the stall ends, a line in the output says how many bytes are missing.
// A vCPU is thus held 10 ms at most for every 32 KiB that were written out.
//
// # Input
//
// Input is queued and reaches the FIFO while the guest asserts RTS and is not
// in loopback mode: the host honours the guest's flow control. Linux asserts
// RTS when a process opens the port, after it has flushed the FIFO, so what was
// typed during boot is not lost. A guest that never writes MCR gets no input.
// There is no overrun except in loopback mode.
//
// # Interrupts
//
// The line is that of an ISA card: an edge when the cause goes from none to
// some. Two more edges are sent, because a spare one costs a guest a look at
// IIR and a missing one can hang it: when input arrives while a cause is
// pending already, and when reading IIR clears one cause and leaves another.
// OUT2 does not gate the line. The character timeout has no timer: data below
// the trigger level is reported as timed out at once.
//
// # Moving
//
// Drain before Save: output is written by the side on which the guest produced
// it. What is in the FIFO and in the input queue moves with the guest. After
// Restore, when the machine is about to run, call Rearm. A guest that is not to
// stand still while nobody reads asks Flow first.
package serial
