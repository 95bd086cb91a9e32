package api

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"godwit/migration"
	"godwit/migration/policy"
	"godwit/vmm"
)

// States of InstanceInfo, in Firecracker's words.
const (
	StateNotStarted = "Not started"
	StateRunning    = "Running"
	StatePaused     = "Paused"
)

// InstanceInfo answers GET /.
type InstanceInfo struct {
	ID         string `json:"id"`
	State      string `json:"state"`
	VMMVersion string `json:"vmm_version"`
	AppName    string `json:"app_name"`
}

// Info answers GET /vm/info.
type Info struct {
	vmm.Info
	// LastMigration is there once a migration from here has ended.
	LastMigration *Note `json:"last_migration,omitempty"`
}

// VMUpdate is the body of PATCH /vm.
type VMUpdate struct {
	State string `json:"state"` // "Paused" or "Resumed"
	// Force resumes a guest whose migration nobody knows the end of. The call
	// first waits until the destination can no longer take it.
	Force bool `json:"force,omitempty"`
	// ForceStale is Force, also over disks that were taken or written by others since
	// the guest left, or of which that cannot be told.
	ForceStale bool `json:"force_stale,omitempty"`
}

// Action is the body of PUT /actions.
type Action struct {
	Type string `json:"action_type"` // "InstanceStop"
}

// Fault is the body of an error.
type Fault struct {
	Message string `json:"fault_message"`
}

// MigrationRequest is the body of PUT /migration. Zero values mean the
// engine's defaults. What would do nothing is refused, as a codec on the way into a
// file.
type MigrationRequest struct {
	// To is tcp:HOST:PORT, unix:PATH, or file:PATH to save the machine. A path is
	// that of the process that runs the machine.
	To              string  `json:"to"`
	Mode            string  `json:"mode,omitempty"`
	Streams         int     `json:"streams,omitempty"`
	Bandwidth       int64   `json:"bandwidth_bytes_s,omitempty"`
	DowntimeLimitMS float64 `json:"downtime_limit_ms,omitempty"`
	TimeoutMS       float64 `json:"timeout_ms,omitempty"`
	Order           string  `json:"order,omitempty"` // policies as NAME[,key=value..]
	Codec           string  `json:"codec,omitempty"`
	Throttle        string  `json:"throttle,omitempty"`
	Stop            string  `json:"stop,omitempty"`
	Verify          bool    `json:"verify,omitempty"`
	// Local hands the memory itself to a process of this host, without a copy. Only
	// to unix:PATH, and for a machine whose memory is a memfd.
	Local bool `json:"local,omitempty"`
	// FreePageHint asks the guest which pages it does not need, and leaves those out.
	// The machine needs a balloon with hinting, and the destination is no file.
	FreePageHint bool `json:"free_page_hint,omitempty"`
	// Keep leaves the source paused after it has moved instead of ending it. One
	// that was saved in a file may be resumed.
	Keep bool `json:"keep,omitempty"`
	// TLSFiles are read when the migration starts, by the process that runs the
	// machine: relative paths are that process's.
	TLSFiles
}

// secure loads what makes the connections TLS, or nil.
func (q MigrationRequest) secure(to Address) (*TLS, error) {
	t, err := q.TLSFiles.Load(to)
	if t != nil && to.host() == "" {
		return nil, fmt.Errorf("%w: %s names no host, and TLS compares that with the destination's certificate; write tcp:HOST:PORT", ErrTLS, to)
	}
	return t, err
}

// options turns the request into what the engine takes.
func (q MigrationRequest) options() (Address, migration.SendOptions, error) {
	to, err := ParseAddress(q.To)
	if err != nil {
		return Address{}, migration.SendOptions{}, err
	}
	o := migration.SendOptions{Mode: migration.Mode(q.Mode), Streams: q.Streams, Bandwidth: q.Bandwidth, Verify: q.Verify, Local: q.Local, FreePageHint: q.FreePageHint}
	if err := q.checkLocal(to); err != nil {
		return to, o, err
	}
	switch o.Mode {
	case "", migration.PreCopy, migration.StopAndCopy:
	case "postcopy", "hybrid":
		return to, o, fmt.Errorf("%w: mode %q is not in this version; use %s or %s", migration.ErrOptions, q.Mode, migration.PreCopy, migration.StopAndCopy)
	}
	if o.Policies, err = policy.Parse(q.Order, q.Codec, q.Throttle, q.Stop); err != nil {
		return to, o, err
	}
	if o.DowntimeLimit, err = duration("downtime_limit_ms", q.DowntimeLimitMS); err != nil {
		return to, o, err
	}
	o.Timeout, err = duration("timeout_ms", q.TimeoutMS)
	return to, o, err
}

// Check refuses what no machine would take, as the server does: what the machine itself
// decides, such as whether it can be slowed so, is not asked.
func (q MigrationRequest) Check() error {
	to, o, err := q.options()
	switch {
	case err != nil:
		return err
	case to.IsFile():
		return migration.CheckSave(o)
	}
	return o.Check()
}

// checkLocal refuses what a hand-over of the memory itself cannot do.
func (q MigrationRequest) checkLocal(to Address) error {
	switch {
	case !q.Local:
		return nil
	case to.Network != "unix":
		return fmt.Errorf("%w: %w to %s; memory changes hands over a unix socket only, as in unix:in.sock", migration.ErrOptions, migration.ErrLocal, to)
	case q.Keep:
		return fmt.Errorf("%w: %w and keep; there is one memory, and once it is handed over nothing is left here to keep", migration.ErrOptions, migration.ErrLocal)
	}
	return nil
}

// maxMS is the longest time of a request, milliseconds: 30 days.
const maxMS = 30 * 24 * 3600 * 1000

// duration converts milliseconds, refusing what is no time.
func duration(name string, ms float64) (time.Duration, error) {
	if math.IsNaN(ms) || ms < 0 || ms > maxMS {
		return 0, fmt.Errorf("%w: %s of %s, must be 0 to %d", migration.ErrOptions, name, strconv.FormatFloat(ms, 'f', -1, 64), maxMS)
	}
	return time.Duration(ms * float64(time.Millisecond)), nil
}

// MigrationUpdate is the body of PATCH /migration. What is nil stays.
type MigrationUpdate struct {
	Bandwidth       *int64   `json:"bandwidth_bytes_s,omitempty"` // 0 is no limit
	DowntimeLimitMS *float64 `json:"downtime_limit_ms,omitempty"`
	Throttle        *string  `json:"throttle,omitempty"`
}

// tuning turns the update into what the engine takes.
func (u MigrationUpdate) tuning() (migration.Tuning, error) {
	t := migration.Tuning{Bandwidth: u.Bandwidth}
	if u.DowntimeLimitMS != nil {
		limit, err := duration("downtime_limit_ms", *u.DowntimeLimitMS)
		if err != nil {
			return t, err
		}
		t.DowntimeLimit = &limit
	}
	if u.Throttle != nil {
		var err error
		if t.Throttle, err = policy.Throttles.Parse(*u.Throttle); err != nil {
			return t, err
		}
		if t.Throttle == nil { // an empty text is the default
			t.Throttle = policy.None{}
		}
	}
	return t, nil
}

// MigrationStatus answers GET /migration.
type MigrationStatus struct {
	To       string             `json:"to"`
	Progress migration.Progress `json:"progress"`
	// Report is there once the migration has ended.
	Report *migration.Report `json:"report,omitempty"`
}
