package state

import "errors"

// What can go wrong between a Saver and its section. Every error of this
// package has one of these in its chain, or is an error of the reader, writer
// or Saver underneath.
var (
	// ErrFormat: the bytes are not what a Writer or an Encoder produces.
	ErrFormat = errors.New("malformed state")
	// ErrLimit: a length is over its cap.
	ErrLimit = errors.New("state too large")
	// ErrID: a section has a bad name, or one that is already taken.
	ErrID = errors.New("bad state section")
	// ErrMissing: a part of the machine has no section, or asks for it twice.
	ErrMissing = errors.New("state section missing")
	// ErrUnclaimed: a section belongs to no part of the machine.
	ErrUnclaimed = errors.New("state section belongs to no part of this machine")
	// ErrVersion: a section was written by a newer godwit.
	ErrVersion = errors.New("unsupported state version")
)
