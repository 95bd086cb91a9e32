package images_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/blockfile/qcow2"
	"godwit/blockfile/tool"
)

// Tables spoilt at random: what godwit repairs, qemu-img finds clean, and both
// read the same.
func TestQEMUFindsRepairedImagesClean(t *testing.T) {
	for seed := range shortOr(10, 100) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			p := newPlan(uint64(1000+seed), true)
			p.layers = p.layers[:1]
			if p.layers[0].format == tool.Raw {
				p.layers[0] = &layer{format: tool.Qcow2, version: 3, size: 1 << 20, clusterBits: 12, refBits: 16, compression: "zlib",
					ops: []op{{kind: opWrite, off: 4096, n: 300 << 10, pattern: []byte("godwit")}}}
			}
			t.Log(p)
			dir := t.TempDir()
			top := byQEMU(t, p, dir)
			spoil(t, top, uint64(seed))
			c, err := tool.Check(context.Background(), top, tool.RepairAll, 100)
			if errors.Is(err, qcow2.ErrUnrepairable) {
				t.Log(err)
				return
			}
			require.NoError(t, err)
			t.Logf("repaired %d corruptions and %d leaks", c.RepairedCorruptions, c.RepairedLeaks)
			require.Equal(t, "clean", c.Status)
			require.Equal(t, qemuVerdict{}, qemuCheck(t, top))
			if c.CompressedClusters > 0 {
				return // an entry may call anything compressed, which then cannot be read
			}
			require.Equal(t, qemuReads(t, top, "qcow2", dir), godwitReads(t, top, "qcow2"))
		})
	}
}

// spoil changes a few words of an image's tables.
func spoil(t *testing.T, path string, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 9))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	h, err := qcow2.ParseHeader(b, int64(len(b)))
	require.NoError(t, err)
	word := func(off uint64) []byte { return b[off : off+8] }
	entry := func(off, n uint64) uint64 { return off + r.Uint64N(max(n, 1))*8 }
	const offset = 0x00fffffffffffe00
	perTable := uint64(h.ClusterSize() / 8)
	for range 1 + r.IntN(6) {
		at := entry(h.L1Offset, uint64(h.L1Entries))
		switch r.IntN(4) {
		case 0: // an L1 entry
		case 1: // an entry of the refcount table, one that matters
			at = entry(h.RefcountOffset, 2)
		case 2: // refcounts
			if block := binary.BigEndian.Uint64(word(h.RefcountOffset)); block > 0 && block < uint64(len(b)) {
				at = entry(block&offset, min(perTable, 40))
			}
		case 3: // an L2 entry
			if table := binary.BigEndian.Uint64(word(at)) & offset; table > 0 && table < uint64(len(b)) {
				at = entry(table, min(perTable, 60))
			}
		}
		if at+8 > uint64(len(b)) {
			continue
		}
		was := binary.BigEndian.Uint64(word(at))
		binary.BigEndian.PutUint64(word(at), []uint64{0, was ^ 1<<r.IntN(64), r.Uint64(), was + uint64(h.ClusterSize()), was &^ (1 << 63)}[r.IntN(5)])
	}
	require.NoError(t, os.WriteFile(path, b, 0o600))
}
