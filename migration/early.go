package migration

import (
	"fmt"
	"time"

	"godwit/migration/policy"
)

// earlyLook is for how long the guest is watched before round 1, for a codec that
// wants to know which pages are hot.
const earlyLook = 50 * time.Millisecond

// lookEarly shows an Observer what the guest writes before anything is sent. A
// log that begins with every bit set (KVM_DIRTY_LOG_INITIALLY_SET) tells nothing
// yet. Then there is a look only for a codec that needs one, after the pages to
// send were cleared in it: each is cleared again just before it is read, so what
// is written meanwhile goes as it then is.
func (e *engine) lookEarly() error {
	o, ok := e.o.Policies.Codec.(policy.Observer)
	if !ok {
		return nil
	}
	early := make(Bitmap, e.mem.words)
	if err := e.readLog(early); err != nil {
		return err
	}
	if early.Count() > e.pending.Count()/2 {
		needed := false
		if n, ok := o.(policy.EarlyObserver); ok {
			if err := e.s.asking("codec", n, func() { needed = n.NeedsEarly() }); err != nil {
				return err
			}
		}
		if !needed {
			return nil
		}
		if err := e.clearPending(); err != nil {
			return err
		}
		clear(early)
	}
	if err := sleep(e.ctx, earlyLook); err != nil {
		return err
	}
	if err := e.readLog(early); err != nil {
		return err
	}
	e.mem.clip(early)
	return e.s.asking("codec", o, func() { o.Observe(e.last, early.drain(nil)) })
}

func (e *engine) readLog(dst Bitmap) error {
	if err := e.src.Dirty(dst); err != nil {
		return fmt.Errorf("read dirty log: %w", err)
	}
	return nil
}
