// Package migration moves a running machine to another process, live. It is the
// engine of godwit's protocol, version 1, at both ends; it knows no KVM and no
// device, only the small contracts Source and Target, which vmm implements over
// KVM and migration/sim in memory alone.
//
// # One migration
//
//	source                          control connection            destination
//	            CanPace: a throttle that cannot be had fails here
//	connect     HELLO ------------------------------------------> version, features
//	            <------------------------------------------ HELLO the session's nonce
//	configure   CONFIG, LAYOUT ---------------------------------> Builder makes the machine
//	            <------------------------------------------ BUILT what a restore takes
//	            N data streams, HELLO with the nonce ------------> attached
//	copy        StartDirtyLog, SetPace, Touched
//	            EXTENTS ----------------------------------------> Populate, ahead of the data
//	            round 1: touched pages,
//	            Clear and send each chunk ~~ ZERO RAW ROUND ~~~~> into guest memory in place
//	            <----------------------------------------- PASSED every stream is there
//	            round n: the same, Dirty  ~~ ZERO RAW ROUND ~~~~> ...
//	pause       Pause, Dirty once more
//	last-pages  the rest                  ~~ ZERO RAW ROUND ~~~~>
//	state       SaveState, Release
//	            STATE ------------------------------------------> kept, not applied
//	verify      VERIFY, hash -----------------------------------> hash        (only if asked)
//	            <------------------------------------------- HASH
//	            VERIFY, a part <----------------------> HASH         (only if they differ: where?)
//	prepare     PREPARE ----------------------------------------> counts agree, LoadState, Acquire
//	            <------------------------------------------ READY lease begins
//	committed   GO ---------------------------------------------> inside the lease: Run
//	            <---------------------------------------- RUNNING
//	clean-up    StopDirtyLog, SetPace: full speed
//
// With SendOptions.Local nothing is copied: MEMFD follows LAYOUT and brings the
// file that is guest memory, the Builder maps it for reading, and the next step
// is pause (local.go has the picture).
//
// The phases are typed (Phase) and their legal steps are two tables.
//
// # At most one copy runs
//
// The source pauses its guest before PREPARE and lets it go on only if it has not
// begun to send GO. The destination runs it only after a GO of this session that
// came within its lease. What each side may do, and why both never run:
//
//	moment                    source                         destination
//	before GO's first byte    any failure: undo, runs on     never saw GO: never runs; aborts
//	GO sent, RUNNING came     paused for good                runs
//	GO sent, ERROR came       paused, ErrNotTaken            promised: aborted, never runs
//	GO sent, nothing came     paused, ErrOutcomeUnknown      runs if GO came in time, else aborted
//
// The point of no return is passed before GO is written: a write that failed may
// have left in part. From there on cancel is refused (ErrCommitted), and the
// source never runs the guest by itself.
//
// The lease is for the last row. Its ends, on one time axis:
//
//	source       asks ............................ READY comes ................
//	             |<-- GO only in the first 9/10 of the lease -->|
//	destination         READY leaves |<------------- lease ------------->| GO refused
//	source's ForceAfter                      READY comes |<-- lease and 1/10 -->|
//
// The source's window opens when it asks, before READY can have left, so it closes
// first. A GO that was held up on its way and comes after the lease is refused.
// ForceAfter counts from READY's arrival, after it left, so it comes last:
// from then on a destination that has not taken the guest never will, and an
// operator who has made sure that it does not run there may resume it. The
// tenths are for clocks that do not tick alike. Both ends count on a clock that goes on
// while a host is suspended (BootTime).
//
// # Order of memory
//
// Log, then find, then clear, then read, then send: StartDirtyLog before Touched,
// and Clear for a chunk of pages just before they are read, looking for zeros
// included. A page written before its turn goes once, as it then is; one written
// after its turn is in the log again. What Dirty reports before a round is the
// round's set; Dirty itself forgets nothing. A page goes at most once per round, and a
// destination stream applies nothing of round n+1 before every stream has passed
// round n: so an old copy on a slow stream cannot land on a new one from a
// fast stream. migration/sabotage switches these rules off to show that the
// tests notice.
//
// # Rehearsal
//
// A stop rule may want to know what a pause costs (policy.Measurer). Between two
// rounds the engine then pauses the guest, saves its state to nowhere and resumes
// it, with a stop-watch: Pause, SaveState, Resume, never Release. Any failure in it
// is a failure before GO like all others, and undone as they are. Then it looks at
// the log twice; Dirty forgets nothing. What restoring takes the destination has
// said in BUILT; it is an estimate, and nothing depends on its truth.
//
// # Codecs
//
// HELLO names the session's codec; a destination that does not know it refuses,
// and every destination knows all that this package imports. A page is then
// looked at in this order: all zeros, a ZERO run and Forget; smaller when encoded,
// an entry of a CODEC frame; else RAW, from guest memory or from the copy that
// the codec keeps. An entry carries the checksum of the page that it builds on,
// which the destination's Decode checks first, and names its codec: the session's,
// or one of those that it chooses from (policy.Chooser). A page that the codec
// finds as it was last sent does not go at all. The barrier between rounds
// orders calls for one page. A codec that is slow is helped by idle
// processors (pool); it and what it keeps are closed when the session ends.
//
// # Silence
//
// Every connection carries something in both directions all the time: data,
// acknowledgements, or KEEPALIVE every fifth of the allowed silence. Reads
// have that silence as deadline, so a peer that is gone or cut off is
// noticed in every phase. A data stream's writes have none: a destination that
// lives but reads slowly acknowledges as it goes.
//
// Bandwidth and estimates count acknowledged bytes: a round is over when the
// destination says PASSED, not when the socket has taken the bytes.
//
// # Files
//
// Save and Restore use the same frames with nobody to answer: HELLO, CONFIG,
// LAYOUT, EXTENTS, pages, ROUND, STATE, HASH if asked, PREPARE as the end.
package migration
