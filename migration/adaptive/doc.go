// Package adaptive is the page codec "auto": for each page it chooses between
// sending it as it is, its delta (xbrle) and its LZ4 block, from what the page
// and its neighbourhood were like and from how fast the link is.
//
//	--codec auto[,cache=64M|auto|0][,max=1G][,prime=all|hot|none][,accel=N]
//
// Importing the package registers the name with policy.Codecs. The options are
// those of xbrle and lz4codec. Encodings carry the ID of the codec that made
// them; "auto" has an ID of its own, 4, in HELLO only.
//
// # One page
//
//	is there time for cheap work? --no---------------------> raw, no base is kept
//	      | yes
//	the page's base is cached --small delta----------------> delta
//	      | no base, or a large delta
//	is there time for LZ4, and is it worth it here? --no---> raw, or that delta
//	      | yes
//	LZ4 of what the cache keeps -----------------------------> the smaller one
//
// # Time
//
// There is one account for the session, in nanoseconds. Work is paid from it: LZ4
// as long as it is not overdrawn, deltas and keeping bases longer (2 ms,
// half a second with h = 1), for they bring more per nanosecond. What a page brings in depends on the link,
// which the engine reports (policy.Link). h is the share of encoding that the link
// hides: 1 where the user's limit makes streams wait, 0 on a link of which nobody
// can tell that it is busy while a stream encodes.
//
//	income = h * time of the bytes sent
//	       + (1-h) * (time of the bytes saved + 1/16 of a page's time)
//
// With h = 1 encoding and sending run side by side, and the account keeps the sum
// of encoding below the sum of sending: when LZ4 is too slow for the link, just
// so many pages are compressed that both take equally long, which is the least
// time in all. With h = 0 encoding delays sending, so it must save more than it
// takes; the 1/16 pays for trying and for bases, whose use comes later.
//
// LZ4 work that runs on k processors at a time is paid once, not k times: what
// counts is that the encoders as a whole keep up. Times are measured, so that
// processors busy with the guest show.
//
// The account holds 10 ms at most and owes a second at most: the past is soon
// forgotten when the link or its limit changes, though the page faults of a cache
// that is filled, tens of milliseconds each where memory is scarce, are paid for. Until the engine has reported a
// link, nothing comes in.
//
// # Worth
//
// LZ4 must also promise to save at least 1/(1+2h) of the time that it takes: a
// hidden encoder still takes processors from the guest. What it promises is what
// it did lately in the same MiB of guest memory. Where that is not enough, one
// page in 24 is tried, so that a change is noticed; where the link is so fast
// that no page can be worth it, one in 1024, in case LZ4 has become faster.
package adaptive
