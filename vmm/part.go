package vmm

import "godwit/virtio"

// part is a virtio device and what stands behind it on this host. The machine
// calls its methods one at a time, but for info, which may come at any moment
// between creation and close.
//
//	source                          destination
//	Pause (devices drained)         created, locks and traffic still the source's
//	release ──────────────────────> expect, claim
//	   └ claim, if it failed        the guest runs, follow
//	     the guest runs, follow
type part interface {
	// kind and name are for messages: `disk "vda"`.
	kind() string
	name() string
	device() virtio.Device
	// release gives up what a source and a destination must not both use: the
	// lock of a disk, the traffic of a network. The device is paused.
	release() error
	// expect says that the source has released: what comes for the guest from here
	// on is to be kept for it, at a destination. What came before was not.
	expect()
	// claim takes it: at a destination before the guest runs, at a source again
	// after a migration that failed. Having it already is no error.
	claim() error
	// vital says that the guest must not run without what claim takes.
	vital() bool
	// follow says that a guest that came from elsewhere, or was to go there, runs
	// here now. It does not block: what takes long goes on in a goroutine that close
	// ends.
	follow()
	// info adds the part's figures.
	info(*Info)
	close() error
}

// plainPart is for parts that hold nothing a destination would need.
type plainPart struct{}

func (plainPart) release() error { return nil }
func (plainPart) expect()        {}
func (plainPart) claim() error   { return nil }
func (plainPart) vital() bool    { return true }
func (plainPart) follow()        {}
func (plainPart) close() error   { return nil }
