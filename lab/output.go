package lab

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// sendOutputs writes the trees that exist at the given paths as one tar
// stream. Entry names start with the path's index. Only folders and regular
// files travel.
func sendOutputs(w io.Writer, paths []string) error {
	t := tar.NewWriter(w)
	for i, root := range paths {
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				if p == root && errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				return err
			}
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			return sendOutput(t, p, path.Join(strconv.Itoa(i), filepath.ToSlash(rel)), d)
		})
		if err != nil {
			return err
		}
	}
	return t.Close()
}

func sendOutput(t *tar.Writer, p, name string, d fs.DirEntry) error {
	if !d.IsDir() && !d.Type().IsRegular() {
		return nil
	}
	st, err := d.Info()
	if err != nil {
		return err
	}
	h, err := tar.FileInfoHeader(st, "")
	if err != nil {
		return err
	}
	h.Name = name
	if d.IsDir() {
		h.Name += "/"
	}
	if err := t.WriteHeader(h); err != nil || d.IsDir() {
		return err
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(t, f)
	return err
}

// outputReceiver stores what sendOutputs wrote. What comes in is not
// trusted: nothing is written outside the hosts' paths of the outputs.
type outputReceiver struct {
	pipe *io.PipeWriter
	done chan error
}

func newOutputReceiver(outputs []Output) *outputReceiver {
	r, w := io.Pipe()
	o := &outputReceiver{pipe: w, done: make(chan error, 1)}
	go func() {
		err := receiveOutputs(r, outputs)
		io.Copy(io.Discard, r) // the rest, so that the sender is never stuck
		o.done <- err
	}()
	return o
}

func (o *outputReceiver) write(p []byte) { _, _ = o.pipe.Write(p) } // its failures come from done

// close waits for the last byte to be stored. If the stream was cut short
// (complete is false) its end is not an error of its own.
func (o *outputReceiver) close(complete bool) error {
	o.pipe.Close()
	err := <-o.done
	if !complete {
		return nil
	}
	return err
}

func receiveOutputs(r io.Reader, outputs []Output) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		index, rel, _ := strings.Cut(path.Clean(h.Name), "/")
		n, err := strconv.Atoi(index)
		if err != nil || n < 0 || n >= len(outputs) {
			return fmt.Errorf("unexpected name %q", h.Name)
		}
		if err := storeOutput(outputs[n].Host, rel, h, t); err != nil {
			return err
		}
	}
}

func storeOutput(host, rel string, h *tar.Header, body io.Reader) error {
	mode := fs.FileMode(h.Mode).Perm()
	if h.Typeflag == tar.TypeDir {
		if rel == "" {
			return os.MkdirAll(host, 0o755)
		}
		return inRoot(host, func(root *os.Root) error { return root.MkdirAll(rel, mode|0o700) })
	}
	if h.Typeflag != tar.TypeReg {
		return fmt.Errorf("unexpected type %q of %q", h.Typeflag, h.Name)
	}
	const flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if rel == "" {
		f, err := os.OpenFile(host, flags, mode)
		return fillFile(f, err, body)
	}
	return inRoot(host, func(root *os.Root) error {
		f, err := root.OpenFile(rel, flags, mode)
		return fillFile(f, err, body)
	})
}

func inRoot(dir string, do func(*os.Root) error) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return do(root)
}

func fillFile(f *os.File, err error, body io.Reader) error {
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	return errors.Join(err, f.Close())
}
