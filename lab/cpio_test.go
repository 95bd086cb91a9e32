package lab

import (
	"bytes"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

type cpioEntry struct {
	name string
	mode uint32
	body string
}

// readCPIO is an independent reader of the newc format.
func readCPIO(data []byte) (entries []cpioEntry, err error) {
	for pos := 0; ; {
		if len(data)-pos < 110 || string(data[pos:pos+6]) != cpioMagic {
			return nil, fmt.Errorf("no header at %d", pos)
		}
		field := func(i int) int {
			n, fieldErr := strconv.ParseUint(string(data[pos+6+8*i:pos+14+8*i]), 16, 32)
			if fieldErr != nil {
				err = fieldErr
			}
			return int(n)
		}
		nameSize, size := field(11), field(6)
		bodyAt := int(align4(uint64(pos + 110 + nameSize)))
		end := int(align4(uint64(bodyAt + size)))
		if err != nil || end > len(data) || data[pos+110+nameSize-1] != 0 {
			return nil, fmt.Errorf("bad entry at %d: %v", pos, err)
		}
		e := cpioEntry{string(data[pos+110 : pos+110+nameSize-1]), uint32(field(1)), string(data[bodyAt : bodyAt+size])}
		if e.name == cpioTrailer {
			if end != len(data) {
				return nil, fmt.Errorf("%d bytes after the trailer", len(data)-end)
			}
			return entries, nil
		}
		entries, pos = append(entries, e), end
	}
}

func TestCPIORoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var want []cpioEntry
		var out bytes.Buffer
		w := newCPIOWriter(&out)
		for range rapid.IntRange(0, 8).Draw(t, "entries") {
			e := cpioEntry{
				rapid.StringMatching(`[a-zé][^\x00]{0,9}`).Draw(t, "name"),
				rapid.SampledFrom([]uint32{cpioDir, cpioRegular, cpioSymlink}).Draw(t, "type") | rapid.Uint32Range(0, 0o777).Draw(t, "perm"),
				string(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "body")),
			}
			want = append(want, e)
			require.NoError(t, w.entry(e.name, e.mode, int64(len(e.body)), strings.NewReader(e.body)))
		}
		require.NoError(t, w.close())
		got, err := readCPIO(out.Bytes())
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.EqualValues(t, out.Len(), w.n)
	})
}

func TestCPIOErrors(t *testing.T) {
	cases := map[string]struct {
		name string
		size int64
		body io.Reader
		want string
	}{
		"empty name": {"", 0, nil, "outside 1 to"},
		"long name":  {strings.Repeat("n", cpioMaxName), 0, nil, "outside 1 to"},
		"too big":    {"f", 1 << 32, nil, "4 GiB"},
		"cut short":  {"f", 9, strings.NewReader("12345"), "after 5 of 9 bytes"},
		"broken":     {"f", 9, iotest.ErrReader(io.ErrClosedPipe), "closed pipe"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newCPIOWriter(io.Discard)
			err := w.entry(c.name, cpioRegular, c.size, c.body)
			require.ErrorContains(t, err, c.want)
			require.Equal(t, err, w.close(), "an error sticks")
		})
	}
}

func TestRootTreeMakesParentsOnce(t *testing.T) {
	var out bytes.Buffer
	tree := &rootTree{cpio: newCPIOWriter(&out), seen: map[string]bool{}}
	require.NoError(t, tree.link("/a/b/link", "target"))
	require.NoError(t, tree.dir("/a/b"))
	require.NoError(t, tree.add("/a/c//f", cpioRegular|0o600, 1, strings.NewReader("x")))
	require.NoError(t, tree.cpio.close())
	got, err := readCPIO(out.Bytes())
	require.NoError(t, err)
	require.Equal(t, []cpioEntry{
		{"a", cpioDir | 0o755, ""}, {"a/b", cpioDir | 0o755, ""}, {"a/b/link", cpioSymlink | 0o777, "target"},
		{"a/c", cpioDir | 0o755, ""}, {"a/c/f", cpioRegular | 0o600, "x"},
	}, got)
	if tool, err := exec.LookPath("cpio"); err == nil {
		cmd := exec.Command(tool, "-t", "--quiet")
		cmd.Stdin = &out
		list, err := cmd.Output()
		require.NoError(t, err)
		require.Equal(t, "a\na/b\na/b/link\na/c\na/c/f\n", string(list))
	}
}
