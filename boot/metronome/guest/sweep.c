/* The sweeper: verifies every page of this vCPU's share, one page a step, in the order
 * working set, fill, text, sample (vCPU 0), and starts again. */
#include "guest.h"

enum { SWEEP_WS, SWEEP_FILL, SWEEP_TEXT, SWEEP_SAMPLE, SWEEP_STAGES };

/* A sweep starts at the earliest this long after the one before, lest small memories
 * be swept all the time. */
#define SWEEP_MIN_MS 100

/* Samples are spread evenly over the free pages, each in the middle of its piece. */
u64 sample_index(u64 n)
{
	u64 used = plan.fill + plan.text;
	u64 step = (plan.seg_pages[0] + plan.seg_pages[1] - used) / opt.sample;

	return used + n * step + step / 2;
}

/* The version that the table gives, after its own check. An entry that fails it says
 * nothing: the page starts again at version 0. */
u64 version_of(struct cpu *c, u64 index)
{
	u64 entry = plan.table[index], version = entry & ((1UL << 40) - 1);

	if (entry == table_entry(index, version))
		return version;
	bad_table(index, version);
	fill_page(index, 0);
	plan.table[index] = table_entry(index, 0);
	c->excused = 2; /* this sweep may have passed the page already */
	return 0;
}

static struct range stage_range(struct cpu *c)
{
	switch (c->sweep_stage) {
	case SWEEP_WS:
		return c->ws;
	case SWEEP_FILL:
		return c->fill;
	case SWEEP_TEXT:
		return c->text;
	default:
		return (struct range){ 0, c->id == 0 ? opt.sample : 0 };
	}
}

static void verify(struct cpu *c, u64 index)
{
	u64 version;

	switch (c->sweep_stage) {
	case SWEEP_WS:
		version = version_of(c, index);
		c->sweep_versions += version;
		if (!page_good(index, version))
			bad_page(c, index, version);
		break;
	case SWEEP_FILL:
		if (!page_good(index, 0))
			bad_page(c, index, 0);
		break;
	case SWEEP_TEXT:
		if (!text_good(index))
			bad_text(index);
		break;
	default:
		if (!zero_good(sample_index(index)))
			bad_sample(sample_index(index));
	}
}

/* A version table that is stale as a whole has good entries, but their sum, plus the
 * writes made behind the sweeper's back, is not the number of writes done. That number
 * stands twice: in the info page and in the vCPU's own state. */
static void check_sum(struct cpu *c)
{
	u64 sum = c->sweep_versions + c->sweep_behind + c->versions_base;

	if (sum == c->writes && c->pub->writes == c->writes)
		return;
	if (!c->excused)
		bad_table(c->ws.from, 0);
	c->versions_base += c->writes - sum;
	c->pub->writes = c->writes;
}

static int next_stage(struct cpu *c, u64 now)
{
	if (c->sweep_stage == SWEEP_WS) {
		check_sum(c);
		c->excused -= c->excused != 0;
	}
	if (++c->sweep_stage < SWEEP_STAGES) {
		c->sweep_at = stage_range(c).from;
		return 1;
	}
	c->sweep_stage = SWEEP_WS;
	c->sweep_at = c->ws.from;
	c->sweep_versions = 0;
	c->sweep_behind = 0;
	c->pub->sweeps++;
	c->sweep_started = now;
	return 0;
}

int sweep_step(struct cpu *c)
{
	if (c->sweep_stage == SWEEP_WS && c->sweep_at == c->ws.from &&
	    (s64)(c->last - c->sweep_started) < (s64)(SWEEP_MIN_MS * tsc_per_ms))
		return 0;
	while (c->sweep_at >= stage_range(c).to)
		if (!next_stage(c, c->last))
			return 1;
	verify(c, c->sweep_at);
	c->sweep_at++;
	c->pub->verified++;
	return 1;
}
