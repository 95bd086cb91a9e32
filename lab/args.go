package lab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Carried is what the arguments of a command name on the host.
type Carried struct {
	Files   []File
	Disks   []Disk
	Outputs []Output
}

// Flags of godwit whose value names something on the host. DESIGN.md's
// command line is stable, so the list is too.
var (
	inputFlags  = words("kernel initrd image config tls-cert tls-key tls-ca")
	outputFlags = words("out output")
	textFlags   = words("append cmdline name guest codec order throttle stop mac id")
	streamFlags = words("serial to listen from")
	insideFlags = words("api-sock")
	diskOptions = words("path id format cache readonly snapshot backing on-full")
)

func words(s string) map[string]bool {
	m := map[string]bool{}
	for _, w := range strings.Fields(s) {
		m[w] = true
	}
	return m
}

// FilesOf finds what the arguments of a godwit command name on the host, for
// Config's fields of the same names. Relative paths count from dir, which
// must be absolute and should be Config.Dir as well: then every path means
// the same inside, and the arguments go in unchanged.
//
//   - --kernel F, --initrd F, --image F, --tls-* F: files, which must exist.
//   - --config F: the file, and in JSON the files and drives that it names.
//   - --disk path=F[,readonly][,snapshot] and --disk ID=F: a disk, written back
//     unless readonly or snapshot. A read-only image whose size is not a
//     multiple of 512 goes in as a file. A writable qcow2 image is refused: it
//     grows, and a block device cannot.
//   - --out P, --serial file:P, --to file:P: outputs, back when the command ends.
//   - --listen file:P: a file.
//   - any other argument or flag value that holds a slash or a dot and is an
//     existing regular file: a file. Values of flags that are text, such
//     as --append, and --api-sock are left alone.
func FilesOf(args []string, dir string) (Carried, error) {
	if !filepath.IsAbs(dir) {
		return Carried{}, fmt.Errorf("%w: folder %q is not absolute", ErrConfig, dir)
	}
	f := &finder{dir: dir, seen: map[string]bool{}}
	for i := 0; i < len(args); i++ {
		flag, isFlag := strings.CutPrefix(args[i], "-")
		if !isFlag || flag == "" || flag == "-" {
			if err := f.maybe(args[i]); err != nil {
				return Carried{}, err
			}
			continue
		}
		name, value, joined := strings.Cut(strings.TrimPrefix(flag, "-"), "=")
		if !joined {
			if !takesPath(name) && !textFlags[name] {
				continue // whether a value follows is unknown: it is looked at like any argument
			}
			if i++; i == len(args) {
				break // godwit says what is missing
			}
			value = args[i]
		}
		if err := f.flag(name, value); err != nil {
			return Carried{}, fmt.Errorf("--%s: %w", name, err)
		}
	}
	return f.found, nil
}

func takesPath(flag string) bool {
	return flag == "disk" || inputFlags[flag] || outputFlags[flag] || streamFlags[flag] || insideFlags[flag]
}

type finder struct {
	dir   string
	seen  map[string]bool
	found Carried
}

// once makes p absolute and tells whether it is new.
func (f *finder) once(p string) (abs string, fresh bool) {
	if !filepath.IsAbs(p) {
		p = filepath.Join(f.dir, p)
	}
	p = filepath.Clean(p)
	fresh = !f.seen[p]
	f.seen[p] = true
	return p, fresh
}

func (f *finder) flag(name, value string) error {
	switch {
	case textFlags[name] || insideFlags[name]:
		return nil
	case name == "config":
		return f.config(value)
	case name == "disk":
		return f.diskFlag(value)
	case inputFlags[name]:
		return f.file(value)
	case outputFlags[name]:
		f.output(value)
		return nil
	case streamFlags[name]:
		p, isFile := strings.CutPrefix(value, "file:")
		switch {
		case !isFile || p == "":
		case name == "listen" || name == "from":
			return f.file(p)
		default:
			f.output(p)
		}
		return nil
	default:
		return f.maybe(value)
	}
}

// maybe takes an argument whose meaning is unknown.
func (f *finder) maybe(value string) error {
	if !strings.ContainsAny(value, "/.") {
		return nil
	}
	abs := value
	if !filepath.IsAbs(abs) {
		abs = filepath.Join(f.dir, abs)
	}
	if checkInside(abs) != nil || !isRegular(abs) {
		return nil
	}
	return f.file(value)
}

func (f *finder) file(p string) error {
	abs, fresh := f.once(p)
	st, err := os.Stat(abs)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%w: %q is not a regular file", ErrConfig, p)
	}
	if fresh {
		f.found.Files = append(f.found.Files, File{Host: abs, Path: abs})
	}
	return nil
}

func (f *finder) output(p string) {
	if abs, fresh := f.once(p); fresh && p != "" {
		f.found.Outputs = append(f.found.Outputs, Output{Host: abs, Path: abs})
	}
}

// splitOptions splits at single commas; two of them are one comma of an option.
func splitOptions(s string) []string {
	const comma = "\x00" // no argument of a command holds one
	options := strings.Split(strings.ReplaceAll(s, ",,", comma), ",")
	for i := range options {
		options[i] = strings.ReplaceAll(options[i], comma, ",")
	}
	return options
}

// diskFlag reads path=F[,readonly][,snapshot][,format=..]... or ID=F.
func (f *finder) diskFlag(value string) error {
	if id, path, ok := strings.Cut(value, "="); ok && path != "" && !diskOptions[id] && !strings.Contains(id, ",") {
		return f.disk(path, "", false) // ID=F of godwit receive
	}
	var p, format string
	readOnly := false
	for _, option := range splitOptions(value) {
		key, v, assigned := strings.Cut(option, "=")
		switch {
		case key == "path":
			p = v
		case key == "format":
			format = v
		case key == "readonly" || key == "snapshot":
			readOnly = !assigned || v == "true" || v == "on" || v == "1"
		}
	}
	if p == "" {
		return nil // godwit says what is missing
	}
	return f.disk(p, format, readOnly)
}

func (f *finder) disk(p, format string, readOnly bool) error {
	abs, fresh := f.once(p)
	st, err := os.Stat(abs)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if !fresh {
		return nil
	}
	if readOnly && st.Mode().IsRegular() && (st.Size() == 0 || st.Size()%sectorSize != 0) {
		f.found.Files = append(f.found.Files, File{Host: abs, Path: abs})
		return nil
	}
	if readOnly && format == "" && isQcow2(abs) {
		return fmt.Errorf("%w: %q looks like a qcow2 image and its format is not said; give format=qcow2, or format=raw if its first bytes are the disk's own", ErrConfig, p)
	}
	if !readOnly && (format == "qcow2" || format == "" && isQcow2(abs)) {
		return fmt.Errorf("%w: writable qcow2 image %q would have to grow, and a block device of the lab cannot; use snapshot, or convert it to raw",
			ErrConfig, p)
	}
	if err := checkDisk(abs); err != nil {
		return err
	}
	f.found.Disks = append(f.found.Disks, Disk{Host: abs, Path: abs, ReadOnly: readOnly})
	return nil
}

// isQcow2 looks at the magic (QEMU docs/interop/qcow2.txt).
func isQcow2(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	var magic [4]byte
	_, err = io.ReadFull(f, magic[:])
	return err == nil && bytes.Equal(magic[:], []byte("QFI\xfb"))
}

// maxConfig bounds a configuration file that is searched for paths.
const maxConfig = 1 << 20

func (f *finder) config(p string) error {
	if err := f.file(p); err != nil {
		return err
	}
	abs, _ := f.once(p)
	file, err := os.Open(abs)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxConfig))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	var tree any
	if json.Unmarshal(text, &tree) != nil {
		return nil // godwit judges it; there is nothing to find here
	}
	return f.walk(tree)
}

// walk finds drives in Firecracker's shape (path_on_host, is_read_only) and
// any other string that names a file.
func (f *finder) walk(node any) error {
	switch v := node.(type) {
	case string:
		return f.maybe(v)
	case []any:
		for _, item := range v {
			if err := f.walk(item); err != nil {
				return err
			}
		}
	case map[string]any:
		if p, ok := v["path_on_host"].(string); ok {
			readOnly, _ := v["is_read_only"].(bool)
			format, _ := v["format"].(string)
			if snapshot, _ := v["snapshot"].(bool); snapshot {
				readOnly = true
			}
			if err := f.disk(p, format, readOnly); err != nil {
				return err
			}
		}
		for key, item := range v {
			if key == "path_on_host" {
				continue
			}
			if err := f.walk(item); err != nil {
				return err
			}
		}
	}
	return nil
}
