// Package qcow2 reads and writes disk images of QEMU's qcow2 format, versions 2
// and 3. It knows the format only: who uses it opens and locks the file, hands
// it in as a Host, and hands in the backing file, opened, as a Backing.
//
//	guest offset ── L1 index | L2 index | offset in the cluster
//
//	L1 table ──> L2 table ──> cluster     plain, zero, compressed, or not there:
//	                                      then the backing file's, else zeroes
//	refcount table ──> refcount block ──> how many tables refer to a cluster
//
// Everything in the file counts as written by an enemy: offsets and lengths are
// checked before they are used, memory and work are bounded whatever it says.
// Encryption, external data files and extended L2 entries are refused by name.
//
// The source of all facts is the document "qcow2" in QEMU's docs/interop,
// quoted as "qcow2" with the name of the section.
package qcow2
