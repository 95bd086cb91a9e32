package vmm

import "godwit/kvm/guestmem"

// Memory is the guest's RAM, for tests and tools that look into it or change it
// from outside; the machine itself hands it to its devices. Bytes that belong to
// the guest may change at any time while it runs: pause it first. Writes made
// here count as the VMM's own, so a migration sees them, but like a device's
// they must not happen while a migration has the machine paused. It must not be
// used after Close.
func (m *Machine) Memory() *guestmem.Memory { return m.mem.Memory }
