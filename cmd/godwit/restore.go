package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"godwit/migration"
	"godwit/migration/wire"
	"godwit/vmm"
)

// restore builds and runs the machine that is saved in the file at path.
func (r *receiver) restore(ctx context.Context, h *host, path string) (*vmm.Machine, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	defer f.Close()
	mark, err := readMark(f)
	if err != nil {
		return nil, fmt.Errorf("restore %q: %w", path, err)
	}
	if mark.last != "" {
		h.say("warning: %q was restored before, %s: two copies of one guest share its addresses, its keys and its disks' past; make sure that only one is used",
			path, mark.last)
	}
	var m *vmm.Machine
	built := func(b *vmm.Machine) {
		m = b
		fitProcs(b.Config().Machine.VCPUCount)
	}
	in := r.incoming(h)
	in.Saved = true
	_, rep, err := migration.Restore(ctx, f, vmm.BuildTarget(in, built), migration.ReceiveOptions{})
	if err != nil {
		return nil, fmt.Errorf("restore %q: %w%s", path, err, damaged(err))
	}
	h.say("the machine %q is restored from %q: %.0f ms, %d pages, %d of them zero", m.Config().ID, path, rep.TotalMS, rep.Pages.Raw+rep.Pages.Zero, rep.Pages.Zero)
	if err := mark.write(time.Now()); err != nil {
		h.say("warning: that it was restored could not be noted, so a second time will bring no warning: %v", err)
	}
	return m, nil
}

// damaged adds what to do about a file that is not whole.
func damaged(err error) string {
	switch {
	case errors.Is(err, wire.ErrNotGodwit):
		return "; this is no file that godwit migrate --to file:PATH wrote"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, wire.ErrFormat), errors.Is(err, migration.ErrVerify):
		return "; the file is cut short or damaged: save the machine again, or use another copy"
	}
	return ""
}

// restoreMark remembers, in a text file beside a saved machine, that it was
// restored: one line each time, a date and the fingerprint of what was
// restored. A line about another machine that once had the same name does not
// count.
type restoreMark struct {
	path  string // "" where nothing can be noted, as for a pipe
	print string
	last  string // when it was last restored, "" for never
}

const (
	// markSuffix is added to the saved machine's path.
	markSuffix = ".restored"
	// maxMark bounds what is read of the mark, bytes.
	maxMark = 64 << 10
	// printedTail is how much of the file's end the fingerprint covers, bytes. The
	// last frame has the checksum of all device state, the guest's clocks among it,
	// so no two saves end alike.
	printedTail = 4096
)

// readMark looks whether the saved machine in f was restored before. f is left
// at its beginning.
func readMark(f *os.File) (restoreMark, error) {
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return restoreMark{}, err
	}
	tail := make([]byte, min(st.Size(), printedTail))
	if _, err := f.ReadAt(tail, st.Size()-int64(len(tail))); err != nil {
		return restoreMark{}, err
	}
	sum := sha256.Sum256(tail)
	m := restoreMark{path: f.Name() + markSuffix, print: fmt.Sprintf("%d-%x", st.Size(), sum[:16])}
	text, err := readBounded(m.path, maxMark)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, fmt.Errorf("look whether it was restored before: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if when, print, ok := strings.Cut(strings.TrimSpace(line), " "); ok && print == m.print {
			if t, err := time.Parse(time.RFC3339, when); err == nil {
				m.last = t.Format(time.RFC3339)
			}
		}
	}
	return m, nil
}

// write notes that the machine was restored.
func (m restoreMark) write(at time.Time) error {
	if m.path == "" {
		return nil
	}
	f, err := os.OpenFile(m.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s %s\n", at.UTC().Format(time.RFC3339), m.print)
	return errors.Join(err, f.Close())
}
