package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// keptLines bounds what is kept of a child's output.
const keptLines = 20000

// lineLog keeps the lines of a stream with the time they came.
type lineLog struct {
	mu    sync.Mutex
	lines []string
	at    []time.Time
	more  chan struct{} // closed and replaced at every line
	ended bool
	torn  bool // the last line has no end: it goes on where the guest went
}

func newLineLog() *lineLog { return &lineLog{more: make(chan struct{})} }

// read takes lines from r until it ends.
func (l *lineLog) read(r io.Reader) {
	b := bufio.NewReaderSize(r, 64<<10)
	for {
		// A line that does not fit the buffer counts as several.
		line, err := b.ReadSlice('\n')
		if len(line) > 0 {
			l.add(string(line))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			break
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.tell()
}

func (l *lineLog) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.torn = !strings.HasSuffix(line, "\n")
	if len(l.lines) < keptLines {
		l.lines, l.at = append(l.lines, strings.TrimRight(line, "\r\n")), append(l.at, time.Now())
	}
	l.tell()
}

// tell wakes who waits. mu is held.
func (l *lineLog) tell() {
	close(l.more)
	l.more = make(chan struct{})
}

// joined gives the lines from number n on, and those of next behind them: a
// console is one stream of bytes, and a guest may move in the middle of a line.
func (l *lineLog) joined(n int, next *lineLog) []string {
	before, after := l.from(n), next.from(0)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.torn && len(before) > 0 && len(after) > 0 {
		before[len(before)-1] += after[0]
		after = after[1:]
	}
	return append(before, after...)
}

// from gives the lines from number n on.
func (l *lineLog) from(n int) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.lines[min(n, len(l.lines)):]...)
}

func (l *lineLog) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.lines)
}

// wait gives the first line from number n on for which is holds.
func (l *lineLog) wait(ctx context.Context, n int, is func(string) bool) (string, time.Time, error) {
	for {
		l.mu.Lock()
		for ; n < len(l.lines); n++ {
			if is(l.lines[n]) {
				defer l.mu.Unlock()
				return l.lines[n], l.at[n], nil
			}
		}
		more, ended := l.more, l.ended
		l.mu.Unlock()
		if ended {
			return "", time.Time{}, io.ErrUnexpectedEOF
		}
		select {
		case <-more:
		case <-ctx.Done():
			return "", time.Time{}, context.Cause(ctx)
		}
	}
}

// child is a godwit process of the demo.
type child struct {
	name      string
	cmd       *exec.Cmd
	stdin     io.WriteCloser
	out, diag *lineLog
	began     time.Time
	done      chan struct{} // closed when it has ended; err says how
	err       error
}

// startChild starts this program with args.
func startChild(name string, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{name: name, cmd: exec.Command(self, args...), out: newLineLog(), diag: newLineLog(), done: make(chan struct{})}
	// A demo that dies takes its children along. The signal is tied to the thread
	// that starts them, and Go ends no thread but those of locked goroutines. In a
	// group of their own they are spared a Ctrl-C, so that the demo can end them in
	// good order.
	c.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGTERM, Setpgid: true}
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	stderr, err := c.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	c.began = time.Now()
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	var readers sync.WaitGroup
	readers.Go(func() { c.out.read(stdout) })
	readers.Go(func() { c.diag.read(stderr) })
	go func() {
		defer close(c.done)
		readers.Wait() // before Wait, which closes the pipes
		c.err = c.cmd.Wait()
	}()
	return c, nil
}

// wait waits for the child's end.
func (c *child) wait(ctx context.Context) error {
	select {
	case <-c.done:
		if c.err != nil {
			return fmt.Errorf("%s: %w", c.name, c.err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s has not ended: %w", c.name, context.Cause(ctx))
	}
}

// end makes sure that the child is gone.
func (c *child) end() {
	for _, sig := range []os.Signal{unix.SIGTERM, unix.SIGKILL} {
		select {
		case <-c.done:
			return
		default:
		}
		_ = c.cmd.Process.Signal(sig) // it may be gone by now
		select {
		case <-c.done:
			return
		case <-time.After(5 * time.Second):
		}
	}
	<-c.done
}
