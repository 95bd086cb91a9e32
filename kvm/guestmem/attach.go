package guestmem

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// sealsWanted keep the size of a memory file for ever: cut short, it would turn
// the next access of any process that maps it into a SIGBUS. F_SEAL_SEAL keeps
// it from being sealed against writing later, which Thaw could not undo.
const sealsWanted = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// Attach maps the RAM of a guest that another process has made with a Memfd
// backing: f is a duplicate of its Region.Fd and holds size bytes, the regions one
// after the other. f comes from a stranger. It must be a memfd of small pages,
// open for reading and writing, of exactly that size, and sealed as New seals it;
// anything else is ErrForeign. Attach keeps a duplicate of its own: f stays the
// caller's to close.
//
// The memory comes frozen: mapped for reading only, so that nothing in this
// process can write it, the kernel on a vCPU's behalf included, and methods that
// write fail with ErrFrozen. Thaw ends that. Close works either way.
//
// o.Backing is not looked at.
func Attach(f *os.File, size uint64, o Options) (*Memory, error) {
	if err := checkSize(size); err != nil {
		return nil, err
	}
	m := &Memory{size: size, fd: -1}
	if err := m.duplicate(f); err != nil {
		return nil, fmt.Errorf("attach guest memory: %w", err)
	}
	if err := checkMemfd(m.fd, size); err != nil {
		_ = m.unmap() // err says more
		return nil, fmt.Errorf("attach guest memory of %d bytes: %w: %w", size, ErrForeign, err)
	}
	m.frozen.Store(true)
	o.Backing = Memfd
	if err := m.mapAll(o); err != nil {
		return nil, m.failed(o, err)
	}
	return m, nil
}

// duplicate takes a descriptor of our own for f.
func (m *Memory) duplicate(f *os.File) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var dupErr error
	err = c.Control(func(fd uintptr) { m.fd, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err == nil && dupErr != nil {
		m.fd, err = -1, fmt.Errorf("duplicate the file descriptor: %w", dupErr)
	}
	return err
}

// checkMemfd says why fd cannot be guest memory. Seals are asked for first: only
// files in memory have any, so what is asked afterwards is true of one of these.
func checkMemfd(fd int, size uint64) error {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return fmt.Errorf("it is no memfd (F_GET_SEALS: %w)", err)
	}
	if seals&sealsWanted != sealsWanted {
		return fmt.Errorf("it has seals %#x and needs those against shrinking, growing and further seals, %#x", seals, sealsWanted)
	}
	if seals&(unix.F_SEAL_WRITE|unix.F_SEAL_FUTURE_WRITE) != 0 {
		return fmt.Errorf("it is sealed against writing (seals %#x)", seals)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return fmt.Errorf("fstatfs: %w", err)
	}
	// Huge pages of hugetlbfs can run out at any access, which is a SIGBUS too.
	if fs.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("its file system has type %#x, a memfd's %#x", fs.Type, unix.TMPFS_MAGIC)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	if uint64(st.Size) != size {
		return fmt.Errorf("it has %d bytes", st.Size)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("F_GETFL: %w", err)
	}
	if flags&unix.O_ACCMODE != unix.O_RDWR {
		return fmt.Errorf("it is not open for reading and writing")
	}
	return nil
}

// Thaw makes attached memory writable: from here on it is as if New had made it.
// Memory that is not frozen stays as it is. The caller must be the only one who
// thaws or closes at the time. On error the memory can only be closed.
func (m *Memory) Thaw() error {
	if m.closed.Load() {
		return fmt.Errorf("thaw guest memory: %w", ErrClosed)
	}
	if !m.frozen.Load() {
		return nil
	}
	for _, r := range m.regions {
		if err := unix.Mprotect(r.Bytes, unix.PROT_READ|unix.PROT_WRITE); err != nil {
			return fmt.Errorf("thaw guest memory at %#x: mprotect: %w", r.GPA, err)
		}
	}
	m.frozen.Store(false)
	return nil
}

// File gives a duplicate of the memfd, for another process to Attach; the caller
// closes it. Anonymous memory has none: ErrBacking.
func (m *Memory) File() (*os.File, error) {
	if m.closed.Load() {
		return nil, fmt.Errorf("file of guest memory: %w", ErrClosed)
	}
	if m.fd < 0 {
		return nil, fmt.Errorf("file of guest memory: %w: it is anonymous, not a memfd", ErrBacking)
	}
	fd, err := unix.FcntlInt(uintptr(m.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("file of guest memory: duplicate the file descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), memfdName), nil
}
