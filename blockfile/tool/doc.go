// Package tool is what `godwit image` does with disk images that no machine
// uses: describe them, make them, copy them from format to format, check them.
//
//	Inspect   headers only, nothing locked: an image in use may be looked at
//	Create    a new image, empty or over a backing file
//	Convert   source ── readers: map, read, find zeroes, compress ── in order ──> target
//	Check     follows every reference of a qcow2 image; Repair with its lock held
//
// A new image is written beside its name and takes it when it is complete and
// stable, so a name never stands for half an image. An image that somebody else
// holds the lock of is never replaced or repaired.
//
// Its callers name files themselves. Where no format is given it looks at the
// contents, which a machine never does: a guest could have written them. An
// image that only its contents call qcow2 therefore never gets a backing file
// opened for its data.
package tool
