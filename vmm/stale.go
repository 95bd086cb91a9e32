package vmm

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"godwit/blockfile"
)

// A guest that left and is to run here again, after a migration whose outcome
// nobody knows, has memory of the moment when it left. Its disks must be of that
// moment, too: had it run at the destination, and ended there since, they would
// be newer, and the guest would destroy them.
//
//	source                      image                        destination
//	started: mark A      A, written at t1
//	Release: notes (A, t1) ---> A, t1 <--------------------- Acquire
//	                                                         GO: mark B, then the guest runs
//	                            B, written at t2
//	TakeBack: (B, t2) is not (A, t1): refused

// ErrStaleMemory refuses to run a guest over disks that are newer than its memory.
var ErrStaleMemory = errors.New("the guest's memory is older than its disk")

// mark is what a machine leaves on the images that it writes.
type mark struct {
	Machine string    `json:"machine"`
	Host    string    `json:"host,omitempty"`
	PID     int       `json:"pid"`
	Time    time.Time `json:"time"`
	Take    string    `json:"take"` // tells one taking from the next
}

// markImages says on every writable image that this machine has it now. Where that
// fails the time of the last write still tells.
func (m *Machine) markImages() {
	var take [8]byte
	_, _ = rand.Read(take[:]) // never fails, by crypto/rand's contract
	host, _ := os.Hostname()  // for messages only
	host = host[:min(len(host), 64)]
	text, err := json.Marshal(mark{m.cfg.ID, host, os.Getpid(), time.Now().Round(time.Millisecond), hex.EncodeToString(take[:])})
	for _, d := range m.dev.written() {
		if err == nil {
			err = d.file.SetMark(string(text))
		}
		if err != nil {
			m.log.Warn("cannot say on an image who has it", "err", err)
		}
	}
}

// written lists the drives whose images the guest changes.
func (d *devices) written() []writtenImage {
	var out []writtenImage
	for _, p := range d.parts {
		if d, ok := p.(*drive); ok && !d.IsReadOnly && !d.Snapshot {
			if f, ok := d.file.(blockfile.Historian); ok {
				out = append(out, writtenImage{d, f})
			}
		}
	}
	return out
}

// writtenImage is a drive whose image has a history.
type writtenImage struct {
	*drive
	file blockfile.Historian
}

// unchanged refuses images that were taken or written since they were released.
// With certain it also refuses those of which that cannot be told.
func (d *devices) unchanged(certain bool) error {
	for _, w := range d.written() {
		now, err := w.file.History()
		if err == nil {
			err = w.left.unchanged(now, certain)
		}
		if w.stale = err != nil; w.stale {
			return fmt.Errorf("disk %q (%q): %w", w.ID, w.path, err)
		}
	}
	return nil
}

// departure is an image as a guest left it.
type departure struct {
	blockfile.History
	noted bool
}

func (was departure) unchanged(now blockfile.History, certain bool) error {
	const way = "; if that is no harm, resume it with --force-stale"
	switch {
	case !was.noted || !now.Known():
		if certain {
			return fmt.Errorf("%w, or may be: a device keeps neither a mark nor the time of the last write%s", ErrStaleMemory, way)
		}
		return nil
	case now.Mark != was.Mark:
		return fmt.Errorf("%w: %s%s", ErrStaleMemory, describeMark(now.Mark), way)
	case now.Modified != was.Modified:
		return fmt.Errorf("%w: it was written at %s, after the guest had left%s", ErrStaleMemory, time.Unix(0, now.Modified).Format(time.RFC3339), way)
	}
	return nil
}

// describeMark says whose a mark is. Whoever may write the image may have written
// it.
func describeMark(text string) string {
	var m mark
	if text == "" || json.Unmarshal([]byte(text), &m) != nil {
		return fmt.Sprintf("its mark of who took it last is %.200q now", text)
	}
	return fmt.Sprintf("the machine %.64q (process %d on host %.64q) took it at %s", m.Machine, m.PID, m.Host, m.Time.Format(time.RFC3339))
}

// TakeBack is Reclaim for a guest that goes on here after its migration has ended,
// at its operator's word. It refuses disks that others took or wrote meanwhile, and
// with certain also those of which nobody can tell; with stale it takes all.
func (m *Machine) TakeBack(certain, stale bool) error {
	return m.reclaim(func() error {
		if stale {
			return nil
		}
		return m.dev.unchanged(certain)
	})
}
