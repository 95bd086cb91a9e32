// Package state frames the saved state of a machine.
//
// Every part of a machine that has state (a vCPU, the interrupt controllers, a
// device) is a Saver. A whole machine is a header, one section per Saver, and
// an end mark:
//
//	header    magic "\x89GODWIT\n", format version (4 bytes)
//	section   ┌───────────┬─────────┬─────────┬─────────┬──────┬─────────┐
//	          │ id length │   id    │ version │ length  │ data │ CRC-32C │
//	          │  1 byte   │ n bytes │ 4 bytes │ 4 bytes │      │ 4 bytes │
//	          └───────────┴─────────┴─────────┴─────────┴──────┴─────────┘
//	section   ...
//	end mark  an id length of 0
//
// All integers are little-endian; the checksum covers its section from the id
// length to the last byte of data. The reader treats what comes in as written
// by an enemy: lengths are capped before anything is allocated, every section
// must be asked for, and a missing, repeated or unknown one is an error. There
// is no default that succeeds.
//
// Saving is a Writer with one WriteSaver per part and a Close. Restoring is
// Read, which checks the whole stream first, then Sections.Restore for each
// part and Sections.Done, in whatever order the parts need.
//
// Inside a section a Saver writes plain data with Encoder and reads it back
// with Decoder, whose first error sticks, so a restore is a list of fields
// followed by one check. Package statetest holds the test that every Saver
// goes through.
package state
