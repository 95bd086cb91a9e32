package vmm

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"godwit/unixsocket"
	"godwit/virtio"
	vconsole "godwit/virtio/console"
)

// MaxConsoles is the most ports that a machine's virtio-console may have.
const MaxConsoles = vconsole.MaxPorts

// Console is a port of the machine's virtio-console device; Firecracker has no
// word for it.
type Console struct {
	// ID names the port in `receive --console ID=..` and in info.
	ID string `json:"id"`
	// Name makes it a channel, /dev/virtio-ports/NAME in Linux: 1 to 64 letters,
	// digits, '-', '_', '.' or '/'. Without one it is a console, hvcN.
	Name string `json:"name,omitempty"`
	// Path is what stands behind it on the host: unix:PATH, where clients connect,
	// file:PATH, which output is appended to, or stdio. Without one nobody does.
	Path string `json:"path,omitempty"`
}

// PathStdio is the Console.Path of Options.Stdio.
const PathStdio = "stdio"

var portNamePattern = regexp.MustCompile(`^[A-Za-z0-9._/-]{1,64}$`)

// ParseConsolePath splits unix:PATH and file:PATH; stdio has no path.
func ParseConsolePath(s string) (kind, path string, err error) {
	kind, path, has := strings.Cut(s, ":")
	switch {
	case kind == PathStdio && !has, kind == "file" && path != "":
		return kind, path, nil
	case kind == "unix":
		if err := unixsocket.CheckPath(path); err != nil {
			return "", "", err
		}
		return kind, path, nil
	}
	return "", "", fmt.Errorf("path %.200q; write unix:PATH, file:PATH or stdio", s)
}

func withConsoleDefaults(list []Console) []Console {
	list = append([]Console(nil), list...)
	for i := range list {
		if list[i].ID == "" {
			list[i].ID = fmt.Sprintf("con%d", i)
		}
	}
	return list
}

// validateConsoles leaves the paths of an incoming machine alone: they are not
// used here.
func validateConsoles(list []Console, incoming bool) error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: %s", ErrConfig, fmt.Sprintf(format, a...))
	}
	if len(list) > MaxConsoles {
		return bad("%d consoles; at most %d", len(list), MaxConsoles)
	}
	ids, names, paths := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, c := range list {
		switch {
		case !idPattern.MatchString(c.ID) || len(c.ID) > 20:
			return bad("console id %q; use 1 to 20 letters, digits, '.', '_' or '-'", c.ID)
		case ids[c.ID]:
			return bad("two consoles with id %q; give each its own", c.ID)
		case c.Name != "" && !portNamePattern.MatchString(c.Name):
			return bad("console %q: name %.80q; use 1 to 64 letters, digits, '.', '_', '-' or '/'", c.ID, c.Name)
		case c.Name != "" && names[c.Name]:
			return bad("two consoles with name %q; give each its own", c.Name)
		}
		ids[c.ID], names[c.Name] = true, true
		if incoming || c.Path == "" {
			continue
		}
		if _, _, err := ParseConsolePath(c.Path); err != nil {
			return bad("console %q: %v", c.ID, err)
		}
		if paths[c.Path] {
			return bad("console %q: %q is another console's already", c.ID, c.Path)
		}
		paths[c.Path] = true
	}
	return nil
}

// checkConsoles refuses a map that is not about this machine.
func (in Incoming) checkConsoles(list []Console) error {
	for id, path := range in.Consoles {
		if !slices.ContainsFunc(list, func(c Console) bool { return c.ID == id }) {
			return fmt.Errorf("%w: --console %s=… names no console of the machine", ErrIncompatible, id)
		}
		if _, _, err := ParseConsolePath(path); err != nil {
			return fmt.Errorf("%w: console %q: %w", ErrConfig, id, err)
		}
	}
	return nil
}

// ConsoleInfo is the virtio-console device.
type ConsoleInfo struct {
	Ports []ConsolePortInfo `json:"ports"`
	// GuestErrors are messages and buffers of the guest that made no sense.
	GuestErrors uint64 `json:"guest_errors"`
}

// ConsolePortInfo is a port and what it has done.
type ConsolePortInfo struct {
	ID        string         `json:"id"`
	Name      string         `json:"name,omitempty"`
	Path      string         `json:"path,omitempty"`  // here; none where nobody can connect
	Fault     string         `json:"fault,omitempty"` // why nothing is behind it at Path
	Connected bool           `json:"connected"`       // somebody is behind it
	GuestOpen bool           `json:"guest_open"`      // the guest's side is open
	Columns   uint16         `json:"columns,omitempty"`
	Rows      uint16         `json:"rows,omitempty"`
	Stats     vconsole.Stats `json:"stats"`
}

// consoles is the machine's virtio-console device.
type consoles struct {
	plainPart
	specs  []Console
	paths  []string // what is, or is to be, behind each port here
	open   []bool   // and is
	faults []error  // what kept claim from opening it
	stdio  func() (fd int, err error)
	dev    *vconsole.Device

	incoming bool
	made     []madeFile // by a machine that has not run here yet
}

var _ part = (*consoles)(nil)

// newConsoles makes the device. What is behind its ports is opened at once,
// except for an incoming machine, whose source may listen at the same paths.
func newConsoles(specs []Console, a assembly) (_ part, err error) {
	c := &consoles{specs: specs, incoming: a.incoming, stdio: a.stdio, open: make([]bool, len(specs)), faults: make([]error, len(specs))}
	var ports []vconsole.Port
	for _, s := range specs {
		ports = append(ports, vconsole.Port{Name: s.Name})
		path := s.Path
		if a.incoming {
			path = a.consoles[s.ID]
		}
		c.paths = append(c.paths, path)
	}
	if c.dev, err = vconsole.New(vconsole.Config{Ports: ports}); err != nil {
		return nil, err
	}
	if !a.incoming {
		if err := c.claim(); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	return c, nil
}

func (c *consoles) kind() string          { return "virtio-console" }
func (c *consoles) name() string          { return c.specs[0].ID }
func (c *consoles) device() virtio.Device { return c.dev }
func (c *consoles) vital() bool           { return false }

// close takes back the empty files that it made for a guest that never came.
func (c *consoles) close() error {
	err := c.dev.Close()
	for _, f := range c.made {
		err = errors.Join(err, f.remove())
	}
	c.made = nil
	return err
}

// follow keeps the files: they are the guest's now.
func (c *consoles) follow() { c.made = nil }

// release makes the paths free for the destination, which may be on this host.
// Clients that are connected stay: they lose nothing if the migration fails.
func (c *consoles) release() error {
	for i, path := range c.paths {
		if strings.HasPrefix(path, "unix:") {
			c.open[i] = false
		}
	}
	return c.dev.StopListening()
}

func (c *consoles) claim() error {
	var errs []error
	for i, path := range c.paths {
		if path == "" || c.open[i] {
			continue
		}
		err := c.connect(i, path)
		if err != nil {
			err = fmt.Errorf("console %q: %w", c.specs[i].ID, err)
		}
		c.open[i], c.faults[i] = err == nil, err
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// faultText is a fault for Info.
func faultText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (c *consoles) connect(i int, where string) error {
	kind, path, err := ParseConsolePath(where)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	switch kind {
	case "unix":
		l, err := unixsocket.Listen(path)
		if err != nil {
			return err
		}
		return c.dev.Listen(i, l)
	case "file":
		fd, made, err := openOutput(path)
		if err != nil {
			return err
		}
		if made != nil && c.incoming {
			c.made = append(c.made, *made)
		}
		return c.dev.Attach(i, fd, true)
	}
	if c.stdio == nil {
		return fmt.Errorf("%w: stdio is not this machine's to use", ErrConfig)
	}
	fd, err := c.stdio()
	if err != nil {
		return err
	}
	return c.dev.Attach(i, fd, false)
}

func (c *consoles) info(i *Info) {
	out := &ConsoleInfo{GuestErrors: c.dev.GuestErrors()}
	for n, s := range c.specs {
		p := c.dev.Port(n)
		out.Ports = append(out.Ports, ConsolePortInfo{
			ID: s.ID, Name: s.Name, Path: c.paths[n], Fault: faultText(c.faults[n]), Connected: p.Connected, GuestOpen: p.GuestOpen,
			Columns: p.Cols, Rows: p.Rows, Stats: p.Stats,
		})
	}
	i.Console = out
}

// ErrNoConsole marks a request to a console that the machine does not have.
var ErrNoConsole = errors.New("the machine has no such console")

// ResizeConsole says how large the host's side of a console is now. The id is
// that of the configuration.
func (m *Machine) ResizeConsole(id string, columns, rows uint16) error {
	m.op.Lock()
	defer m.op.Unlock()
	if s := m.State(); s == StateClosed || s == StateEnded {
		return fmt.Errorf("resize console: %w: the machine is %s", ErrState, s)
	}
	for _, p := range m.dev.parts {
		c, ok := p.(*consoles)
		if !ok {
			continue
		}
		for i, s := range c.specs {
			if s.ID != id {
				continue
			}
			if s.Name != "" {
				return fmt.Errorf("%w: console %q is a channel, which has no size", ErrConfig, id)
			}
			return c.dev.Resize(i, columns, rows)
		}
	}
	return fmt.Errorf("%w: %.80q; `godwit info` lists them", ErrNoConsole, id)
}
