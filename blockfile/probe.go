package blockfile

import (
	"bytes"
	"errors"
	"fmt"
)

// ErrFormatUnsaid says that nobody said the format of an image whose bytes are
// those of another format than raw.
var ErrFormatUnsaid = errors.New("its format must be said")

// signature is how an image of a format begins, or ends where off is negative.
type signature struct {
	format string
	off    int64
	bytes  string
}

// signatures are those of the formats that QEMU, VirtualBox, VMware, Hyper-V,
// Parallels, Bochs and macOS keep disks in. LUKS is none of them: a guest that
// encrypts a whole raw disk puts that header there by right, and reading or
// writing the disk raw harms nothing.
var signatures = []signature{
	{"qcow", 0, "QFI\xfb"}, // version 1; others are told apart below
	{"qed", 0, "QED\x00"},
	{"vmdk", 0, "KDMV"},
	{"vmdk", 0, "COWD"},
	{"vmdk", 0, "# Disk DescriptorFile"},
	{"vdi", 0x40, "\x7f\x10\xda\xbe"},
	{"vhdx", 0, "vhdxfile"},
	{"vpc", 0, "conectix"},
	{"vpc", -512, "conectix"}, // of fixed size: the disk, then the footer
	{"parallels", 0, "WithoutFreeSpace"},
	{"parallels", 0, "WithouFreSpacExt"},
	{"bochs", 0, "Bochs Virtual HD Image"},
	{"dmg", -512, "koly"},
}

// Probe names the format whose signature a file has: "qcow2", another one's
// name as QEMU writes it, or "raw" if it has none. A guest can write any of
// them on a raw disk, so this is a reason to ask, never to open an image so.
func Probe(h *HostFile) (string, error) {
	size, err := h.Size()
	if err != nil {
		return "", err
	}
	first, last := make([]byte, 512), make([]byte, 512)
	if err := h.Preadv([][]byte{first}, 0); err != nil {
		return "", fmt.Errorf("read its first bytes: %w", err)
	}
	if end := size - 512; end > 0 {
		if err := h.Preadv([][]byte{last}, end); err != nil {
			return "", fmt.Errorf("read its last bytes: %w", err)
		}
	}
	for _, s := range signatures {
		b := first
		if s.off < 0 {
			b = last
		}
		if !bytes.HasPrefix(b[max(s.off, 0):], []byte(s.bytes)) {
			continue
		}
		if s.format == "qcow" && !bytes.Equal(first[4:8], []byte{0, 0, 0, 1}) {
			return FormatQcow2.String(), nil
		}
		return s.format, nil
	}
	return FormatRaw.String(), nil
}

// mustBeRaw refuses a raw image whose bytes are another format's: what opens it
// so would show the guest that format's tables, and a write would destroy them.
func (r *raw) mustBeRaw() error {
	format, err := Probe(&HostFile{r: r})
	switch {
	case err != nil:
		return err
	case format == FormatRaw.String():
		return nil
	case format == FormatQcow2.String():
		return fmt.Errorf("%w: by its first bytes it is a qcow2 image, which a raw disk's guest may have written, too; give format=qcow2 if it is one, or format=raw if these bytes are the disk's own", ErrFormatUnsaid)
	}
	return fmt.Errorf("%w: by its bytes it is a %s image, which godwit does not know; convert it (qemu-img convert -f %s -O qcow2) and give format=qcow2, or give format=raw if these bytes are the disk's own", ErrFormatUnsaid, format, format)
}
