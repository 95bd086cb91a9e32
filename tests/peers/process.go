package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// starter starts processes that die with this program, however it ends. The
// kernel ties that to the thread that started them, so one thread starts all and
// never ends.
type starter struct{ orders chan func() }

func newStarter() *starter {
	s := &starter{orders: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for order := range s.orders {
			order()
		}
	}()
	return s
}

func (s *starter) start(cmd *exec.Cmd) error {
	// A group of its own: Ctrl-C is for this program, which then ends its children.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	done := make(chan error)
	s.orders <- func() { done <- cmd.Start() }
	return <-done
}

// process is a child.
type process struct {
	name string
	cmd  *exec.Cmd
	diag *limited // its stderr
	done chan struct{}
	err  error // of Wait; valid once done is closed
}

// launch starts a program whose stdout goes to out.
func (s *starter) launch(out io.Writer, program string, args ...string) (*process, error) {
	p := &process{name: filepath.Base(program), cmd: exec.Command(program, args...), diag: &limited{}, done: make(chan struct{})}
	if len(args) > 0 {
		p.name += " " + args[0]
	}
	p.cmd.Stdout, p.cmd.Stderr = out, p.diag
	if err := s.start(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

// end kills the process, if it still runs, and waits until its memory is free.
func (p *process) end() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// ended waits for the end of a process that should end well.
func (p *process) ended(ctx context.Context) error {
	select {
	case <-p.done:
	case <-ctx.Done():
		return fmt.Errorf("wait for %s to end: %w", p.name, context.Cause(ctx))
	}
	if p.err != nil {
		return p.lost()
	}
	return nil
}

// lost says how a process ended that should not have, or not so.
func (p *process) lost() error {
	how := "exit code 0"
	if p.err != nil {
		how = p.err.Error()
	}
	return fmt.Errorf("%s ended: %s; it said: %s", p.name, how, p.diag.tail())
}

// await waits until is holds; each change of w is a reason to look again.
func await(ctx context.Context, what string, w *watch, ps []*process, is func() (bool, error)) error {
	for {
		more := w.next()
		ok, err := is()
		if ok || err != nil {
			return err
		}
		for _, p := range ps {
			select {
			case <-p.done:
				if ok, err := is(); ok || err != nil {
					return err
				}
				return fmt.Errorf("wait for %s: %w", what, p.lost())
			default:
			}
		}
		// A process that ends is noticed at the latest then.
		tick := time.NewTimer(100 * time.Millisecond)
		select {
		case <-more:
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return fmt.Errorf("wait for %s: %w", what, context.Cause(ctx))
		}
		tick.Stop()
	}
}

// watch wakes those who wait for a change.
type watch struct {
	mu   sync.Mutex
	more chan struct{}
}

// next is closed at the next change.
func (w *watch) next() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.more == nil {
		w.more = make(chan struct{})
	}
	return w.more
}

func (w *watch) changed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.more != nil {
		close(w.more)
		w.more = nil
	}
}

// limited keeps the end of what is written to it.
type limited struct {
	watch
	text bytes.Buffer
}

const keepText = 16 << 10

func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	l.text.Write(p)
	if over := l.text.Len() - keepText; over > 0 {
		l.text.Next(over)
	}
	l.mu.Unlock()
	l.changed()
	return len(p), nil
}

func (l *limited) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// tail is the last lines in one, for an error message.
func (l *limited) tail() string {
	lines := strings.FieldsFunc(l.String(), func(r rune) bool { return r == '\n' || r == '\r' })
	if len(lines) == 0 {
		return "nothing"
	}
	return strings.Join(lines[max(len(lines)-3, 0):], " | ")
}
