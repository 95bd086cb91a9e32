package lab

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestFramesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		body := bytes.Repeat([]byte("x"), rapid.IntRange(0, 3*maxFrame).Draw(t, "size"))
		var wire bytes.Buffer
		require.NoError(t, (&frameWriter{w: &wire}).send(kindStdout, body))
		var got []byte
		r := &frameReader{r: &wire}
		for frames := 0; ; frames++ {
			k, p, err := r.next()
			if err == io.EOF {
				require.Positive(t, frames)
				break
			}
			require.NoError(t, err)
			require.Equal(t, kindStdout, k)
			got = append(got, p...)
		}
		require.True(t, bytes.Equal(body, got))
	})
}

// FuzzSession feeds the host's side what a hostile command could write to the
// port.
func FuzzSession(f *testing.F) {
	frame := func(parts ...any) (b []byte) {
		var w bytes.Buffer
		out := &frameWriter{w: &w}
		for i := 0; i < len(parts); i += 2 {
			_ = out.send(parts[i].(kind), []byte(parts[i+1].(string)))
		}
		return w.Bytes()
	}
	var archive bytes.Buffer
	outside := f.TempDir()
	require.NoError(f, os.WriteFile(filepath.Join(outside, "f"), []byte("text"), 0o600))
	require.NoError(f, sendOutputs(&archive, []string{filepath.Join(outside, "f"), outside}))
	f.Add(frame(kindHello, "{}", kindStdout, "text", kindExit, "\x07\x00\x00\x00"))
	f.Add(frame(kindHello, "{}", kindOutput, archive.String(), kindExit, "\x00\x00\x00\x00"))
	f.Add(frame(kindHello, "{}", kindOutput, strings.Replace(archive.String(), "1/f", "../", 1), kindExit, "\x00\x00\x00\x00"))
	f.Add(frame(kindFail, "why"))
	f.Add(frame(kindSick, "why"))
	f.Add([]byte{byte(kindHello), 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, wire []byte) {
		host := t.TempDir()
		cfg := &Config{Stdout: io.Discard, Stderr: io.Discard, Outputs: []Output{
			{Host: filepath.Join(host, "in", "file")}, {Host: filepath.Join(host, "in", "tree")}}}
		require.NoError(t, os.Mkdir(filepath.Join(host, "in"), 0o700))
		ours, theirs := net.Pipe()
		go func() { theirs.Write(wire); theirs.Close() }()
		go io.Copy(io.Discard, theirs)
		s := &session{cfg: cfg, conn: ours, hello: make(chan struct{})}
		err := s.serve()
		ours.Close()
		require.Equal(t, s.exited, err == nil)
		entries, err := os.ReadDir(host)
		require.NoError(t, err)
		require.Len(t, entries, 1, "something was written outside the outputs")
	})
}

func TestOutputsStayInTheirPlace(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(from, "f"), []byte("text"), 0o600))
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(from, "link")))
	var archive bytes.Buffer
	require.NoError(t, sendOutputs(&archive, []string{from, filepath.Join(from, "absent")}))
	outputs := []Output{{Host: filepath.Join(to, "tree")}, {Host: filepath.Join(to, "absent")}}
	require.NoError(t, receiveOutputs(&archive, outputs))
	text, err := os.ReadFile(filepath.Join(to, "tree", "f"))
	require.NoError(t, err)
	require.Equal(t, "text", string(text))
	require.NoFileExists(t, filepath.Join(to, "tree", "link"))
	require.NoFileExists(t, filepath.Join(to, "absent"))
}

func TestConfigRefusals(t *testing.T) {
	dir := t.TempDir()
	odd := filepath.Join(dir, "odd.img")
	require.NoError(t, os.WriteFile(odd, []byte("odd"), 0o600))
	probe, err := buildProbe()
	require.NoError(t, err)
	cases := map[string]struct {
		change func(*Config)
		want   string
	}{
		"no cache":        {func(c *Config) { c.CacheDir = "" }, "cache folder"},
		"no command":      {func(c *Config) { c.Command = nil }, "no command"},
		"little memory":   {func(c *Config) { c.MemoryMiB = 1 }, "1 MiB of memory"},
		"many CPUs":       {func(c *Config) { c.CPUs = 1000 }, "1000 CPUs"},
		"NUL":             {func(c *Config) { c.Command = []string{"a\x00"} }, "NUL"},
		"relative dir":    {func(c *Config) { c.Dir = "x" }, "not absolute"},
		"reserved":        {func(c *Config) { c.Files = []File{{odd, "/proc/x"}} }, "belongs to the machine"},
		"claimed twice":   {func(c *Config) { c.Files = []File{{odd, "/x"}, {odd, "/x/."}} }, "both"},
		"odd disk":        {func(c *Config) { c.Disks = []Disk{{Host: odd}} }, "multiple of 512"},
		"disk missing":    {func(c *Config) { c.Disks = []Disk{{Host: odd + "x"}} }, "no such file"},
		"disk is folder":  {func(c *Config) { c.Disks = []Disk{{Host: dir}} }, "not a regular file"},
		"init is no ELF":  {func(c *Config) { c.Init = odd }, "for the lab"},
		"too many disks":  {func(c *Config) { c.Disks = make([]Disk, maxDisks+1) }, "at most"},
		"relative inside": {func(c *Config) { c.Files = []File{{odd, "x"}} }, "not an absolute path"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			cfg := Config{CacheDir: dir, Init: probe, Command: []string{"true"}}
			c.change(&cfg)
			_, err := Run(t.Context(), cfg)
			require.ErrorIs(t, err, ErrConfig)
			require.ErrorContains(t, err, c.want)
		})
	}
	cfg := Config{MemoryMiB: 512}
	require.ErrorContains(t, cfg.fitMemory(1<<30), "pass big images as disks")
	cfg.MemoryMiB = 0
	require.NoError(t, cfg.fitMemory(1<<30))
	require.Equal(t, 4096, cfg.MemoryMiB)
}

func TestKernelDepends(t *testing.T) {
	text := "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nDescription: x\n"
	require.Equal(t, "linux-image-6.1.0-56-cloud-amd64", kernelDepends.FindStringSubmatch(text)[1])
	text = "Depends: linux-base (>= 4), linux-image-6.12.1+deb13-cloud-amd64 (= 1)\n"
	require.Equal(t, "linux-image-6.12.1+deb13-cloud-amd64", kernelDepends.FindStringSubmatch(text)[1])
}

func FuzzBzPayload(f *testing.F) {
	image := make([]byte, 2048)
	copy(image[0x202:], "HdrS")
	image[0x1f1] = 1
	binary.LittleEndian.PutUint16(image[0x206:], 0x20f)
	binary.LittleEndian.PutUint32(image[0x24c:], 512)
	f.Add(image)
	f.Add(image[:100])
	f.Fuzz(func(t *testing.T, image []byte) {
		p, err := bzPayload(image)
		require.True(t, err != nil || len(p) <= len(image))
	})
}

func TestTailKeepsTheEnd(t *testing.T) {
	w := &tailWriter{w: io.Discard}
	for range 2000 {
		_, err := w.Write([]byte("some line\r\n"))
		require.NoError(t, err)
	}
	_, err := w.Write([]byte("the last"))
	require.NoError(t, err)
	lines := strings.Split(w.tail(), "\n")
	require.Len(t, lines, tailLines)
	require.Equal(t, "the last", lines[len(lines)-1])
	require.LessOrEqual(t, len(w.buf), tailBytes)
}
