package state

// Saver is a part of a machine whose state survives a move.
//
// Save and Restore are called while the machine is paused and its devices are
// drained: nothing else runs on the Saver meanwhile. Save has no side effects
// on the guest, so that a migration that fails after it can go on running.
// Restore is called once, on a freshly built part with the same configuration,
// and validates what it reads as if an enemy wrote it: on an error the machine
// is thrown away, and no input makes it panic or allocate without bound.
type Saver interface {
	// StateID names the section: stable across versions, unique in a machine,
	// 1 to 64 bytes of lower-case letters, digits, '-', '/' and '.'.
	StateID() string
	// StateVersion is the version that Save writes. Restore reads it and those
	// older ones that it names in its comment.
	StateVersion() uint32
	// Save appends the state as plain data.
	Save(e *Encoder) error
	// Restore reads what Save of the given version wrote, to its last byte.
	Restore(version uint32, d *Decoder) error
}
