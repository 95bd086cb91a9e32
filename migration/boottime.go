package migration

import (
	"time"

	"golang.org/x/sys/unix"
)

// BootTime reads CLOCK_BOOTTIME: the time since this host booted, suspension
// included. The lease is counted on it, at both ends. Go's own clock is
// CLOCK_MONOTONIC, which stands while a host is suspended: a destination that
// slept between READY and GO would find its lease as long as ever, and a source
// that slept would find its window for GO still open.
//
// A host that is itself a virtual machine and is paused by its monitor has no
// clock that says so, unless the monitor moves this one on.
func BootTime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // since Linux 2.6.39; it cannot fail with this clock
	return time.Duration(ts.Nano())
}
