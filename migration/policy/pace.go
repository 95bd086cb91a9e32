package policy

import "fmt"

// Means is by what a guest is slowed.
type Means int

const (
	// ByDuty lets every vCPU run for part of each few milliseconds and sleep for
	// the rest. Every machine can.
	ByDuty Means = iota
	// ByCgroup has the host's scheduler give each vCPU's thread a share of a
	// processor (cgroup v2, cpu.max). It needs a cgroup that is delegated.
	ByCgroup
	// ByDirtyLimit holds each vCPU to a number of newly dirtied pages a second;
	// one that only reads or computes runs at full speed. It needs the dirty ring.
	ByDirtyLimit
)

// String names the means in words.
func (m Means) String() string {
	switch m {
	case ByDuty:
		return "duty cycle"
	case ByCgroup:
		return "cgroup"
	case ByDirtyLimit:
		return "dirty-rate limit"
	}
	return fmt.Sprintf("means %d", int(m))
}

// Pace is how a guest is slowed, all its vCPUs alike. It is a value.
type Pace struct {
	By             Means
	Percent        int    // ByDuty, ByCgroup: of a processor's time that a vCPU gets, 1 to 100
	PagesPerSecond uint64 // ByDirtyLimit: new dirty pages of each vCPU, 0 for no limit yet
}

// FullSpeed is the pace of a guest that is not slowed.
var FullSpeed = Pace{Percent: 100}

// Free says that the guest is not slowed.
func (p Pace) Free() bool {
	if p.By == ByDirtyLimit {
		return p.PagesPerSecond == 0
	}
	return p.Percent >= 100
}

// Share is the percentage of the time that a vCPU may run, 1 to 100; under a
// dirty-rate limit, which is none of the time, 100.
func (p Pace) Share() int {
	if p.By == ByDirtyLimit {
		return 100
	}
	return min(max(p.Percent, 1), 100)
}

// Clamp brings the numbers into their range and drops those that By has no use
// for, so that two paces that mean the same are equal.
func (p Pace) Clamp() Pace {
	if p.By == ByDirtyLimit {
		return Pace{By: p.By, PagesPerSecond: p.PagesPerSecond}
	}
	return Pace{By: p.By, Percent: p.Share()}
}

// String says it in words.
func (p Pace) String() string {
	switch {
	case p.Free():
		return "full speed"
	case p.By == ByDirtyLimit:
		return fmt.Sprintf("%d new dirty pages/s per vCPU", p.PagesPerSecond)
	}
	return fmt.Sprintf("%d %% by %v", p.Percent, p.By)
}
