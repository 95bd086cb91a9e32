package images_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"

	"godwit/blockfile"
)

// childEnv makes this program the writer that gets killed: PATH SEED FIRST-OP.
const childEnv = "GODWIT_IMAGES_CHILD"

const (
	crashDisk    = 32 << 20
	crashSectors = crashDisk / sector
	// quarters of the disk are written by a goroutine each.
	quarters = 4
)

// change is operation i of a seed: both the writer and the judge know it.
type change struct {
	kind    kind
	quarter int
	from, n int64 // sectors
}

func changeOf(seed, i uint64) change {
	r := rand.New(rand.NewPCG(seed, i))
	kinds := []kind{opWrite, opWrite, opWrite, opWrite, opWrite, opZero, opUnmap, opDiscard}
	c := change{kind: kinds[r.IntN(len(kinds))], quarter: r.IntN(quarters)}
	long := []int64{1, 16, 130, 600}[r.IntN(4)]
	c.n = 1 + r.Int64N(long)
	c.from = int64(c.quarter)*crashSectors/quarters + r.Int64N(crashSectors/quarters-c.n)
	return c
}

// batchOf is how many operations come before the next flush.
func batchOf(seed, i uint64) uint64 { return 1 + rand.New(rand.NewPCG(seed, ^i)).Uint64N(40) }

// stamp fills a sector with who wrote it and where; nobody is zeroes.
func stamp(b []byte, who uint64, at int64) {
	clear(b)
	for k := 0; who != 0 && k < sector; k += 16 {
		binary.LittleEndian.PutUint64(b[k:], who)
		binary.LittleEndian.PutUint64(b[k+8:], uint64(at))
	}
}

// writeUntilKilled changes the image for ever. It says "s N" before it begins
// the operations below N, and "f N" once they are flushed.
func writeUntilKilled(args string) error {
	var path string
	var seed, next uint64
	if _, err := fmt.Sscan(args, &path, &seed, &next); err != nil {
		return err
	}
	disk, err := blockfile.Open(path, blockfile.Options{Backing: blockfile.AnyBacking, Format: blockfile.FormatQcow2})
	if err != nil {
		return err
	}
	say := func(what string) error {
		_, err := os.Stdout.WriteString(what + " " + strconv.FormatUint(next, 10) + "\n")
		return err // the parent is gone
	}
	for {
		first := next
		next += batchOf(seed, first)
		if err := say("s"); err != nil {
			return err
		}
		if err := writeBatch(disk, seed, first, next); err != nil {
			return err
		}
		if err := disk.Flush(); err != nil {
			return err
		}
		if err := say("f"); err != nil {
			return err
		}
	}
}

// writeBatch does the changes of each quarter in order, and the quarters at once.
func writeBatch(disk blockfile.File, seed, first, end uint64) error {
	var wg sync.WaitGroup
	var errs [quarters]error
	for q := range quarters {
		wg.Go(func() {
			for i := first; i < end && errs[q] == nil; i++ {
				if c := changeOf(seed, i); c.quarter == q {
					errs[q] = c.apply(disk, i+1)
					if i%31 == 3 && errs[q] == nil {
						errs[q] = disk.Flush() // while the others write
					}
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (c change) apply(disk blockfile.File, who uint64) error {
	off, n := c.from*sector, c.n*sector
	switch c.kind {
	case opZero, opUnmap:
		return disk.WriteZeroes(off, n, c.kind == opUnmap)
	case opDiscard:
		return disk.Discard(off, n)
	}
	b := make([]byte, n)
	for k := range c.n {
		stamp(b[k*sector:(k+1)*sector], who, c.from+k)
	}
	_, err := disk.Pwritev([][]byte{b}, off)
	return err
}
