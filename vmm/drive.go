package vmm

import (
	"errors"
	"fmt"

	"godwit/blockfile"
	"godwit/virtio"
	"godwit/virtio/blk"
)

// drive is a disk: its image and the device that shows it.
type drive struct {
	plainPart
	Drive
	path string // what was opened here
	file blockfile.File
	dev  *blk.Device
}

var _ part = (*drive)(nil)

// newDrive opens an image and makes its device.
func newDrive(spec Drive, a assembly) (_ part, err error) {
	d := &drive{Drive: spec, path: spec.PathOnHost}
	if a.incoming {
		d.path = a.disks[spec.ID]
	}
	cache, err := blockfile.ParseCache(spec.Cache)
	if err != nil {
		return nil, fmt.Errorf("%w: drive %q: %w", ErrConfig, spec.ID, err)
	}
	if d.file, err = blockfile.Open(d.path, blockfile.Options{ReadOnly: spec.IsReadOnly, Cache: cache, NoLock: a.incoming}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.file.Close())
		}
	}()
	if a.incoming && !spec.IsReadOnly {
		if err := checkLock(d.file, spec.ID, d.path, a.saved); err != nil {
			return nil, err
		}
	}
	d.dev, err = blk.New(blk.Config{Backend: d.file, Serial: spec.ID, Queues: spec.Queues})
	return d, err
}

func (d *drive) kind() string          { return "disk" }
func (d *drive) name() string          { return d.ID }
func (d *drive) device() virtio.Device { return d.dev }

// release flushes a writable image and gives its lock up.
func (d *drive) release() error {
	if !d.IsReadOnly {
		if err := d.file.Flush(); err != nil {
			return err
		}
	}
	return d.file.Unlock()
}

func (d *drive) claim() error { return d.file.Lock() }
func (d *drive) close() error { return d.file.Close() }

func (d *drive) info(i *Info) {
	i.Drives = append(i.Drives, DriveInfo{ID: d.ID, Path: d.path, SizeBytes: d.file.Size(), ReadOnly: d.IsReadOnly, Stats: d.dev.Stats()})
}

// checkLock looks at who holds the lock of a machine's disk before the machine
// arrives. A source holds it until the last moment: an image that nobody has
// locked is another image under the same name. A saved machine has no source.
func checkLock(file blockfile.File, id, path string, saved bool) error {
	held, err := file.LockedElsewhere()
	switch {
	case err != nil:
		return err
	case saved && held:
		return fmt.Errorf("%w: disk %q: another process holds the lock of %q; end what uses it, or map another with --disk %s=PATH",
			ErrIncompatible, id, path, id)
	case !saved && !held:
		return fmt.Errorf("%w: disk %q: the source does not hold the lock of %q, so it is not the disk that the guest uses; map the right one with --disk %s=PATH",
			ErrIncompatible, id, path, id)
	}
	return nil
}
