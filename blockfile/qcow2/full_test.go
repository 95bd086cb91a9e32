package qcow2

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// tight is a host on a file system with little room: it gives storage to blocks
// of the file when they are first written, and takes back those that are
// punched out.
type tight struct {
	memory
	blocks map[int64]bool // that have storage
	room   int            // blocks that can get some
	writes int
	failAt int // the write that finds no room, whatever there is; 0 for none
}

const tightBlock = sector

func (h *tight) Pwritev(bufs [][]byte, off int64) error {
	h.writes++
	if h.writes == h.failAt {
		return syscall.ENOSPC
	}
	for _, b := range bufs {
		for len(b) > 0 {
			n := min(int64(len(b)), tightBlock-off%tightBlock)
			if !h.blocks[off/tightBlock] {
				if h.room == 0 {
					return syscall.ENOSPC
				}
				h.room--
				h.blocks[off/tightBlock] = true
			}
			if err := writeAt(&h.memory, b[:n], off); err != nil {
				return err
			}
			b, off = b[n:], off+n
		}
	}
	return nil
}

func (h *tight) Punch(off, n int64) error {
	for c := (off + tightBlock - 1) / tightBlock; c < (off+n)/tightBlock; c++ {
		if h.blocks[c] {
			delete(h.blocks, c)
			h.room++
		}
	}
	return h.memory.Punch(off, n)
}

// dig takes the storage of all blocks of zeroes, as `cp --sparse=always` does.
func (h *tight) dig() {
	zero := make([]byte, tightBlock)
	for c := range h.blocks {
		b := make([]byte, tightBlock)
		if readAt(&h.memory, b, c*tightBlock) == nil && string(b) == string(zero) {
			delete(h.blocks, c)
		}
	}
}

// need is one step of a workload.
type need struct {
	what     int
	off, n   int64
	tag      uint64
	mayUnmap bool
}

func needs(seed uint64, sectors, steps int) (list []need) {
	r := rand.New(rand.NewPCG(seed, 31))
	for i := range steps {
		at := r.IntN(sectors)
		s := need{what: r.IntN(8), off: int64(at * sector), n: int64(1+r.IntN(min(sectors-at, 24))) * sector, tag: uint64(i + 1), mayUnmap: r.IntN(2) == 0}
		list = append(list, s)
	}
	return list
}

// apply does a step, and says what the sectors hold then if it is answered.
func (s need) apply(m *Image) error {
	switch s.what {
	case 0:
		return m.Flush()
	case 1:
		return m.WriteZeroes(s.off, s.n, s.mayUnmap)
	case 2:
		if err := m.Discard(s.off, s.n); err != nil {
			return err
		}
		return m.WriteZeroes(s.off, s.n, true) // so that what it holds is known
	}
	tags := make([]uint64, s.n/sector)
	for i := range tags {
		tags[i] = s.tag
	}
	return m.Pwritev([][]byte{tagged(tags)}, s.off)
}

func (s need) note(disk []uint64, unknown []bool, failed bool) {
	if s.what == 0 {
		return
	}
	for i := s.off / sector; i < (s.off+s.n)/sector; i++ {
		disk[i], unknown[i] = 0, failed
		if s.what > 2 {
			disk[i] = s.tag
		}
	}
}

var fullCases = []struct {
	name   string
	o      CreateOptions
	opts   Options
	hint   int64
	sparse bool
}{
	{name: "1 KiB", o: CreateOptions{ClusterBits: 10}},
	{name: "4 KiB, sparse", o: CreateOptions{ClusterBits: 12}, hint: 240, sparse: true},
	{name: "sparse counts", o: CreateOptions{ClusterBits: 10, RefcountBits: 64}, hint: 64*128 - 40, sparse: true},
	{name: "many blocks, little cache", o: CreateOptions{ClusterBits: 9, RefcountBits: 64}, opts: Options{CacheBytes: 1}, sparse: true},
	{name: "writethrough", o: CreateOptions{ClusterBits: 11}, opts: Options{WriteThrough: true, CacheBytes: 1}},
	{name: "growing table", o: CreateOptions{ClusterBits: 9, RefcountBits: 64}, hint: 64*64 - 40},
}

const fullSectors = 9600

// stride is how many cases lie between two that are tried.
func stride(n int) int {
	if raceEnabled {
		n *= 6 // one goroutine; slow under the race detector
	}
	return 1 + n
}

// beginTight makes an image with some data in it, on a host with room for all.
func beginTight(t *testing.T, o CreateOptions, opts Options, hint int64, sparse bool) (*tight, *Image) {
	host := &tight{blocks: map[int64]bool{}, room: 1 << 30}
	o.Size = fullSectors * sector
	require.NoError(t, Create(host, o))
	m := open(t, host, Options{})
	for s := int64(0); s < fullSectors/2; s += 48 { // tables, with little in them
		require.NoError(t, m.Pwritev([][]byte{tagged(make([]uint64, 1))}, s*sector))
	}
	require.NoError(t, m.Suspend())
	if sparse {
		host.dig()
	}
	m = open(t, host, opts)
	m.refs.hint = max(m.refs.hint, hint)
	host.writes = 0
	return host, m
}

// holds says whether a disk has what was answered.
func holds(t *testing.T, m *Image, disk []uint64, unknown []bool, when string) {
	t.Helper()
	b := readAll(t, m)
	want := tagged(disk)
	for s := range disk {
		at := s * sector
		if !unknown[s] && !bytes.Equal(b[at:at+sector], want[at:at+sector]) {
			tag, whole := tagOf(b[at:][:sector])
			t.Fatalf("%s: sector %d has %d (whole %v), not %d", when, s, tag, whole, disk[s])
		}
	}
}

// TestFull gives an image every amount of room that is too little. What is
// answered is there afterwards and the image is whole, no flush and no end
// needs room, and what failed is good once there is some.
func TestFull(t *testing.T) {
	for i, c := range fullCases {
		t.Run(c.name, func(t *testing.T) {
			steps := needs(uint64(i), fullSectors, 60)
			host, m := beginTight(t, c.o, c.opts, c.hint, c.sparse)
			begun := host.room
			least := begun
			for _, s := range steps {
				require.NoError(t, s.apply(m))
				least = min(least, host.room)
			}
			require.NoError(t, m.Suspend())
			most := begun - least
			require.Greater(t, most, 100)
			failures := 0
			for room := 0; room < most; room += stride(most / 60) {
				when := fmt.Sprintf("room for %d blocks", room)
				host, m := beginTight(t, c.o, c.opts, c.hint, c.sparse)
				host.room = room
				disk, unknown := make([]uint64, fullSectors), make([]bool, fullSectors)
				var failed []need
				for _, s := range steps {
					err := s.apply(m)
					if s.what == 0 {
						require.NoError(t, err, when)
					} else if err != nil {
						require.ErrorIs(t, err, syscall.ENOSPC, when)
						failed = append(failed, s)
					}
					s.note(disk, unknown, err != nil)
				}
				failures += len(failed)
				holds(t, m, disk, unknown, when)
				require.NoError(t, m.Suspend(), when)
				whole(t, host, c.sparse, when)
				require.NoError(t, m.Load())
				holds(t, m, disk, unknown, when+", from the file")

				host.room = 1 << 20
				for _, s := range failed {
					require.NoError(t, s.apply(m), when)
					s.note(disk, unknown, false)
				}
				require.NoError(t, m.Suspend(), when)
				whole(t, host, c.sparse, when)
				require.NoError(t, m.Load())
				holds(t, m, disk, unknown, when+", with room again")
			}
			require.Greater(t, failures, 100)
		})
	}
}

// whole has an image judged by its check and, now and then, by QEMU's. Counts
// that could not be lowered for want of room leak, where the image had holes.
func whole(t *testing.T, host *tight, mayLeak bool, when string) {
	t.Helper()
	report, err := Check(context.Background(), host, 10)
	require.NoError(t, err)
	require.Zero(t, report.Corruptions, "%s: %v", when, report.Findings)
	if !mayLeak {
		require.Zero(t, report.Leaks, "%s: %v", when, report.Findings)
	}
	if host.writes%16 == 0 {
		out, err := exec.Command("qemu-img", "check", "-f", "qcow2", save(t, &host.memory)).CombinedOutput()
		if e, ok := err.(*exec.ExitError); err != nil && !(ok && e.ExitCode() == 3 && mayLeak) { // 3: leaks alone
			require.NoError(t, err, "%s: qemu-img check: %s", when, out)
		}
	}
}

// TestFullOnce has each write of a workload in turn find no room, once. The
// step that fails is repeated, and nothing is missing.
func TestFullOnce(t *testing.T) {
	for i, c := range fullCases {
		t.Run(c.name, func(t *testing.T) {
			steps := needs(uint64(i), fullSectors, 30)
			host, m := beginTight(t, c.o, c.opts, c.hint, c.sparse)
			for _, s := range steps {
				require.NoError(t, s.apply(m))
			}
			require.NoError(t, m.Suspend())
			writes := host.writes
			require.Greater(t, writes, 30)
			for k := 1; k <= writes; k += stride(writes / 80) {
				when := fmt.Sprintf("write %d of %d", k, writes)
				host, m := beginTight(t, c.o, c.opts, c.hint, c.sparse)
				host.failAt = k
				disk, unknown := make([]uint64, fullSectors), make([]bool, fullSectors)
				again := func(do func() error) {
					err := do()
					if err != nil {
						require.ErrorIs(t, err, syscall.ENOSPC, when)
						err = do()
					}
					require.NoError(t, err, when)
				}
				for _, s := range steps {
					again(func() error { return s.apply(m) })
					s.note(disk, unknown, false)
				}
				again(m.Suspend)
				whole(t, host, true, when)
				require.NoError(t, m.Load())
				holds(t, m, disk, unknown, when)
			}
		})
	}
}
