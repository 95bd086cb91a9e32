package vmm

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"godwit/kvm"
)

// kickSignal interrupts KVM_RUN. The Go runtime uses SIGURG to preempt
// goroutines and documents that it tolerates any number of extra ones, so
// nothing needs to be installed and nothing else is disturbed.
const kickSignal = unix.SIGURG

// wish is what a vCPU's thread was last told to do.
type wish int

const (
	wishPark wish = iota
	wishRun
	wishStop
)

// VCPU is a virtual processor and the OS thread that runs it.
//
// Its thread alone calls KVM_RUN. Any goroutine may tell it what to do: the
// wish is written first, then immediate_exit, then the thread is signalled. A
// signal that comes just before KVM_RUN is lost, and immediate_exit that is
// set while KVM_RUN sleeps is not seen: each covers the other's gap. The
// thread clears immediate_exit before it reads the wish, so a wish written
// after that look finds immediate_exit set again and KVM_RUN returns at once.
type VCPU struct {
	id   int
	fd   *kvm.VCPU
	m    *Machine
	tid  int
	done chan struct{}

	mu     sync.Mutex
	cond   *sync.Cond
	wish   wish
	parked bool
	ran    bool // the thread was told to run or to stop before
	bell   bell // rung after each wish

	// kicked is wish != wishRun, readable without the lock.
	kicked atomic.Bool
	// dozeUntil is when a nap ends that the throttle ordered, nanoseconds since the
	// machine's beginning.
	dozeUntil atomic.Int64

	exits atomic.Uint64
}

func newVCPU(m *Machine, id int, fd *kvm.VCPU) *VCPU {
	v := &VCPU{id: id, fd: fd, m: m, done: make(chan struct{})}
	v.cond = sync.NewCond(&v.mu)
	v.kicked.Store(true)
	return v
}

// start launches the thread, parked, and returns once it is there.
func (v *VCPU) start() {
	ready := make(chan struct{})
	go func() {
		defer close(v.done)
		// Never unlocked: the thread ends with the goroutine, and with it the
		// vCPU's name and signals.
		runtime.LockOSThread()
		v.tid = unix.Gettid()
		setThreadName(fmt.Sprintf("vcpu%d", v.id))
		v.mu.Lock()
		v.parked = true
		v.mu.Unlock()
		close(ready)
		v.loop()
	}()
	<-ready
}

func setThreadName(name string) {
	b := append([]byte(name), 0)
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0)
}

// tell writes the wish and, where the thread may be in KVM_RUN, kicks it.
func (v *VCPU) tell(w wish) {
	v.mu.Lock()
	if v.wish != wishStop {
		v.wish = w
	}
	v.kicked.Store(v.wish != wishRun)
	v.cond.Broadcast()
	v.mu.Unlock()
	v.bell.ring()
	if w != wishRun {
		v.kick()
	}
}

// kick makes KVM_RUN return soon.
func (v *VCPU) kick() {
	v.fd.SetImmediateExit(true)
	_ = unix.Tgkill(unix.Getpid(), v.tid, kickSignal)
}

// waitParked returns once the thread stands still or has ended.
func (v *VCPU) waitParked() {
	v.mu.Lock()
	for !v.parked {
		v.cond.Wait()
	}
	v.mu.Unlock()
}

// loop runs the guest until it is told to stop or the guest ends.
func (v *VCPU) loop() {
	for v.park() {
		v.runUntilKicked()
	}
}

// park waits while the thread is told to stand still. It reports whether to
// run; on false the thread counts as parked for good.
func (v *VCPU) park() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.wish != wishRun {
		v.parked = true
		v.cond.Broadcast()
	}
	for v.wish == wishPark {
		v.waitForWish()
	}
	v.ran = true
	if v.wish == wishStop {
		v.parked = true
		return false
	}
	v.parked = false
	return true
}

// waitForWish waits with v.mu unlocked until the wish may have changed. Before
// its first run, which a guest that arrives is waiting for, the thread sleeps on
// the bell. Later Go's own wait is better: it gives the processor to whoever
// waits in Pause for this thread to park.
func (v *VCPU) waitForWish() {
	if v.ran {
		v.cond.Wait()
		return
	}
	seen := v.bell.look()
	v.mu.Unlock()
	v.bell.wait(seen)
	v.mu.Lock()
}

// runUntilKicked runs the guest. When it returns, no access is half-done: a
// PIO or MMIO exit is completed by KVM only on the next KVM_RUN, so the last
// one is entered with immediate_exit set.
func (v *VCPU) runUntilKicked() {
	for {
		err := v.fd.Run()
		v.exits.Add(1)
		switch {
		case err == nil:
			if exit, over := v.handleExit(); over {
				v.m.end(exit)
				v.tell(wishPark)
				return
			}
			if v.kicked.Load() {
				v.fd.SetImmediateExit(true)
			}
		case errors.Is(err, unix.EINTR):
			v.fd.SetImmediateExit(false)
			v.takeNap()
			if v.kicked.Load() {
				return
			}
		case errors.Is(err, unix.EAGAIN):
			// A vCPU waiting for INIT was woken; nothing to do.
		default:
			v.m.end(Exit{ExitFault, v.fault(err.Error(), "")})
			v.tell(wishPark)
			return
		}
	}
}

// doze sends the vCPU to sleep from now on for d, in place of a nap under way. It
// does not wait.
func (v *VCPU) doze(d time.Duration) {
	v.dozeUntil.Store(int64(time.Since(v.m.began) + d))
	v.kick()
}

// rouse ends a nap.
func (v *VCPU) rouse() {
	v.dozeUntil.Store(0)
	v.wake()
}

// wake has whoever waits for the wish, or for the end of a nap, look again.
func (v *VCPU) wake() {
	v.mu.Lock() // or it could fall between the look and Wait
	v.cond.Broadcast()
	v.mu.Unlock()
}

// takeNap sleeps while the throttle wants that, woken early by a wish.
func (v *VCPU) takeNap() {
	if v.napLeft() <= 0 {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for v.wish == wishRun {
		left := v.napLeft()
		if left <= 0 {
			return
		}
		timer := time.AfterFunc(left, v.wake)
		v.cond.Wait()
		timer.Stop()
	}
}

func (v *VCPU) napLeft() time.Duration {
	until := v.dozeUntil.Load()
	if until == 0 {
		return 0
	}
	return time.Duration(until) - time.Since(v.m.began)
}
