// Package sabotage lets a test build switch one safety rule of live migration
// off, so that the suite can show that it would notice.
//
// In a normal build On is a constant false, and the compiler removes every
// branch that asks. Built with -tags sabotage, the environment variable
// GODWIT_SABOTAGE names the one rule that is off.
package sabotage

// Rule is a safety rule that a sabotage build can switch off.
type Rule string

const (
	// ClearOrder is "a page's dirty bit is cleared before the page is read": off,
	// it is cleared after the page was sent, and a write in between is lost.
	ClearOrder Rule = "clear-order"
	// Barrier is "nothing of round n+1 is applied before every stream has passed
	// round n": off, an old copy of a page can land on top of a newer one.
	Barrier Rule = "barrier"
	// VMMDirty is "the VMM's own writes to guest memory count as dirty": off,
	// pages that only devices wrote are not sent again. vmm implements it.
	VMMDirty Rule = "vmm-dirty"
	// HintOrder is "the log is cleared before the guest is asked for its free pages":
	// off, it is cleared afterwards, and a page that the guest has used again is lost.
	HintOrder Rule = "hint-order"
)

// Env is the environment variable that a sabotage build reads.
const Env = "GODWIT_SABOTAGE"
