package console

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// guardEnv makes a process the guard of its parent's terminal. Its value
// carries no data: the terminal is descriptor 0, the pipe 3.
const guardEnv = "GODWIT_TERMINAL_GUARD"

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// foreground says whether the terminal listens to this process: setting the
// mode of another job's terminal would stop us (SIGTTOU).
func foreground(f *os.File) bool {
	group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// terminal is a terminal in raw mode.
type terminal struct {
	f     *os.File
	state *term.State
	guard *exec.Cmd
	pipe  *os.File
}

// openTerminal puts f into raw mode. It gives nil where f is no terminal or
// another job's.
func openTerminal(f *os.File) (*terminal, error) {
	if !isTerminal(f) || !foreground(f) {
		return nil, nil
	}
	t := &terminal{f: f}
	// The guard remembers the mode that it finds, so it must look first.
	if err := t.startGuard(); err != nil {
		return nil, fmt.Errorf("guard the terminal: %w", err)
	}
	var err error
	if t.state, err = term.MakeRaw(int(f.Fd())); err != nil {
		return nil, errors.Join(fmt.Errorf("set the terminal to raw mode: %w", err), t.stopGuard())
	}
	return t, nil
}

// Raw puts f into raw mode, if it is a terminal that listens to this process:
// raw tells. restore undoes it and is never nil; a guard does if this process
// dies first.
func Raw(f *os.File) (raw bool, restore func() error, err error) {
	t, err := openTerminal(f)
	if t == nil {
		return false, func() error { return nil }, err
	}
	return true, t.restore, nil
}

func (t *terminal) startGuard() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	ackR, ackW, err := os.Pipe()
	if err != nil {
		return errors.Join(err, w.Close())
	}
	defer ackR.Close()
	t.guard = exec.Command(self)
	t.guard.Env = append(os.Environ(), guardEnv+"=1")
	t.guard.Stdin = t.f
	t.guard.ExtraFiles = []*os.File{r, ackW}
	err = t.guard.Start()
	_ = ackW.Close() // the guard has its own
	if err == nil {
		if n, _ := ackR.Read(make([]byte, 1)); n != 1 {
			err = errors.Join(errors.New("the guard ended at once"), t.guard.Wait())
		}
	}
	if err != nil {
		return errors.Join(err, w.Close())
	}
	t.pipe = w
	return nil
}

// restore gives the terminal its mode back and dismisses the guard.
func (t *terminal) restore() error {
	return errors.Join(term.Restore(int(t.f.Fd()), t.state), t.stopGuard())
}

func (t *terminal) stopGuard() error {
	_, err := t.pipe.Write([]byte{0})
	return errors.Join(err, t.pipe.Close(), t.guard.Wait())
}

// Guard is called first in main. In a process started as a guard it waits for
// its parent's end and does not return.
func Guard() {
	if os.Getenv(guardEnv) == "" {
		return
	}
	// It must outlive whatever the terminal sends to the whole job.
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGTSTP, unix.SIGTTOU, unix.SIGTTIN)
	state, err := term.GetState(0)
	if err != nil {
		os.Exit(1)
	}
	ack, pipe := os.NewFile(4, "ack"), os.NewFile(3, "pipe")
	if _, err := ack.Write([]byte{0}); err != nil {
		os.Exit(1)
	}
	_ = ack.Close() // it was said
	if n, _ := pipe.Read(make([]byte, 1)); n == 0 {
		_ = term.Restore(0, state) // nobody is left to tell
	}
	os.Exit(0)
}
