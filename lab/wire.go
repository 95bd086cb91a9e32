package lab

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// kind tells what a frame on the port carries.
type kind byte

// From the machine to the host.
const (
	kindHello  kind = 'h' // helloInfo as JSON: the command is about to start
	kindStdout kind = 'o' // bytes
	kindStderr kind = 'e' // bytes
	kindOutput kind = 't' // a piece of the tar stream of outputs
	kindFail   kind = 'f' // text: the command could not be started
	kindSick   kind = 's' // text: the machine is up but of no use
	kindAlive  kind = 'a' // empty: a sign of life
	kindExit   kind = 'x' // 32-bit exit code; nothing after it counts
)

// From the host to the machine.
const (
	kindStdin    kind = 'i' // bytes
	kindStdinEnd kind = 'z' // empty
)

const (
	frameHeader = 5         // kind, then the length, 32 bits little-endian
	maxFrame    = 32 * 1024 // the guest driver's largest single write
)

var errFrame = errors.New("lab: malformed frame")

type helloInfo struct {
	ModulesMicros int64 `json:"modules_us"`
	ClockMicros   int64 `json:"clock_us"`
}

// frameWriter lets several goroutines send on one port.
type frameWriter struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

func (f *frameWriter) send(k kind, p []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		n := min(len(p), maxFrame-frameHeader)
		f.buf = append(f.buf[:0], byte(k))
		f.buf = binary.LittleEndian.AppendUint32(f.buf, uint32(n))
		f.buf = append(f.buf, p[:n]...)
		if _, err := f.w.Write(f.buf); err != nil {
			return err
		}
		if p = p[n:]; len(p) == 0 {
			return nil
		}
	}
}

// stream gives an io.Writer whose bytes leave as frames of one kind.
func (f *frameWriter) stream(k kind) io.Writer { return streamWriter{f, k} }

type streamWriter struct {
	f *frameWriter
	k kind
}

func (s streamWriter) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := s.f.send(s.k, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// frameReader reads frames; the payload is valid until the next call.
type frameReader struct {
	r   io.Reader
	buf [maxFrame]byte
}

// next gives the next frame. io.EOF means the stream ended between frames.
func (f *frameReader) next() (kind, []byte, error) {
	if _, err := io.ReadFull(f.r, f.buf[:frameHeader]); err != nil {
		return 0, nil, err
	}
	k, n := kind(f.buf[0]), binary.LittleEndian.Uint32(f.buf[1:])
	if n > maxFrame-frameHeader {
		return 0, nil, fmt.Errorf("%w: %d bytes of kind %q", errFrame, n, k)
	}
	p := f.buf[:n]
	if _, err := io.ReadFull(f.r, p); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return k, p, nil
}

func decodeHello(p []byte) (helloInfo, error) {
	var h helloInfo
	if err := json.Unmarshal(p, &h); err != nil {
		return h, fmt.Errorf("%w: hello: %w", errFrame, err)
	}
	return h, nil
}

func decodeExit(p []byte) (int, error) {
	if len(p) != 4 {
		return 0, fmt.Errorf("%w: exit code of %d bytes", errFrame, len(p))
	}
	return int(int32(binary.LittleEndian.Uint32(p))), nil
}
