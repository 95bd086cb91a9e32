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

// Thaw makes attached memory writable: from here on it is as if New had made it. It
// marks the file for whoever gave it away: see Taken. That is the last thing that
// may fail, so memory that could not be thawed is not taken either; and it is
// before anybody writes, as vCPUs stand still and the methods here are frozen.
// Memory that is not frozen stays as it is. The caller must be the only one who
// thaws or closes at the time, and no vCPU may run. On error the memory can only be closed.
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
	if err := m.markTaken(); err != nil {
		return fmt.Errorf("thaw guest memory: mark it as taken: %w", err)
	}
	m.frozen.Store(false)
	return nil
}

// takenBits of a memfd's mode count, modulo 16, how often it was thawed. Nobody
// opens a memfd by its mode, so the bits are free; seals do not cover them.
var takenBits = [...]uint32{0o002, 0o004, 0o020, 0o040}

// markTaken counts the thawing in the file's mode.
func (m *Memory) markTaken() error {
	var st unix.Stat_t
	if err := unix.Fstat(m.fd, &st); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	mode := st.Mode & 0o7777
	for _, bit := range takenBits { // adds 1, with carry
		mode ^= bit
		if mode&bit != 0 {
			break
		}
	}
	if err := unix.Fchmod(m.fd, mode); err != nil {
		return fmt.Errorf("fchmod: %w", err)
	}
	return nil
}

// Taken tells whether a process that attached to the file has thawed it since File
// gave it away: the guest may have run there, and this memory then is not what
// it was. Memory that was not given away is not taken.
func (m *Memory) Taken() (bool, error) {
	given := m.given.Load()
	if given == nil {
		return false, nil
	}
	if m.closed.Load() {
		return false, fmt.Errorf("ask whether guest memory was taken: %w", ErrClosed)
	}
	var st unix.Stat_t
	if err := unix.Fstat(m.fd, &st); err != nil {
		return false, fmt.Errorf("ask whether guest memory was taken: fstat: %w", err)
	}
	return st.Mode != *given, nil
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
	var st unix.Stat_t
	if err := unix.Fstat(m.fd, &st); err != nil {
		return nil, fmt.Errorf("file of guest memory: fstat: %w", err)
	}
	fd, err := unix.FcntlInt(uintptr(m.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("file of guest memory: duplicate the file descriptor: %w", err)
	}
	m.given.Store(&st.Mode)
	return os.NewFile(uintptr(fd), memfdName), nil
}
