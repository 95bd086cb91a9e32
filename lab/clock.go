package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Linux starts with a first guess of the TSC's rate and refines it a second or
// more later; then it changes its clock source from tsc-early to tsc. kvm keeps
// the rate that it saw when it was loaded as the one of new machines. If the two
// differ by more than 250 ppm, kvm refuses every vCPU its own default, drops the
// error ("user requested TSC rate below hardware speed", arch/x86/kvm/x86.c,
// kvm_set_tsc_khz) and leaves the vCPU with a scaling ratio of 0. Its clock stands,
// and its timers come as late as the outer machine is old: the guest boots while
// it is busy and stands still at its first sleep. So kvm is loaded after the change,
// and the clock of one vCPU is tried before the command starts.
const (
	clockSourcePath = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
	clockSource     = "tsc"
	// The kernel tries again every second when its readings were disturbed.
	clockWait = 2 * time.Minute
)

// awaitClock waits until the kernel has its final rate.
func awaitClock() error {
	deadline := time.Now().Add(clockWait)
	for {
		text, err := os.ReadFile(clockSourcePath)
		if err != nil {
			return fmt.Errorf("clock source of the outer kernel: %w", err)
		}
		got := strings.TrimSpace(string(text))
		if got == clockSource {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the outer kernel's clock source is %q after %v, not %q: its TSC rate is not final, and guests of a kvm loaded now "+
				"could stand still; try again when the host is less busy; the kernel said: %s", got, clockWait, clockSource, kernelSays())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// From linux/kvm.h and asm/msr-index.h.
const (
	kvmCreateVM   = 0xae01
	kvmCreateVCPU = 0xae41
	kvmGetTSCKHz  = 0xaea3
	kvmGetMSRs    = 0xc008ae88
	msrTSC        = 0x10
)

// tscMSR is struct kvm_msrs with one entry.
type tscMSR struct {
	n, _     uint32
	index, _ uint32
	data     uint64
}

// ProveClock tells, inside the lab, whether new vCPUs have clocks that go: it makes
// a vCPU and reads its TSC twice. Between the readings that must have advanced by what
// our own counter did.
func ProveClock() error {
	vm, vcpu, err := tryVCPU()
	if err != nil {
		return fmt.Errorf("try a vCPU of the lab: %w", err)
	}
	defer unix.Close(vm)
	defer unix.Close(vcpu)
	var outer [4]uint64
	var guest [2]uint64
	for i := range guest {
		outer[2*i] = rdtsc()
		if guest[i], err = vcpuTSC(vcpu); err != nil {
			return fmt.Errorf("try a vCPU of the lab: %w", err)
		}
		outer[2*i+1] = rdtsc()
	}
	went, least, most := guest[1]-guest[0], outer[2]-outer[1], outer[3]-outer[0]
	if went >= least && went <= most {
		return nil
	}
	khz, _ := ioctl(vcpu, kvmGetTSCKHz, 0)
	return fmt.Errorf("the clock of the lab's vCPUs is wrong: a vCPU's TSC went on by %d ticks while the outer one went on by %d to %d, so guests would stand still "+
		"at their first sleep; the vCPU's rate is %d kHz, %s", went, least, most, khz, Figures())
}

func ioctl(fd int, request uint, arg uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), arg)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func tryVCPU() (vm, vcpu int, err error) {
	kvm, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("open /dev/kvm: %w", err)
	}
	defer unix.Close(kvm)
	if vm, err = ioctl(kvm, kvmCreateVM, 0); err != nil {
		return 0, 0, fmt.Errorf("KVM_CREATE_VM: %w", err)
	}
	if vcpu, err = ioctl(vm, kvmCreateVCPU, 0); err != nil {
		unix.Close(vm)
		return 0, 0, fmt.Errorf("KVM_CREATE_VCPU: %w", err)
	}
	return vm, vcpu, nil
}

func vcpuTSC(vcpu int) (uint64, error) {
	m := &tscMSR{n: 1, index: msrTSC}
	n, err := ioctl(vcpu, kvmGetMSRs, uintptr(unsafe.Pointer(m)))
	runtime.KeepAlive(m)
	if err == nil && n != 1 {
		err = errors.New("it gave none")
	}
	if err != nil {
		return 0, fmt.Errorf("KVM_GET_MSRS of the TSC: %w", err)
	}
	return m.data, nil
}

// kvmFigures are files of debugfs, below kvm: how the clocks of the vCPUs are set, and
// whether the guests go on. Healthy offsets are large and negative.
var kvmFigures = []string{"*/vcpu*/tsc-offset", "*/vcpu*/tsc-scaling-ratio", "*/vcpu*/lapic_timer_advance_ns", "*/exits", "*/halt_exits", "*/halt_wakeup", "*/irq_injections"}

// Figures is, inside the lab, what kvm and the kernel say of the guests' clocks.
func Figures() string {
	const root = "/sys/kernel/debug/kvm/"
	var all []string
	for _, name := range kvmFigures {
		files, _ := filepath.Glob(root + name)
		for _, f := range files {
			if text, err := os.ReadFile(f); err == nil {
				all = append(all, fmt.Sprintf("kvm/%s %s", strings.TrimPrefix(f, root), strings.TrimSpace(string(text))))
			}
		}
	}
	if all == nil {
		all = []string{"debugfs has no machine of kvm"}
	}
	return strings.Join(all, ", ") + "; the kernel said: " + kernelSays()
}

// kernelSays gives the kernel's messages about its clock and kvm.
func kernelSays() string {
	buf := make([]byte, 1<<20)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf)
	if err != nil {
		return fmt.Sprintf("(its log cannot be read: %v)", err)
	}
	var lines []string
	for line := range strings.Lines(string(buf[:n])) {
		low := strings.ToLower(line)
		if strings.Contains(low, "tsc") || strings.Contains(low, "kvm") || strings.Contains(low, "clocksource") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return strings.Join(lines[max(0, len(lines)-20):], " | ")
}
