// Package metronome holds the built-in guest: a bare-metal x86-64 program that
// fills memory, changes a working set at a given rate, and is its own witness
// that no page of it was lost, torn or stale. It runs at CPL 3 in identity-mapped
// user pages, so it works at native speed on every KVM, PVM included.
//
// The package is what a VMM or a test needs to run it and to understand it:
//
//	Options.String  ->  kernel command line  ->  guest
//	ELF             ->  PVH loader           ->  guest
//	guest -> serial port -> Kind, ParseBeat, ParseBad, ParseFilled, ParseIO
//	guest -> page at InfoGPA of its memory   -> ParseInfo
//	guest -> disk, with io=blk     -> VerifyDisk; WriteDisk prepares one
//	VMM   -> MailboxPages pages at MailboxGPA, which the guest leaves alone
//
// All of it may be called from any goroutine. Lines and the info page come from a
// guest, so the parsers treat them as untrusted: they return errors, do not panic,
// and allocate no more than what they return.
//
// The guest's source is in guest/; build.sh turns it into metronome.elf, which is
// committed and embedded. README.md describes command line, lines and info page.
package metronome
