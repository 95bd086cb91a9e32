package metronome

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

// What io=blk leaves on a disk: two copies of a superblock, then from DiskData on
// units of PageSize bytes. guest/disk.h has the same.
const (
	DiskData    = 1 << 20
	superCopies = 2

	unitMagic  = 0x4b53444f5254454d // "METRODSK"
	superMagic = 0x5055534f5254454d // "METROSUP"
	superWords = 9
	unitFirst  = 5 // words of a unit's header
	unitStep   = 0x9e3779b97f4a7c15
	wordsPage  = PageSize / 8
)

var (
	// ErrNoPattern: the disk holds no superblock of the guest's. It was never used
	// so, or its filling had not ended.
	ErrNoPattern = errors.New("no metronome pattern on the disk")
	// ErrDisk: the pattern is there, and damaged.
	ErrDisk = errors.New("metronome pattern on the disk is damaged")
)

// DiskReport is what VerifyDisk saw.
type DiskReport struct {
	Seed     uint64
	Span     uint64 // bytes of the pattern
	Flushed  uint64 // the writes up to this number must be there
	Newest   uint64 // the highest number of a write that is there
	Beyond   uint64 // units newer than Flushed asks for: allowed
	Bad      uint64 // units that are not whole, or of no write that could be there
	Lost     uint64 // units older than a flushed write
	Examples []string
}

// Err is nil when nothing is bad or lost.
func (r DiskReport) Err() error {
	if r.Bad == 0 && r.Lost == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d bad and %d lost units, writes up to %d were flushed: %v", ErrDisk, r.Bad, r.Lost, r.Flushed, r.Examples)
}

// maxWrites bounds what VerifyDisk follows: some ten seconds' work.
const maxWrites = 1 << 32

// maxExamples bounds DiskReport.Examples.
const maxExamples = 8

type super struct {
	generation, seed, units, perBlock, sequential, flushed uint64
}

// VerifyDisk checks a disk that a guest with io=blk has used, or was using when its
// VMM was killed: every unit must be whole, of a version that the guest's order of
// writes allows, and no older than the last write to it that was flushed. flushed is
// what the guest is known to have flushed, beside what its superblock says; 0 if
// nothing is known. The error is ErrNoPattern, or one of reading; damage is in the
// report, whose Err tells.
func VerifyDisk(r io.ReaderAt, flushed uint64) (DiskReport, error) {
	s, err := readSuper(r)
	if err != nil {
		return DiskReport{}, err
	}
	if flushed > maxWrites {
		return DiskReport{}, fmt.Errorf("verify disk: %d flushed writes, at most %d", flushed, uint64(maxWrites))
	}
	rep := DiskReport{Seed: s.seed, Span: s.units * PageSize, Flushed: max(s.flushed, flushed)}
	blocks := s.units / s.perBlock
	need := make([]uint64, blocks) // the last flushed write to each block
	for n := firstThatCounts(s, rep.Flushed, blocks); n <= rep.Flushed; n++ {
		need[blockOfWrite(s.seed, n, blocks, s.sequential != 0)] = n
	}
	buf := make([]byte, 256*PageSize)
	for unit := uint64(0); unit < s.units; {
		n := min(uint64(len(buf)/PageSize), s.units-unit)
		if _, err := r.ReadAt(buf[:n*PageSize], int64(DiskData+unit*PageSize)); err != nil {
			return rep, fmt.Errorf("read unit %d of the disk: %w", unit, err)
		}
		for i := range n {
			rep.unit(s, buf[i*PageSize:(i+1)*PageSize], unit+i, need[(unit+i)/s.perBlock])
		}
		unit += n
	}
	return rep, nil
}

// firstThatCounts is 1, save for sequential writes, of which the last turn has them all.
func firstThatCounts(s super, flushed, blocks uint64) uint64 {
	if s.sequential != 0 && flushed > blocks {
		return flushed - blocks + 1
	}
	return 1
}

func (r *DiskReport) unit(s super, p []byte, unit, need uint64) {
	version := binary.LittleEndian.Uint64(p[16:])
	block := unit / s.perBlock
	switch {
	case !unitGood(p, s.seed, unit, version):
		r.Bad++
		r.example("unit %d is not whole (its header says unit %d, version %d)", unit, binary.LittleEndian.Uint64(p[8:]), version)
	case version != 0 && blockOfWrite(s.seed, version, s.units/s.perBlock, s.sequential != 0) != block:
		r.Bad++
		r.example("unit %d has version %d, a write that went elsewhere", unit, version)
	case version < need:
		r.Lost++
		r.example("unit %d has version %d, write %d to it was flushed", unit, version, need)
	case version > need:
		r.Beyond++
		r.Newest = max(r.Newest, version)
	default:
		r.Newest = max(r.Newest, version)
	}
}

func (r *DiskReport) example(format string, a ...any) {
	if len(r.Examples) < maxExamples {
		r.Examples = append(r.Examples, fmt.Sprintf(format, a...))
	}
}

// WriteDisk writes what io=blk would fill an empty disk with, so that a guest need
// only look at it. The disk must hold DiskData + span bytes; spans are in MiB. b
// gives span, block size and order.
func WriteDisk(w io.WriterAt, seed uint64, b BlkLoad) error {
	if err := b.validate(); err != nil || !b.given() {
		return errors.Join(err, errNotGiven(b))
	}
	s := super{generation: 1, seed: seed, units: b.Span << 20 / PageSize, perBlock: b.KiB << 10 / PageSize}
	if b.Sequential {
		s.sequential = 1
	}
	buf := make([]byte, 256*PageSize)
	for unit := uint64(0); unit < s.units; unit += 256 {
		for i := range uint64(256) {
			writeUnit(buf[i*PageSize:], seed, unit+i, 0)
		}
		if _, err := w.WriteAt(buf, int64(DiskData+unit*PageSize)); err != nil {
			return fmt.Errorf("write unit %d of the disk: %w", unit, err)
		}
	}
	page := make([]byte, superCopies*PageSize)
	writeSuper(page[PageSize:], s) // generation 1 lies in copy 1
	if _, err := w.WriteAt(page, 0); err != nil {
		return fmt.Errorf("write the superblock of the disk: %w", err)
	}
	return nil
}

func errNotGiven(b BlkLoad) error {
	if b.given() {
		return nil
	}
	return errors.New("metronome disk: no load given; start from DefaultBlk")
}

func readSuper(r io.ReaderAt) (super, error) {
	buf := make([]byte, superCopies*PageSize)
	if n, err := r.ReadAt(buf, 0); err != nil && (n < len(buf) || !errors.Is(err, io.EOF)) {
		return super{}, fmt.Errorf("%w: read its superblock: %w", ErrNoPattern, err)
	}
	var newest super
	found := false
	for i := range superCopies {
		s, ok := parseSuper(buf[i*PageSize:])
		if ok && (!found || s.generation > newest.generation) {
			newest, found = s, true
		}
	}
	if !found {
		return super{}, ErrNoPattern
	}
	// A disk is a guest's: what is allocated for it must be bounded.
	switch units := uint64(65536) << 20 / PageSize; {
	case newest.units == 0 || newest.units > units || newest.perBlock == 0 || newest.units%newest.perBlock != 0:
		return super{}, fmt.Errorf("%w: superblock of %d units in blocks of %d", ErrNoPattern, newest.units, newest.perBlock)
	case newest.flushed > maxWrites:
		return super{}, fmt.Errorf("%w: superblock with %d flushed writes", ErrNoPattern, newest.flushed)
	}
	return newest, nil
}

func superCheck(p []byte) (check uint64) {
	for j := range superWords - 1 {
		check = mix(check ^ binary.LittleEndian.Uint64(p[8*j:]))
	}
	return check
}

func parseSuper(p []byte) (super, bool) {
	w := func(i int) uint64 { return binary.LittleEndian.Uint64(p[8*i:]) }
	s := super{generation: w(2), seed: w(3), units: w(4), perBlock: w(5), sequential: w(6), flushed: w(7)}
	return s, w(0) == superMagic && w(1) == 1 && w(8) == superCheck(p)
}

func writeSuper(p []byte, s super) {
	clear(p[:PageSize])
	for i, v := range []uint64{superMagic, 1, s.generation, s.seed, s.units, s.perBlock, s.sequential, s.flushed} {
		binary.LittleEndian.PutUint64(p[8*i:], v)
	}
	binary.LittleEndian.PutUint64(p[8*(superWords-1):], superCheck(p))
}

// mix is the guest's, guest/pages.c.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

func unitKey(seed, unit, version uint64) uint64 {
	return mix(mix(mix(seed+0x6469736b)^unit) ^ version)
}

func writeUnit(p []byte, seed, unit, version uint64) {
	key := unitKey(seed, unit, version)
	for i, v := range []uint64{unitMagic, unit, version, seed, key} {
		binary.LittleEndian.PutUint64(p[8*i:], v)
	}
	for j := uint64(unitFirst); j < wordsPage; j++ {
		binary.LittleEndian.PutUint64(p[8*j:], key+j*unitStep)
	}
}

func unitGood(p []byte, seed, unit, version uint64) bool {
	key := unitKey(seed, unit, version)
	for i, v := range []uint64{unitMagic, unit, version, seed, key} {
		if binary.LittleEndian.Uint64(p[8*i:]) != v {
			return false
		}
	}
	for j := uint64(unitFirst); j < wordsPage; j++ {
		if binary.LittleEndian.Uint64(p[8*j:]) != key+j*unitStep {
			return false
		}
	}
	return true
}

// blockOfWrite is the block that write number n, from 1, goes to.
func blockOfWrite(seed, n, blocks uint64, sequential bool) uint64 {
	if sequential {
		return (n - 1) % blocks
	}
	hi, _ := bits.Mul64(mix(mix(seed+0x6f72646572)^n), blocks)
	return hi
}
