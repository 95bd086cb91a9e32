package tool

import (
	"errors"
	"fmt"

	"godwit/blockfile"
	"godwit/blockfile/qcow2"
)

// The formats.
const (
	Raw   = "raw"
	Qcow2 = "qcow2"
)

// Info describes an image.
type Info struct {
	Path   string `json:"path"`
	Format string `json:"format"`
	// FormatFrom says who says so: flag, magic (the file's first bytes), or
	// header (the image above it).
	FormatFrom       string `json:"format_from"`
	VirtualSizeBytes int64  `json:"virtual_size_bytes"`
	FileSizeBytes    int64  `json:"file_size_bytes"`
	DiskSizeBytes    int64  `json:"disk_size_bytes"` // that the host has allocated
	InUse            bool   `json:"in_use"`
	InUseForWriting  bool   `json:"in_use_for_writing"`

	*Qcow2Info `json:"qcow2,omitempty"`
	// Backing is the next image of the chain; BackingError says why it is not there.
	Backing      *Info  `json:"backing,omitempty"`
	BackingError string `json:"backing_error,omitempty"`

	access access
}

// Qcow2Info is what only a qcow2 image has.
type Qcow2Info struct {
	Version          int    `json:"version"`
	ClusterSizeBytes int64  `json:"cluster_size_bytes"`
	RefcountBits     int    `json:"refcount_bits"`
	Compression      string `json:"compression"`
	Dirty            bool   `json:"dirty"`
	Corrupt          bool   `json:"corrupt"`
	Snapshots        int    `json:"snapshots"`
	BackingFile      string `json:"backing_file,omitempty"`
	BackingFormat    string `json:"backing_format,omitempty"`
}

// look opens the file of an image as it is, with no lock.
func look(path string) (*blockfile.HostFile, error) {
	return blockfile.OpenHost(path, blockfile.Options{ReadOnly: true, NoLock: true})
}

// Detect looks at the first bytes of an image.
func Detect(path string) (string, error) {
	f, err := look(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	format, err := detect(f)
	if err != nil {
		return "", fmt.Errorf("image %q: %w", path, err)
	}
	return format, nil
}

func detect(f *blockfile.HostFile) (string, error) {
	format, err := blockfile.Probe(f)
	if err == nil && format != Raw && format != Qcow2 {
		err = fmt.Errorf("%w: by its bytes it is a %s image; there are raw and qcow2: convert it first, qemu-img convert -f %s -O qcow2, or say that its format is raw if these bytes are the disk's own",
			ErrForeign, format, format)
	}
	return format, err
}

// ErrForeign says that a file looks like an image of a format that is not known
// here.
var ErrForeign = errors.New("not an image that godwit reads")

// Inspect describes an image and the chain of its backing files, as far as a
// machine would open it under the rule; nil is blockfile.BackingBelow(nil). An
// empty format leaves it to the file's first bytes.
func Inspect(path, format string, rule blockfile.BackingRule) (*Info, error) {
	if rule == nil {
		rule = blockfile.BackingBelow(nil)
	}
	return inspect(path, format, "flag", rule, nil, blockfile.MaxChain)
}

// inspect follows a chain of up to depth qcow2 images.
func inspect(path, format, from string, rule blockfile.BackingRule, open blockfile.Opener, depth int) (*Info, error) {
	f, err := blockfile.OpenHost(path, blockfile.Options{ReadOnly: true, NoLock: true, Open: open})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	i := &Info{Path: path, Format: format, FormatFrom: from}
	if format == "" {
		i.FormatFrom = "magic"
		if i.Format, err = detect(f); err != nil {
			return nil, fmt.Errorf("image %q: %w", path, err)
		}
	}
	if i.InUse, i.InUseForWriting, err = f.Users(); err != nil {
		return nil, err
	}
	if i.FileSizeBytes, err = f.Size(); err != nil {
		return nil, fmt.Errorf("size of %q: %w", path, err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	i.DiskSizeBytes, i.access = st.Blocks*512, accessOf(&st)
	i.VirtualSizeBytes = roundUp(i.FileSizeBytes, blockfile.SectorSize)
	switch i.Format {
	case Raw:
		return i, nil
	case Qcow2:
		return i, i.readQcow2(f, rule, depth)
	}
	return nil, fmt.Errorf("format %q of %q is not known; there are raw and qcow2", i.Format, path)
}

func (i *Info) readQcow2(f *blockfile.HostFile, rule blockfile.BackingRule, depth int) error {
	h, err := qcow2.ReadHeader(f)
	if err != nil {
		return fmt.Errorf("image %q: %w", i.Path, err)
	}
	i.VirtualSizeBytes = h.DiskSize()
	i.Qcow2Info = &Qcow2Info{
		Version: int(h.Version), ClusterSizeBytes: h.ClusterSize(), RefcountBits: h.RefcountBits(), Compression: h.Compression.String(),
		Dirty: h.Incompatible&qcow2.IncompatDirty != 0, Corrupt: h.Incompatible&qcow2.IncompatCorrupt != 0,
		Snapshots: int(h.SnapshotCount), BackingFile: h.Backing, BackingFormat: h.BackingFormat,
	}
	if h.Backing == "" {
		return nil
	}
	switch {
	case depth <= 1 && h.BackingFormat != Raw:
		err = fmt.Errorf("more than %d qcow2 images behind one another, or a circle", blockfile.MaxChain)
	case h.BackingFormat == "":
		err = fmt.Errorf("the image does not say the format of %q; set it: godwit image rebase --header-only --backing %q --backing-format raw (or qcow2)", h.Backing, h.Backing)
	default:
		var path string
		if path, err = blockfile.BackingPath(h.Backing, i.Path); err == nil {
			var open blockfile.Opener
			if path, open, err = rule(i.Path, path); err == nil {
				i.Backing, err = inspect(path, h.BackingFormat, "header", rule, open, depth-1)
			}
		}
	}
	if err != nil {
		i.BackingError = err.Error()
	}
	return nil
}
