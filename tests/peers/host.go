package main

import (
	"bufio"
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"godwit/kvm"
)

// Host is what the figures depend on, recorded once per invocation.
type Host struct {
	Kind      string `json:"kind"` // "host"
	Date      string `json:"date"`
	Command   string `json:"command"`
	Kernel    string `json:"kernel"`
	KVM       string `json:"kvm"` // its modules
	CPU       string `json:"cpu"`
	Cores     int    `json:"cores"`
	MemoryMiB int    `json:"memory_mib"`
	QEMU      string `json:"qemu"`
	Commit    string `json:"godwit_commit"`
	Modified  bool   `json:"godwit_modified"` // the tree had changes
	TSCKHz    uint32 `json:"tsc_khz"`         // given to the guest, on both sides
}

func examine(ctx context.Context, qemu, godwit string) (Host, error) {
	h := Host{Kind: "host", Date: time.Now().UTC().Format(time.RFC3339), Command: command(os.Args[1:]), Cores: runtime.NumCPU()}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return h, fmt.Errorf("uname: %w", err)
	}
	h.Kernel = unix.ByteSliceToString(u.Release[:])
	h.CPU = cpuModel()
	h.KVM = kvmModules()
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return h, fmt.Errorf("sysinfo: %w", err)
	}
	h.MemoryMiB = int(si.Totalram * uint64(si.Unit) / mib)
	out, err := exec.CommandContext(ctx, qemu, "--version").Output()
	if err != nil {
		return h, fmt.Errorf("run %s --version: %w", qemu, err)
	}
	h.QEMU, _, _ = strings.Cut(string(out), "\n")
	h.Commit, h.Modified = commitOf(ctx, godwit)
	h.TSCKHz, err = tscKHz()
	return h, err
}

// command is how to measure the same again: flags that name files of this
// machine are left out.
func command(args []string) string {
	words := []string{"go run ./tests/peers"}
	for i := 0; i < len(args); i++ {
		name, _, joined := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		if slices.Contains([]string{"godwit", "qemu", "out", "markdown", "from"}, name) {
			if !joined {
				i++
			}
			continue
		}
		word := args[i]
		if strings.ContainsAny(word, " ,'") {
			word = "'" + word + "'"
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		if name, value, ok := strings.Cut(in.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

func kvmModules() string {
	var names []string
	for _, name := range []string{"kvm_intel", "kvm_amd", "kvm_pvm"} {
		if _, err := os.Stat("/sys/module/" + name); err == nil {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "unknown"
	}
	return strings.Join(names, ", ")
}

// commitOf is what the program says it was built from, or else what is checked
// out where it lies.
func commitOf(ctx context.Context, program string) (commit string, modified bool) {
	if info, err := buildinfo.ReadFile(program); err == nil {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				commit = s.Value
			case "vcs.modified":
				modified = s.Value == "true"
			}
		}
	}
	if commit != "" {
		return commit, modified
	}
	out, err := exec.CommandContext(ctx, "git", "-C", filepath.Dir(program), "rev-parse", "HEAD").Output()
	if err != nil {
		return "unknown", false
	}
	changes, err := exec.CommandContext(ctx, "git", "-C", filepath.Dir(program), "status", "--porcelain").Output()
	return strings.TrimSpace(string(out)), err != nil || len(changes) > 0
}

// tscKHz asks KVM for the guest's TSC frequency. godwit tells its guest; so that
// both sides have the same command line, it is given to both.
func tscKHz() (khz uint32, err error) {
	sys, err := kvm.Open()
	if err != nil {
		return 0, err
	}
	defer sys.Close()
	vm, err := sys.CreateVM()
	if err != nil {
		return 0, err
	}
	defer vm.Close()
	cpu, err := vm.CreateVCPU(0)
	if err != nil {
		return 0, err
	}
	defer cpu.Close()
	return cpu.TSCKHz()
}
