package metronome_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"godwit/blockfile"
	"godwit/boot/metronome"
	"godwit/migration"
	"godwit/migration/policy"
	"godwit/vmm"
)

// The environment of a child.
const (
	childEnv  = "GODWIT_METRONOME_CHILD"  // its name in the ledger
	ledgerEnv = "GODWIT_METRONOME_LEDGER" // path of the ledger
)

// Moment is a point of a migration at which a process kills itself. The zero
// value is none.
type Moment struct {
	Phase migration.Phase
	Round int // at least this round
}

// hook turns the moment into a progress hook.
func (m Moment) hook() func(migration.Progress) {
	if m.Phase == "" {
		return nil
	}
	return func(p migration.Progress) {
		if p.Phase == m.Phase && p.Round >= m.Round {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL) // cannot fail
			select {}                                // it need not have come when Kill returns
		}
	}
}

// SendArgs orders a migration.
type SendArgs struct {
	Addr      string
	Streams   int
	Verify    bool
	Bandwidth int64
	Rounds    int // exactly so many before the pause; 0 leaves it to the default rule
	Silence   time.Duration
	Die       Moment
	Local     bool   // Addr is a unix socket, and the memory itself goes there
	Probe     string // a disk, that somebody else tries to lock in each phase
}

// ReceiveArgs orders a child to take one in.
type ReceiveArgs struct {
	Silence, Lease time.Duration
	Die            Moment
	Local          bool              // listen on a unix socket
	Disks          map[string]string // where the guest's disks are here
	Probe          string
}

// Outcome is how a migration ended at one side.
type Outcome struct {
	Report            migration.Report
	Err               string // "" is success
	Unknown, NotTaken bool   // see migration.OutcomeError
	ForceAfter        time.Time
	State             string // of the machine, "none" where there is none
	Probes            map[migration.Phase]string
}

// prober is a third party, with an open file of its own, that tries to lock a
// disk when a phase begins. While the lock changes hands it only looks: a try
// that works would spoil the migration.
type prober struct {
	path   string
	window []migration.Phase
	found  map[migration.Phase]string
}

// What a prober finds.
const (
	probeLocked = "locked"
	probeFree   = "free"
)

func (p *prober) see(at migration.Progress) {
	if _, done := p.found[at.Phase]; done || p.path == "" {
		return
	}
	f, err := blockfile.Open(p.path, blockfile.Options{NoLock: true})
	if err != nil {
		p.found[at.Phase] = err.Error()
		return
	}
	defer f.Close()
	held, err := f.LockedElsewhere()
	if err == nil && !slices.Contains(p.window, at.Phase) {
		err = f.Lock()
		held = errors.Is(err, blockfile.ErrLocked)
	}
	switch {
	case held:
		p.found[at.Phase] = probeLocked
	case err == nil:
		p.found[at.Phase] = probeFree
	default:
		p.found[at.Phase] = err.Error()
	}
}

// hooks calls one after the other.
func hooks(list ...func(migration.Progress)) func(migration.Progress) {
	return func(p migration.Progress) {
		for _, h := range list {
			if h != nil {
				h(p)
			}
		}
	}
}

// rounds is a stop rule: finish after exactly so many.
type rounds int

// Decide implements policy.Stop.
func (n rounds) Decide(r policy.Round) policy.Decision {
	if r.Number >= int(n) {
		return policy.Finish
	}
	return policy.Continue
}

// Child holds one machine at a time in a process of its own. Its methods are
// net/rpc's.
type Child struct {
	ctx    context.Context // ends when the parent hangs up
	name   string
	ledger *os.File

	mu     sync.Mutex
	copies int
	m      *vmm.Machine
	out    *console
	l      net.Listener
}

// stdio is the connection to the parent.
type stdio struct{ gone context.CancelFunc }

func (s stdio) Read(p []byte) (int, error) {
	n, err := os.Stdin.Read(p)
	if err != nil {
		s.gone() // or calls under way would keep the child alive
	}
	return n, err
}
func (s stdio) Write(p []byte) (int, error) { return os.Stdout.Write(p) }
func (s stdio) Close() error                { return os.Stdin.Close() }

var _ io.ReadWriteCloser = stdio{}

// serveChild is a child's whole life: it obeys until its parent hangs up.
func serveChild() int {
	ledger, err := os.OpenFile(os.Getenv(ledgerEnv), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, "metronome child:", err)
		return 1
	}
	ctx, gone := context.WithCancel(context.Background())
	defer gone()
	c := &Child{ctx: ctx, name: os.Getenv(childEnv), ledger: ledger}
	s := rpc.NewServer()
	if err := s.RegisterName("Child", c); err != nil {
		fmt.Fprintln(os.Stderr, "metronome child:", err)
		return 1
	}
	s.ServeConn(stdio{gone})
	if err := c.Drop(0, nil); err != nil {
		fmt.Fprintln(os.Stderr, "metronome child:", err)
		return 1
	}
	return 0
}

// newCopy makes the console of another copy of the guest. One write a chunk: the
// kernel keeps appends of several processes whole and in order.
func (c *Child) newCopy() *console {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.copies++
	name := fmt.Sprintf("%s.%d", c.name, c.copies)
	return newConsole(func(p []byte) { fmt.Fprintf(c.ledger, "%s %q\n", name, p) })
}

// Boot starts a guest.
func (c *Child) Boot(cfg vmm.Config, _ *int) error {
	out := c.newCopy()
	m, err := vmm.New(cfg, vmm.Options{Serial: out})
	if err != nil {
		return err
	}
	c.hold(m, out)
	return m.Start()
}

func (c *Child) hold(m *vmm.Machine, out *console) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.m, c.out = m, out
}

func (c *Child) held() (*vmm.Machine, *console, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		return nil, nil, fmt.Errorf("%s holds no machine", c.name)
	}
	return c.m, c.out, nil
}

// Listen opens the migration port: a unix socket at path, or for no path one of
// TCP.
func (c *Child) Listen(path string, addr *string) error {
	network, at := "tcp", "127.0.0.1:0"
	if path != "" {
		network, at = "unix", path
	}
	l, err := net.Listen(network, at)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.l, *addr = l, l.Addr().String()
	return nil
}

// Hangup closes the migration port.
func (c *Child) Hangup(_ int, _ *int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.l.Close() // Receive may have been faster
	return nil
}

// Receive takes in one guest.
func (c *Child) Receive(a ReceiveArgs, o *Outcome) error {
	c.mu.Lock()
	l := c.l
	c.mu.Unlock()
	defer l.Close()
	out := c.newCopy()
	var built *vmm.Machine
	build := vmm.BuildTarget(vmm.Incoming{Options: vmm.Options{Serial: out}, Disks: a.Disks, AllowPrefixes: folders(a.Disks)}, func(m *vmm.Machine) { built = m })
	third := prober{path: a.Probe, window: []migration.Phase{migration.PhaseState, migration.PhasePrepare}, found: map[migration.Phase]string{}}
	opts := migration.ReceiveOptions{Silence: a.Silence, Lease: a.Lease, OnProgress: hooks(a.Die.hook(), third.see)}
	_, rep, err := migration.Receive(c.ctx, migration.AcceptFrom(l), build, opts)
	o.fill(rep, err)
	o.Probes = third.found
	o.State = "none"
	if err == nil {
		c.hold(built, out)
		o.State = built.State().String()
	} else if built != nil && built.State() != vmm.StateClosed {
		o.State = built.State().String() // half-made: the parent will complain
	}
	return nil
}

// Send moves the guest away. Whatever comes of it, the machine is held until
// Drop.
func (c *Child) Send(a SendArgs, o *Outcome) error {
	m, _, err := c.held()
	if err != nil {
		return err
	}
	third := prober{path: a.Probe, window: []migration.Phase{migration.PhasePrepare}, found: map[migration.Phase]string{}}
	opts := migration.SendOptions{Streams: a.Streams, Verify: a.Verify, Bandwidth: a.Bandwidth,
		Silence: a.Silence, OnProgress: hooks(a.Die.hook(), third.see), Local: a.Local}
	if a.Rounds > 0 {
		opts.Policies.Stop = rounds(a.Rounds)
	}
	dial := func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		if filepath.IsAbs(a.Addr) {
			return d.DialContext(ctx, "unix", a.Addr)
		}
		return d.DialContext(ctx, "tcp", a.Addr)
	}
	rep, err := migration.Send(c.ctx, m.Source(), dial, opts)
	if err == nil {
		m.MigratedTo()
	}
	o.fill(rep, err)
	o.Probes = third.found
	o.State = m.State().String()
	return nil
}

func (o *Outcome) fill(rep *migration.Report, err error) {
	if rep != nil {
		o.Report = *rep
	}
	if err == nil {
		return
	}
	o.Err = err.Error()
	if e := new(migration.OutcomeError); errors.As(err, &e) {
		o.Unknown, o.NotTaken, o.ForceAfter = !e.Known, e.Known, e.ForceAfter
	}
}

// Beats waits for n more beats.
func (c *Child) Beats(n int, beats *[]metronome.Beat) error {
	_, out, err := c.held()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	*beats, err = out.next(ctx, n)
	return err
}

// First waits until a copy has printed n whole beats, and gives these.
func (c *Child) First(n int, beats *[]metronome.Beat) error {
	_, out, err := c.held()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	*beats, err = out.first(ctx, n)
	return err
}

// Mount binds a folder to another one, in this child's own namespace.
func (c *Child) Mount(from [2]string, _ *int) error {
	return unix.Mount(from[0], from[1], "", unix.MS_BIND, "")
}

// Load waits until the load on the guest's disk has flushed more than n writes.
func (c *Child) Load(n uint64, l *metronome.IOLine) error {
	_, out, err := c.held()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	*l, err = out.load(ctx, "blk", flushedPast(n))
	return err
}

// Info reads the guest's own record.
func (c *Child) Info(_ int, in *metronome.Info) error {
	m, _, err := c.held()
	if err == nil {
		*in, err = readInfo(c.ctx, m)
	}
	return err
}

// State tells where the machine stands.
func (c *Child) State(_ int, s *string) error {
	m, _, err := c.held()
	if err == nil {
		*s = m.State().String()
	}
	return err
}

// Resume lets a machine run on that a migration left paused.
func (c *Child) Resume(_ int, _ *int) error {
	m, _, err := c.held()
	if err != nil {
		return err
	}
	if err := m.Source().Reclaim(); err != nil {
		return err
	}
	return m.Resume()
}

// Drop closes the machine, if there is one.
func (c *Child) Drop(_ int, _ *int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.m
	c.m, c.out = nil, nil
	if m == nil {
		return nil
	}
	return m.Close()
}
