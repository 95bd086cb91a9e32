package lab

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// deviceWait bounds the wait for a device whose driver is loaded. It is far
// above what the slowest emulation needs.
const deviceWait = time.Minute

// Init turns process 1 of a lab machine into the lab's init, and never
// returns there. In every other process it returns at once. Call it first in
// main of the program that Config.Init names.
func Init() {
	if os.Getpid() != 1 {
		return
	}
	text, err := os.ReadFile(jobPath)
	if err != nil {
		return // process 1 of a container, say: none of our business
	}
	// The host sees the port close and shows the console's end.
	fmt.Fprintln(os.Stderr, "lab init:", initMain(text))
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

// initMain returns only if it fails. After success the host stops the machine,
// which is quicker than powering off.
func initMain(text []byte) error {
	var j job
	if err := gob.NewDecoder(bytes.NewReader(text)).Decode(&j); err != nil {
		return fmt.Errorf("%s: %w", jobPath, err)
	}
	if err := mountBasics(); err != nil {
		return err
	}
	var info helloInfo
	first, later := j.Modules, j.KVM
	if j.EarlyKVM {
		first, later = append(first, later...), nil
	}
	if err := loadModules(first, &info); err != nil {
		return err
	}
	port, err := openPort(portPath)
	if err != nil {
		return err
	}
	out := &frameWriter{w: port}
	cmd, err := newCommand(&j, out)
	if err != nil {
		return tell(out, kindFail, err)
	}
	// Disks and the port were found meanwhile: only the rest of the wait is left.
	if err := startKVM(later, &info, j.Unproven); err != nil {
		return tell(out, kindSick, err)
	}
	hello, err := json.Marshal(info)
	if err != nil {
		return err
	}
	// The first write waits for the host's end, so reads are safe after it.
	if err := out.send(kindHello, hello); err != nil {
		return err
	}
	go beat(out) // ends with the machine
	code, err := cmd.run(port)
	if err != nil {
		return tell(out, kindFail, err)
	}
	if len(j.Outputs) > 0 {
		if err := sendOutputs(out.stream(kindOutput), j.Outputs); err != nil {
			return fmt.Errorf("send outputs: %w", err)
		}
	}
	unix.Sync()
	if err := out.send(kindExit, binary.LittleEndian.AppendUint32(nil, uint32(code))); err != nil {
		return err
	}
	select {}
}

// tell says to the host why there is no command; the host then stops the machine.
func tell(out *frameWriter, k kind, cause error) error {
	if err := out.send(k, []byte(cause.Error())); err != nil {
		return err
	}
	select {}
}

// startKVM loads kvm when the time has come for it, and tries it.
func startKVM(modules []string, info *helloInfo, unproven bool) error {
	start := time.Now()
	if err := awaitClock(); err != nil {
		return err
	}
	info.ClockMicros = time.Since(start).Microseconds()
	if err := loadModules(modules, info); err != nil {
		return err
	}
	if err := os.RemoveAll(labDir); err != nil { // gives its memory back
		return err
	}
	if unproven {
		return nil
	}
	return ProveClock()
}

func mountBasics() error {
	for _, m := range []struct{ source, target, fstype string }{
		{"devtmpfs", "/dev", "devtmpfs"},
		{"proc", "/proc", "proc"},
		{"sysfs", "/sys", "sysfs"},
		{"devpts", "/dev/pts", "devpts"},
		{"tmpfs", "/dev/shm", "tmpfs"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.fstype, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	// Only for kvm's figures, and not every kernel has it.
	_ = unix.Mount("debugfs", "/sys/kernel/debug", "debugfs", 0, "")
	for link, target := range map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2"} {
		if err := os.Symlink(target, link); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte("lab")); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	return loopbackUp()
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

func loadModules(files []string, info *helloInfo) error {
	start := time.Now()
	for _, m := range files {
		if err := loadModule(m); err != nil {
			return err
		}
	}
	info.ModulesMicros += time.Since(start).Microseconds()
	return nil
}

func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", filepath.Base(file), err)
	}
	return nil
}

// awaitDevice tries until the device's node is there and its driver answers.
func awaitDevice(node string, try func() error) error {
	for deadline := time.Now().Add(deviceWait); ; time.Sleep(time.Millisecond) {
		err := try()
		early := errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EINTR)
		if !early || time.Now().After(deadline) {
			if err != nil {
				return fmt.Errorf("device %s: %w", node, err)
			}
			return nil
		}
	}
}

// openPort opens a port of virtio-serial. Linux makes the node before it lists
// the port, and in between open gives ENXIO (drivers/char/virtio_console.c,
// add_port and port_fops_open).
func openPort(node string) (*os.File, error) {
	var fd int
	err := awaitDevice(node, func() (err error) {
		// Blocking on purpose: until the host's end is known, a non-blocking
		// read of this driver looks like the end of input.
		fd, err = unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), node), nil
}

// linkDisks makes the path of each disk a link to its device, found by serial
// since names follow the order of probing.
func linkDisks(paths []string) error {
	for i, p := range paths {
		dev, err := findDisk(diskSerial + strconv.Itoa(i))
		if err != nil {
			return fmt.Errorf("disk %q: %w", p, err)
		}
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(dev, p); err != nil {
			return err
		}
	}
	return nil
}

func findDisk(serial string) (string, error) {
	for deadline := time.Now().Add(deviceWait); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		found, _ := filepath.Glob("/sys/block/vd*/serial")
		for _, f := range found {
			text, err := os.ReadFile(f)
			if err == nil && strings.TrimSpace(string(text)) == serial {
				dev := "/dev/" + filepath.Base(filepath.Dir(f))
				// As with a port: the node is there a little before the disk answers.
				return dev, awaitDevice(dev, func() error {
					fd, err := unix.Open(dev, unix.O_RDONLY|unix.O_CLOEXEC, 0)
					if err == nil {
						err = unix.Close(fd)
					}
					return err
				})
			}
		}
	}
	return "", fmt.Errorf("no block device has the serial %q", serial)
}

// command is the one command of the machine, ready to start.
type command struct {
	job     *job
	program string
	env     []string
	child   [3]*os.File // the command's streams
	stdin   *os.File    // our end of its input
	copies  []func()    // each forwards one output until its end
}

func newCommand(j *job, out *frameWriter) (*command, error) {
	if err := linkDisks(j.Disks); err != nil {
		return nil, err
	}
	for _, p := range append([]string{j.Dir + "/."}, j.Outputs...) {
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return nil, err
		}
	}
	c := &command{job: j, env: dedupEnv(j.Env)}
	for _, kv := range c.env {
		name, value, _ := strings.Cut(kv, "=")
		if err := os.Setenv(name, value); err != nil {
			return nil, fmt.Errorf("environment %q: %w", kv, err)
		}
	}
	if err := os.Chdir(j.Dir); err != nil {
		return nil, err
	}
	var err error
	if c.program, err = exec.LookPath(j.Command[0]); err != nil {
		return nil, err
	}
	if j.Terminal != nil {
		return c, c.openTerminal(out)
	}
	return c, c.openPipes(out)
}

// dedupEnv keeps the last value of each name.
func dedupEnv(env []string) []string {
	return (&exec.Cmd{Env: env}).Environ()
}

func (c *command) forward(r *os.File, w io.Writer) {
	c.copies = append(c.copies, func() {
		buf := make([]byte, maxFrame-frameHeader)
		// A terminal's last reader gets EIO instead of an end: both mean done.
		_, _ = io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, buf)
	})
}

func (c *command) openPipes(out *frameWriter) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	c.child[0], c.stdin = r, w
	for i, k := range []kind{kindStdout, kindStderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		c.child[i+1] = w
		c.forward(r, out.stream(k))
	}
	return nil
}

func (c *command) openTerminal(out *frameWriter) error {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		return fmt.Errorf("number of the terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlock the terminal: %w", err)
	}
	size := unix.Winsize{Row: c.job.Terminal.Rows, Col: c.job.Terminal.Cols}
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &size); err != nil {
		return fmt.Errorf("size of the terminal: %w", err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	c.child = [3]*os.File{slave, slave, slave}
	c.stdin = master
	c.forward(master, out.stream(kindStdout))
	return nil
}

// run starts the command, serves its streams and gives its exit code. When it
// returns, nothing else runs and all output is on its way.
func (c *command) run(port io.Reader) (int, error) {
	attr := &os.ProcAttr{Dir: c.job.Dir, Env: c.env, Files: c.child[:], Sys: &unix.SysProcAttr{Setsid: true}}
	attr.Sys.Setctty = c.job.Terminal != nil
	p, err := os.StartProcess(c.program, c.job.Command, attr)
	if err != nil {
		return 0, err
	}
	for _, f := range c.child {
		f.Close() // a terminal's three are one file; closing again only fails
	}
	var copies sync.WaitGroup
	for _, f := range c.copies {
		copies.Go(f)
	}
	go c.feedStdin(port) // ends with the machine
	status, err := reap(p.Pid)
	if err != nil {
		return 0, err
	}
	// Whatever the command left behind must not hold its output open.
	if err := unix.Kill(-1, unix.SIGKILL); err == nil {
		if _, err := reap(0); err != nil && !errors.Is(err, unix.ECHILD) {
			return 0, err
		}
	}
	copies.Wait()
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// reap collects every child, orphans included, until pid has ended; a pid of
// 0 means until none is left, which ends with ECHILD.
func reap(pid int) (unix.WaitStatus, error) {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return status, err
		case got == pid:
			return status, nil
		}
	}
}

// feedStdin passes input on; what a command no longer reads is dropped.
func (c *command) feedStdin(port io.Reader) {
	frames := &frameReader{r: port}
	var broken error
	for {
		k, p, err := frames.next()
		if err != nil {
			return
		}
		switch {
		case k == kindStdin && broken == nil:
			_, broken = c.stdin.Write(p)
		case k == kindStdinEnd && c.job.Terminal == nil:
			c.stdin.Close()
		}
	}
}
