package migration

import (
	"fmt"

	"godwit/migration/wire"
)

const (
	// populatePiece is how much memory one call of Target.Populate gets: a huge page.
	populatePiece = 2 << 20
	// populateLead is how far memory is prepared ahead of the data, bytes: far enough
	// that streams find it ready, near enough that what the kernel has just zeroed is
	// still in the processor's cache when the data comes.
	populateLead = 16 << 20
	// populateShare is how much may be prepared for each byte of data that came: what
	// is announced, or comes as zeros, costs memory only where data comes as well.
	populateShare = 8
)

// populator prepares announced memory ahead of the data.
func (r *receiver) populator() {
	defer close(r.popDone)
	var passed, prepared uint64 // bytes: announced up to here, and of them prepared
	for {
		var es []Extent
		var more bool
		select {
		case es, more = <-r.populate:
		case <-r.ctx.Done():
		}
		if !more {
			return
		}
		for _, e := range es {
			for e.Len > 0 {
				n := min(e.Len, populatePiece-e.GPA%populatePiece)
				if !r.keepLead(passed, prepared) {
					return
				}
				first := e.GPA >> pageShift
				here := r.page.seen.all(first, first+n>>pageShift)
				passed += n
				if here {
					e.GPA, e.Len = e.GPA+n, e.Len-n
					continue // by content, or as zeros, which need none
				}
				if err := r.target.Populate([]Extent{{GPA: e.GPA, Len: n}}); err != nil {
					r.fail(fmt.Errorf("populate guest memory: %w", err))
					return
				}
				e.GPA, e.Len = e.GPA+n, e.Len-n
				prepared += n
			}
		}
	}
}

// keepLead waits until no more than the lead was passed ahead of the pages, and no
// more was prepared than the data that came is worth. It says false when nothing
// more need be: after round 1 every announced page has come.
func (r *receiver) keepLead(passed, prepared uint64) bool {
	for {
		select {
		case <-r.ctx.Done():
			return false
		case <-r.popStop:
			return false
		default:
		}
		if r.roundOver() {
			return false
		}
		c := r.page.counts()
		if passed <= c.sent()*pageSize+populateLead && prepared <= c.data()*pageSize*populateShare+populateLead {
			return true
		}
		select {
		case <-r.arrived:
		case <-r.ctx.Done():
		case <-r.popStop:
		}
	}
}

// roundOver says whether a round has passed.
func (r *receiver) roundOver() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.round > 0
}

// copyMemory hears the extents while the streams fill memory, and waits for the first
// message of the next phase, which comes once the last round has passed.
func (r *receiver) copyMemory() error {
	if r.local() {
		return nil // it is here
	}
	if err := r.enter(PhaseCopy); err != nil {
		return err
	}
	if err := r.hearExtents(); err != nil {
		return err
	}
	if err := r.peek(); err != nil && !r.roundsOver() {
		return err
	}
	return nil // getState hears what came
}

func (r *receiver) hearExtents() error {
	defer close(r.populate)
	for first, last := true, false; !last; first = false {
		m, err := r.next()
		if err != nil {
			return err
		}
		if first {
			defer r.many()()
		}
		if err := checkChunk(wire.TypeExtents, m, 0, wire.MaxBody); err != nil {
			return err
		}
		es, err := wire.DecodeExtents(m.body)
		if err != nil {
			return err
		}
		if es, err = r.mem.split(es); err != nil {
			return err
		}
		select {
		case r.populate <- es:
		case <-r.popDone: // failed, and r.ctx says why
		}
		last = m.last
	}
	return nil
}

// roundsOver says whether every stream has passed the last round.
func (r *receiver) roundsOver() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.passed.last
}
