//go:build linux && amd64

package kvm

// Flags of ClockData. CheckExtension(CapAdjustClock) gives those that the
// kernel knows.
const (
	ClockTSCStable = 2 // KVM_CLOCK_TSC_STABLE
	ClockRealtime  = 4 // KVM_CLOCK_REALTIME
	ClockHostTSC   = 8 // KVM_CLOCK_HOST_TSC
)

// ClockData is the kvmclock of a VM, the time its guest sees.
//
//kvm:mirror kvm_clock_data
type ClockData struct {
	Clock    uint64 // nanoseconds
	Flags    uint32 // which of the fields below are valid
	_        uint32
	Realtime uint64 // the host's CLOCK_REALTIME at the same moment, nanoseconds
	HostTSC  uint64 // the host's TSC at the same moment
	_        [4]uint32
}

// Clock reads the kvmclock (KVM API 4.29).
func (vm *VM) Clock() (ClockData, error) { return get[ClockData](vm.f, ioctlGetClock) }

// SetClock sets the kvmclock (KVM API 4.30). With ClockRealtime KVM adds the
// wall time that passed since Realtime, which keeps a guest's clock going over
// a migration; no other flag may be set.
func (vm *VM) SetClock(c *ClockData) error {
	return withDetail(set(vm.f, ioctlSetClock, c), "%d ns, flags %#x", c.Clock, c.Flags)
}
