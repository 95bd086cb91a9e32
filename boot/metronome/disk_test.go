package metronome

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// disk is an image in memory.
type disk []byte

func (d disk) ReadAt(p []byte, off int64) (int, error)  { return bytes.NewReader(d).ReadAt(p, off) }
func (d disk) WriteAt(p []byte, off int64) (int, error) { return copy(d[off:], p), nil }

func newDisk(t testing.TB, b BlkLoad) disk {
	t.Helper()
	d := make(disk, DiskData+b.Span<<20)
	require.NoError(t, WriteDisk(d, 7, b))
	return d
}

// write does write number n as the guest would.
func (d disk) write(b BlkLoad, n uint64) {
	per := b.KiB << 10 / PageSize
	first := blockOfWrite(7, n, b.Span<<20/b.KiB>>10, b.Sequential) * per
	for u := first; u < first+per; u++ {
		writeUnit(d[DiskData+u*PageSize:], 7, u, n)
	}
}

func (d disk) flushed(b BlkLoad, n uint64) {
	s, _ := readSuper(d)
	s.flushed = n
	s.generation++
	writeSuper(d[s.generation%superCopies*PageSize:], s)
}

func testLoad(sequential bool) BlkLoad {
	b := DefaultBlk()
	b.Span, b.KiB, b.Sequential = 1, 16, sequential
	return b
}

func TestVerifyDisk(t *testing.T) {
	for _, sequential := range []bool{false, true} {
		b := testLoad(sequential)
		d := newDisk(t, b)
		r, err := VerifyDisk(d, 0)
		require.NoError(t, err)
		require.Equal(t, DiskReport{Seed: 7, Span: 1 << 20}, r)

		for n := uint64(1); n <= 200; n++ {
			d.write(b, n)
		}
		d.flushed(b, 150)
		r, err = VerifyDisk(d, 0)
		require.NoError(t, err)
		require.NoError(t, r.Err())
		require.EqualValues(t, 150, r.Flushed)
		require.EqualValues(t, 200, r.Newest)
		require.NotZero(t, r.Beyond)
		r, err = VerifyDisk(d, 200)
		require.NoError(t, err)
		require.NoError(t, r.Err())
		require.Zero(t, r.Beyond)
		r, err = VerifyDisk(d, 300)
		require.NoError(t, err)
		require.ErrorIs(t, r.Err(), ErrDisk, "writes 201 to 300 are not there")
		require.NotZero(t, r.Lost)
		require.Zero(t, r.Bad)
	}
}

// Whatever happens to a unit is seen, unless it is what an unflushed write may leave.
func TestVerifyDiskDamage(t *testing.T) {
	b := testLoad(false)
	clean := newDisk(t, b)
	for n := uint64(1); n <= 100; n++ {
		clean.write(b, n)
	}
	clean.flushed(b, 100)
	rapid.Check(t, func(t *rapid.T) {
		d := bytes.Clone(clean)
		at := DiskData + rapid.IntRange(0, 1<<20-1).Draw(t, "byte")
		d[at] ^= byte(rapid.IntRange(1, 255).Draw(t, "flip"))
		r, err := VerifyDisk(disk(d), 0)
		require.NoError(t, err)
		require.EqualValues(t, 1, r.Bad)
		require.Error(t, r.Err())
	})
	last := blockOfWrite(7, 100, 64, false) * 4
	for name, change := range map[string]func(p []byte){
		"zero":     func(p []byte) { clear(p) },
		"older":    func(p []byte) { writeUnit(p, 7, last, 0) },
		"another":  func(p []byte) { writeUnit(p, 7, last+1, 100) },
		"no write": func(p []byte) { writeUnit(p, 7, last, 1<<30) },
		"seed":     func(p []byte) { writeUnit(p, 8, last, 100) },
		"torn": func(p []byte) {
			writeUnit(p[:PageSize], 7, last, 0)
			copy(p[2048:], clean[DiskData+last*PageSize+2048:][:2048])
		},
	} {
		d := bytes.Clone(clean)
		change(d[DiskData+last*PageSize:][:PageSize])
		r, err := VerifyDisk(disk(d), 0)
		require.NoError(t, err, name)
		require.EqualValues(t, 1, r.Bad+r.Lost, name)
		require.Error(t, r.Err(), name)
	}
}

func TestVerifyDiskRefuses(t *testing.T) {
	b := testLoad(false)
	_, err := VerifyDisk(make(disk, 2<<20), 0)
	require.ErrorIs(t, err, ErrNoPattern)
	_, err = VerifyDisk(make(disk, 100), 0)
	require.ErrorIs(t, err, ErrNoPattern)
	_, err = VerifyDisk(newDisk(t, b), 1<<40)
	require.ErrorContains(t, err, "at most")
	_, err = VerifyDisk(newDisk(t, b)[:1<<20+5], 0)
	require.ErrorContains(t, err, "read unit 0")
	for name, s := range map[string]super{
		"no units": {units: 0, perBlock: 1}, "no blocks": {units: 4}, "odd blocks": {units: 5, perBlock: 2},
		"huge": {units: 1 << 40, perBlock: 1}, "flushed": {units: 1, perBlock: 1, flushed: 1 << 60},
	} {
		d := make(disk, 2<<20)
		writeSuper(d, s)
		_, err = VerifyDisk(d, 0)
		require.ErrorIs(t, err, ErrNoPattern, name)
	}
	require.Error(t, WriteDisk(make(disk, 2<<20), 1, BlkLoad{}))
}

// The newer of two superblocks counts; a torn one does not.
func TestSuperCopies(t *testing.T) {
	b := testLoad(false)
	d := newDisk(t, b)
	d.write(b, 1)
	d.flushed(b, 1)
	s, err := readSuper(d)
	require.NoError(t, err)
	require.EqualValues(t, 1, s.flushed)
	d[8*7] ^= 1 // generation 2 lies in copy 0
	s, err = readSuper(d)
	require.NoError(t, err)
	require.Zero(t, s.flushed)
}

func FuzzVerifyDisk(f *testing.F) {
	b := testLoad(true)
	f.Add([]byte(newDisk(f, b)[:DiskData+4*PageSize]))
	f.Fuzz(func(t *testing.T, p []byte) {
		if s, err := readSuper(disk(p)); err == nil && (s.flushed > 1<<20 || s.units > 1<<20) {
			return // long to follow
		}
		_, _ = VerifyDisk(disk(p), 0)
	})
}
