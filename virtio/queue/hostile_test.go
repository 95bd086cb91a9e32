package queue_test

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/virtio/internal/drivertest"
	"godwit/virtio/queue"
)

const (
	hostileDesc  = 0x1000
	hostileAvail = 0x2000
	hostileUsed  = 0x3000
	hostileTable = 0x4000
	hostileData  = 0x8000
	hostileMem   = 0x10000
)

type desc struct {
	addr        uint64
	len         uint32
	flags, next uint16
}

// TestHostileChains is one broken rule per line: each breaks the queue, with a
// reason, and leaves it broken.
func TestHostileChains(t *testing.T) {
	const n, w, ind = drivertest.Next, drivertest.Write, drivertest.Indirect
	for _, c := range []struct {
		name  string
		head  uint16
		index uint16 // available index; 0 means 1
		table []desc
		inner []desc
		off   bool // indirect was not negotiated
		want  string
	}{
		{name: "index too far", index: 9, want: "available index 9"},
		{name: "index goes back", index: 0xffff, want: "available index 65535"},
		{name: "head beyond the table", head: 8, want: "descriptor 8 in a table of 8"},
		{name: "next beyond the table", table: []desc{{hostileData, 1, n, 8}}, want: "descriptor 8 in a table of 8"},
		{name: "loop to itself", table: []desc{{hostileData, 1, n, 0}}, want: "more than 8 descriptors"},
		{name: "loop of empty buffers", table: []desc{{0, 0, n, 1}, {0, 0, n, 0}}, want: "more than 8 descriptors"},
		{name: "buffer beyond memory", table: []desc{{hostileMem - 1, 2, 0, 0}}, want: "not guest RAM"},
		{name: "buffer wraps around", table: []desc{{^uint64(0), 2, w, 0}}, want: "not guest RAM"},
		{name: "readable after writable", table: []desc{{hostileData, 1, w | n, 1}, {hostileData, 1, 0, 0}}, want: "device-readable after"},
		{name: "indirect not agreed", off: true, table: []desc{{hostileTable, 16, ind, 0}}, want: "not negotiated"},
		{name: "indirect with next", table: []desc{{hostileTable, 16, ind | n, 1}}, want: "with a next"},
		{name: "indirect empty", table: []desc{{hostileTable, 0, ind, 0}}, want: "0 bytes"},
		{name: "indirect odd", table: []desc{{hostileTable, 17, ind, 0}}, want: "17 bytes"},
		{name: "indirect nested", table: []desc{{hostileTable, 16, ind, 0}}, inner: []desc{{hostileTable, 16, ind, 0}}, want: "inside an indirect"},
		{name: "indirect loop", table: []desc{{hostileTable, 16, ind, 0}}, inner: []desc{{hostileData, 1, n, 0}}, want: "more than 8 descriptors"},
		{name: "indirect next beyond", table: []desc{{hostileTable, 16, ind, 0}}, inner: []desc{{hostileData, 1, n, 1}}, want: "descriptor 1 in a table of 1"},
		{name: "indirect beyond memory", table: []desc{{hostileMem - 8, 16, ind, 0}}, want: "not guest RAM"},
		{name: "indirect wraps", table: []desc{{^uint64(0) - 15, 32, ind, 0}}, want: "not guest RAM"},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := drivertest.Memory(t, hostileMem)
			put := func(table uint64, ds []desc) {
				for i, d := range ds {
					var b [16]byte
					binary.LittleEndian.PutUint64(b[0:], d.addr)
					binary.LittleEndian.PutUint32(b[8:], d.len)
					binary.LittleEndian.PutUint16(b[12:], d.flags)
					binary.LittleEndian.PutUint16(b[14:], d.next)
					require.NoError(t, mem.WriteAt(b[:], table+uint64(16*i)))
				}
			}
			put(hostileDesc, c.table)
			put(hostileTable, c.inner)
			require.NoError(t, mem.StoreUint16(hostileAvail+4, c.head))
			require.NoError(t, mem.StoreUint16(hostileAvail+2, max(c.index, 1)))
			q, err := queue.New(mem, queue.Config{Size: 8, Desc: hostileDesc, Avail: hostileAvail, Used: hostileUsed, Indirect: !c.off})
			require.NoError(t, err)
			for range 2 {
				_, err = q.Pop()
				require.ErrorIs(t, err, queue.ErrBroken)
				require.ErrorContains(t, err, c.want)
			}
			require.True(t, q.Stopped())
			require.ErrorIs(t, q.DisableNotification(), queue.ErrBroken)
			_, err = q.EnableNotification()
			require.ErrorIs(t, err, queue.ErrBroken)
		})
	}
}

// TestChainOver4GiB uses one large buffer many times, which is legal until the
// sum no longer fits the used ring.
func TestChainOver4GiB(t *testing.T) {
	const half = 1 << 31
	mem := drivertest.Memory(t, half+0x10000)
	a := drivertest.NewArena(half, half+0x10000)
	for _, c := range []struct {
		segs int
		ok   bool
	}{{1, true}, {2, false}} {
		ring := drivertest.NewRing(t, mem, a, 4, false)
		segs := make([]drivertest.Seg, c.segs)
		for i := range segs {
			segs[i] = drivertest.Seg{GPA: 0, Len: half}
		}
		ring.Add(segs, false, 0)
		q, err := queue.New(mem, ring.Config(false))
		require.NoError(t, err)
		_, err = q.Pop()
		require.Equal(t, c.ok, err == nil, "%v", err)
	}
}

func TestBadSetUp(t *testing.T) {
	mem := drivertest.Memory(t, hostileMem)
	good := queue.Config{Size: 8, Desc: hostileDesc, Avail: hostileAvail, Used: hostileUsed}
	_, err := queue.New(mem, good)
	require.NoError(t, err)
	for name, change := range map[string]func(*queue.Config){
		"no size":               func(c *queue.Config) { c.Size = 0 },
		"odd size":              func(c *queue.Config) { c.Size = 7 },
		"too large":             func(c *queue.Config) { c.Size = 65535 },
		"descriptors unaligned": func(c *queue.Config) { c.Desc += 8 },
		"available unaligned":   func(c *queue.Config) { c.Avail++ },
		"used unaligned":        func(c *queue.Config) { c.Used += 2 },
		"descriptors outside":   func(c *queue.Config) { c.Desc = hostileMem - 16 },
		"available outside":     func(c *queue.Config) { c.Avail = ^uint64(0) - 1 },
		"used outside":          func(c *queue.Config) { c.Used = hostileMem - 4 },
	} {
		cfg := good
		change(&cfg)
		_, err := queue.New(mem, cfg)
		require.ErrorIs(t, err, queue.ErrConfig, name)
	}
}

// FuzzQueue lets a guest put anything anywhere. Every byte of the rings is the
// fuzzer's; a worker then does what a worker does.
func FuzzQueue(f *testing.F) {
	f.Add([]byte{}, uint16(8), uint64(0), uint64(0x100), uint64(0x200), byte(3))
	seed := make([]byte, 0x300)
	binary.LittleEndian.PutUint64(seed[0:], 0x400)
	binary.LittleEndian.PutUint32(seed[8:], 16)
	binary.LittleEndian.PutUint16(seed[12:], drivertest.Next)
	binary.LittleEndian.PutUint16(seed[14:], 1)
	binary.LittleEndian.PutUint64(seed[16:], 0x500)
	binary.LittleEndian.PutUint32(seed[24:], 16)
	binary.LittleEndian.PutUint16(seed[28:], drivertest.Write)
	seed[0x102] = 3
	f.Add(seed, uint16(8), uint64(0), uint64(0x100), uint64(0x200), byte(0))
	f.Add(seed, uint16(8), uint64(0), uint64(0), uint64(0), byte(7)) // rings on top of each other
	const size = 0x8000
	f.Fuzz(func(t *testing.T, ram []byte, n uint16, d, a, u uint64, flags byte) {
		mem := drivertest.Memory(t, size)
		require.NoError(t, mem.WriteAt(ram[:min(len(ram), size)], 0))
		q, err := queue.New(mem, queue.Config{
			Size: n, Desc: d, Avail: a, Used: u,
			EventIdx: flags&1 != 0, Indirect: flags&2 != 0, Restored: flags>>2 != 0, Next: uint16(flags >> 2),
		})
		if err != nil {
			return
		}
		// Answers may overwrite the available ring, so it could go on for ever:
		// the guest's own doing, and each turn is bounded.
		var out []*queue.Chain
		for range 200 {
			c, err := q.Pop()
			if err != nil {
				require.ErrorIs(t, err, queue.ErrBroken)
				break
			}
			if c == nil {
				more, err := q.EnableNotification()
				if err != nil || !more {
					break
				}
				continue
			}
			require.LessOrEqual(t, len(c.Readable())+len(c.Writable()), int(n))
			c.Take(make([]byte, 16))
			c.TakeLast()
			for _, b := range c.Writable() {
				b[0] ^= 0xff
			}
			if out = append(out, c); len(out) == 3 || flags&4 != 0 {
				_, err := q.Push(out[0], uint32(queue.Len(out[0].Writable())))
				require.NoError(t, err)
				out = out[1:]
			}
			require.LessOrEqual(t, q.Outstanding(), int(n))
		}
		for _, c := range out {
			_, err := q.Push(c, 0)
			require.NoError(t, err)
		}
		require.Zero(t, q.Outstanding())
	})
}

// BenchmarkPopPush is the whole of a queue's own work for one request.
func BenchmarkPopPush(b *testing.B) {
	mem := drivertest.Memory(b, 1<<20)
	a := drivertest.NewArena(0x1000, 1<<20)
	ring := drivertest.NewRing(b, mem, a, 256, true)
	q, err := queue.New(mem, ring.Config(false))
	require.NoError(b, err)
	ring.Add([]drivertest.Seg{{GPA: 0x80000, Len: 16}, {GPA: 0x81000, Len: 4096, Write: true}, {GPA: 0x83000, Len: 1, Write: true}}, false, 0)
	head, err := mem.LoadUint16(ring.Avail + 4)
	require.NoError(b, err)
	for i := range uint64(256) {
		require.NoError(b, mem.StoreUint16(ring.Avail+4+2*i, head))
	}
	idx := uint16(0)
	b.ReportAllocs()
	for b.Loop() {
		idx++
		_ = mem.StoreUint16(ring.Avail+2, idx)
		c, err := q.Pop()
		if err != nil || c == nil {
			b.Fatal(c, err)
		}
		if _, err := q.Push(c, 4097); err != nil {
			b.Fatal(err)
		}
	}
}
