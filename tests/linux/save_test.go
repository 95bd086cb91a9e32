package linux

import (
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSaveAndRestore puts Linux under load into a file, and lets it run on from
// there.
func TestSaveAndRestore(t *testing.T) {
	disk, dir := diskCopy(t), t.TempDir()
	sock, saved := filepath.Join(dir, "from.sock"), filepath.Join(dir, "saved")
	src := godwit(t, "run", "--kernel", bzImagePath, "--disk", "path="+disk+",id=root", "--cpus", "2", "--api-sock", sock,
		"--append", "godwit.run=witness,pace=20,mem=16,touch=64")
	src.out.until(t, "ten counts", func(text string) bool { return len(countLine.FindAllString(text, -1)) >= 10 })
	save := godwit(t, "migrate", "--api-sock", sock, "--to", "file:"+saved, "--verify")
	require.Equal(t, 0, save.exit(t), save.err)
	t.Log(save.out)
	require.Equal(t, 0, src.exit(t), src.err)
	requireClean(t, disk)
	dst := godwit(t, "receive", "--listen", "file:"+saved, "--disk", "root="+disk)
	have := len(countLine.FindAllString(src.out.String(), -1))
	dst.out.until(t, "twenty counts more", func(string) bool {
		return len(countLine.FindAllString(src.out.String()+dst.out.String(), -1)) >= have+20
	})
	dst.typeLine(t, "poweroff")
	require.Equal(t, 0, dst.exit(t), dst.err)
	text := src.out.String() + dst.out.String()
	n := counts(t, text)
	require.NotContains(t, text, "witness ERROR")
	require.Contains(t, text, "witness done count="+strconv.Itoa(n)+" errors=0 file_lines="+strconv.Itoa(n))
	t.Log(dst.out.String()[len(dst.out.String())-300:])
	requireClean(t, disk)
}
