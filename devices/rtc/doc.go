// Package rtc is the clock and the battery-backed memory of a PC: an
// MC146818A at ports 0x70 and 0x71.
//
// The time of day is that of a clock function plus an offset, which changes
// when the guest sets the time; nothing ticks in between. Registers follow
// Motorola's data sheet MC146818A, "Address map" and "Registers": BCD or
// binary, 12 or 24 hours, SET and update-in-progress. The century is at 0x32,
// where ACPI and most firmware have it. The day of the week is computed from
// the date, so writing it has no effect.
//
// There are no interrupts: the enable bits of register B stay 0, and a guest
// that wants a tick uses another timer.
package rtc
