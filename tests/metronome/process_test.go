package metronome_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/boot/metronome"
	"godwit/vmm"
)

// scene is the processes of one test and their ledger.
type scene struct {
	t       *testing.T
	dir     string // for the ledger and sockets
	ledger  string
	n       int
	sockets int
}

func newScene(t *testing.T) *scene {
	dir := t.TempDir()
	s := &scene{t: t, dir: dir, ledger: filepath.Join(dir, "ledger")}
	require.NoError(t, os.WriteFile(s.ledger, nil, 0o600))
	t.Cleanup(s.checkLedger) // after the children have ended
	return s
}

// process is a child. The test ends it, by its pid, and waits for it.
type process struct {
	s    *scene
	name string
	cmd  *exec.Cmd
	rpc  *rpc.Client
	gone bool
}

type pipes struct {
	io.ReadCloser
	io.WriteCloser
}

func (p pipes) Close() error {
	_ = p.ReadCloser.Close() // the write side is what the child notices
	return p.WriteCloser.Close()
}

func (s *scene) spawn() *process { return s.spawnIn(nil) }

// spawnIn starts a child in namespaces of its own where attr says so.
func (s *scene) spawnIn(attr *syscall.SysProcAttr) *process {
	s.n++
	p := &process{s: s, name: fmt.Sprintf("p%d", s.n)}
	self, err := os.Executable()
	require.NoError(s.t, err)
	p.cmd = exec.Command(self)
	p.cmd.Env = append(os.Environ(), childEnv+"="+p.name, ledgerEnv+"="+s.ledger)
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = attr
	in, err := p.cmd.StdinPipe()
	require.NoError(s.t, err)
	out, err := p.cmd.StdoutPipe()
	require.NoError(s.t, err)
	require.NoError(s.t, p.cmd.Start())
	p.rpc = rpc.NewClient(pipes{out, in})
	s.t.Cleanup(p.end)
	return p
}

// end hangs up and waits. A child that was not killed ends with 0: the race
// detector would make it something else.
func (p *process) end() {
	if p.gone {
		return
	}
	p.gone = true
	_ = p.rpc.Close()
	late := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	if err := p.cmd.Wait(); err != nil {
		p.s.t.Errorf("child %s: %v", p.name, err)
	}
}

// kill is SIGKILL, and waits until the process is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have done so itself
	p.buried()
}

// buried waits for a process that was killed.
func (p *process) buried() {
	require.False(p.s.t, p.gone)
	p.gone = true
	late := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	err := p.cmd.Wait()
	require.ErrorContains(p.s.t, err, "killed", "child %s", p.name)
	_ = p.rpc.Close()
}

// tell gives an order that must work.
func (p *process) tell(method string, args, reply any) {
	p.s.t.Helper()
	if reply == nil {
		reply = new(int)
	}
	require.NoError(p.s.t, p.rpc.Call("Child."+method, args, reply), "%s of %s", method, p.name)
}

func (p *process) boot(cfg vmm.Config) {
	p.s.t.Helper()
	p.tell("Boot", cfg, nil)
	p.beats(2)
}

func (p *process) beats(n int) (beats []metronome.Beat) {
	p.s.t.Helper()
	p.tell("Beats", n, &beats)
	return beats
}

// first are the first beats that this copy of the guest printed.
func (p *process) first(n int) (beats []metronome.Beat) {
	p.s.t.Helper()
	p.tell("First", n, &beats)
	return beats
}

func (p *process) info() (in metronome.Info) {
	p.s.t.Helper()
	p.tell("Info", 0, &in)
	return in
}

func (p *process) state() (state string) {
	p.s.t.Helper()
	p.tell("State", 0, &state)
	return state
}

// healthy shows that the guest beats and works on, with no bad page.
func (p *process) healthy() {
	p.s.t.Helper()
	before := p.info()
	after := before
	for ctx := deadline(p.s.t); writes(after) == writes(before) || verified(after) == verified(before); after = p.info() {
		require.NoError(p.s.t, ctx.Err(), "writes and sweeps must go on: %+v, then %+v", before, after)
		beats := p.beats(2)
		require.Zero(p.s.t, beats[1].Bad)
	}
	require.Zero(p.s.t, after.Bad, "%+v", after.Kinds)
	require.Zero(p.s.t, after.Back, "no TSC went backwards")
}

// receive makes p listen, and take one guest in. The result comes on the
// channel; nil when the process died over it.
func (p *process) receive(a ReceiveArgs) (addr string, result <-chan *Outcome) {
	p.s.t.Helper()
	path := ""
	if a.Local || a.Disks != nil { // those with disks are in networks of their own
		p.s.sockets++
		path = filepath.Join(p.s.dir, fmt.Sprintf("s%d", p.s.sockets))
	}
	p.tell("Listen", path, &addr)
	return addr, p.start("Receive", a)
}

func (p *process) start(method string, args any) <-chan *Outcome {
	result := make(chan *Outcome, 1)
	call := p.rpc.Go("Child."+method, args, new(Outcome), make(chan *rpc.Call, 1))
	go func() {
		<-call.Done
		if e := rpc.ServerError(""); errors.As(call.Error, &e) {
			result <- &Outcome{Err: method + ": " + call.Error.Error()}
			return
		} else if call.Error != nil {
			result <- nil
			return
		}
		result <- call.Reply.(*Outcome)
	}()
	return result
}

// move moves the guest and expects it to work. Silence is not what is tried, as in
// copyHere.move.
func (p *process) move(to *process, a SendArgs) (sent, received *Outcome) {
	t := p.s.t
	t.Helper()
	a.Silence = patience
	addr, arrival := to.receive(ReceiveArgs{Local: a.Local, Silence: patience})
	a.Addr = addr
	sent, received = <-p.start("Send", a), <-arrival
	require.NotNil(t, sent, "the source died")
	require.NotNil(t, received, "the destination died")
	require.Empty(t, sent.Err)
	require.Empty(t, received.Err)
	require.Equal(t, vmm.StateEnded.String(), sent.State)
	require.Equal(t, vmm.StateRunning.String(), received.State)
	if a.Verify {
		require.Equal(t, sent.Report.Verify.Source, sent.Report.Verify.Destination)
	}
	p.tell("Drop", 0, nil)
	return sent, received
}

// forced notes in the ledger that somebody who made sure that no other copy runs
// lets the guest run on at p.
func (s *scene) forced() {
	f, err := os.OpenFile(s.ledger, os.O_WRONLY|os.O_APPEND, 0)
	require.NoError(s.t, err)
	_, err = fmt.Fprintln(f, forcedMark)
	require.NoError(s.t, err)
	require.NoError(s.t, f.Close())
}

const forcedMark = "forced"

// checkLedger shows that at no time two copies of the guest ran: once another
// one has spoken, a copy is silent for good, unless it was forced to run.
func (s *scene) checkLedger() {
	f, err := os.Open(s.ledger)
	require.NoError(s.t, err)
	defer f.Close()
	over, current, lines := map[string]bool{}, "", 0
	for in := bufio.NewScanner(f); in.Scan(); lines++ {
		name, _, _ := strings.Cut(in.Text(), " ")
		switch {
		case name == forcedMark:
			over, current = map[string]bool{}, ""
		case name != current:
			if over[name] {
				s.t.Errorf("ledger, line %d: copy %s runs again after %s has", lines+1, name, current)
				return
			}
			over[current], current = true, name
		}
	}
	require.Positive(s.t, lines)
}
