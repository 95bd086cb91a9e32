package blk_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/blockfile"
	"godwit/virtio"
	"godwit/virtio/blk"
	"godwit/virtio/internal/drivertest"
)

// variants are the ring features that change every path.
func variants(t *testing.T, test func(t *testing.T, refused uint64)) {
	for _, v := range []struct {
		name    string
		refused uint64
	}{
		{"event index, indirect", 0},
		{"event index", virtio.FeatureIndirectDesc},
		{"indirect", virtio.FeatureEventIdx},
		{"plain", virtio.FeatureEventIdx | virtio.FeatureIndirectDesc},
	} {
		t.Run(v.name, func(t *testing.T) { test(t, v.refused) })
	}
}

func pattern(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b
}

// TestReadAfterWrite has random sizes in random pieces, against a model.
func TestReadAfterWrite(t *testing.T) {
	for _, cache := range []blockfile.Cache{blockfile.CacheWriteback, blockfile.CacheWritethrough, blockfile.CacheNone} {
		t.Run(cache.String(), func(t *testing.T) {
			variants(t, func(t *testing.T, refused uint64) {
				g := boot(t, setup{config: blk.Config{Backend: diskFile(t, blockfile.Options{Cache: cache})}, features: refused})
				model := make([]byte, diskSize)
				r := rand.New(rand.NewPCG(3, 3))
				for i := range 60 {
					n := 512 * (1 + r.IntN(64))
					sector := r.IntN((diskSize - n) / 512)
					data := pattern(uint64(i), n)
					src := g.buffer(data)
					cut := r.IntN(n)
					require.EqualValues(t, ok, g.do(0, out, uint64(sector), writeSeg(src, cut), writeSeg(src+uint64(cut), n-cut)))
					copy(model[sector*512:], data)

					n = 512 * (1 + r.IntN(64))
					sector = max(0, min(sector-8, (diskSize-n)/512))
					dst := g.arena.Alloc(t, uint64(n), 16)
					cut = r.IntN(n)
					require.EqualValues(t, ok, g.do(0, in, uint64(sector), readSeg(dst, cut), readSeg(dst+uint64(cut), n-cut)))
					require.True(t, bytes.Equal(model[sector*512:][:n], g.bytes(dst, uint64(n))))
				}
				require.EqualValues(t, ok, g.do(0, flush, 0))
				s := g.dev.Stats()
				require.EqualValues(t, 60, s.Reads)
				require.EqualValues(t, 60, s.Writes)
				require.EqualValues(t, 1, s.Flushes)
				require.Zero(t, s.HostErrors+s.GuestErrors)
			})
		})
	}
}

// TestReadMarksDirty: KVM's log knows nothing of what preadv wrote.
func TestReadMarksDirty(t *testing.T) {
	g := boot(t, setup{config: blk.Config{Backend: diskFile(t, blockfile.Options{})}})
	dst := g.arena.Alloc(t, 64<<10, 4096)
	dirty := make([]uint64, (g.mem.Frames()+63)/64)
	head, r := g.submit(0, in, 0, readSeg(dst, 64<<10))
	got, _ := g.wait(0)
	require.Equal(t, head, got)
	g.mem.DrainDirty(dirty)
	for p := dst / 4096; p < (dst+64<<10)/4096; p++ {
		require.NotZero(t, dirty[p/64]>>(p%64)&1, "page %d", p)
	}
	require.NotZero(t, dirty[r.status>>12/64]>>(r.status>>12%64)&1)
}

func TestGetID(t *testing.T) {
	g := boot(t, setup{config: blk.Config{Backend: diskFile(t, blockfile.Options{}), Serial: "godwit-0123456789abc"}})
	dst := g.buffer(make([]byte, 20))
	require.EqualValues(t, ok, g.do(0, getID, 0, readSeg(dst, 20)))
	require.Equal(t, "godwit-0123456789abc", string(g.bytes(dst, 20)))
}

func TestZeroesAndDiscard(t *testing.T) {
	g := boot(t, setup{config: blk.Config{Backend: diskFile(t, blockfile.Options{})}})
	data := pattern(1, 64<<10)
	src := g.buffer(data)
	require.EqualValues(t, ok, g.do(0, out, 0, writeSeg(src, len(data))))
	two := append(ranges(1, 2, 0), ranges(8, 8, 1)...)
	require.EqualValues(t, ok, g.do(0, writeZeroes, 0, writeSeg(g.buffer(two), len(two))))
	clear(data[512 : 3*512])
	clear(data[8*512 : 16*512])
	dst := g.arena.Alloc(t, uint64(len(data)), 16)
	require.EqualValues(t, ok, g.do(0, in, 0, readSeg(dst, len(data))))
	require.True(t, bytes.Equal(data, g.bytes(dst, uint64(len(data)))))

	one := ranges(64, 16, 0)
	require.EqualValues(t, ok, g.do(0, discard, 0, writeSeg(g.buffer(one), len(one))))
	require.EqualValues(t, ok, g.do(0, in, 0, readSeg(dst, 64*512)))
	require.True(t, bytes.Equal(data[:64*512], g.bytes(dst, 64*512)), "the neighbours of a discard")
	require.EqualValues(t, 1, g.dev.Stats().Discards)
	require.EqualValues(t, 1, g.dev.Stats().WriteZeroes)
}

// TestBadRequests is one mistake per line; each is answered and the queue lives on.
func TestBadRequests(t *testing.T) {
	const last = diskSize/512 - 1
	g := boot(t, setup{config: blk.Config{Backend: diskFile(t, blockfile.Options{})}})
	buf := g.buffer(make([]byte, 4096))
	seg := func(b []byte) drivertest.Seg { return writeSeg(g.buffer(b), len(b)) }
	cases := []struct {
		name   string
		kind   uint32
		sector uint64
		data   drivertest.Seg
		want   byte
	}{
		{"unknown type", 99, 0, readSeg(buf, 512), unsupp},
		{"secure erase", 14, 0, writeSeg(buf, 16), unsupp},
		{"read of half a sector", in, 0, readSeg(buf, 256), ioErr},
		{"read past the end", in, last, readSeg(buf, 1024), ioErr},
		{"read far past the end", in, ^uint64(0), readSeg(buf, 512), ioErr},
		{"write past the end", out, last + 1, writeSeg(buf, 512), ioErr},
		{"write that wraps", out, 1<<55 + 1, writeSeg(buf, 512), ioErr},
		{"write of 513 bytes", out, 0, writeSeg(buf, 513), ioErr},
		{"no ranges", discard, 0, readSeg(buf, 512), ioErr},
		{"odd ranges", discard, 0, writeSeg(buf, 15), ioErr},
		{"too many ranges", discard, 0, writeSeg(buf, 17*16), ioErr},
		{"discard with unmap", discard, 0, seg(ranges(0, 8, 1)), unsupp},
		{"zeroes with an unknown flag", writeZeroes, 0, seg(ranges(0, 8, 2)), unsupp},
		{"discard past the end", discard, 0, seg(ranges(last, 2, 0)), ioErr},
		{"zeroes of too much", writeZeroes, 0, seg(ranges(0, 1<<31, 0)), ioErr},
		{"second range bad", writeZeroes, 0, seg(append(ranges(0, 1, 0), ranges(last, 9, 0)...)), ioErr},
	}
	marker := pattern(9, 512)
	require.EqualValues(t, ok, g.do(0, out, 0, seg(marker)))
	for i, c := range cases {
		require.Equal(t, c.want, g.do(0, c.kind, c.sector, c.data), c.name)
		require.EqualValues(t, i+1, g.dev.Stats().GuestErrors, c.name)
	}
	require.EqualValues(t, ok, g.do(0, in, 0, readSeg(buf, 512)))
	require.Equal(t, marker, g.bytes(buf, 512), "a refused request changed the disk")

	// No header, and no room for a status.
	head := g.rings[0].Add([]drivertest.Seg{{GPA: buf, Len: 8}, {GPA: buf + 8, Len: 1, Write: true}}, false, 0)
	g.regs.Kick(0)
	got, _ := g.wait(0)
	require.Equal(t, head, got)
	require.EqualValues(t, ioErr, g.bytes(buf+8, 1)[0])
	head = g.rings[0].Add([]drivertest.Seg{{GPA: buf, Len: 16}}, false, 0)
	g.regs.Kick(0)
	got, written := g.wait(0)
	require.Equal(t, head, got)
	require.Zero(t, written)
	require.EqualValues(t, 15, g.regs.Get(0x70))
}

func TestReadOnly(t *testing.T) {
	g := boot(t, setup{config: blk.Config{Backend: diskFile(t, blockfile.Options{ReadOnly: true})}})
	require.NotZero(t, g.regs.DeviceFeatures()&(1<<5))
	require.Zero(t, g.regs.DeviceFeatures()&(1<<13|1<<14))
	buf := g.buffer(make([]byte, 512))
	require.EqualValues(t, ok, g.do(0, in, 0, readSeg(buf, 512)))
	require.EqualValues(t, ioErr, g.do(0, out, 0, writeSeg(buf, 512)))
	r := g.buffer(ranges(0, 1, 0))
	require.EqualValues(t, unsupp, g.do(0, discard, 0, writeSeg(r, 16)))
	require.EqualValues(t, unsupp, g.do(0, writeZeroes, 0, writeSeg(r, 16)))
}

func TestConfigSpace(t *testing.T) {
	g := boot(t, setup{config: blk.Config{Backend: diskFile(t, blockfile.Options{}), Queues: 3, QueueSize: 64}, size: 64})
	require.EqualValues(t, diskSize/512, g.regs.Get(0x100))
	require.Zero(t, g.regs.Get(0x104))
	require.EqualValues(t, 62, g.regs.Get(0x100+12), "seg_max")
	require.EqualValues(t, 512, g.regs.Get(0x100+20), "blk_size")
	var two [2]byte
	g.tr.Read(0x100+34, two[:])
	require.EqualValues(t, 3, binary.LittleEndian.Uint16(two[:]), "num_queues")
	p := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	g.tr.Read(0x1f8, p)
	require.Equal(t, make([]byte, 8), p, "behind the end")
	g.regs.Set(0x100, 1)
	require.EqualValues(t, diskSize/512, g.regs.Get(0x100), "the capacity is not the driver's to change")
}

// faulty is a disk that breaks, and counts.
type faulty struct {
	blockfile.File
	mu      sync.Mutex
	broken  error
	flushes int
	writes  int
}

func (f *faulty) counts() (writes, flushes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writes, f.flushes
}

func (f *faulty) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.broken
}

func (f *faulty) Preadv(b [][]byte, off int64) (int, error) {
	if err := f.err(); err != nil {
		b[0][0] = 0x77 // it got that far
		return 0, err
	}
	return f.File.Preadv(b, off)
}

func (f *faulty) Pwritev(b [][]byte, off int64) (int, error) {
	f.mu.Lock()
	f.writes++
	f.mu.Unlock()
	if err := f.err(); err != nil {
		return 0, err
	}
	return f.File.Pwritev(b, off)
}

func (f *faulty) Flush() error {
	f.mu.Lock()
	f.flushes++
	f.mu.Unlock()
	if err := f.err(); err != nil {
		return err
	}
	return f.File.Flush()
}

func TestHostErrors(t *testing.T) {
	disk := &faulty{File: diskFile(t, blockfile.Options{}), broken: errors.New("the disk is on fire")}
	g := boot(t, setup{config: blk.Config{Backend: disk}})
	buf := g.arena.Alloc(t, 4096, 4096) // a page that nothing else touches
	g.mem.DrainDirty(make([]uint64, (g.mem.Frames()+63)/64))
	require.EqualValues(t, ioErr, g.do(0, in, 0, readSeg(buf, 512)))
	dirty := make([]uint64, (g.mem.Frames()+63)/64)
	g.mem.DrainDirty(dirty)
	require.NotZero(t, dirty[buf>>12/64]>>(buf>>12%64)&1, "half a transfer is dirty too")
	require.EqualValues(t, ioErr, g.do(0, out, 0, writeSeg(buf, 512)))
	require.EqualValues(t, ioErr, g.do(0, flush, 0))
	s := g.dev.Stats()
	require.EqualValues(t, 3, s.HostErrors)
	require.Equal(t, "the disk is on fire", s.LastHostError)
	disk.mu.Lock()
	disk.broken = nil
	disk.mu.Unlock()
	require.EqualValues(t, ok, g.do(0, in, 0, readSeg(buf, 512)))
}

// TestWriteCache is virtio 1.2, 5.2.6.2: when a write may stay in a cache.
func TestWriteCache(t *testing.T) {
	const featureFlush, featureWCE = 1 << 9, 1 << 11
	for _, c := range []struct {
		name    string
		refused uint64
		wce     int // written to the configuration; -1 is nothing
		want    int // flushes after one write
	}{
		{"driver flushes itself", 0, -1, 0},
		{"driver knows flush only", featureWCE, -1, 0},
		{"driver knows neither", featureWCE | featureFlush, -1, 1},
		{"driver sets the mode and has no flush", featureFlush, -1, 1},
		{"driver has no flush and asks for writeback", featureFlush, 1, 0},
		{"driver asks for writethrough", 0, 0, 1},
		{"driver asks for writeback", 0, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := &faulty{File: diskFile(t, blockfile.Options{})}
			g := boot(t, setup{config: blk.Config{Backend: disk}, features: c.refused})
			if c.wce >= 0 {
				g.tr.Write(0x100+32, []byte{byte(c.wce)})
			}
			require.EqualValues(t, ok, g.do(0, out, 0, writeSeg(g.buffer(make([]byte, 512)), 512)))
			_, flushes := disk.counts()
			require.Equal(t, c.want, flushes)
		})
	}
}

// TestWriteCacheUnflushed is virtio 1.2, 5.2.5.2: a driver without FLUSH finds
// no write cache as soon as its features are settled, and one with it does.
func TestWriteCacheUnflushed(t *testing.T) {
	g := &guest{t: t, mem: drivertest.Memory(t, memSize), irq: drivertest.NewInterrupt()}
	g.transport(blk.Config{Backend: diskFile(t, blockfile.Options{})})
	for _, c := range []struct {
		refused uint64
		want    byte
	}{{1 << 9, 0}, {0, 1}, {1<<9 | 1<<11, 0}, {1 << 11, 1}} {
		require.True(t, g.regs.Negotiate(g.regs.DeviceFeatures()&^c.refused))
		var mode [1]byte
		g.tr.Read(0x100+32, mode[:])
		require.Equal(t, c.want, mode[0], "without features %#x", c.refused)
		g.regs.Set(0x70, 0)
	}
}

// TestWritethrough: a disk whose writes are stable as they are needs no flush,
// whatever the driver wants of its cache.
func TestWritethrough(t *testing.T) {
	for _, refused := range []uint64{0, 1<<9 | 1<<11} {
		disk := &faulty{File: diskFile(t, blockfile.Options{Cache: blockfile.CacheWritethrough})}
		g := boot(t, setup{config: blk.Config{Backend: disk}, features: refused})
		var mode [1]byte
		g.tr.Read(0x100+32, mode[:])
		require.Zero(t, mode[0], "there is no write cache to speak of")
		for _, wce := range []byte{1, 0} {
			g.tr.Write(0x100+32, []byte{wce})
			require.EqualValues(t, ok, g.do(0, out, 0, writeSeg(g.buffer(make([]byte, 512)), 512)))
		}
		writes, flushes := disk.counts()
		require.Equal(t, 2, writes)
		require.Zero(t, flushes)
	}
}

// TestQueuesAtOnce has every queue busy with requests in flight, each on its own
// part of the disk.
func TestQueuesAtOnce(t *testing.T) {
	variants(t, func(t *testing.T, refused uint64) {
		const queues = 4
		g := boot(t, setup{config: blk.Config{Backend: diskFile(t, blockfile.Options{}), Queues: queues}, features: refused, size: 32})
		var wg sync.WaitGroup
		for q := range queues {
			wg.Go(func() { newLoad(g, q, queues).run(40) })
		}
		wg.Wait()
	})
}

// TestBrokenQueue: a driver that breaks a rule is told so, the other queue goes
// on, and a reset brings the device back.
func TestBrokenQueue(t *testing.T) {
	g := boot(t, setup{config: blk.Config{Backend: diskFile(t, blockfile.Options{}), Queues: 2}})
	g.rings[0].Offer(0xffff)
	g.regs.Kick(0)
	g.irqs[0].Wait(t)
	require.EqualValues(t, 15|64, g.regs.Get(0x70))
	require.EqualValues(t, ok, g.do(1, flush, 0))
	require.True(t, g.regs.Negotiate(virtio.FeatureVersion1))
	ring := drivertest.NewRing(t, g.mem, g.arena, 16, false)
	g.rings[0], g.indirect = ring, false
	g.regs.SetQueue(0, ring)
	g.regs.Start()
	require.EqualValues(t, ok, g.do(0, flush, 0))
}

func TestConfigErrors(t *testing.T) {
	disk := diskFile(t, blockfile.Options{})
	for want, c := range map[string]blk.Config{
		"no backend":  {},
		"65 queues":   {Backend: disk, Queues: 65},
		"size 3":      {Backend: disk, QueueSize: 3},
		"longer than": {Backend: disk, Serial: "123456789012345678901"},
	} {
		_, err := blk.New(c)
		require.ErrorContains(t, err, want, fmt.Sprintf("%+v", c))
	}
}
