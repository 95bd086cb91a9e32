package linux

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/lab"
	"godwit/vmm"
)

// A lab whose guests stand still fails every test after four minutes of waiting.
// So the first test that fails has the lab examined, while its guests are still
// there, and if the lab is at fault, the package ends with what was found.

const (
	// controlBound is for a guest that only starts, sleeps and ends.
	controlBound = 2 * time.Minute
	infoBound    = 10 * time.Second
)

// examined are the tests whose failure has been looked into or will be.
var examined struct {
	sync.Mutex
	tests map[string]map[string]func() string // per test what to ask of each guest
}

// examineOnFailure has the lab examined if the test has failed at its end, and ask
// gives what is known of a guest. Call it after registering the guest's own cleanup,
// so that it still lives then.
func examineOnFailure(t testing.TB, guest string, ask func() string) {
	examined.Lock()
	defer examined.Unlock()
	name := t.Name()
	if examined.tests == nil {
		examined.tests = map[string]map[string]func() string{}
	}
	if examined.tests[name] == nil {
		examined.tests[name] = map[string]func() string{}
	}
	examined.tests[name][guest] = ask
	t.Cleanup(func() {
		examined.Lock()
		guests := examined.tests[name]
		delete(examined.tests, name)
		examined.Unlock()
		if t.Failed() && guests != nil { // else a later guest's cleanup has done it
			examine(t, guests, labFault)
		}
	})
}

// examine reports on a failed test, and ends the package if the lab is at fault.
func examine(t testing.TB, guests map[string]func() string, fault func() error) {
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(guests)) {
		fmt.Fprintf(&text, "%s: %s\n", name, guests[name]())
	}
	fmt.Fprintf(&text, "lab: %s\n", lab.Figures())
	load, _ := os.ReadFile("/proc/loadavg")
	uptime, _ := os.ReadFile("/proc/uptime")
	fmt.Fprintf(&text, "loadavg %suptime %s", load, uptime)
	err := fault()
	if err == nil {
		t.Logf("examined, and the lab is well:\n%s", &text)
		return
	}
	// What the test has logged so far would be lost: it is shown when the test ends.
	fmt.Printf("--- FAIL: %s\n%s\ntests/linux: the lab is at fault, no other test is tried: %v\n", t.Name(), &text, err)
	os.Exit(faultCode)
}

// labFault tries what every test depends on.
func labFault() error {
	if err := lab.ProveClock(); err != nil {
		return err
	}
	offsets, _ := filepath.Glob("/sys/kernel/debug/kvm/*/vcpu*/tsc-offset")
	for _, f := range offsets {
		if text, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(text)) == "0" {
			return fmt.Errorf("%s is 0: this vCPU's clock stands", f)
		}
	}
	return controlGuest()
}

// controlGuest runs a guest that sleeps a little and ends.
func controlGuest() error {
	cmd := exec.Command(godwitPath, "run", "--kernel", bzImagePath, "--initrd", initrdPath, "--cmdline", `console=ttyS0 reboot=t panic=-1 quiet godwit.exec="sleep 1"`)
	out := newConsole()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return err
	}
	late := time.AfterFunc(controlBound, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	if !late.Stop() {
		err = errors.Join(fmt.Errorf("it did not start, sleep for a second and end within %v", controlBound), err)
	}
	if err != nil {
		return fmt.Errorf("a guest of its own failed as well: %w; its console:\n%s", err, out)
	}
	return nil
}

// info asks a godwit process through its API, if it has one.
func (p *process) info() string {
	said := fmt.Sprintf("stdout: %s\nstderr: %s", p.out, p.err)
	for i, a := range p.cmd.Args[:len(p.cmd.Args)-1] {
		if a != "--api-sock" || p.cmd.Args[1] == "migrate" {
			continue
		}
		cmd := exec.Command(godwitPath, "info", "--json", "--api-sock", p.cmd.Args[i+1])
		late := time.AfterFunc(infoBound, func() { _ = cmd.Process.Kill() })
		out, err := cmd.CombinedOutput()
		late.Stop()
		said = fmt.Sprintf("info: %s (%v)\n%s", out, err, said)
	}
	return said
}

func machineInfo(m *vmm.Machine, out *console) func() string {
	return func() string {
		// A machine that hangs may answer never.
		said := make(chan string, 1)
		go func() {
			i, err := m.Info()
			text, _ := json.Marshal(i)
			said <- fmt.Sprintf("info: %s (%v)", text, err)
		}()
		select {
		case s := <-said:
			return s + "\nconsole: " + out.String()
		case <-time.After(infoBound):
			return fmt.Sprintf("info: none within %v\nconsole: %s", infoBound, out)
		}
	}
}

// drillEnv has TestDrill fail as a test does in a lab that is at fault.
const drillEnv = "GODWIT_LINUX_DRILL"

func TestDrill(t *testing.T) {
	if os.Getenv(drillEnv) == "" {
		return // TestSickLabEndsThePackage runs it
	}
	t.Run("first", func(t *testing.T) {
		defer examine(t, map[string]func() string{"guest": func() string { return "stands" }}, func() error { return errors.New("its clocks stand") })
		t.Fail()
	})
	t.Run("second", func(*testing.T) { fmt.Println("the second test runs") })
}

func TestSickLabEndsThePackage(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run", "^TestDrill$")
	cmd.Env = append(os.Environ(), drillEnv+"=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "%s", out)
	require.Equal(t, faultCode, exit.ExitCode())
	for _, say := range []string{"--- FAIL: TestDrill/first", "guest: stands", "the kernel said: ", "tests/linux: the lab is at fault, no other test is tried: its clocks stand"} {
		require.Contains(t, string(out), say)
	}
	require.NotContains(t, string(out), "the second test runs")
	require.NoError(t, labFault(), "and this lab is well")
}
