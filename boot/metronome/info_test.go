package metronome

import (
	"encoding/binary"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// goldenPage is the info page of a real run: 5 GiB, 2 vCPUs, "fill=96 ws=32 text=16
// rate=20000 vcpus=2 reads=10 beat=200 bytes=16 seed=7 plant=zero,stale,torn".
func goldenPage(t testing.TB) []byte {
	t.Helper()
	page, err := os.ReadFile("testdata/info-v1.bin")
	require.NoError(t, err)
	return page
}

func TestParseInfoGolden(t *testing.T) {
	in, err := ParseInfo(goldenPage(t))
	require.NoError(t, err)
	require.Equal(t, Info{
		State: StateRunning, VCPUs: 2, TSCKHz: 2699631, UpTSC: 0x66a8b584892,
		TMs: 1308, Beats: 6, Writes: 21963, Reads: 2298, Sweeps: 8,
		GapUs: 301, MaxGapUs: 2375, FilledMs: 108,
		Bad: 3, Kinds: BadPages{Zero: 1, Stale: 1, Torn: 1},
		Seed: 7, Bytes: 16, Rate: 20000,
		Samples: 16, SampleGPA: 0x11060000, SampleStep: 0x138c0000,
		Image:   Extent{0x100000, 0xf0000},
		Mailbox: Extent{MailboxGPA, MailboxPages * PageSize},
		Table:   Extent{0x200000, 32 << 20 / PageSize * 8},
		Arena:   Region{{0x400000, 3<<30 - 0x400000}, {4 << 30, 2 << 30}},
		Fill:    Region{{0x400000, 96 << 20}, {}},
		WS:      Region{{0x400000, 32 << 20}, {}},
		Text:    Region{{0x6400000, 16 << 20}, {}},
		Free:    Region{{0x7400000, 3<<30 - 0x7400000}, {4 << 30, 2 << 30}},
		CPUs: []CPUInfo{
			{Writes: 11596, Reads: 1230, Sweeps: 8, Filled: 14336, GapTSC: 328534, MaxGapTSC: 5600328, Verified: 114816},
			{Writes: 11390, Reads: 1171, Sweeps: 8, Filled: 14336, GapTSC: 238480, MaxGapTSC: 6413734, Verified: 114688},
		},
	}, in)
}

func TestRegionPage(t *testing.T) {
	r := Region{{0x400000, 2 * PageSize}, {4 << 30, PageSize}}
	require.EqualValues(t, 3*PageSize, r.Bytes())
	for n, want := range []uint64{0x400000, 0x401000, 4 << 30} {
		gpa, ok := r.Page(uint64(n))
		require.True(t, ok)
		require.Equal(t, want, gpa)
	}
	_, ok := r.Page(3)
	require.False(t, ok)
}

func TestParseInfoErrors(t *testing.T) {
	put32 := func(at int, v uint32) func([]byte) {
		return func(p []byte) { binary.LittleEndian.PutUint32(p[at:], v) }
	}
	put64 := func(at int, v uint64) func([]byte) {
		return func(p []byte) { binary.LittleEndian.PutUint64(p[at:], v) }
	}
	for name, c := range map[string]struct {
		change func([]byte)
		want   string
	}{
		"magic":        {put64(0, 0), "magic 0x0"},
		"version":      {put32(8, 2), "version 2"},
		"length":       {put32(12, 8192), "of 8192 bytes"},
		"busy":         {put64(16, 7), "being written"},
		"state":        {put32(0x18, 9), "state(9) is not known"},
		"vcpus":        {put32(0x1c, MaxVCPUs+1), "33 vCPUs, at most 32"},
		"unaligned":    {put64(0x150, 0x400001), "fill at 0x400001"},
		"extent wraps": {put64(0x130, ^uint64(0xfff)), "arena at"},
		"extent long":  {put64(0x1b8, 1<<63), "free at"},
	} {
		t.Run(name, func(t *testing.T) {
			page := goldenPage(t)
			c.change(page)
			_, err := ParseInfo(page)
			require.ErrorContains(t, err, c.want)
		})
	}
	_, err := ParseInfo(goldenPage(t)[:PageSize-1])
	require.ErrorIs(t, err, ErrNoInfo)
	_, err = ParseInfo(make([]byte, PageSize))
	require.ErrorIs(t, err, ErrNoInfo)
}

func FuzzParseInfo(f *testing.F) {
	f.Add(goldenPage(f))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, page []byte) {
		in, err := ParseInfo(page)
		if err != nil {
			return
		}
		require.LessOrEqual(t, len(in.CPUs), MaxVCPUs)
		for _, r := range []Region{in.Fill, in.WS, in.Text, in.Free} {
			if n := r.Bytes() / PageSize; n > 0 {
				gpa, ok := r.Page(n - 1)
				require.True(t, ok)
				require.Less(t, gpa, uint64(MaxMemory))
			}
		}
	})
}
