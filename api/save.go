package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"godwit/migration"
	"godwit/migration/wire"
)

// save is a migration into a file, with the face of a migration.Session. The
// engine writes a file in one go, so progress is its phases and cannot be
// retuned.
type save struct {
	src    migration.Source
	path   string
	o      migration.SendOptions
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	began time.Time
	p     migration.Progress
}

var _ engine = (*save)(nil)

// errSaveTuning refuses to change what a file has not.
var errSaveTuning = errors.New("a machine on its way into a file cannot be retuned; cancel it and start again")

func newSave(src migration.Source, path string, o migration.SendOptions) (*save, error) {
	if err := migration.CheckSave(o); err != nil {
		return nil, err
	}
	if err := checkSavePath(path); err != nil {
		return nil, err
	}
	s := &save{path: path, o: o, p: migration.Progress{Phase: migration.PhaseIdle, Duty: 100, Limit: o.Bandwidth}}
	s.src = &watchedSource{Source: src, enter: s.enter}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s, nil
}

// checkSavePath makes sure that nothing is replaced but an older saved machine:
// a slip of the pen must not cost a disk image.
func checkSavePath(path string) error {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil && !st.Mode().IsRegular():
		return fmt.Errorf("save to %q: what is there is no file; choose another name", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("save to %q: look at what is there: %w", path, err)
	}
	defer f.Close()
	head := make([]byte, len(wire.Preamble))
	n, err := io.ReadFull(f, head)
	if n == 0 && errors.Is(err, io.EOF) || bytes.Equal(head, []byte(wire.Preamble)) {
		return nil
	}
	return fmt.Errorf("save to %q: what is there is no saved machine and will not be replaced; choose another name", path)
}

// Run saves the machine. Ending ctx cancels.
func (s *save) Run(ctx context.Context) (*migration.Report, error) {
	defer s.cancel(nil)
	defer context.AfterFunc(ctx, func() { s.cancel(context.Cause(ctx)) })()
	s.mu.Lock()
	s.began = time.Now()
	s.mu.Unlock()
	run := s.ctx
	if t := s.o.Timeout; t > 0 {
		var stop context.CancelFunc
		run, stop = context.WithTimeoutCause(run, t, fmt.Errorf("%w: not saved after %v", migration.ErrTimeout, t))
		defer stop()
	}
	rep, err := migration.SaveFile(run, s.src, s.path, s.o)
	if rep == nil { // it failed before it began
		rep = &migration.Report{Status: migration.Failed, Error: err.Error(), Mode: migration.StopAndCopy, Rounds: []migration.RoundReport{}}
	}
	s.mu.Lock()
	s.p.Done, s.p.Elapsed, s.p.WireBytes = true, time.Since(s.began), rep.WireBytes
	s.mu.Unlock()
	return rep, err
}

// Cancel ends it, if it is not too late for that, with the guest running on.
func (s *save) Cancel(reason string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.p.Done {
		return migration.ErrNotRunning
	}
	s.cancel(fmt.Errorf("%w: %s", migration.ErrCancelled, reason))
	return nil
}

// Progress is a snapshot.
func (s *save) Progress() migration.Progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.p
	if !s.began.IsZero() && !p.Done {
		p.Elapsed = time.Since(s.began)
	}
	return p
}

// Tune refuses.
func (s *save) Tune(migration.Tuning) error { return errSaveTuning }

// enter notes a phase and tells whoever watches. pages is how many there are to
// write, where that is known.
func (s *save) enter(phase migration.Phase, pages uint64) {
	s.mu.Lock()
	s.p.Phase = phase
	if pages > 0 {
		s.p.Round, s.p.RoundPages = 1, pages
	}
	s.mu.Unlock()
	s.o.OnProgress(s.Progress())
}

// watchedSource tells which phase the engine is in by what it asks of the
// machine.
type watchedSource struct {
	migration.Source
	enter func(phase migration.Phase, pages uint64)
}

// Settle implements migration.Settler.
func (w *watchedSource) Settle(ctx context.Context) error {
	if s, ok := w.Source.(migration.Settler); ok {
		return s.Settle(ctx)
	}
	return nil
}

func (w *watchedSource) Pause(ctx context.Context) error {
	w.enter(migration.PhasePause, 0)
	return w.Source.Pause(ctx)
}

func (w *watchedSource) Touched() ([]migration.Extent, error) {
	extents, err := w.Source.Touched()
	var pages uint64
	for _, e := range extents {
		pages += e.Len / wire.PageSize
	}
	w.enter(migration.PhaseLastPages, pages)
	return extents, err
}

func (w *watchedSource) SaveState(to io.Writer) error {
	w.enter(migration.PhaseState, 0)
	return w.Source.SaveState(to)
}

func (w *watchedSource) Release() error {
	w.enter(migration.PhasePrepare, 0)
	return w.Source.Release()
}

// Reclaim is asked for when it failed, as Resume is.
func (w *watchedSource) Reclaim() error {
	w.enter(migration.PhaseUndo, 0)
	return w.Source.Reclaim()
}

func (w *watchedSource) Resume() error {
	w.enter(migration.PhaseUndo, 0)
	return w.Source.Resume()
}
