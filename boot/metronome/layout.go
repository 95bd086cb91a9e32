package metronome

import (
	_ "embed"
	"slices"
)

// Guest physical addresses, the same as in guest/layout.h.
const (
	PageSize      = 4096
	TrampolineGPA = 0x8000   // one page; used only when VCPUs > 1
	ImageGPA      = 0x100000 // where the ELF is loaded; it reaches up to ArenaGPA
	InfoGPA       = 0x1e0000 // the info page, see ParseInfo
	MailboxGPA    = 0x1f0000 // the guest neither reads nor writes the mailbox
	MailboxPages  = 16
	ArenaGPA      = 0x200000 // version table, then fill, text and free memory
)

// Limits of the guest.
const (
	MaxVCPUs  = 32
	MaxMemory = 64 << 30 // highest guest physical address in use, in bytes
)

// I/O ports that the guest uses beside the PICs, and the PIT when TSCKHz is not
// given.
const (
	PortCOM1      = 0x3f8
	PortExit      = 0x501 // one byte: why the guest gave up
	PortBootTimer = 0x508 // one byte: how far it has come
)

// Bytes written to PortExit.
const (
	ExitBadOption = 0x02 // after a "metronome error" line
	ExitFault     = 0x0d // after a "metronome fault" line
)

// Bytes written to PortBootTimer.
const (
	TimerUp     = 1 // with the line "metronome up"
	TimerFilled = 2 // with the line "metronome filled"
)

//go:embed metronome.elf
var image []byte

// ELF returns a copy of the guest's ELF image. It is entered by the PVH protocol
// (note XEN_ELFNOTE_PHYS32_ENTRY). Its one segment covers ImageGPA to ArenaGPA.
func ELF() []byte { return slices.Clone(image) }
