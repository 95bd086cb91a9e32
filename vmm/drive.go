package vmm

import (
	"errors"
	"fmt"
	"sync"

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
	left departure // the image when it was released last
	// stale says that the image was found newer than left, which stays what it was.
	stale bool
	// overlays closes what the drive made for itself alone.
	overlays *Overlays
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
	format, err := blockfile.ParseFormat(spec.Format)
	if err != nil {
		return nil, fmt.Errorf("%w: drive %q: %w", ErrConfig, spec.ID, err)
	}
	o := blockfile.Options{ReadOnly: spec.IsReadOnly, Cache: cache, Format: format, NoLock: a.incoming, Open: a.open, Probe: a.unsaid[spec.ID], Backing: a.backingRule(spec)}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if spec.Snapshot {
		overlays := a.overlays
		if overlays == nil {
			d.overlays = new(Overlays)
			overlays = d.overlays
		}
		if o.Overlay, err = overlays.of(spec.ID); err != nil {
			return nil, err
		}
	}
	if d.file, err = blockfile.Open(d.path, o); err != nil {
		return nil, err
	}
	if a.incoming && !spec.IsReadOnly {
		if err := checkLock(d.file, spec.ID, d.path, a.saved); err != nil {
			return nil, err
		}
	}
	full, onFull := d.parks(a.foundFull)
	d.dev, err = blk.New(blk.Config{Backend: d.file, Serial: spec.ID, Queues: spec.Queues, Full: full, OnFull: onFull})
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
	if err := d.file.Unlock(); err != nil {
		return err
	}
	f, ok := d.file.(blockfile.Historian)
	if !ok || d.stale {
		return nil
	}
	var err error
	d.left.History, err = f.History()
	d.left.noted = err == nil && d.left.Known()
	return err
}

func (d *drive) claim() error { return d.file.Lock() }

func (d *drive) close() error {
	var err error
	if d.file != nil {
		if err = d.file.Close(); err != nil && !d.IsReadOnly {
			err = fmt.Errorf("%w: disk %q: %w", ErrUnwritten, d.ID, err)
		}
	}
	if d.overlays != nil {
		err = errors.Join(err, d.overlays.Close())
	}
	return err
}

// backingRule judges the backing files of a drive.
func (a assembly) backingRule(spec Drive) blockfile.BackingRule {
	switch {
	case a.backing != nil:
		return func(image, path string) (string, blockfile.Opener, error) { return a.backing(spec.ID, image, path) }
	case spec.Backing == BackingAny:
		return blockfile.AnyBacking
	}
	return blockfile.BackingBelow(a.allow)
}

// unsaidFormats are the ids of the drives whose format is raw by default. It is
// asked before the defaults are filled in.
func (c Config) unsaidFormats() map[string]bool {
	ids := map[string]bool{}
	for i, d := range c.withDefaults().Drives {
		ids[d.ID] = c.Drives[i].Format == ""
	}
	return ids
}

// Overlays are the temporary overlays of drives that are snapshots. The zero
// value is ready. One machine at a time uses them.
type Overlays struct {
	mu   sync.Mutex
	byID map[string]*blockfile.Overlay
}

func (v *Overlays) of(id string) (*blockfile.Overlay, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if o := v.byID[id]; o != nil {
		return o, nil
	}
	o, err := blockfile.NewOverlay()
	if err != nil {
		return nil, err
	}
	if v.byID == nil {
		v.byID = map[string]*blockfile.Overlay{}
	}
	v.byID[id] = o
	return o, nil
}

// Close ends the overlays and what is in them, after the last machine.
func (v *Overlays) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var err error
	for _, o := range v.byID {
		err = errors.Join(err, o.Close())
	}
	v.byID = nil
	return err
}

// ErrCannotLeave marks a machine that has something which cannot be moved.
var ErrCannotLeave = errors.New("this machine cannot be moved")

// canMove says whether the drives are where a destination can find them.
func canMove(drives []Drive) error {
	for _, d := range drives {
		if d.Snapshot {
			return fmt.Errorf("%w: disk %q is a snapshot: what the guest wrote lies in a temporary file of this process, which no destination can open; start the machine without snapshot to migrate it",
				ErrCannotLeave, d.ID)
		}
	}
	return nil
}

func (d *drive) info(i *Info) {
	i.Drives = append(i.Drives, DriveInfo{ID: d.ID, Path: d.path, SizeBytes: d.file.Size(), Format: d.Format, ReadOnly: d.IsReadOnly, Snapshot: d.Snapshot, Stats: d.dev.Stats()})
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
