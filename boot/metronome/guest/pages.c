/* What a page must hold, as a function of seed, page number and version alone.
 *
 * A page is 512 words. Word j last changed by write w (0: by the fill) holds
 * word(key + j*STEP_WORD + w*STEP_WRITE), key depending on seed and page number.
 * Write w (counted from 1) changes slot (w-1 + offset) mod slots, a slot being `bytes`
 * bytes. So at version v the slot t places behind the offset was last changed by the
 * largest w <= v with (w-1) mod slots == t, or by the fill: one pass over the page
 * recomputes it all. */
#include "guest.h"

#define WORDS 512
#define STEP_WORD 0x9e3779b97f4a7c15UL
#define STEP_WRITE 0xc2b2ae3d27d4eb4fUL

u64 mix(u64 x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9UL;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebUL;
	return x ^ x >> 31;
}

static inline u64 page_key(u64 index) { return mix(opt.seed ^ mix(index + 0x6d6574726f6e6f6dUL)); }

static inline u64 word(u64 x)
{
	x ^= x >> 32;
	x *= 0xd6e8feb86659fd93UL;
	return x ^ x >> 29;
}

static inline u64 slot_words(void) { return opt.bytes / 8; }
static inline u64 slot_count(void) { return WORDS / slot_words(); }
static inline u64 slot_offset(u64 key, u64 slots) { return scale(key, slots); }

enum mode { WRITE, DIFFER, ANY_RIGHT };

/* One word: written, or compared into what `pass` returns. */
static inline __attribute__((always_inline)) u64 touch(u64 *p, u64 right, enum mode mode)
{
	if (mode == WRITE)
		*p = right;
	return mode == ANY_RIGHT ? *p == right : mode == DIFFER ? *p ^ right : 0;
}

/* WRITE makes the page what it must be. DIFFER returns 0 if it is that already,
 * ANY_RIGHT whether at least one word is. */
static inline __attribute__((always_inline)) u64 pass(u64 index, u64 version, enum mode mode)
{
	u64 *p = page_at(index);
	u64 x = page_key(index), result = 0;
	u64 slots = slot_count(), per_slot = slot_words(), j = 0;
	u64 t, cycle, last;

	if (version == 0)
		goto tail;
	t = slots - slot_offset(x, slots);
	if (t == slots)
		t = 0;
	cycle = (version - 1) / slots * slots;
	last = (version - 1) % slots;
	for (u64 s = 0; s < slots; s++) {
		u64 w = t <= last ? cycle + t + 1 : cycle ? cycle - slots + t + 1 : 0;
		u64 changed = w * STEP_WRITE;

		for (u64 k = 0; k < per_slot; k++, j++, x += STEP_WORD)
			result |= touch(&p[j], word(x + changed), mode);
		if (++t == slots)
			t = 0;
	}
tail:
	for (; j < WORDS; j++, x += STEP_WORD)
		result |= touch(&p[j], word(x), mode);
	return result;
}

void fill_page(u64 index, u64 version) { pass(index, version, WRITE); }
int page_good(u64 index, u64 version) { return pass(index, version, DIFFER) == 0; }
int page_mixed(u64 index, u64 version) { return pass(index, version, ANY_RIGHT) != 0; }

static inline __attribute__((always_inline)) u64 slot_pass(u64 index, u64 w, enum mode mode)
{
	u64 *p = page_at(index);
	u64 key = page_key(index), slots = slot_count(), per_slot = slot_words();
	u64 slot = slot_offset(key, slots) + (w - 1) % slots, j, result = 0;

	if (slot >= slots)
		slot -= slots;
	j = slot * per_slot;
	for (u64 k = 0; k < per_slot; k++, j++)
		result |= touch(&p[j], word(key + j * STEP_WORD + w * STEP_WRITE), mode);
	return result;
}

void apply_write(u64 index, u64 version) { slot_pass(index, version, WRITE); }

/* Whether write number `version` still stands in the page. True at version 0. */
int latest_write_good(u64 index, u64 version) { return version == 0 || slot_pass(index, version, DIFFER) == 0; }

/* Text: phrases of 16 bytes in random order, which LZ codecs take to under half. */
static const char phrases[32][16] = {
	"the godwit flies", " over the ocean ", "without a pause ", "and at low tide ",
	"it probes in mud", " for a long time", "page is sent now", "page was dirtied",
	"INFO: migration ", "WARN: retry the ", "round completed ", "bandwidth = 125 ",
	"downtime = 3 ms ", "status: running\n", "status: paused.\n", "id=0x0000ffff80 ",
	"queue 0 notified", "interrupt raised", "ring index 1024 ", "descriptor chain",
	" written to disk", " read from disk ", "block 000131072 ", "sector 00001048 ",
	"\n[    1.024000] ", "\n[    2.048000] ", "user logged in. ", "connection reset",
	"timeout after 30", " seconds elapsed", "retransmission. ", "checksum matches",
};

static inline __attribute__((always_inline)) u64 text_pass(u64 index, enum mode mode)
{
	u64 *p = page_at(index), x = page_key(index), result = 0;

	for (u64 j = 0; j < WORDS; j += 2) {
		const u64 *phrase = (const u64 *)phrases[word(x + j * STEP_WORD) & 31];

		result |= touch(&p[j], phrase[0], mode);
		result |= touch(&p[j + 1], phrase[1], mode);
	}
	return result;
}

void fill_text(u64 index) { text_pass(index, WRITE); }
int text_good(u64 index) { return text_pass(index, DIFFER) == 0; }
int text_mixed(u64 index) { return text_pass(index, ANY_RIGHT) != 0; }

int zero_good(u64 index)
{
	u64 *p = page_at(index), bad = 0;

	for (u64 j = 0; j < WORDS; j++)
		bad |= p[j];
	return bad == 0;
}

/* Version table entry: 40 bits of version, 24 bits of check. */
u64 table_entry(u64 index, u64 version)
{
	version &= (1UL << 40) - 1;
	return version | mix((opt.seed + index * STEP_WORD) ^ version * STEP_WRITE) << 40;
}

/* gcc may ask for these even in freestanding code (C11 4p6, gcc manual "Standards"). */
void *memset(void *to, int value, u64 n)
{
	for (u8 *p = to; n; n--)
		*p++ = (u8)value;
	return to;
}

void *memcpy(void *to, const void *from, u64 n)
{
	u8 *p = to;

	for (const u8 *q = from; n; n--)
		*p++ = *q++;
	return to;
}
