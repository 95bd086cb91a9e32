package virtio

import "godwit/virtio/queue"

// Line is a queue with what its worker needs around it. A worker that does
// something of its own with each chain embeds one.
type Line struct {
	Queue    *queue.Queue
	Notifier Notifier
	Workers  *Workers // that the worker is one of
}

// Serve lets do work on the queue, unless that has failed. What do fails with is
// the end of the device, until its driver resets it.
func (l *Line) Serve(do func() error) {
	if l.Queue.Stopped() {
		return
	}
	if err := do(); err != nil {
		l.Notifier.NeedsReset(err)
	}
}

// Push gives a chain back, and the driver an interrupt if it wants one.
func (l *Line) Push(c *queue.Chain, written uint32) error {
	notify, err := l.Queue.Push(c, written)
	if notify {
		l.Notifier.Used()
	}
	return err
}

// Pop gives the next chain, and asks for a kick when there is none.
func (l *Line) Pop() (*queue.Chain, error) {
	for {
		c, err := l.Queue.Pop()
		if c != nil || err != nil {
			return c, err
		}
		if more, err := l.Queue.EnableNotification(); err != nil || !more {
			return nil, err
		}
	}
}

// Each pops chains for do until the queue is empty, do says not to go on, or the
// workers are to yield. Kicks are off meanwhile. A do that stops has put its chain
// back, and something else wakes the worker.
func (l *Line) Each(do func(*queue.Chain) (goOn bool, err error)) error {
	for {
		if err := l.Queue.DisableNotification(); err != nil {
			return err
		}
		for {
			if l.Workers.Yield() {
				return nil
			}
			c, err := l.Queue.Pop()
			if err != nil {
				return err
			}
			if c == nil {
				break
			}
			if goOn, err := do(c); err != nil || !goOn {
				return err
			}
		}
		if more, err := l.Queue.EnableNotification(); err != nil || !more {
			return err
		}
	}
}
