// Package vmm assembles a machine out of KVM, guest memory, devices and a
// kernel, runs its vCPUs, and saves and restores its state.
//
//	             Config (JSON; travels to a migration's destination)
//	                │ New, NewIncoming
//	                ▼
//	┌──────────────────────── Machine ────────────────────────┐
//	│ VCPU 0..n-1   one locked OS thread each                  │
//	│    │ exits: port I/O, MMIO                               │
//	│    ▼                                                     │
//	│ bus.Bus ──> serial, i8042, rtc, ports, virtio-mmio ──┐   │
//	│                                                      │   │
//	│ in-kernel PIC, I/O APIC, local APICs, PIT <── irqfd ─┘   │
//	│ guestmem.Memory ── one KVM slot a region                 │
//	└──────────────────────────────────────────────────────────┘
//
// Life of a machine (the legal steps are a table in lifecycle.go):
//
//	built ──Start──> running <──Pause/Resume──> paused
//	  │                 │                          │
//	  └─────────────────┴──── guest ends, Stop ────┴──> ended ──Close──> closed
//
// A Machine is safe for concurrent use. It implements what the migration
// engine needs of a source; BuildTarget makes the destination's half.
package vmm
