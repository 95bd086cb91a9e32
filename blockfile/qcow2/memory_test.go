package qcow2

import "sync"

// memory is a Host in memory.
type memory struct {
	mu sync.RWMutex
	b  []byte
}

func (m *memory) Preadv(bufs [][]byte, off int64) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, p := range bufs {
		n := 0
		if off < int64(len(m.b)) {
			n = copy(p, m.b[off:])
		}
		clear(p[n:])
		off += int64(len(p))
	}
	return nil
}

func (m *memory) Pwritev(bufs [][]byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range bufs {
		if grow := off + int64(len(p)) - int64(len(m.b)); grow > 0 {
			m.b = append(m.b, make([]byte, grow)...)
		}
		copy(m.b[off:], p)
		off += int64(len(p))
	}
	return nil
}

func (m *memory) Flush() error { return nil }

func (m *memory) Size() (int64, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return int64(len(m.b)), nil
}

func (m *memory) Punch(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off < int64(len(m.b)) {
		clear(m.b[off:min(int64(len(m.b)), off+n)])
	}
	return nil
}
