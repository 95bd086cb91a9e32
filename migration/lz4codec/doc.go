// Package lz4codec is the page codec "lz4": each page is one LZ4 block of its
// own, so any page can be decoded without another, in any order.
//
//	--codec lz4[,accel=N]
//
// Importing the package registers the name with policy.Codecs. accel, 1 to 64,
// is the acceleration of LZ4's fast search: a larger one is faster and makes
// larger blocks. LZ4 is the slower of two ends almost always: it is worth its
// time on links below some 400 MB/s per core that compresses.
//
// The block format is described by lz4_Block_format.md of the LZ4 project. No
// frame, length or checksum goes with a block: the wire's own frames have them.
package lz4codec
