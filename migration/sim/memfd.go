package sim

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"godwit/migration"
)

// LocalMachine is a Machine whose memory is a memfd, for local hand-over.
type LocalMachine struct {
	*Machine
	file *os.File
}

var _ migration.LocalSource = (*LocalMachine)(nil)

// NewLocalMachine is NewMachine over a memfd.
func NewLocalMachine(w *World, layout ...migration.Extent) (*LocalMachine, error) {
	config, err := json.Marshal(layout)
	if err != nil {
		return nil, err
	}
	file, err := newMemfd(layout)
	if err != nil {
		return nil, err
	}
	regions, err := mapFile(file, layout, unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		return nil, errors.Join(err, unmapRAM(regions), file.Close())
	}
	m, err := newMachine(w, layout, config, regions)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &LocalMachine{m, file}, nil
}

// Close gives the memory back.
func (m *LocalMachine) Close() error { return errors.Join(m.Machine.Close(), m.file.Close()) }

// MemoryFile implements migration.LocalSource.
func (m *LocalMachine) MemoryFile() (*os.File, error) {
	done, err := m.enter(m.world, "MemoryFile")
	defer done()
	if err != nil {
		return nil, err
	}
	fd, err := unix.FcntlInt(m.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), m.file.Name()), nil
}

// StartDirtyLog implements migration.Source. Nothing is copied, so nobody has use
// for a log.
func (m *LocalMachine) StartDirtyLog() error {
	m.world.breach("StartDirtyLog in a local hand-over")
	return m.Machine.StartDirtyLog()
}

// newMemfd makes a sealed file that holds the layout.
func newMemfd(layout []migration.Extent) (*os.File, error) {
	fd, err := unix.MemfdCreate("sim", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	file := os.NewFile(uintptr(fd), "sim")
	if err := file.Truncate(sizeOf(layout)); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, errors.Join(fmt.Errorf("seal memfd: %w", err), file.Close())
	}
	return file, nil
}

const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

func sizeOf(layout []migration.Extent) (n int64) {
	for _, e := range layout {
		n += int64(e.Len)
	}
	return n
}

// mapFile maps a file that holds the layout, region after region. It looks at the
// file as a destination must, though not as closely as guestmem does.
func mapFile(file *os.File, layout []migration.Extent, prot int) ([]migration.Region, error) {
	got, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || got != seals {
		return nil, fmt.Errorf("guest memory in a file with seals %#x: %w", got, errors.Join(err, unix.EINVAL))
	}
	st, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() != sizeOf(layout) {
		return nil, fmt.Errorf("guest memory in a file of %d bytes, not %d", st.Size(), sizeOf(layout))
	}
	var regions []migration.Region
	offset := int64(0)
	for _, e := range layout {
		mem, err := unix.Mmap(int(file.Fd()), offset, int(e.Len), prot, unix.MAP_SHARED)
		if err != nil {
			return regions, fmt.Errorf("map %d bytes of guest memory: %w", e.Len, err)
		}
		regions = append(regions, migration.Region{GPA: e.GPA, Bytes: mem})
		offset += int64(e.Len)
	}
	return regions, nil
}

// thaw lets the memory be written.
func thaw(regions []migration.Region) error {
	for _, r := range regions {
		if err := unix.Mprotect(r.Bytes, unix.PROT_READ|unix.PROT_WRITE); err != nil {
			return err
		}
	}
	return nil
}
