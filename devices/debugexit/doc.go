// Package debugexit is a port on which a guest ends itself: a write of 0 is a
// power-off, any other byte is a failure that the guest declares, with that
// code. It is how a guest without ACPI, and every test guest, says that it is
// done.
package debugexit
