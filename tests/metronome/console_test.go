package metronome_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"godwit/boot/metronome"
	"godwit/vmm"
)

// console is the serial port of one copy of the guest. After a move its first
// line can be the rest of one that began at the source; only whole lines count.
type console struct {
	mirror func([]byte) // sees every write first; may be nil

	mu      sync.Mutex
	changed chan struct{} // closed at each whole line, then replaced
	line    []byte
	beats   []metronome.Beat
	bad     []metronome.Bad
	loads   []metronome.IOLine
	fatal   []string // lines with which a guest ends
}

func newConsole(mirror func([]byte)) *console {
	return &console{mirror: mirror, changed: make(chan struct{})}
}

// Write takes what the guest prints.
func (c *console) Write(p []byte) (int, error) {
	if c.mirror != nil {
		c.mirror(p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.line = append(c.line, p...)
	for {
		line, rest, whole := bytes.Cut(c.line, []byte("\r\n"))
		if !whole {
			return len(p), nil
		}
		c.take(string(line))
		c.line = rest
		close(c.changed)
		c.changed = make(chan struct{})
	}
}

func (c *console) take(line string) {
	switch metronome.Kind(line) {
	case metronome.LineBeat:
		if b, err := metronome.ParseBeat(line); err == nil {
			c.beats = append(c.beats, b)
			return
		}
		c.fatal = append(c.fatal, line)
	case metronome.LineBad:
		if b, err := metronome.ParseBad(line); err == nil {
			c.bad = append(c.bad, b)
			return
		}
		c.fatal = append(c.fatal, line)
	case metronome.LineIO:
		if l, err := metronome.ParseIO(line); err == nil {
			c.loads = append(c.loads, l)
			return
		}
		c.fatal = append(c.fatal, line)
	case metronome.LineFault, metronome.LineError:
		c.fatal = append(c.fatal, line)
	}
}

// until waits for a condition, which is looked at under the lock after each line.
func (c *console) until(ctx context.Context, ok func() bool) error {
	for {
		c.mu.Lock()
		done, changed, fatal := ok(), c.changed, c.fatal
		c.mu.Unlock()
		switch {
		case len(fatal) > 0:
			return fmt.Errorf("the guest printed %q", fatal)
		case done:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the guest's console: %w", ctx.Err())
		}
	}
}

// next waits for n more beats and returns them.
func (c *console) next(ctx context.Context, n int) ([]metronome.Beat, error) {
	c.mu.Lock()
	have := len(c.beats)
	c.mu.Unlock()
	return c.after(ctx, have, n)
}

// first waits until n beats have been printed in all and returns these.
func (c *console) first(ctx context.Context, n int) ([]metronome.Beat, error) {
	return c.after(ctx, 0, n)
}

func (c *console) after(ctx context.Context, have, n int) ([]metronome.Beat, error) {
	if err := c.until(ctx, func() bool { return len(c.beats) >= have+n }); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]metronome.Beat(nil), c.beats[have:have+n]...), nil
}

// badPages lists the reports so far.
func (c *console) badPages() []metronome.Bad {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]metronome.Bad(nil), c.bad...)
}

// load waits for a line of the load on a device that is as wanted.
func (c *console) load(ctx context.Context, dev string, want func(metronome.IOLine) bool) (l metronome.IOLine, err error) {
	err = c.until(ctx, func() bool {
		for i := len(c.loads) - 1; i >= 0; i-- {
			if l = c.loads[i]; l.Dev == dev && want(l) {
				return true
			}
		}
		return false
	})
	return l, err
}

// readInfo reads the guest's info page, trying again while the guest is changing
// it.
func readInfo(ctx context.Context, m *vmm.Machine) (metronome.Info, error) {
	page := make([]byte, metronome.PageSize)
	for {
		if err := m.Memory().ReadAt(page, metronome.InfoGPA); err != nil {
			return metronome.Info{}, err
		}
		in, err := metronome.ParseInfo(page)
		if !errors.Is(err, metronome.ErrInfoBusy) || ctx.Err() != nil {
			return in, err
		}
		time.Sleep(time.Millisecond)
	}
}

// writes is how many page writes the guest has done, this moment.
func writes(in metronome.Info) (n uint64) {
	for _, c := range in.CPUs {
		n += c.Writes
	}
	return n
}

// verified is how many pages its sweeps have verified, this moment.
func verified(in metronome.Info) (n uint64) {
	for _, c := range in.CPUs {
		n += c.Verified
	}
	return n
}
