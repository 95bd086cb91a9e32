package images_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/blockfile/tool"
)

// ancient stamps the sectors of the backing file and of the first contents.
const ancient = 1 << 50

// A writer killed at any moment leaves an image that is right but for leaks and
// has every flushed write, kill after kill.
func TestKilledWriterLosesNothingFlushed(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(t *testing.T, path string)
	}{
		{"plain", func(t *testing.T, path string) {
			require.NoError(t, tool.Create(tool.NewImage{Path: path, Format: tool.Qcow2, Size: crashDisk}))
		}},
		{"over a backing file, with a snapshot", func(t *testing.T, path string) {
			require.NoError(t, tool.Create(tool.NewImage{Path: path, Format: tool.Qcow2, Size: -1, ClusterBits: 12,
				Backing: ancientDisk(t), BackingFormat: tool.Raw}))
			run(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q -z %d %d", crashDisk/2, crashDisk/4), path)
			run(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q -P 0 0 %d", crashDisk/4), path)
			run(t, "qemu-img", "snapshot", "-c", "before", path)
		}},
		{"compressed", func(t *testing.T, path string) {
			_, err := tool.Convert(context.Background(), tool.Conversion{Source: ancientDisk(t), SourceFormat: tool.Raw, Compress: true,
				Target: tool.NewImage{Path: path, Format: tool.Qcow2, ClusterBits: 14}})
			require.NoError(t, err)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.qcow2")
			j := &judge{path: path, seed: rand.Uint64()}
			t.Logf("seed %d", j.seed)
			c.make(t, path)
			j.learn(t)
			for range shortOr(4, 67) {
				j.kill(t)
			}
			t.Logf("%d operations flushed, %d leaked clusters at most", j.flushed, j.leaks)
		})
	}
}

// ancientDisk is a raw image, every sector stamped.
func ancientDisk(t *testing.T) string {
	b := make([]byte, crashDisk)
	for s := range int64(crashSectors) {
		stamp(b[s*sector:(s+1)*sector], ancient, s)
	}
	path := filepath.Join(t.TempDir(), "ancient.img")
	require.NoError(t, os.WriteFile(path, b, 0o600))
	return path
}

// judge knows what each sector may hold.
type judge struct {
	path    string
	seed    uint64
	next    uint64 // operation
	has     [crashSectors]uint64
	gone    [crashSectors]bool // discarded: it may hold anything
	flushed uint64
	leaks   int64
}

// learn takes what the disk holds as known.
func (j *judge) learn(t *testing.T) {
	b := godwitReads(t, j.path, "qcow2")
	for s := range j.has {
		j.has[s] = whose(t, b, s)
	}
}

// whose says who wrote a sector, which must be whole.
func whose(t *testing.T, b []byte, s int) uint64 {
	got := b[s*sector : (s+1)*sector]
	who := binary.LittleEndian.Uint64(got)
	var want [sector]byte
	stamp(want[:], who, int64(s))
	if !bytes.Equal(want[:], got) {
		require.FailNowf(t, "torn", "sector %d: %x", s, got[:32])
	}
	return who
}

// kill runs a writer, kills it at a random moment and looks at what is left.
func (j *judge) kill(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %d", childEnv, j.path, j.seed, j.next))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	killed := false
	kill := func() {
		if !killed {
			killed = true
			require.NoError(t, cmd.Process.Kill())
		}
	}
	defer kill()
	begun, flushed := j.next, j.next
	lines := bufio.NewScanner(out)
	for wait := 1 + rand.IntN(60); lines.Scan(); wait-- {
		var what string
		var n uint64
		_, err := fmt.Sscan(lines.Text(), &what, &n)
		require.NoError(t, err, lines.Text())
		if what == "s" {
			begun = n
		} else {
			flushed = n
		}
		if wait == 0 {
			time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond) // anywhere between two words
			kill()
		}
	}
	require.True(t, killed, "the writer ended by itself")
	_ = cmd.Wait() // says that it was killed
	j.judge(t, flushed, begun)
	j.flushed += flushed - j.next
	j.next = begun
}

// judge looks at an image of which the operations below flushed must be there,
// and those below begun may be.
func (j *judge) judge(t *testing.T, flushed, begun uint64) {
	c, err := tool.Check(context.Background(), j.path, tool.RepairNothing, 10)
	require.NoError(t, err)
	require.Zero(t, c.Corruptions, "%v", c.Findings)
	q := qemuCheck(t, j.path)
	require.Equal(t, qemuVerdict{Leaks: int(c.Leaks)}, q, "qemu-img check and ours agree")
	j.leaks = max(j.leaks, c.Leaks)

	may := map[int64][]uint64{}
	for i := j.next; i < begun; i++ {
		o := changeOf(j.seed, i)
		who := i + 1
		if o.kind == opZero || o.kind == opUnmap {
			who = 0
		}
		for s := o.from; s < o.from+o.n; s++ {
			switch {
			case o.kind == opDiscard:
				j.gone[s] = true
			case i < flushed:
				j.has[s], j.gone[s] = who, false
			default:
				may[s] = append(may[s], who)
			}
		}
	}
	b := godwitReads(t, j.path, "qcow2")
	for s := range j.has {
		who := whose(t, b, s)
		if who != j.has[s] && !j.gone[s] && !slices.Contains(may[int64(s)], who) {
			require.FailNowf(t, "lost", "sector %d: written by %d, but it should be %d, or one of %v", s, who, j.has[s], may[int64(s)])
		}
		j.has[s] = who
	}
	// Leaks may stay: the next writer works around them. Now and then they go.
	if rand.IntN(8) == 0 {
		c, err := tool.Check(context.Background(), j.path, tool.RepairLeaks, 10)
		require.NoError(t, err)
		require.Equal(t, "clean", c.Status)
		require.Equal(t, qemuVerdict{}, qemuCheck(t, j.path))
	}
}
