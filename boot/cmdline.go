package boot

import "strings"

// CmdlineOptions is what the default command line depends on.
type CmdlineOptions struct {
	Root     string // root device such as /dev/vda; "" when there is none
	ReadOnly bool   // root is mounted read-only
}

// DefaultCmdline is a quiet fast boot with the console on the first serial
// port. A panic reboots at once (panic=-1) by a triple fault (reboot=t), which
// the machine takes for the guest fault that it is. The init of boot/rootfs
// switches to the keyboard controller for an orderly reboot; a foreign one that
// does not ends as a fault too, unless its command line says reboot=k.
func DefaultCmdline(o CmdlineOptions) string {
	words := []string{
		"console=ttyS0", "quiet",
		"reboot=t", "panic=-1",
		// The guest's time stamp counter is the host's and stable; the timer
		// is emulated and works: no need to test either.
		"tsc=reliable", "no_timer_check",
		// There is no PCI bus, no mouse and no second serial port to look for.
		"pci=off", "8250.nr_uarts=1", "i8042.noaux", "i8042.nomux", "i8042.dumbkbd",
		// The processor's generator is good enough to start with.
		"random.trust_cpu=on",
	}
	if o.Root != "" {
		words = append(words, "root="+o.Root)
		if o.ReadOnly {
			words = append(words, "ro")
		} else {
			words = append(words, "rw")
		}
	}
	return strings.Join(words, " ")
}

// JoinCmdline joins parts with single spaces, leaving out empty ones. What
// follows " -- " on a Linux command line goes to init, so kernel parameters
// that are added must stand before it: extra goes there.
func JoinCmdline(line, extra string) string {
	line, extra = strings.TrimSpace(line), strings.TrimSpace(extra)
	if extra == "" {
		return line
	}
	if line == "" {
		return extra
	}
	if line == "--" || strings.HasPrefix(line, "-- ") {
		return extra + " " + line
	}
	if i := strings.Index(line, " -- "); i >= 0 {
		return line[:i] + " " + extra + line[i:]
	}
	return line + " " + extra
}
