// Package metronome moves the built-in guest over this machine's /dev/kvm, as a
// user would, and lets the guest itself judge whether a page was lost.
//
//	moves_test     back and forth between two processes, many times
//	storm_test     the same with dirty rings while signals pour on the source
//	plant_test     pages spoilt from outside, each kind found by the guest
//	rules_test     one test per safety rule of migration/sabotage
//	sabotage_test  each of them must fail once its rule is switched off
//	kill_test      either process killed at every phase, and at random moments
//	local_test     memory that changes hands instead of being copied
//	cut_test       connections that break or fall silent after so many bytes
//	growth_test    what a process holds after many moves
//
// Processes are this test program again, told by an environment variable to hold
// machines and take orders (child_test); the orders are net/rpc over its stdin
// and stdout, so a child whose parent died ends too. Everything that any machine
// of a test writes to its console also goes to one file, its ledger, with a name
// of its own for every copy of the guest: two copies that run show there.
//
// GODWIT_SOAK=1 chooses the long forms.
package metronome
