/* plant=: faults that the guest puts into its own memory once, at the first beat, so
 * that the witness can be seen to work without a VMM's help. */
#include "guest.h"

/* Writes the page n times as the workload would. */
static u64 advance(struct cpu *c, u64 index, u64 n)
{
	u64 version = version_of(c, index);

	for (; n; n--) {
		apply_write(index, ++version);
		c->writes++;
		c->pub->writes++;
		if (c->sweep_stage != 0 || index < c->sweep_at)
			c->sweep_behind++;
	}
	plan.table[index] = table_entry(index, version);
	return version;
}

void plant_faults(struct cpu *c)
{
	u64 slots = 4096 / opt.bytes, index = c->ws.from + 5, version;
	u64 *p;

	if (opt.plant & PLANT_ZERO)
		memset(page_at(index), 0, PAGE);
	index++;
	if (opt.plant & PLANT_STALE) {
		version = advance(c, index, 3);
		fill_page(index, version - 2);
	}
	index++;
	if (opt.plant & PLANT_TORN) {
		advance(c, index, slots + 1);
		p = page_at(index);
		/* The second half is another page's: what a lost half of a copy leaves. */
		memcpy(p + 256, page_at(index + 1) + 256, PAGE / 2);
	}
	index++;
	if (opt.plant & PLANT_TABLE) {
		version = advance(c, index, 2);
		plan.table[index] = table_entry(index, version - 1);
	}
	if (opt.plant & PLANT_FAULT)
		*(volatile u64 *)((u64)MAX_GIB << 30) = 0; /* mapped nowhere */
	opt.plant = 0;
}
