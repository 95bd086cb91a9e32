// Package progress shows how a migration stands: on a terminal one line that
// is rewritten, elsewhere a plain line for every round, for a phase that takes
// long, and at most one a second besides. It
// only writes; the caller tells it what it hears from the machine.
package progress
