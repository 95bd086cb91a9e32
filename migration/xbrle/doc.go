// Package xbrle sends a page that was sent before as its difference: XOR binary
// run-length encoding (Svärd, Hudzia, Tordsson, Elmroth: Evaluation of Delta
// Compression Techniques for Efficient Live Migration of Large Virtual Machines,
// VEE 2011). Importing it registers two codecs:
//
//	xbrle[,cache=64M|auto|0][,max=1G][,prime=all|hot|none]
//	rle
//
// # Format
//
// An encoding is a sequence of runs; what follows the last literal is unchanged,
// and no run at all is an unchanged page.
//
//	gap      varint  bytes that stay as they are
//	literal  varint  how many bytes follow
//	bytes            the new bytes, to be written over the old ones
//
// A varint is LEB128 of one or two bytes, in its shortest form. A literal is at
// least one byte long and, but for the first gap, so is a gap. An encoding is
// always shorter than a page; a page for which it would not be goes raw. Literals
// are the new bytes and not their XOR, so that decoding is copying: the XOR only
// decides where they are. A gap of up to 3 bytes between two literals is sent as
// part of one. The codec rle has the same format with pages of zeros as base:
// gaps are zero bytes.
//
// The base is named by its CRC-32C, which the destination checks over its whole
// page before it writes a byte. The source keeps the CRC of each cached page and
// brings it up to date from the changed lines alone, CRC being linear. After a
// malformed encoding the destination's page is partly changed; the migration has
// failed then, and that memory never runs.
//
// # Encoding
//
//	guest page --one load per byte--> snapshot --runs--> delta
//	                                     |  \
//	cached base --compare (32 bytes)-> masks  changed lines --> cached base
//
// The guest writes to the page meanwhile. Every byte is therefore loaded once, and
// literals, base and CRC come from the snapshot: what is kept is what was sent. The
// masks, 4096 bits, become starts and ends of literals by a few shifts per 64
// bytes and then by counting trailing zeros, eight at a time without a branch.
// AVX2 does this where the CPU has it, with a portable twin whose output is the
// same, byte for byte.
//
// Where many lines changed, AVX-512 (VBMI2) does without a step for each run. The
// 4096 bits are eight registers, in which gaps are filled by shifts; packing byte
// numbers under the edges' bits lists all edges of a line at once, and their
// differences are all lengths. A literal has 4 unchanged bytes or more before it,
// and its lengths take 2 to 4: they are put in their place, and literals and
// lengths packed together, a line at a time.
//
// # Cache
//
// Two ways per set, the set is the page number modulo the number of sets, so that
// a working set in one piece has no conflicts while it fits. Everything lies in
// one mapping outside the Go heap, made by the first Encode (a destination has
// none) and removed by Close. A way is owned by whoever sets a bit in its tag by
// compare-and-swap; a stream that fails sends raw and goes on, so there is neither
// a lock nor a wait.
//
// How hot a page is, is counted in one byte per guest page: each sending and each
// sighting in a dirty log counts one, 8 rounds halve it. Of a page that nobody has
// seen dirty yet, the region of 2 MiB around it gives a hint. A page gets an empty
// way, or the way of a page that is colder than itself; among equals the one that
// is there stays, so that a sweep over more than fits does not flush everything.
//
// prime decides about a page's first sending: all keeps every page while there is
// room, hot keeps pages that were seen dirty and those around them, none keeps
// nothing that was not sent before, as QEMU does. Observe must be called for hot
// to know anything in the first round.
//
// cache=auto follows the hot set: a page is kept once it is known to be hot,
// up to max=, in memory that is only then used, and is given back when its hit
// rate over 8 rounds was zero, where a hit that made no delta does not count.
// Its prime= is hot unless it is given.
//
// README.md has the figures.
package xbrle
