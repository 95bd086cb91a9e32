/* The beat: the numbers of all vCPUs into the info page and onto the serial port. */
#include "io.h"

void info_begin(void)
{
	info_page.seq++;
	barrier();
}

void info_end(void)
{
	barrier();
	info_page.seq++;
}

static u64 to_us(u64 ticks) { return ticks / tsc_per_ms * 1000 + ticks % tsc_per_ms * 1000 / tsc_per_ms; }

static void gather(u64 now)
{
	struct info *p = &info_page;
	u64 gap = 0, longest = 0;

	p->writes = p->reads = p->back = 0;
	p->sweeps = ~0UL;
	for (u64 i = 0; i < opt.vcpus; i++) {
		struct info_cpu *c = &p->cpu[i];
		u64 g = __atomic_exchange_n(&c->gap_tsc, 0, __ATOMIC_RELAXED);

		gap = g > gap ? g : gap;
		longest = c->max_gap_tsc > longest ? c->max_gap_tsc : longest;
		p->writes += c->writes;
		p->reads += c->reads;
		p->back += c->back;
		p->sweeps = c->sweeps < p->sweeps ? c->sweeps : p->sweeps;
	}
	p->gap_us = to_us(gap);
	p->max_gap_us = to_us(longest);
	p->t_ms = (now - p->up_tsc) / tsc_per_ms;
	p->beats++;
}

void beat(u64 now)
{
	struct info *p = &info_page;

	info_begin();
	gather(now);
	info_end();
	print_bad();
	line_begin();
	line_text("metronome beat");
	line_number("t_ms", p->t_ms);
	line_number("writes", p->writes);
	line_number("gap_us", p->gap_us);
	line_number("max_gap_us", p->max_gap_us);
	line_number("bad", p->bad);
	line_number("sweeps", p->sweeps);
	if (opt.reads)
		line_number("reads", p->reads);
	if (p->back)
		line_number("back", p->back);
	line_end();
	disk_beat(now);
	net_beat(now);
}
