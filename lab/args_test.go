package lab

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func testTree(t testing.TB) string {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"bzImage": "k", "rootfs.ext4": string(make([]byte, 1024)), "odd.img": "odd", "grow.qcow2": "QFI\xfb" + string(make([]byte, 508)),
		"qcow2.json": `{"drives":[{"path_on_host":"grow.qcow2","format":"qcow2","snapshot":true}]}`,
		"a,b,.img":   string(make([]byte, 512)), "run": "a file named like a command", "initrd.img": "i",
		"vm.json": `{"boot-source":{"kernel_image_path":"./bzImage","boot_args":"quiet"},
			"drives":[{"path_on_host":"rootfs.ext4","is_read_only":true},{"path_on_host":"rootfs.ext4"}]}`,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	return dir
}

func TestFilesOf(t *testing.T) {
	dir := testTree(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	file := func(names ...string) (files []File) {
		for _, n := range names {
			files = append(files, File{Host: at(n), Path: at(n)})
		}
		return files
	}
	disk := func(name string, readOnly bool) []Disk {
		return []Disk{{Host: at(name), Path: at(name), ReadOnly: readOnly}}
	}
	output := func(name string) []Output { return []Output{{Host: at(name), Path: at(name)}} }
	cases := []struct {
		name string
		args []string
		want Carried
		err  string
	}{
		{"nothing", []string{"doctor"}, Carried{}, ""},
		{"command word is a file too", []string{"run", "--memory", "512M"}, Carried{}, ""},
		{"kernel and disk", []string{"run", "--kernel", "bzImage", "--disk", "path=rootfs.ext4,id=root"},
			Carried{Files: file("bzImage"), Disks: disk("rootfs.ext4", false)}, ""},
		{"joined with =", []string{"run", "--kernel=bzImage", "--disk=path=" + at("rootfs.ext4") + ",readonly"},
			Carried{Files: file("bzImage"), Disks: disk("rootfs.ext4", true)}, ""},
		{"snapshot of qcow2", []string{"run", "--disk", "snapshot,path=grow.qcow2,format=qcow2"}, Carried{Disks: disk("grow.qcow2", true)}, ""},
		{"commas", []string{"run", "--disk", "path=a,,b,,.img,readonly"}, Carried{Disks: disk("a,b,.img", true)}, ""},
		{"commas by id", []string{"receive", "--disk", "root=a,b,.img"}, Carried{Disks: disk("a,b,.img", false)}, ""},
		{"raw that looks like qcow2", []string{"run", "--disk", "path=grow.qcow2,format=raw"}, Carried{Disks: disk("grow.qcow2", false)}, ""},
		{"format not said", []string{"run", "--disk", "path=grow.qcow2,readonly"}, Carried{}, "its format is not said"},
		{"qcow2 in a file", []string{"run", "--config", "qcow2.json"}, Carried{Files: file("qcow2.json"), Disks: disk("grow.qcow2", true)}, ""},
		{"read-only odd size", []string{"run", "--disk", "path=odd.img,readonly"}, Carried{Files: file("odd.img")}, ""},
		{"receive by id", []string{"receive", "--disk", "root=rootfs.ext4"}, Carried{Disks: disk("rootfs.ext4", false)}, ""},
		{"named twice", []string{"run", "--kernel", "bzImage", "--initrd", "./bzImage"}, Carried{Files: file("bzImage")}, ""},
		{"text flags", []string{"run", "--append", "./bzImage", "--cmdline=./bzImage", "--api-sock", "./bzImage"}, Carried{}, ""},
		{"unknown flag and argument", []string{"image", "info", "--verbose", "rootfs.ext4", "--new=initrd.img"},
			Carried{Files: file("rootfs.ext4", "initrd.img")}, ""},
		{"serial to a file", []string{"run", "--serial", "file:log/serial.txt"}, Carried{Outputs: output("log/serial.txt")}, ""},
		{"serial elsewhere", []string{"run", "--serial", "unix:s"}, Carried{}, ""},
		{"migrate to a file", []string{"migrate", "--to", "file:vm.state"}, Carried{Outputs: output("vm.state")}, ""},
		{"receive from a file", []string{"receive", "--listen", "file:odd.img"}, Carried{Files: file("odd.img")}, ""},
		{"results", []string{"bench", "boot", "--out", "results"}, Carried{Outputs: output("results")}, ""},
		{"config", []string{"run", "--config", "vm.json"}, Carried{Files: file("vm.json", "bzImage"), Disks: disk("rootfs.ext4", true)}, ""},
		{"missing kernel", []string{"run", "--kernel", "nope"}, Carried{}, "no such file"},
		{"missing disk", []string{"run", "--disk", "path=nope"}, Carried{}, "no such file"},
		{"odd size, writable", []string{"run", "--disk", "path=odd.img"}, Carried{}, "multiple of 512"},
		{"qcow2, writable", []string{"run", "--disk", "path=grow.qcow2"}, Carried{}, "convert it to raw"},
		{"kernel is a folder", []string{"run", "--kernel", "."}, Carried{}, "not a regular file"},
		{"value missing", []string{"run", "--kernel"}, Carried{}, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := FilesOf(c.args, dir)
			if c.err != "" {
				require.ErrorIs(t, err, ErrConfig)
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			if c.name == "config" { // the order of a JSON object is not kept
				require.ElementsMatch(t, c.want.Files, got.Files)
				require.Equal(t, c.want.Disks, got.Disks)
				return
			}
			require.Equal(t, c.want, got)
		})
	}
	_, err := FilesOf(nil, "relative")
	require.ErrorIs(t, err, ErrConfig)
}

func FuzzFilesOf(f *testing.F) {
	dir := testTree(f)
	for _, s := range []string{"--disk", "path=rootfs.ext4,readonly", "--disk=,=,", "-", "--", "--=", "--serial=file:", "./bzImage"} {
		f.Add(s, "--kernel", "bzImage")
	}
	f.Fuzz(func(t *testing.T, a, b, c string) {
		got, err := FilesOf([]string{a, b, c}, dir)
		if err != nil {
			require.ErrorIs(t, err, ErrConfig)
		}
		for _, file := range got.Files {
			require.True(t, filepath.IsAbs(file.Path))
		}
	})
}
