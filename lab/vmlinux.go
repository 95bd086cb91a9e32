package lab

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/pierrec/lz4/v4"
)

// extractVmlinux takes the plain ELF kernel out of a bzImage, so that
// decompression is not emulated. It refuses a kernel without the PVH entry,
// which is the only way that QEMU starts an ELF file on a PC.
func extractVmlinux(ctx context.Context, bzImage, to string) error {
	image, err := os.ReadFile(bzImage)
	if err != nil {
		return err
	}
	payload, err := bzPayload(image)
	if err != nil {
		return fmt.Errorf("%s: %w", bzImage, err)
	}
	if err := decompressPayload(ctx, payload, to); err != nil {
		return fmt.Errorf("%s: %w", bzImage, err)
	}
	if err := checkPVH(to); err != nil {
		os.Remove(to)
		return err
	}
	return nil
}

// bzPayload finds the compressed kernel: Linux x86 boot protocol 2.08,
// fields setup_sects, payload_offset, payload_length.
func bzPayload(image []byte) ([]byte, error) {
	if len(image) < 0x268 || string(image[0x202:0x206]) != "HdrS" {
		return nil, errors.New("not a bzImage")
	}
	if v := binary.LittleEndian.Uint16(image[0x206:]); v < 0x208 {
		return nil, fmt.Errorf("boot protocol %#x has no payload fields", v)
	}
	sects := uint64(image[0x1f1])
	if sects == 0 {
		sects = 4
	}
	start := (sects+1)*512 + uint64(binary.LittleEndian.Uint32(image[0x248:]))
	size := uint64(binary.LittleEndian.Uint32(image[0x24c:]))
	if size < 4 || start+size > uint64(len(image)) {
		return nil, fmt.Errorf("payload of %d bytes at %d lies outside the file's %d", size, start, len(image))
	}
	return image[start : start+size-4], nil // the last 4 are the plain size
}

func decompressPayload(ctx context.Context, payload []byte, to string) error {
	tools := []struct{ magic, tool string }{
		{"\xfd7zXZ", "xz"}, {"\x28\xb5\x2f\xfd", "zstd"}, {"\x1f\x8b", "gzip"}, {"BZh", "bzip2"},
	}
	for _, t := range tools {
		if bytes.HasPrefix(payload, []byte(t.magic)) {
			return decompress(ctx, t.tool, bytes.NewReader(payload), to)
		}
	}
	if !bytes.HasPrefix(payload, []byte{0x02, 0x21, 0x4c, 0x18}) { // LZ4 legacy frame
		return fmt.Errorf("unknown compression % x", payload[:min(4, len(payload))])
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, lz4.NewReader(bytes.NewReader(payload)))
	if err = errors.Join(err, out.Close()); err != nil {
		os.Remove(to)
		return fmt.Errorf("lz4: %w", err)
	}
	return nil
}

// checkPVH looks for the note XEN_ELFNOTE_PHYS32_ENTRY (Xen elfnote.h).
func checkPVH(file string) error {
	f, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("the payload is no ELF kernel: %w", err)
	}
	defer f.Close()
	const phys32Entry, noteLimit = 18, 1 << 20
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > noteLimit {
			continue
		}
		data, err := io.ReadAll(p.Open())
		if err != nil {
			return err
		}
		for len(data) >= 12 {
			nameSize, descSize := binary.LittleEndian.Uint32(data), binary.LittleEndian.Uint32(data[4:])
			name := align4(uint64(nameSize))
			end := 12 + name + align4(uint64(descSize))
			if end > uint64(len(data)) {
				break
			}
			if binary.LittleEndian.Uint32(data[8:]) == phys32Entry && bytes.HasPrefix(data[12:], []byte("Xen\x00")) {
				return nil
			}
			data = data[end:]
		}
	}
	return errors.New("the kernel has no PVH entry (CONFIG_PVH)")
}

func align4(n uint64) uint64 { return (n + 3) &^ 3 }
