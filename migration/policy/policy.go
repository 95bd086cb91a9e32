package policy

import "time"

// PageSize is the size of a page in every policy, bytes.
const PageSize = 4096

// Round is what a policy may know. It is a value: a policy gets a copy, so
// nothing it does changes what the engine or another policy sees.
type Round struct {
	Number        int           // the round just sent, from 1; 0 before the first
	Elapsed       time.Duration // since the migration started
	Took          time.Duration // this round, first page to last acknowledgement
	TotalPages    uint64        // pages of guest RAM
	DirtyPages    uint64        // pages waiting to be sent now
	SentPages     uint64        // pages of this round: sent, or found unchanged by the codec
	SentBytes     uint64        // bytes acknowledged by the destination in this round
	Bandwidth     float64       // acknowledged bytes per second, 0 when not known yet
	EstDowntime   time.Duration // if the guest were paused now; the engine's estimate
	DowntimeLimit time.Duration // what the user allows
	Duty          int           // percent of the time the vCPUs may run at present, 1 to 100
	PageBytes     float64       // what a dirty page takes on the wire; the engine's estimate, 0 when it has none
	Sample        Sample        // what a Measurer asked for; zero when none was made
	VCPUs         int           // vCPUs of the guest
}

// Order decides which pages go first.
type Order interface {
	// Sort rearranges pages, guest frame numbers in ascending order, into the
	// order of sending. The result holds the same pages, each once. It is called
	// before each round, r being the round before it; r.DirtyPages is len(pages).
	// Its time is spent inside the round, so it should be near linear.
	Sort(r Round, pages []uint64)
}

// Encoding is what a Codec made of a page.
type Encoding struct {
	// Data is the encoding, 0 to PageSize-1 bytes, or the whole page when Raw. It
	// stays valid until the codec's next Encode of the same page, and the engine
	// sends it as it is: a page that becomes a delta base is thus sent from the
	// copy that is kept, or from a copy of it.
	Data []byte
	// Raw says that Data is the whole page, to be sent without a codec.
	Raw bool
	// Base is the CRC-32C of the page that the encoding builds on, 0 for none.
	Base uint32
	// Same says that the page is as it was last sent, so that nothing need go: a
	// dirty log names pages that were not written, or got what they held. Data is
	// then empty.
	Same bool
	// Codec is the ID of the choice that made the encoding, where the session's
	// codec is a Chooser; 0 stands for the session's codec itself.
	Codec uint8
}

// Codec makes pages smaller. The source has one value and the destination
// another; both see the same pages in the same order per page.
//
// All methods are called by several streams at a time, though never for one
// page at once; the barrier between rounds orders calls for one page.
type Codec interface {
	// ID names the codec on the wire: 0 for raw, 1 to 255 never reused.
	ID() uint8
	// Encode encodes page gfn. The page may change while it is being read: a
	// codec that looks twice must look at its own copy. An encoding that is not
	// smaller than the page must be Raw.
	Encode(gfn uint64, page []byte) Encoding
	// Decode rebuilds page gfn from an encoding. page holds what the destination
	// has at present. base and enc come from a stranger: a base that does not
	// match or an encoding that does not fit is an error, never a panic.
	Decode(gfn uint64, page []byte, base uint32, enc []byte) error
	// Forget drops what is kept of page gfn, because it was sent as zero or
	// skipped.
	Forget(gfn uint64)
	// A codec that holds more than Go memory has a method Close() error as well,
	// which the engine calls once nothing uses the codec any more.
}

// ScratchCodec is a Codec that can encode without memory of its own. The engine
// then calls EncodeTo instead of Encode.
type ScratchCodec interface {
	Codec
	// EncodeTo is Encode, with Data in dst or the page itself. dst is the caller's,
	// PageSize long, and may be overwritten once Data has been sent.
	EncodeTo(dst []byte, gfn uint64, page []byte) Encoding
}

// Observer is a Codec that wants to know which pages are written often.
type Observer interface {
	// Observe is told, before each round but the first, the pages that the guest
	// wrote: what the round sends. r is the round before it. Before the first it is
	// told, with the zero Round, what the guest wrote while it was watched for a
	// moment, where it was. It is called while no page is being encoded, and must not
	// keep dirty.
	Observe(r Round, dirty []uint64)
}

// EarlyObserver is an Observer that can make much of that moment.
type EarlyObserver interface {
	Observer
	// NeedsEarly asks, once, whether the guest is to be watched before the first
	// round also where that costs something: a log that begins with every page in it
	// says what is hot only after all of them were write-protected.
	NeedsEarly() bool
}

// Chooser is a Codec that hands each page to one of several others. Encoding
// names which it was, and the destination decodes with that one.
type Chooser interface {
	Codec
	// Choices are the codecs that an encoding may come from. They stay the same,
	// and are closed by their chooser.
	Choices() []Codec
}

// Link is what the engine knows of a session's link while it sends.
type Link struct {
	// Speed is how many bytes per second the link takes, all streams together: the
	// user's limit, or less. Where the link is faster than what feeds it, this is
	// more than it would take.
	Speed float64
	// Hidden is the share, 0 to 1, of the time spent encoding during which the link
	// was still busy with earlier bytes, so that encoding delayed nothing.
	Hidden float64
}

// LinkObserver is a Codec that weighs the time it takes against the link's.
type LinkObserver interface {
	// ObserveLink is told the state of the link about once per MiB of guest memory,
	// by the streams' goroutines, and beside Encode.
	ObserveLink(Link)
}

// Throttle decides how far the guest is slowed so that copying can catch up.
type Throttle interface {
	// Next gives the guest's pace from now on. It is asked before the first round,
	// with the zero Round and maybe more than once, what the migration begins with,
	// and then after each round. All answers of one throttle have the same By. The
	// engine undoes the pace on every exit.
	Next(r Round) Pace
}

// Decision is a Stop's answer.
type Decision int

const (
	Continue Decision = iota // send another round while the guest runs
	Finish                   // pause the guest and send what is left
)

// Stop decides when copying ends and the guest is paused.
type Stop interface {
	// Decide is called after each round with the pages dirtied meanwhile. It must
	// Finish after a bounded number of rounds, however the guest behaves.
	Decide(r Round) Decision
}

// Set is one policy of each kind. A nil member means the default.
type Set struct {
	Order    Order
	Codec    Codec
	Throttle Throttle
	Stop     Stop
}

// Defaults returns s with its nil members filled in.
func (s Set) Defaults() Set {
	if s.Order == nil {
		s.Order = Address{}
	}
	if s.Codec == nil {
		s.Codec = Raw{}
	}
	if s.Throttle == nil {
		s.Throttle = None{}
	}
	if s.Stop == nil {
		s.Stop = LastSync{MaxRounds: DefaultMaxRounds}
	}
	return s
}

// Parse makes a set from four texts of the form NAME[,key=value..]; an empty
// text means the default.
func Parse(order, codec, throttle, stop string) (Set, error) {
	var s Set
	var err error
	if s.Order, err = Orders.Parse(order); err != nil {
		return Set{}, err
	}
	if s.Codec, err = Codecs.Parse(codec); err != nil {
		return Set{}, err
	}
	if s.Throttle, err = Throttles.Parse(throttle); err != nil {
		return Set{}, err
	}
	if s.Stop, err = Stops.Parse(stop); err != nil {
		return Set{}, err
	}
	return s.Defaults(), nil
}
