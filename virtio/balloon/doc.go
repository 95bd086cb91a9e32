// Package balloon is the traditional memory balloon device: virtio 1.2, 5.5. By
// it a guest gives memory back to its host, in four ways:
//
//	queue      what the driver says                    what the device does
//	inflate    these pages are in the balloon now      discards them
//	deflate    I take these pages out again            counts them: touching brings them back
//	reporting  these pages are free just now           discards them, unless they hold poison
//	hinting    these pages are free during a session   hands them to who asked (a migration)
//
// and on the stats queue it tells how it is off for memory.
//
//	      host                                   guest
//	SetTarget ── num_pages, interrupt ─────────> inflates or deflates
//	Status    <───────────────────── actual ──── when it has
//	FreePages ── free_page_hint_cmd_id = N ────> starts a session
//	          <── hint queue: N, pages, pages ── free at that moment
//	          <── hint queue: 0 (stop) ───────── that was all
//	          ── free_page_hint_cmd_id = 1 ────> done: keeps nothing back any more
//
// Discarding is behind an interface, Memory, that kvm/guestmem implements: it
// counts as a write by the VMM and is in the dirty log of a migration.
//
// The driver is an adversary. A list of pages is copied once and judged: what is
// not RAM is counted and left alone, a list has a limit, and what goes to Memory
// are sorted runs. It can harm no memory but its own.
//
// A paused device discards nothing and holds no chain, the stats buffer included.
// Resets forget all but the target, which is the host's.
package balloon
