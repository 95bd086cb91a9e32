package lab

import (
	"errors"
	"fmt"
	"io"
	"math"
)

// File types in a cpio mode field, as in stat(2).
const (
	cpioDir     = 0o040000
	cpioRegular = 0o100000
	cpioSymlink = 0o120000
)

const (
	cpioMagic   = "070701"
	cpioTrailer = "TRAILER!!!"
	// PATH_MAX with the NUL: the kernel's unpacker skips longer names.
	cpioMaxName = 4096
)

// cpioWriter writes the "newc" archive that the kernel unpacks as its first
// root (Linux Documentation/driver-api/early-userspace/buffer-format.rst).
// It is here because the format is one header; entries are owned by root and
// dated 0, so equal input gives equal bytes.
type cpioWriter struct {
	w    io.Writer
	n    int64
	ino  uint32
	err  error
	zero [4]byte
}

func newCPIOWriter(w io.Writer) *cpioWriter { return &cpioWriter{w: w} }

// entry writes one entry with size bytes of body. Name is relative, without
// a leading slash. A body that ends early is an error, and so is every later
// call after one failed.
func (c *cpioWriter) entry(name string, mode uint32, size int64, body io.Reader) error {
	if c.err == nil {
		c.err = c.writeEntry(name, mode, size, body)
	}
	return c.err
}

func (c *cpioWriter) writeEntry(name string, mode uint32, size int64, body io.Reader) error {
	if name == "" || len(name) >= cpioMaxName {
		return fmt.Errorf("cpio: a name of %d bytes is outside 1 to %d", len(name), cpioMaxName-1)
	}
	if size < 0 || size > math.MaxUint32 {
		return fmt.Errorf("cpio: %q has %d bytes, more than the format's 4 GiB", name, size)
	}
	c.ino++
	links := 1
	if mode&^0o7777 == cpioDir {
		links = 2
	}
	// magic, ino, mode, uid, gid, nlink, mtime, filesize, major, minor,
	// rmajor, rminor, namesize, check.
	_, err := fmt.Fprintf(c, "%s%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		cpioMagic, c.ino, mode, 0, 0, links, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	if err != nil {
		return err
	}
	if err := c.pad(); err != nil {
		return err
	}
	if size > 0 {
		if n, err := io.CopyN(c, body, size); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("cpio: %q after %d of %d bytes: %w", name, n, size, err)
		}
	}
	return c.pad()
}

func (c *cpioWriter) pad() error {
	_, err := c.Write(c.zero[:-c.n&3])
	return err
}

// Write adds raw bytes and counts them, for the alignment.
func (c *cpioWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// close ends the archive; it does not close the writer beneath.
func (c *cpioWriter) close() error {
	return c.entry(cpioTrailer, 0, 0, nil)
}
