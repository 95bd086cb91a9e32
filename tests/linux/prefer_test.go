package linux

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// preferred is the nice level of what does not share its processor with a
// migration where users are: the guest's vCPUs and the guest's peer.
const preferred = -15

// prefer gives threads of a process the processor before others, by name, as a
// host's operator does with renice(1); all threads when name is empty. It tells
// how many there were.
func prefer(pid int, name string) (n int, err error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		return 0, err
	}
	for _, task := range tasks {
		comm, _ := os.ReadFile(filepath.Join(task, "comm")) // a thread that has ended has none
		tid, _ := strconv.Atoi(filepath.Base(task))
		if !strings.HasPrefix(string(comm), name) {
			continue
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, tid, preferred); err != nil && !errors.Is(err, unix.ESRCH) {
			return n, err
		}
		n++
	}
	return n, nil
}

// preferVCPUs does so with the vCPUs of a process as soon as it has some. It is a
// help to the measurement: without it the test still holds.
func preferVCPUs(p *process) {
	for {
		if n, err := prefer(p.cmd.Process.Pid, "vcpu"); n > 0 || err != nil {
			return
		}
		select {
		case <-p.done:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}
