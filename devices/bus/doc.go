// Package bus routes a guest's port and memory-mapped accesses to devices.
//
// A machine has two buses, one for port I/O and one for MMIO. A device claims
// an address range when the machine is assembled; the ranges never change
// afterwards, so look-ups from vCPU threads take no lock.
//
//	vCPU exit ──> Bus.Read/Write(addr, p) ──> Device.Read/Write(addr-base, p)
//	                     │
//	                     └── nobody there: reads give all ones, writes are dropped
//
// The package also holds the one thing every device needs besides registers:
// the Interrupt that it raises.
package bus
