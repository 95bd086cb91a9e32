package migration

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"godwit/migration/policy"
	"godwit/migration/wire"
)

// Mode is how memory travels.
type Mode string

const (
	// PreCopy copies memory in rounds while the guest runs, then pauses it for
	// what is left.
	PreCopy Mode = "precopy"
	// StopAndCopy pauses the guest first and copies once.
	StopAndCopy Mode = "stop-and-copy"
)

// Defaults of SendOptions and ReceiveOptions.
const (
	DefaultDowntimeLimit = 30 * time.Millisecond
	DefaultSilence       = 5 * time.Second
	DefaultLease         = 10 * time.Second
	DefaultStall         = 5 * time.Minute
)

// Limits of SendOptions and ReceiveOptions.
const (
	MaxStreams = wire.MaxStreams
	// MinBandwidth is the smallest bandwidth limit, bytes per second and stream:
	// below it one page could take longer than the silence that counts as a failure.
	MinBandwidth = 64 << 10
	maxSilence   = time.Hour
	minSilence   = 20 * time.Millisecond
	minLease     = 100 * time.Millisecond
	maxLease     = time.Minute
)

// Dialer opens one connection to the destination: the engine calls it for the
// control connection, then for each data stream, several at once.
type Dialer func(ctx context.Context) (net.Conn, error)

// Acceptor waits for the next connection. It returns soon after ctx ends.
type Acceptor func(ctx context.Context) (net.Conn, error)

// SendOptions says how a source migrates. The zero value is a pre-copy over one
// stream with every default. An option that would do nothing in this mode is
// refused where it is not the default.
type SendOptions struct {
	Mode          Mode          // "" means PreCopy
	VMID          string        // tells the destination's operator which VM comes, at most 64 bytes
	Streams       int           // data streams, 1 to MaxStreams; 0 means 1
	Bandwidth     int64         // bytes per second of all streams together, at least MinBandwidth a stream; 0 means no limit
	DowntimeLimit time.Duration // what the stop rule aims at; 0 means DefaultDowntimeLimit
	Timeout       time.Duration // of the whole migration up to GO; 0 means none
	Verify        bool          // compare hashes of guest memory before GO, outside the quoted downtime
	Policies      policy.Set    // nil members mean the defaults
	Silence       time.Duration // no sign of life for so long is a failure; 0 means DefaultSilence
	Log           *slog.Logger  // nil means silent
	// Clock is what the lease is counted on, at whatever moment it begins: one that
	// goes on while this host is suspended. nil means BootTime.
	Clock func() time.Duration
	// OnProgress, if set, is called by the engine whenever the phase or the round
	// changes, from the goroutine that drives the migration. It must not block.
	OnProgress func(Progress)
	// Local hands the memory itself to a process of this host, over a unix socket:
	// nothing is copied, so there are no streams, no rounds and nothing for policies,
	// a bandwidth or downtime limit or another mode to act on. The Source must be a
	// LocalSource.
	Local bool
	// FreePageHint asks the guest, before round 1, which of its pages it does not
	// need, and leaves those out unless it writes to them. The Source must be a
	// HintSource, the mode PreCopy.
	FreePageHint bool
}

func (o SendOptions) withDefaults() (SendOptions, error) {
	if o.Mode == "" {
		o.Mode = PreCopy
	}
	if o.Streams == 0 {
		o.Streams = 1
	}
	if o.DowntimeLimit == 0 {
		o.DowntimeLimit = DefaultDowntimeLimit
	}
	defaultsOfBoth(&o.Silence, &o.Log, &o.Clock, &o.OnProgress)
	o.Policies = o.Policies.Defaults()
	switch {
	case o.Mode != PreCopy && o.Mode != StopAndCopy:
		return o, fmt.Errorf("%w: mode %q; known: %s, %s", ErrOptions, o.Mode, PreCopy, StopAndCopy)
	case len(o.VMID) > wire.MaxVMID:
		return o, fmt.Errorf("%w: VM id of %d bytes, at most %d", ErrOptions, len(o.VMID), wire.MaxVMID)
	case o.Streams < 1 || o.Streams > MaxStreams:
		return o, fmt.Errorf("%w: %d streams, must be 1 to %d", ErrOptions, o.Streams, MaxStreams)
	case o.Timeout < 0:
		return o, fmt.Errorf("%w: timeout %v is negative", ErrOptions, o.Timeout)
	}
	if err := checkLocal(&o); err != nil {
		return o, err
	}
	if err := o.checkUnused(); err != nil {
		return o, err
	}
	if err := checkHint(&o); err != nil {
		return o, err
	}
	if err := checkBandwidth(o.Bandwidth, o.Streams); err != nil {
		return o, err
	}
	if err := checkDowntimeLimit(o.DowntimeLimit); err != nil {
		return o, err
	}
	return o, checkSilence(o.Silence)
}

// Check refuses options that no source could follow.
func (o SendOptions) Check() error {
	_, err := o.withDefaults()
	return err
}

// ReceiveOptions says how a destination receives.
type ReceiveOptions struct {
	Silence time.Duration // no sign of life for so long is a failure; 0 means DefaultSilence
	Lease   time.Duration // how long READY holds, 100 ms to 10 min; 0 means DefaultLease
	Stall   time.Duration // how long a source may live and bring nothing; 0 means DefaultStall, below 0 for ever
	Timeout time.Duration // of the whole migration from its source's HELLO up to GO; 0 means none
	// Describe is how long a source may take from its HELLO to the end of CONFIG; 0
	// means as long as Stall and Timeout allow.
	Describe time.Duration
	Verify   bool         // demand that the source compares memory hashes
	Log      *slog.Logger // nil means silent
	// Clock is as in SendOptions.
	Clock func() time.Duration
	// OnProgress is as in SendOptions.
	OnProgress func(Progress)
	// OnTurnedAway, if set, is told why a connection was turned away that began no
	// session and joined none. Any goroutine may call it, at a stranger's rate.
	OnTurnedAway func(error)
}

func (o ReceiveOptions) withDefaults() (ReceiveOptions, error) {
	if o.Stall == 0 {
		o.Stall = DefaultStall
	}
	if o.Lease == 0 {
		o.Lease = DefaultLease
	}
	defaultsOfBoth(&o.Silence, &o.Log, &o.Clock, &o.OnProgress)
	if o.Lease < minLease || o.Lease > maxLease {
		return o, fmt.Errorf("%w: lease %v, must be %v to %v", ErrOptions, o.Lease, minLease, maxLease)
	}
	if o.OnTurnedAway == nil {
		o.OnTurnedAway = func(error) {}
	}
	if o.Timeout < 0 || o.Describe < 0 {
		return o, fmt.Errorf("%w: a timeout is negative: %v, %v to describe the machine", ErrOptions, o.Timeout, o.Describe)
	}
	return o, checkSilence(o.Silence)
}

// defaultsOfBoth fills in what the options of both ends have.
func defaultsOfBoth(silence *time.Duration, log **slog.Logger, clock *func() time.Duration, onProgress *func(Progress)) {
	if *silence == 0 {
		*silence = DefaultSilence
	}
	if *log == nil {
		*log = slog.New(slog.DiscardHandler)
	}
	if *clock == nil {
		*clock = BootTime
	}
	if *onProgress == nil {
		*onProgress = func(Progress) {}
	}
}

func checkBandwidth(b int64, streams int) error {
	if least := int64(MinBandwidth * streams); b != 0 && b < least {
		return fmt.Errorf("%w: bandwidth %d bytes/s, must be 0 (no limit) or at least %d for %d streams", ErrOptions, b, least, streams)
	}
	return nil
}

func checkDowntimeLimit(d time.Duration) error {
	if d <= 0 {
		return fmt.Errorf("%w: downtime limit %v, must be above 0", ErrOptions, d)
	}
	return nil
}

func checkSilence(d time.Duration) error {
	if d < minSilence || d > maxSilence {
		return fmt.Errorf("%w: silence %v, must be %v to %v", ErrOptions, d, minSilence, maxSilence)
	}
	return nil
}

// keepaliveEvery is how often a side with nothing to say shows that it lives:
// often enough that one lost beat is not yet silence.
func keepaliveEvery(silence time.Duration) time.Duration { return silence / 5 }

// AcceptFrom makes an Acceptor of a listener that has deadlines, as TCP and
// unix listeners do. One call at a time; the listener stays open.
func AcceptFrom(l net.Listener) Acceptor {
	return func(ctx context.Context) (net.Conn, error) {
		d, ok := l.(interface{ SetDeadline(time.Time) error })
		if !ok {
			return nil, fmt.Errorf("accept on %s: listener %T has no deadline", l.Addr(), l)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := d.SetDeadline(time.Time{}); err != nil {
			return nil, err
		}
		expired := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(expired)
			_ = d.SetDeadline(time.Unix(1, 0)) // a listener that closed meanwhile fails Accept anyway
		})
		conn, err := l.Accept()
		if !stop() {
			<-expired // or a late deadline would hit the next Accept
			if err != nil {
				return nil, ctx.Err()
			}
		}
		return conn, err
	}
}
