package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/boot/metronome"
)

func ioLine(phase string, ms, ops int) string {
	return fmt.Sprintf("metronome io dev=blk phase=%s t_ms=%d ops=%d bytes=%d ops_s=1 bytes_s=1 p50_us=%d p99_us=%d max_us=9 bad=0\r\n", phase, ms, ops, 4096*ops, ms/1000, ms/100)
}

func TestRunningLoad(t *testing.T) {
	c := &console{}
	say := func(s string) {
		_, err := c.Write([]byte(s))
		require.NoError(t, err)
	}
	say("metronome up\r\n" + ioLine("verify", 1000, 0))
	for s := 2; s < 9; s++ {
		say(ioLine("run", s*1000, s*500))
	}
	lines, err := running(c)
	require.NoError(t, err)
	require.Len(t, lines, 7-loadSettle)
	require.EqualValues(t, 4000, lines[0].TMs)
	require.Equal(t, 4*time.Second, since(lines))
	var r Result
	r.load(lines)
	require.Equal(t, Result{OpsPerS: 500, BytesPerS: 500 * 4096, P50US: 6.5, P99US: 65}, r)
	require.Contains(t, r.line(), "500 requests/s, 2.0 MB/s, median 6 us")

	say(ioLine("broken", 9000, 1))
	_, err = running(c)
	require.ErrorContains(t, err, `phase "broken"`)
	say("metronome bad page=0x1000 index=1 version=2 kind=torn at=disk\r\n")
	_, err = running(c)
	require.ErrorContains(t, err, "kind=torn at=disk")
}

func TestLoadCommands(t *testing.T) {
	b := &bench{qemu: "qemu", godwit: "godwit", elf: "m.elf", tscKHz: 1000}
	for _, k := range cases() {
		if k.Load == nil {
			continue
		}
		for _, s := range k.Settings {
			program, args := b.loadCommand(&k, &s, "dir", "disk.img")
			line := strings.Join(args, " ")
			require.Equal(t, string(s.Side), program)
			require.Contains(t, line, k.Guest.String()+" ", "the same guest on both sides: but for its clock")
			require.Equal(t, k.Load.Tap, strings.Contains(line, tapName), s.Name)
			require.Equal(t, !k.Load.Tap, strings.Contains(line, "disk.img"), s.Name)
			require.Equal(t, s.IOThread, strings.Contains(line, "iothread=t"), s.Name)
			require.Equal(t, s.Format == "qcow2", strings.Contains(line, "format=qcow2"), s.Name)
		}
	}
}

// Images are made once, and are what the guest takes for its own.
func TestImages(t *testing.T) {
	k := caseNamed("blk-256k-write")
	k.Guest.Blk.Span = 1
	l := &loader{b: &bench{dir: t.TempDir()}, images: map[string]string{}}
	path, err := l.image(t.Context(), &k, "raw")
	require.NoError(t, err)
	raw := Setting{Format: "raw"}
	require.NoError(t, sound(&k, &raw, path))
	again, err := l.image(t.Context(), &k, "raw")
	require.NoError(t, err)
	require.Equal(t, path, again)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte{1}, metronome.DiskData+100)
	require.NoError(t, err)
	require.ErrorIs(t, sound(&k, &raw, path), metronome.ErrDisk)
	_, err = l.image(t.Context(), &k, "vmdx")
	require.ErrorContains(t, err, "qemu-img convert")
}

// What is sent into a tap of the namespace is counted, and the namespace is none
// of ours.
func TestTapHost(t *testing.T) {
	h, err := newTapHost()
	if os.Geteuid() != 0 {
		require.Error(t, err)
		return
	}
	require.NoError(t, err)
	defer close(h.starter.orders)
	_, err = h.frames()
	require.NoError(t, err)
	_, err = os.Stat(filepath.Join("/sys/class/net", tapName))
	require.ErrorIs(t, err, os.ErrNotExist)
	var out limited
	p, err := h.starter.launch(&out, "cat", "/proc/net/dev")
	require.NoError(t, err)
	require.NoError(t, p.ended(deadline(t)))
	require.Contains(t, out.String(), tapName)
}

func TestLoadVerdicts(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		ops  map[string]float64
		want []string
	}{
		"reached":       {"blk-4k-randread", map[string]float64{"qemu threads": 90, "qemu io_uring": 100, "godwit raw": 120}, []string{"PASS at least 1.20 of QEMU's best"}},
		"missed":        {"blk-4k-randread", map[string]float64{"qemu threads": 101, "qemu io_uring": 100, "godwit raw": 120}, []string{"MISS at least 1.20 of QEMU's best"}},
		"no QEMU":       {"net-64", map[string]float64{"godwit tap": 1}, []string{"NOT MEASURED at least 1.00 of QEMU's best"}},
		"bytes":         {"net-tso", map[string]float64{"qemu tap": 7, "godwit tap": 7}, []string{"PASS at least 1.00 of QEMU's best"}},
		"qcow2":         {"qcow2-4k-randread", map[string]float64{"qemu threads": 50, "godwit qcow2": 80, "godwit raw": 100}, []string{"PASS at least 1.00 of QEMU's best", "MISS at least 0.90 of our raw"}},
		"qcow2, no raw": {"qcow2-4k-randread", map[string]float64{"qemu threads": 50, "godwit qcow2": 80}, []string{"PASS at least 1.00 of QEMU's best", "NOT MEASURED at least 0.90 of our raw"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &session{}
			for _, setting := range sortedKeys(c.ops) {
				side, _, _ := strings.Cut(setting, " ")
				s.Results = append(s.Results, Result{Kind: "run", Case: c.in, Setting: setting, Side: Side(side), Run: 1, OpsPerS: c.ops[setting], BytesPerS: 1e6 * c.ops[setting], P50US: 10})
			}
			require.Equal(t, c.want, wordsOf(tabulate(s, caseNamed(c.in))))
			text := render(s, cases())
			require.Contains(t, text, "| setting | runs | requests/s |")
			require.NotContains(t, text, "downtime")
		})
	}
}
