/* What kind of wrong a wrong page is; counting, reporting and repairing it. */
#include "guest.h"

#define MAX_LINES 64
#define PENDING 64

static const char *const kind_names[KINDS] = { "zero", "stale", "torn", "other", "table" };
static struct { u64 gpa, index, version; const char *kind, *where; } pending[PENDING];
static u32 pending_count, lock;
static u64 printed;

static void take(void)
{
	while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
		pause();
}

static void release(void) { __atomic_store_n(&lock, 0, __ATOMIC_RELEASE); }

/* Any vCPU. The line itself is printed by vCPU 0. */
static void report_at(u64 gpa, u64 index, u64 version, int kind, const char *name, const char *where)
{
	__atomic_fetch_add(&info_page.bad_kind[kind], 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&info_page.bad, 1, __ATOMIC_RELAXED);
	take();
	if (pending_count < PENDING) {
		pending[pending_count].gpa = gpa;
		pending[pending_count].index = index;
		pending[pending_count].version = version;
		pending[pending_count].where = where;
		pending[pending_count++].kind = name;
	}
	release();
}

static void report(u64 gpa, u64 index, u64 version, int kind)
{
	report_at(gpa, index, version, kind, kind_names[kind], 0);
}

/* What came wrong from a device: index counts units of a disk or frames. */
void bad_io(u64 gpa, u64 index, u64 version, const char *kind, const char *where)
{
	int k = KIND_TORN;

	/* An error of the device has no kind of its own in the info page. */
	while (k >= 0 && kind_names[k][0] != kind[0])
		k--;
	__atomic_fetch_add(&info_page.io_bad, 1, __ATOMIC_RELAXED);
	report_at(gpa, index, version, k < 0 ? KIND_OTHER : k, kind, where);
}

void print_bad(void)
{
	if (*(volatile u32 *)&pending_count == 0)
		return;
	take();
	for (u32 i = 0; i < pending_count && printed < MAX_LINES; i++, printed++) {
		line_begin();
		line_text("metronome bad");
		line_hex("page", pending[i].gpa);
		line_number("index", pending[i].index);
		line_number("version", pending[i].version);
		line_text(" kind=");
		line_text(pending[i].kind);
		if (pending[i].where) {
			line_text(" at=");
			line_text(pending[i].where);
		}
		line_end();
	}
	pending_count = 0;
	release();
}

void bad_table(u64 index, u64 version)
{
	report((u64)&plan.table[index] & ~(PAGE - 1), index, version, KIND_TABLE);
}

/* Looks for an older version that the page matches as a whole. The newest write that
 * still stands in the page says which it could be: first among the last cycle of
 * writes (one per slot), then, cycle by cycle, at the slot of the first write. */
static int is_stale(u64 index, u64 version)
{
	u64 slots = 4096 / opt.bytes, tries = 0, w = version;

	for (; w > 0 && w + slots > version; w--)
		if (latest_write_good(index, w))
			return w != version && page_good(index, w);
	for (w -= w % slots; tries < 65536; tries++, w -= slots) {
		/* Write w+1 is the first of its cycle. */
		if (latest_write_good(index, w + 1)) {
			u64 u = w + 1;

			while (u < version && latest_write_good(index, u + 1))
				u++;
			return page_good(index, u);
		}
		if (w == 0)
			break;
	}
	return page_good(index, 0);
}

/* Whether the page is right for a version up to one cycle of writes later: then it is
 * the table that is old. */
static int is_ahead(u64 index, u64 version)
{
	u64 slots = 4096 / opt.bytes, u = version;

	while (u < version + slots && latest_write_good(index, u + 1))
		u++;
	return u != version && page_good(index, u);
}

static int classify(u64 index, u64 version)
{
	if (zero_good(index))
		return KIND_ZERO;
	if (version && is_stale(index, version))
		return KIND_STALE;
	if (is_ahead(index, version))
		return KIND_TABLE;
	return page_mixed(index, version) ? KIND_TORN : KIND_OTHER;
}

/* A page of fill or working set. It is repaired, so that it counts once. */
void bad_page(struct cpu *c, u64 index, u64 version)
{
	int kind = classify(index, version);

	/* The page is right and the table lags behind: the sum will miss a write too. */
	if (kind == KIND_TABLE)
		c->excused = 2;
	fill_page(index, version);
	report((u64)page_at(index), index, version, kind);
}

void bad_text(u64 index)
{
	int kind = zero_good(index) ? KIND_ZERO : text_mixed(index) ? KIND_TORN : KIND_OTHER;

	fill_text(index);
	report((u64)page_at(index), index, 0, kind);
}

/* Never-touched memory that is not zero any more. */
void bad_sample(u64 index)
{
	u64 *p = page_at(index);

	for (int j = 0; j < 512; j++)
		p[j] = 0;
	report((u64)p, index, 0, KIND_OTHER);
}
