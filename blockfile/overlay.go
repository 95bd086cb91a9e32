package blockfile

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"godwit/blockfile/qcow2"
)

// Overlay is where the changes to a disk go that leave its image alone: a
// temporary file without a name, gone when it is closed or the process ends.
// One disk at a time may be open over it, and later another over the same
// image, which finds the changes.
type Overlay struct {
	mu   sync.Mutex
	file *os.File
	size int64 // of the disk; 0 before it is used
}

// NewOverlay makes an overlay in the folder for temporary files (TMPDIR).
func NewOverlay() (*Overlay, error) {
	f, err := os.CreateTemp("", "godwit-overlay-")
	if err != nil {
		return nil, fmt.Errorf("make a temporary overlay: %w; set TMPDIR to a folder with room", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Overlay{file: f}, nil
}

// Close ends the overlay and what is in it. No disk is open over it.
func (v *Overlay) Close() error { return v.file.Close() }

// overlaid is a disk over an overlay. Its lock is its image's.
type overlaid struct{ *qcow }

// openOverlay opens the image read-only, of whatever format, with the overlay
// before it.
func openOverlay(path string, o Options) (_ File, err error) {
	if o.ReadOnly {
		return nil, fmt.Errorf("both read-only and with an overlay for its changes; give one")
	}
	base := o
	base.ReadOnly, base.Overlay = true, nil
	f, err := openFormat(path, base, chain{})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	host, err := o.Overlay.host()
	if err != nil {
		return nil, err
	}
	v := o.Overlay
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.size == 0 {
		// The name is never used; the header wants one for QEMU's eyes.
		if err := qcow2.Create(host, qcow2.CreateOptions{Size: f.Size(), Backing: "image", BackingFormat: o.Format.String()}); err != nil {
			return nil, errors.Join(err, host.Close())
		}
		v.size = f.Size()
	}
	if v.size != f.Size() {
		return nil, errors.Join(fmt.Errorf("the disk had %d bytes when the overlay was made and has %d now", v.size, f.Size()), host.Close())
	}
	q := &qcow{host: host, backing: f, path: path, cache: o.Cache}
	opts := q.options()
	opts.WriteThrough = false // there is nothing to be stable
	if q.img, err = qcow2.Open(host, opts); err != nil {
		return nil, errors.Join(err, host.Close())
	}
	q.locked.Store(true)
	return overlaid{q}, nil
}

// host gives the overlay's file, for one disk to close.
func (v *Overlay) host() (*HostFile, error) {
	fd, err := unix.FcntlInt(v.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	r := &raw{fd: fd, path: "temporary overlay", holds: true}
	if r.geo, err = readGeometry(fd, false); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	r.locked.Store(true) // nobody else can open it
	return &HostFile{r: r, temporary: true}, nil
}

// Lock implements File.
func (d overlaid) Lock() error {
	if d.locked.Load() {
		return nil
	}
	if err := d.backing.Lock(); err != nil {
		return err
	}
	if err := d.img.Load(); err != nil {
		return errors.Join(fmt.Errorf("lock disk %q: %w", d.path, err), d.backing.Unlock())
	}
	d.locked.Store(true)
	return nil
}

// Unlock implements File.
func (d overlaid) Unlock() error {
	if !d.locked.Load() {
		return nil
	}
	if err := d.img.Suspend(); err != nil {
		return fmt.Errorf("unlock disk %q: %w", d.path, err)
	}
	d.locked.Store(false)
	return d.backing.Unlock()
}

// LockedElsewhere implements File.
func (d overlaid) LockedElsewhere() (bool, error) { return d.backing.LockedElsewhere() }

// BlockSize implements File.
func (d overlaid) BlockSize() int { return d.backing.BlockSize() }
