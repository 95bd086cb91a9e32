package serial

import (
	"context"
	"fmt"
)

// Input sends p to the guest. It returns when all of p is queued, which is
// long before the guest has read it, or with the number of bytes that were
// queued when ctx ended or the port was closed. Calls take turns. It never
// makes a vCPU wait.
func (u *UART) Input(ctx context.Context, p []byte) (n int, err error) {
	// First, since the selects below choose at random.
	if err := u.inputEnded(ctx); err != nil {
		return 0, err
	}
	select {
	case u.inputTurn <- struct{}{}:
		defer func() { <-u.inputTurn }()
	case <-ctx.Done():
		return 0, u.inputEnded(ctx)
	case <-u.closed:
		return 0, u.inputEnded(ctx)
	}
	for {
		n += u.enqueue(p[n:])
		if n == len(p) {
			return n, nil
		}
		select {
		case <-u.inputRoom:
		case <-ctx.Done():
			return n, u.inputEnded(ctx)
		case <-u.closed:
			return n, u.inputEnded(ctx)
		}
	}
}

func (u *UART) inputEnded(ctx context.Context) error {
	select {
	case <-u.closed:
		return ErrClosed
	default:
	}
	if ctx.Err() != nil {
		return fmt.Errorf("send input to the guest: %w", context.Cause(ctx))
	}
	return nil
}

// enqueue takes what fits of p.
func (u *UART) enqueue(p []byte) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := u.queue.write(p)
	if u.fill() > 0 {
		// An edge even if one was sent before: should that have been lost, the
		// next key wakes the guest.
		u.raised = false
	}
	u.update()
	return n
}

// fill moves input to the FIFO while the guest is ready for it, and returns
// how many bytes.
func (u *UART) fill() int {
	if u.reg.mcr&(mcrRTS|mcrLoop) != mcrRTS {
		return 0
	}
	moved := 0
	for u.queue.len() > 0 && u.fifo.len() < u.fifoDepth() {
		u.fifo.put(u.queue.pop())
		moved++
	}
	if moved > 0 {
		signal(u.inputRoom)
	}
	return moved
}

// fifoDepth is 1 while the FIFOs are off: RBR alone, as in a 16450.
func (u *UART) fifoDepth() int {
	if u.reg.fcr&fcrEnable != 0 {
		return fifoSize
	}
	return 1
}

// readRBR takes the oldest byte. An empty RBR reads as 0.
func (u *UART) readRBR() uint8 {
	var v uint8
	if u.fifo.len() > 0 {
		v = u.fifo.pop()
	}
	u.fill()
	u.update()
	return v
}

// loopBack receives what was just sent, in loopback mode. Without a FIFO a new
// byte replaces an unread one; a full FIFO keeps what it has and the new byte
// is lost (PC16550D 8.4, overrun).
func (u *UART) loopBack(v uint8) {
	if u.fifo.len() < u.fifoDepth() {
		u.fifo.put(v)
		return
	}
	u.reg.lsrErrors |= lsrOverrun
	if u.fifoDepth() == 1 {
		u.fifo.reset()
		u.fifo.put(v)
	}
}
