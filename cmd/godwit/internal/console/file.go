package console

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"

	"godwit/cmd/godwit/internal/units"
)

const (
	// minLimit is the least that a file's limit may be, bytes.
	minLimit = 4 << 10
	// maxWords is how often one file says that it lost output or takes it again: a
	// host that is nearly full could have it say so with every line.
	maxWords = 16
)

// file is a console in a file, with another for what was printed before where
// it has a limit:
//
//	PATH    the latest output, up to limit bytes
//	PATH.1  what filled PATH the last time
//
// What cannot be written is lost, and that is said: here, in the file when it
// takes output again, and in the machine's figures. The guest does not wait.
type file struct {
	path  string
	limit int64 // 0 for none
	say   func(string)

	mu    sync.Mutex
	f     *os.File // nil where it could not be made anew
	size  int64
	lost  int64 // bytes since the last that were written
	err   error // why
	words int
}

// parseFile reads PATH[,limit=SIZE]. A comma in the path is written twice.
func parseFile(text string) (Spec, error) {
	pairs, err := units.ParsePairs("file=" + text)
	if err != nil {
		return Spec{}, fmt.Errorf("%w: %w", ErrSpec, err)
	}
	s := Spec{Kind: "file", Path: pairs[0].Value}
	for _, p := range pairs[1:] {
		if p.Key != "limit" || p.Value == "" {
			return Spec{}, fmt.Errorf("%w file:%.200q: %q; write file:PATH[,limit=SIZE], and a comma in PATH twice", ErrSpec, text, p.Key)
		}
		n, err := units.ParseSize(p.Value)
		if err != nil {
			return Spec{}, fmt.Errorf("%w: %w", ErrSpec, err)
		}
		if n < minLimit || n > math.MaxInt64/2 {
			return Spec{}, fmt.Errorf("%w: a limit of %d bytes; give at least 4K, as in limit=16M", ErrSpec, n)
		}
		s.Limit = int64(n)
	}
	return s, nil
}

func openFile(s Spec) (*file, error) {
	k := &file{path: s.Path, limit: s.Limit, say: s.Say}
	if err := k.open(); err != nil {
		return nil, err
	}
	if k.limit == 0 {
		return k, nil
	}
	st, err := k.f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%q is not a regular file, so it can have no limit", k.path)
	}
	if err == nil {
		// What a link leads to is renamed, not the link.
		k.path, err = filepath.EvalSymlinks(k.path)
	}
	if err != nil {
		return nil, errors.Join(err, k.f.Close())
	}
	k.size = st.Size()
	return k, nil
}

func (k *file) open() (err error) {
	k.f, err = os.OpenFile(k.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	return err
}

// Write appends p, or says what of it is lost.
func (k *file) Write(p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	text, mark := p, 0
	if k.lost > 0 {
		note := fmt.Sprintf("\r\n[godwit: %d bytes of serial output lost]\r\n", k.lost)
		text, mark = append([]byte(note), p...), len(note)
	}
	done, err := k.append(text)
	n := max(0, done-mark)
	if err != nil {
		if k.lost == 0 {
			k.tell("serial output is lost: %v; make room there: what the guest prints then is written again", err)
		}
		k.lost += int64(len(p) - n)
		k.err = err
		return n, err
	}
	if mark > 0 {
		k.tell("serial output goes to %q again; %d bytes are lost", k.path, k.lost)
		k.lost = 0
	}
	return n, nil
}

// append writes text, in as many files as its limit asks for.
func (k *file) append(text []byte) (done int, err error) {
	for done < len(text) {
		piece := text[done:]
		if k.limit > 0 {
			if k.size >= k.limit || k.size > 0 && k.size+int64(len(piece)) > k.limit && int64(len(piece)) <= k.limit {
				if err := k.rotate(); err != nil {
					return done, err
				}
			}
			piece = piece[:min(int64(len(piece)), k.limit-k.size)]
		}
		if k.f == nil {
			if err := k.open(); err != nil {
				return done, err
			}
		}
		n, err := k.f.Write(piece)
		k.size += int64(n)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// rotate begins the file anew and keeps what is in it as PATH.1.
func (k *file) rotate() error {
	if err := os.Rename(k.path, k.path+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if k.f != nil {
		if err := k.f.Close(); err != nil {
			k.tell("close the full serial output file: %v", err)
		}
	}
	k.f, k.size = nil, 0
	return nil
}

func (k *file) tell(format string, a ...any) {
	if k.words++; k.words <= maxWords && k.say != nil {
		k.say(fmt.Sprintf(format, a...))
	}
}

// close says once more what is missing at the end.
func (k *file) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var err error
	if k.lost > 0 {
		err = fmt.Errorf("the last %d bytes of serial output are not in %q: %w", k.lost, k.path, k.err)
	}
	if k.f != nil {
		err = errors.Join(err, k.f.Close())
	}
	return err
}
