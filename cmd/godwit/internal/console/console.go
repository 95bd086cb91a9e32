package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"godwit/api"
	"godwit/cmd/godwit/internal/plain"
)

// ErrSpec marks a --serial that says nothing known.
var ErrSpec = errors.New("serial console")

// Input takes what was typed, and waits until the guest has room or ctx ends.
type Input func(ctx context.Context, p []byte) (int, error)

// Console connects a guest's serial port with the world. Write is for the
// guest's output; all methods may be called from any goroutine.
type Console struct {
	out  io.Writer
	end  func() error // gives back what out holds
	left chan struct{}

	unread     chan struct{} // closed when stdout's reader is gone
	onceUnread sync.Once

	mu    sync.Mutex
	input Input
	stop  context.CancelFunc // ends a wait of input
	ctx   context.Context
	ready chan struct{} // closed while there is an input
	term  *terminal     // raw, or nil
	gone  bool
	once  sync.Once
}

// Spec is a parsed --serial.
type Spec struct {
	Kind string // stdio, file, unix or none
	Path string
	// Limit is the most that a file grows to before it is begun anew, bytes; 0 is
	// none.
	Limit int64
	// Say tells the user of output that a file does not take; nil is silent.
	Say func(text string)
}

// ParseSpec reads stdio, none, file:PATH[,limit=SIZE] or unix:PATH.
func ParseSpec(text string) (Spec, error) {
	kind, path, hasPath := strings.Cut(text, ":")
	switch {
	case (kind == "stdio" || kind == "none") && !hasPath:
		return Spec{Kind: kind}, nil
	case kind == "file" && path != "":
		return parseFile(path)
	case kind == "unix" && path != "":
		return Spec{Kind: kind, Path: path}, nil
	}
	return Spec{}, fmt.Errorf("%w %.200q: write stdio, none, file:PATH[,limit=SIZE] or unix:PATH", ErrSpec, text)
}

// Open opens the console. Stdin is not touched before Start.
func Open(s Spec) (*Console, error) {
	c := &Console{left: make(chan struct{}), unread: make(chan struct{}), ready: make(chan struct{}), end: func() error { return nil }}
	switch s.Kind {
	case "stdio":
		c.out = os.Stdout
	case "none":
		c.out = io.Discard
	case "file":
		f, err := openFile(s)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSpec, err)
		}
		c.out, c.end = f, f.close
	case "unix":
		l, err := api.Address{Network: "unix", Target: s.Path}.Listen(nil)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSpec, err)
		}
		k := newSocket(l, c)
		c.out, c.end = k, k.close
	default:
		return nil, fmt.Errorf("%w: kind %q", ErrSpec, s.Kind)
	}
	return c, nil
}

// Write sends the guest's output on.
func (c *Console) Write(p []byte) (int, error) {
	n, err := c.out.Write(p)
	if errors.Is(err, unix.EPIPE) {
		c.onceUnread.Do(func() { close(c.unread) })
	}
	return n, err
}

// Unread is closed when output found that nobody reads stdout any more.
func (c *Console) Unread() <-chan struct{} { return c.unread }

// Start begins to read stdin, where that is what the console is for: raw if it
// is a terminal that this process may read, else as the bytes come.
func (c *Console) Start() error {
	if c.out != io.Writer(os.Stdout) {
		return nil
	}
	term, err := openTerminal(os.Stdin)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.term = term
	c.mu.Unlock()
	if term != nil || !isTerminal(os.Stdin) {
		// A Read of stdin cannot be ended, so this one may outlive the console;
		// the process ends soon after it.
		go c.readStdin(term != nil)
	}
	return nil
}

func (c *Console) readStdin(raw bool) {
	send, finish := c.forward, func() {}
	if raw {
		// Ctrl-a x must be seen even while the guest takes no input, so a terminal
		// is read always, and what finds no room is lost as on any serial line.
		send, finish = c.forwardAside()
	}
	defer finish()
	var keys escape
	buf := make([]byte, 4096)
	for {
		n, err := os.Stdin.Read(buf)
		typed, leave := buf[:n], false
		if raw {
			typed, leave = keys.filter(nil, typed)
		}
		if len(typed) > 0 && !send(typed) {
			return
		}
		if leave {
			close(c.left)
			return
		}
		if err != nil {
			return
		}
	}
}

// forwardAside is forward for a caller that must not wait. It keeps what it is
// given.
func (c *Console) forwardAside() (send func([]byte) bool, finish func()) {
	queue := make(chan []byte, 256)
	go func() {
		for p := range queue {
			if !c.forward(p) {
				return
			}
		}
	}()
	return func(p []byte) bool {
		select {
		case queue <- p:
		default:
		}
		return true
	}, func() { close(queue) }
}

// forward gives p to the guest, whichever it is by then; false after Close.
func (c *Console) forward(p []byte) bool {
	for {
		c.mu.Lock()
		input, ctx, ready, gone := c.input, c.ctx, c.ready, c.gone
		c.mu.Unlock()
		if gone {
			return false
		}
		if input == nil {
			<-ready
			continue
		}
		n, err := input(ctx, p)
		if p = p[n:]; len(p) == 0 {
			return true
		}
		if err != nil {
			// This guest has ended: what it did not take is lost with it.
			return true
		}
	}
}

// Attach says where input goes from now on; nil holds it back.
func (c *Console) Attach(input Input) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return
	}
	if c.input != nil {
		c.stop()
		c.ready = make(chan struct{})
	}
	if c.input = input; input != nil {
		c.ctx, c.stop = context.WithCancel(context.Background())
		close(c.ready)
	}
}

// Left is closed when the user has typed Ctrl-a x.
func (c *Console) Left() <-chan struct{} { return c.left }

// Message writes lines for the user on stderr, so that they look right on a raw
// terminal too. Whatever they quote, the terminal obeys none of it.
func (c *Console) Message(text string) {
	text = plain.Text(text)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.term != nil {
		text = strings.ReplaceAll(text, "\n", "\r\n")
	}
	_, _ = io.WriteString(os.Stderr, text) // nowhere else to complain
}

// Close restores the terminal and gives back file or socket. It may be called
// again.
func (c *Console) Close() error {
	var err error
	c.once.Do(func() {
		c.Attach(nil)
		c.mu.Lock()
		c.gone = true
		close(c.ready)
		term := c.term
		c.term = nil
		c.mu.Unlock()
		if term != nil {
			err = term.restore()
		}
		err = errors.Join(err, c.end())
	})
	return err
}
