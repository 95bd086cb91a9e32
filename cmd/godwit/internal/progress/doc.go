// Package progress shows how a migration stands: on a terminal one line that
// is rewritten, elsewhere a plain line a second and one for every round. It
// only writes; the caller tells it what it hears from the machine.
package progress
