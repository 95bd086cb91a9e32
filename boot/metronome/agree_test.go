package metronome

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// guestParser is guest/options.c as a program of this host.
type guestParser struct {
	in  io.WriteCloser
	out *bufio.Reader
}

func newGuestParser(t *testing.T) *guestParser {
	t.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skipf("cannot compile the guest's parser: %v; install gcc", err)
	}
	bin := filepath.Join(t.TempDir(), "parse")
	out, err := exec.Command("gcc", "-O1", "-w", "-fno-builtin", "-Iguest", "-o", bin, "testdata/parse.c", "guest/options.c").CombinedOutput()
	require.NoError(t, err, "%s", out)
	cmd := exec.Command(bin)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		require.NoError(t, cmd.Wait())
	})
	return &guestParser{in, bufio.NewReader(stdout)}
}

func (p *guestParser) parse(t require.TestingT, line string) string {
	_, err := io.WriteString(p.in, line+"\n")
	require.NoError(t, err)
	answer, err := p.out.ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSuffix(answer, "\n")
}

// asGuest is what ParseOptions makes of the line, in testdata/parse.c's form.
func asGuest(line string) string {
	o, err := ParseOptions(line)
	if err != nil {
		return "refused"
	}
	flag := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	plant := 0
	for i, p := range plants {
		plant |= flag(slices.Contains(o.Plant, p)) << i
	}
	return fmt.Sprintln(o.Mem, o.Fill, o.Text, o.WS, o.Rate, o.Bytes, o.Reads, o.VCPUs, o.Beat.Milliseconds(), o.Seed, o.TSCKHz, o.Sweep, o.Sample,
		int(o.Pattern.Kind), o.Pattern.HotShare, o.Pattern.HotPages, o.Pattern.ZipfMilli, plant,
		o.Blk.KiB, o.Blk.Depth, o.Blk.Span, o.Blk.Flush, o.Blk.Queues, flag(o.Blk.Sequential), flag(o.Blk.Prefill),
		max(0, slices.Index([]BlkMode{BlkRead, BlkWrite, BlkMixed}, o.Blk.Mode)),
		o.Net.Frame, o.Net.Depth, flag(o.Net.TSO), max(0, slices.Index([]NetMode{NetTX, NetRX, NetEcho}, o.Net.Mode)))
}

// The guest takes the lines that ParseOptions takes, and understands the same.
func TestGuestAgrees(t *testing.T) {
	p := newGuestParser(t)
	values := []string{"0", "1", "8", "64", "100", "4096", "99999999999999999999", "x", "", "k", "4k", "256k", "3k", "tso", "rx", "tx", "echo", "64", "1514",
		"depth=1", "depth=256", "depth=", "span=4", "flush=7", "queues=2", "queues=", "read", "mixed", "write", "seq", "random", "prefill",
		"uniform", "sequential", "hotspot:9/10", "zipf:0.99", "zero", "torn", "fault", "zero,fault", "4K@0xd0000000:5", "="}
	keys := []string{"plant", "pattern", "beat", "io", "io=blk", "io=net", "virtio_mmio.device", "quiet", ""}
	for _, n := range numbers {
		keys = append(keys, n.name)
	}
	word := rapid.Custom(func(t *rapid.T) string {
		w := rapid.SampledFrom(keys).Draw(t, "key")
		for i := range rapid.IntRange(0, 4).Draw(t, "values") {
			sep := ","
			if i == 0 && !strings.HasPrefix(w, "io=") {
				sep = "="
			}
			w += sep + rapid.SampledFrom(values).Draw(t, "value")
		}
		return w
	})
	rapid.Check(t, func(t *rapid.T) {
		line := strings.Join(rapid.SliceOfN(word, 0, 3).Draw(t, "words"), " ")
		require.Equal(t, strings.TrimSuffix(asGuest(line), "\n"), p.parse(t, line), "%q", line)
	})
	for _, line := range []string{
		"fill=1024 ws=512 rate=20000 pattern=zipf:0.99 plant=zero,torn", "io=blk,256k,depth=8,mixed,seq,flush=100,span=128,queues=2,prefill io=net,echo,128",
		"io=net,tx,tso,depth=256", "io=blk", "io=net", "io=net,tso,rx", "io=blk,depth=128,1024k", "io=blk,4k,8k,flush=3,flush=0",
	} {
		require.Equal(t, strings.TrimSuffix(asGuest(line), "\n"), p.parse(t, line), "%q", line)
	}
}
