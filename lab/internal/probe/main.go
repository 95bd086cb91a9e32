// Command probe is what the lab's own tests run inside a machine. It is also
// the smallest program that can serve as Config.Init.
package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"godwit/lab"
)

// kvmGetAPIVersion is KVM_GET_API_VERSION of linux/kvm.h.
const kvmGetAPIVersion = 0xae00

func main() {
	lab.Init()
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("no action given")
	}
	switch action, rest := args[0], args[1:]; action {
	case "args": // prints every argument quoted
		for _, a := range rest {
			fmt.Printf("%q\n", a)
		}
	case "upper": // standard input in upper case, a note on stderr, exit code 7
		in, err := io.ReadAll(os.Stdin)
		if err != nil {
			return err
		}
		fmt.Print(strings.ToUpper(string(in)))
		fmt.Fprintln(os.Stderr, "read", len(in), "bytes")
		os.Exit(7)
	case "kvm": // the API version of the nested KVM
		version, err := kvmVersion()
		if err != nil {
			return err
		}
		fmt.Println("kvm", version)
	case "clock": // whether vCPUs have clocks that go
		fmt.Println(lab.Figures())
		return lab.ProveClock()
	default:
		return fmt.Errorf("unknown action %q", action)
	}
	return nil
}

func kvmVersion() (int, error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	version, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), kvmGetAPIVersion, 0)
	if errno != 0 {
		return 0, fmt.Errorf("KVM_GET_API_VERSION: %w", errno)
	}
	return int(version), nil
}
