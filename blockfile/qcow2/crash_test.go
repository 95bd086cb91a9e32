package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// event is something that reached the host: a write, or a flush if data is nil.
type event struct {
	off  int64
	data []byte
}

// recorder is a host that remembers in what order it was written.
type recorder struct {
	memory
	log []event
}

func (r *recorder) Pwritev(bufs [][]byte, off int64) error {
	r.log = append(r.log, event{off, bytes.Join(bufs, nil)})
	return r.memory.Pwritev(bufs, off)
}

func (r *recorder) Flush() error {
	r.log = append(r.log, event{})
	return nil
}

// Punch counts as a write of zeroes: it must not come too early either.
func (r *recorder) Punch(off, n int64) error {
	r.log = append(r.log, event{off, make([]byte, n)})
	return r.memory.Punch(off, n)
}

// version is what a sector held from some event on.
type version struct {
	event int // before which it was written
	tag   uint64
}

// history is what a disk promised at each moment.
type history struct {
	sectors [][]version
	flushes [][2]int // events before and after each flush that returned
}

func tagged(tags []uint64) []byte {
	b := make([]byte, len(tags)*sector)
	for i, tag := range tags {
		for at := 0; at < sector; at += 8 {
			binary.LittleEndian.PutUint64(b[i*sector+at:], tag)
		}
	}
	return b
}

// tagOf reads a sector, which must be one that was written whole.
func tagOf(b []byte) (uint64, bool) {
	tag := binary.LittleEndian.Uint64(b)
	return tag, bytes.Equal(b, tagged([]uint64{tag}))
}

// allowed says whether a disk that stopped before an event may hold a tag: what
// it held at the last flush that returned, or what was written since.
func (h *history) allowed(s int, tag uint64, stopped int) bool {
	since := 0
	for _, f := range h.flushes {
		if f[1] <= stopped {
			since = f[0]
		}
	}
	list := h.sectors[s]
	for i, v := range list {
		overwritten := i+1 < len(list) && list[i+1].event < since
		if v.tag == tag && v.event < stopped && !overwritten {
			return true
		}
	}
	return false
}

// record drives an image over a recorder and keeps its promises.
func record(t *testing.T, m *Image, host *recorder, sectors, steps int, r *rand.Rand, fill []uint64) *history {
	h := &history{sectors: make([][]version, sectors)}
	for s := range h.sectors {
		h.sectors[s] = []version{{-1, fill[s]}}
	}
	tag := uint64(1 << 20)
	for range steps {
		at := r.IntN(sectors)
		n := 1 + r.IntN(min(sectors-at, 12))
		off, length := int64(at*sector), int64(n*sector)
		begin := len(host.log)
		note := func(s int, tag uint64) { h.sectors[s] = append(h.sectors[s], version{begin, tag}) }
		switch r.IntN(8) {
		case 0, 1, 2, 3:
			tags := make([]uint64, n)
			for i := range tags {
				tag++
				tags[i] = tag
				note(at+i, tag)
			}
			require.NoError(t, m.Pwritev([][]byte{tagged(tags)}, off))
		case 4:
			require.NoError(t, m.WriteZeroes(off, length, r.IntN(2) == 0))
			for i := range n {
				note(at+i, 0)
			}
		case 5:
			require.NoError(t, m.Discard(off, length))
			b := make([]byte, length)
			require.NoError(t, m.Preadv([][]byte{b}, off))
			for i := range n {
				got, ok := tagOf(b[i*sector:][:sector])
				require.True(t, ok)
				note(at+i, got)
			}
		default:
			require.NoError(t, m.Flush())
			h.flushes = append(h.flushes, [2]int{begin, len(host.log)})
		}
	}
	require.NoError(t, m.Suspend())
	h.flushes = append(h.flushes, [2]int{len(host.log) - 1, len(host.log)})
	return h
}

// TestCrashAnywhere stops the host before every write, with what was written
// since the last flush there in full, or in part sector by sector. The image
// then has at worst clusters that nothing refers to, and all that was flushed.
func TestCrashAnywhere(t *testing.T) {
	const sectors = 160
	for i, c := range []struct {
		name    string
		o       CreateOptions
		backing bool
		through bool
		hint    int64
		steps   int
	}{
		{"512", CreateOptions{ClusterBits: 9}, false, false, 0, 150},
		{"2 KiB with backing", CreateOptions{ClusterBits: 11}, true, false, 0, 150},
		{"version 2 with backing", CreateOptions{Version: 2, ClusterBits: 10}, true, false, 0, 100},
		{"writethrough", CreateOptions{ClusterBits: 10, RefcountBits: 2}, false, true, 0, 100},
		{"many blocks", CreateOptions{ClusterBits: 9, RefcountBits: 64}, false, false, 0, 200},
		{"growing table", CreateOptions{ClusterBits: 9, RefcountBits: 64}, false, false, 64*64 - 40, 90},
	} {
		t.Run(c.name, func(t *testing.T) {
			if raceEnabled {
				c.steps /= 3 // one goroutine; slow under the race detector
			}
			r := rand.New(rand.NewPCG(uint64(i), 5))
			fill := make([]uint64, sectors)
			opts := Options{CacheBytes: 1, WriteThrough: c.through}
			c.o.Size = sectors * sector
			if c.backing {
				for s := range fill {
					fill[s] = uint64(s) + 1
				}
				opts.Backing = bytesBacking(tagged(fill))
				c.o.Backing, c.o.BackingFormat = filepath.Join(t.TempDir(), "base"), "raw"
				require.NoError(t, os.WriteFile(c.o.Backing, tagged(fill), 0o600))
			}
			host := new(recorder)
			require.NoError(t, Create(host, c.o))
			stable := &memory{b: bytes.Clone(host.b)}
			host.log = nil
			m := open(t, host, opts)
			m.refs.hint = max(m.refs.hint, c.hint)
			h := record(t, m, host, sectors, c.steps, r, fill)
			if c.hint > 0 {
				require.Greater(t, m.Header().RefcountClusters, uint32(1), "the table did not grow")
			}
			require.True(t, bytes.Equal(host.b, replay(stable, host.log, nil).b))

			pending := 0 // first event since the last flush
			for stop := range host.log {
				for _, subset := range []*rand.Rand{nil, r} {
					got := replay(stable, host.log[pending:stop], subset)
					if err := judge(got, h, stop, opts, r); err != nil {
						t.Fatalf("stopped before event %d, all of it: %v: %v", stop, subset == nil, err)
					}
					if r.IntN(len(host.log)) < 3 {
						path := save(t, got)
						out, err := exec.Command("qemu-img", "check", "-f", "qcow2", path).CombinedOutput()
						var exit *exec.ExitError
						// 3 means leaked clusters and nothing worse.
						if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 3) {
							t.Fatalf("stopped before event %d: qemu-img check: %v: %s", stop, err, out)
						}
					}
				}
				if host.log[stop].data == nil {
					stable = replay(stable, host.log[pending:stop], nil)
					pending = stop + 1
				}
			}
		})
	}
}

// replay applies events to a copy: all of them, or of each any of its sectors.
func replay(from *memory, log []event, subset *rand.Rand) *memory {
	to := &memory{b: bytes.Clone(from.b)}
	for _, e := range log {
		for at := 0; at < len(e.data); {
			// Up to the end of the sector in the file.
			n := min(len(e.data)-at, int(sector-(e.off+int64(at))%sector))
			if subset == nil || subset.IntN(2) == 0 {
				_ = writeAt(to, e.data[at:at+n], e.off+int64(at))
			}
			at += n
		}
	}
	return to
}

// judge looks at what a crash left, and goes on working with it.
func judge(host *memory, h *history, stopped int, opts Options, r *rand.Rand) error {
	if err := onlyLeaks(host); err != nil {
		return err
	}
	m, err := Open(host, opts)
	if err != nil {
		return err
	}
	b := make([]byte, m.Size())
	if err := m.Preadv([][]byte{b}, 0); err != nil {
		return err
	}
	for s := range h.sectors {
		tag, whole := tagOf(b[s*sector:][:sector])
		if !whole || !h.allowed(s, tag, stopped) {
			return fmt.Errorf("sector %d has %d, whole %v; its history is %v and the flushes %v", s, tag, whole, h.sectors[s], h.flushes)
		}
	}
	at := r.IntN(len(h.sectors))
	if err := m.Pwritev([][]byte{b[at*sector:]}, int64(at*sector)); err != nil {
		return err
	}
	if err := m.Suspend(); err != nil {
		return err
	}
	return onlyLeaks(host)
}

// onlyLeaks counts the references to each cluster of an image without
// snapshots, and compares them with what the image counts.
func onlyLeaks(host *memory) error {
	h, err := ReadHeader(host)
	if err != nil {
		return err
	}
	g := newGeometry(h)
	used := map[int64]uint64{}
	refer := func(off, n int64) {
		for c := off >> g.bits; c <= (off+n-1)>>g.bits; c++ {
			used[c]++
		}
	}
	refer(0, 1)
	refer(int64(h.L1Offset), int64(h.L1Entries)*entrySize)
	refer(int64(h.RefcountOffset), int64(h.RefcountClusters)*g.cluster)
	table, err := readRefcountTable(host, h)
	if err != nil {
		return err
	}
	for _, off := range table {
		if off != 0 {
			refer(int64(off), 1)
		}
	}
	l1, err := readWords(host, int64(h.L1Offset), int(h.L1Entries))
	if err != nil {
		return err
	}
	for _, e := range l1 {
		off := int64(e & offsetMask)
		if off == 0 {
			continue
		}
		refer(off, 1)
		l2, err := readWords(host, off, int(g.perTable))
		if err != nil {
			return err
		}
		for _, e := range l2 {
			first, count, err := g.clusters(e)
			if err != nil {
				return err
			}
			if count > 0 {
				refer(first<<g.bits, count<<g.bits)
			}
		}
	}
	b := make([]byte, g.cluster)
	for c, n := range used {
		i := uint64(c) / g.perBlock
		if i >= uint64(len(table)) || table[i] == 0 {
			return fmt.Errorf("cluster %d is used and not counted", c)
		}
		if err := readAt(host, b, int64(table[i])); err != nil {
			return err
		}
		if have := refcount(b, g.order, uint64(c)%g.perBlock); have < n {
			return fmt.Errorf("cluster %d is used %d times and counted %d times", c, n, have)
		}
	}
	return nil
}

// moody is a host on which some writes and flushes fail.
type moody struct {
	memory
	r    *rand.Rand
	fail bool
}

var errMoody = errors.New("input/output error")

func (m *moody) Pwritev(bufs [][]byte, off int64) error {
	if m.fail && m.r.IntN(6) == 0 {
		return errMoody
	}
	return m.memory.Pwritev(bufs, off)
}

func (m *moody) Flush() error {
	if m.fail && m.r.IntN(6) == 0 {
		return errMoody
	}
	return nil
}

func (m *moody) Punch(off, n int64) error {
	if m.fail && m.r.IntN(6) == 0 {
		return errMoody
	}
	return m.memory.Punch(off, n)
}

// TestHostFails has the host refuse requests now and then. What did
// not fail is there, and the image is whole.
func TestHostFails(t *testing.T) {
	const sectors = 300
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 6))
		host := &moody{r: r}
		require.NoError(t, Create(host, CreateOptions{Size: sectors * sector, ClusterBits: 9 + int(seed%3), RefcountBits: 64}))
		m := open(t, host, Options{CacheBytes: 1, WriteThrough: seed%2 == 1})
		host.fail = true
		want := make([]uint64, sectors)
		unknown := make([]bool, sectors)
		for tag := range uint64(400) {
			at := r.IntN(sectors)
			n := 1 + r.IntN(min(sectors-at, 12))
			tags := make([]uint64, n)
			var err error
			switch r.IntN(6) {
			case 0:
				err = m.WriteZeroes(int64(at*sector), int64(n*sector), r.IntN(2) == 0)
			case 1:
				_ = m.Flush()
				continue
			default:
				for i := range tags {
					tags[i] = tag
				}
				err = m.Pwritev([][]byte{tagged(tags)}, int64(at*sector))
			}
			for i := range n {
				want[at+i], unknown[at+i] = tags[i], err != nil
			}
		}
		host.fail = false
		for range 2 { // from the caches, and from the file
			got := readAll(t, m)
			for s := range sectors {
				tag, whole := tagOf(got[s*sector:][:sector])
				require.True(t, unknown[s] || whole && tag == want[s], "seed %d, sector %d", seed, s)
			}
			require.NoError(t, m.Suspend())
			require.NoError(t, onlyLeaks(&host.memory))
			require.NoError(t, m.Load())
		}
	}
}
