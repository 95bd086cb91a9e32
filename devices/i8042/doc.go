// Package i8042 is the keyboard controller of a PC without a keyboard.
//
// Guests need it for one thing: command 0xFE pulses the reset line, and that
// is how Linux reboots by default. The rest answers at once what a controller
// with nothing plugged in answers, so that probing drivers lose no time in
// timeouts: the self test passes, the command byte can be read and written,
// there is no second (mouse) port, and a byte sent to the keyboard comes back
// as the controller's own time-out reply.
//
// Sources: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and
// Auxiliary Device Controller"; what Linux expects is in
// drivers/input/serio/i8042.c.
package i8042
