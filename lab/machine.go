package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kernelArgs are chosen for a quick and quiet start; nested paging stays on, as
// a nested kernel starts several times faster with it. reboot=t with panic=-1
// turns a panic into a reset at once, which -no-reboot turns into QEMU's end. The
// tick stays periodic: without nohz=off and highres=off a machine with one CPU fell
// silent for good 11 s after its start, its clock source long final (clock.go); two
// CPUs had no such trouble in 20 demos and a run of tests/linux. A lost one-shot
// interrupt would explain it (not proven); a periodic one comes again.
const kernelArgs = "console=ttyS0 quiet reboot=t panic=-1 oops=panic mitigations=off nokaslr " +
	"tsc=reliable no_timer_check cryptomgr.notests nohz=off highres=off init_on_alloc=0"

// processor is the best that this QEMU has, but for the fast string instructions
// (ERMS): with them Linux clears and copies memory a byte at a time, each of which
// costs the emulator as much as a word, and far more, it seems, in a page that code
// had run from. With them, and with pages cleared as they are allocated (Debian's
// default, off by init_on_alloc=0), a huge page that a guest before had used was seen
// to take 0.8 s, in one go and with no other process running.
const processor = "max,-erms"

// stopGrace is how long QEMU may take to close its disks when asked to end.
const stopGrace = 20 * time.Second

// kernelLine is the outer kernel's command line; a rate of 0 lets the kernel measure.
func kernelLine(tscKHz int, cfg *Config) string {
	if cfg.tscKHz != 0 {
		tscKHz = cfg.tscKHz
	}
	if tscKHz == 0 {
		return kernelArgs
	}
	return fmt.Sprintf("%s tsc_early_khz=%d", kernelArgs, tscKHz)
}

func qemuArgs(k Kernel, initrd string, tscKHz int, cfg *Config) []string {
	args := []string{
		"-M", "q35,accel=tcg", "-cpu", processor,
		"-m", strconv.Itoa(cfg.MemoryMiB), "-smp", strconv.Itoa(cfg.CPUs),
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-serial", "stdio",
		"-kernel", k.Image, "-initrd", initrd, "-append", kernelLine(tscKHz, cfg),
		"-chardev", "socket,id=port,fd=3", // the first of ExtraFiles
		"-device", "virtio-serial-pci,max_ports=2", "-device", "virtserialport,chardev=port,nr=1",
	}
	args = append(args, cfg.extraArgs...)
	for i, d := range cfg.Disks {
		// cache=unsafe drops the guest's flushes: what is written is in the host's page
		// cache and outlives QEMU, only not a crash of the host.
		drive := fmt.Sprintf("file=%s,if=none,id=disk%d,format=raw,cache=unsafe", strings.ReplaceAll(d.Host, ",", ",,"), i)
		if d.ReadOnly {
			drive += ",readonly=on"
		}
		args = append(args, "-drive", drive, "-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d,serial=%s%d", i, diskSerial, i))
	}
	return args
}

// machine is one running QEMU.
type machine struct {
	cmd     *exec.Cmd
	conn    net.Conn
	console *tailWriter
	done    chan struct{} // closed when QEMU is gone and its output read
	waitErr error         // valid after done
}

func startMachine(qemu string, args []string, console io.Writer) (*machine, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: socketpair: %w", ErrHost, err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "lab port"), os.NewFile(uintptr(fds[1]), "lab port")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHost, err)
	}
	m := &machine{conn: conn, console: &tailWriter{w: console}, done: make(chan struct{})}
	m.cmd = exec.Command(qemu, args...)
	m.cmd.ExtraFiles = []*os.File{theirs}
	m.cmd.Stdout, m.cmd.Stderr = m.console, m.console
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The death signal follows the thread that forked, so that thread must
		// live as long as QEMU.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := m.cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		m.waitErr = m.cmd.Wait()
		close(m.done)
	}()
	if err := <-started; err != nil {
		conn.Close()
		return nil, fmt.Errorf("%w: start QEMU: %w", ErrHost, err)
	}
	return m, nil
}

// kill ends QEMU at once and waits.
func (m *machine) kill() {
	m.cmd.Process.Kill()
	<-m.done
}

// stop asks QEMU to end, which closes its disks, and waits.
func (m *machine) stop() {
	m.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-m.done:
	case <-time.After(stopGrace):
		m.kill()
	}
}

// failure describes a machine that ended or hung; call it when QEMU is gone.
func (m *machine) failure(what string, cause error) error {
	tail := m.console.tail()
	if tail == "" {
		tail = "(nothing)"
	}
	if cause == nil {
		return fmt.Errorf("%w: %s; QEMU: %v; its last console lines:\n%s", ErrMachine, what, exitText(m.waitErr), tail)
	}
	return fmt.Errorf("%w: %s: %w; its last console lines:\n%s", ErrMachine, what, cause, tail)
}

func exitText(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// runMachine boots, serves the port and always leaves no QEMU behind.
func runMachine(ctx context.Context, qemu string, args []string, cfg *Config) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("lab: %w", err)
	}
	start := time.Now()
	m, err := startMachine(qemu, args, cfg.Console)
	if err != nil {
		return 0, err
	}
	defer m.conn.Close()
	s := &session{cfg: cfg, start: start, conn: m.conn, hello: make(chan struct{})}
	result := make(chan error, 1)
	go func() { result <- s.serve() }()
	boot := time.NewTimer(cfg.BootTimeout)
	defer boot.Stop()
	hello := s.hello
	second := time.NewTicker(pulseEvery)
	defer second.Stop()
	for {
		select {
		case err = <-result:
			return s.finish(m, err)
		case <-hello:
			boot.Stop()
			hello = nil
			s.pulse.beat()
		case <-second.C:
			if hello == nil && s.pulse.silence() >= cfg.silence {
				m.kill()
				<-result
				return 0, m.failure(fmt.Sprintf("gave no sign of life for %v", cfg.silence), errors.New("hung, or the host is far too busy"))
			}
		case <-boot.C:
			m.kill()
			<-result
			return 0, m.failure(fmt.Sprintf("did not come up in %v", cfg.BootTimeout), errors.New("hung or too slow"))
		case <-ctx.Done():
			m.kill()
			<-result
			return 0, m.failure(fmt.Sprintf("killed after %v", time.Since(start).Round(time.Millisecond)), context.Cause(ctx))
		}
	}
}

// tailWriter passes the console on and keeps its end for error messages.
type tailWriter struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

const tailBytes, tailLines = 16384, 70 // a kernel panic with its traces fits

func (t *tailWriter) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailBytes; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	t.w.Write(p) // a full console must not stop the machine
	return len(p), nil
}

func (t *tailWriter) tail() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return lastLines(strings.ReplaceAll(string(t.buf), "\r", ""), tailLines)
}
