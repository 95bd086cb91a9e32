package vmm

import (
	"errors"
	"fmt"
	"path/filepath"

	"godwit/unixsocket"
	"godwit/virtio"
	vvsock "godwit/virtio/vsock"
)

// Vsock is a virtio-vsock device: stream sockets between the guest and this
// host's unix sockets.
type Vsock struct {
	// GuestCID is the guest's address, 3 to 4294967294. It moves with the guest.
	GuestCID uint64 `json:"guest_cid"`
	// UDSPath is the unix socket where the host's programs connect; the guest's
	// connections to port P go to UDSPath_P. At most 96 bytes. Without one nobody is
	// behind the device.
	UDSPath string `json:"uds_path,omitempty"`
}

// portSuffix is what the path must leave room for.
const portSuffix = "_4294967295"

func checkVsockPath(path string) error { return unixsocket.CheckPath(path + portSuffix) }

// validate leaves the path of an incoming machine alone: it may not be used here.
func (v *Vsock) validate(incoming bool) error {
	if v == nil {
		return nil
	}
	if v.GuestCID < vvsock.MinCID || v.GuestCID > vvsock.MaxCID {
		return fmt.Errorf("%w: vsock: guest_cid %d; give %d to %d", ErrConfig, v.GuestCID, vvsock.MinCID, uint64(vvsock.MaxCID))
	}
	if incoming {
		return nil
	}
	if v.UDSPath == "" {
		return nil
	}
	if err := checkVsockPath(v.UDSPath); err != nil {
		return fmt.Errorf("%w: vsock: %w", ErrConfig, err)
	}
	return nil
}

// VsockPath finds the path here: where the operator says, or as the source
// names it if its folder, which must exist, lies below an allowed prefix. With
// neither nobody is behind the device.
func (in Incoming) VsockPath(v *Vsock) (string, error) {
	switch {
	case v == nil && in.Vsock != "":
		return "", fmt.Errorf("%w: --vsock path=… and the machine has no vsock", ErrIncompatible)
	case v == nil:
		return "", nil
	case in.Vsock != "":
		if err := checkVsockPath(in.Vsock); err != nil {
			return "", fmt.Errorf("%w: vsock: %w", ErrConfig, err)
		}
		return in.Vsock, nil
	}
	path, ok := resolveNew(in.AllowPrefixes, v.UDSPath)
	if ok && checkVsockPath(path) != nil {
		return "", nil
	}
	return path, nil
}

// resolveNew is Resolve for a file that need not exist; its folder must.
func resolveNew(prefixes []string, path string) (resolved string, ok bool) {
	base := filepath.Base(path)
	if !filepath.IsLocal(base) || base == "." {
		return "", false
	}
	dir, ok := Resolve(prefixes, filepath.Dir(path))
	if !ok {
		return "", false
	}
	return filepath.Join(dir, base), true
}

// VsockInfo is the vsock device and what it has done.
type VsockInfo struct {
	GuestCID uint64       `json:"guest_cid"`
	Path     string       `json:"path,omitempty"`  // here; none where nobody can connect
	Fault    string       `json:"fault,omitempty"` // why nobody can connect at Path
	Stats    vvsock.Stats `json:"stats"`
}

// vsock is the machine's virtio-vsock device.
type vsock struct {
	plainPart
	cid  uint64
	path string // what is, or is to be, its path here; none if empty
	open bool
	// fault is what kept claim from opening it.
	fault error
	dev   *vvsock.Device
}

var _ part = (*vsock)(nil)

// newVsock makes the device. An incoming machine listens only once its source
// does not, which may have the same path.
func newVsock(spec Vsock, a assembly) (_ part, err error) {
	v := &vsock{cid: spec.GuestCID, path: spec.UDSPath}
	if a.incoming {
		v.path = a.vsock
	}
	if v.dev, err = vvsock.New(vvsock.Config{GuestCID: spec.GuestCID}); err != nil {
		return nil, err
	}
	if !a.incoming {
		if err := v.claim(); err != nil {
			return nil, errors.Join(err, v.close())
		}
	}
	return v, nil
}

func (v *vsock) kind() string          { return "vsock" }
func (v *vsock) name() string          { return fmt.Sprint(v.cid) }
func (v *vsock) device() virtio.Device { return v.dev }
func (v *vsock) vital() bool           { return false }
func (v *vsock) close() error          { return v.dev.Close() }

// release makes the path free for the destination, which may be on this host.
// Connections stay until the machine is closed: they go on if the migration
// fails.
func (v *vsock) release() error {
	v.open = false
	return v.dev.StopListening()
}

func (v *vsock) claim() error {
	if v.path == "" || v.open {
		return nil
	}
	l, err := unixsocket.Listen(v.path)
	if err == nil {
		err = v.dev.Listen(l, v.path)
	}
	if err != nil {
		err = fmt.Errorf("vsock: %w", err)
	}
	v.open, v.fault = err == nil, err
	return err
}

func (v *vsock) info(i *Info) {
	i.Vsock = &VsockInfo{GuestCID: v.cid, Path: v.path, Fault: faultText(v.fault), Stats: v.dev.Stats()}
}
