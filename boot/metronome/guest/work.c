/* Filling, and the endless loop: write or read when it is due, sweep within a bounded
 * share of the time, print a byte now and then, always with an eye on the TSC. */
#include "io.h"

/* After a pause at most this much time is made up for. It is enough for the host's
 * ordinary preemption, and little against a migration's round. */
#define CATCH_UP_MS 20

static struct range share(u64 from, u64 pages, u64 id)
{
	return (struct range){ from + pages * id / opt.vcpus, from + pages * (id + 1) / opt.vcpus };
}

void work_init(struct cpu *c)
{
	c->rng = mix(opt.seed ^ mix(c->id + 1));
	c->ws = share(0, plan.ws, c->id);
	c->fill = share(plan.ws, plan.fill - plan.ws, c->id);
	c->text = share(plan.fill, plan.text, c->id);
	c->sweep_at = c->ws.from;
}

static void filled_one(struct cpu *c)
{
	u64 now = look(c);

	c->pub->filled++;
	if (c->id == 0)
		serial_step(now);
}

void fill_all(struct cpu *c)
{
	for (u64 i = c->ws.from; i < c->ws.to; i++) {
		fill_page(i, 0);
		plan.table[i] = table_entry(i, 0);
		filled_one(c);
	}
	for (u64 i = c->fill.from; i < c->fill.to; i++) {
		fill_page(i, 0);
		filled_one(c);
	}
	for (u64 i = c->text.from; i < c->text.to; i++) {
		fill_text(i);
		filled_one(c);
	}
}

static void write_page(struct cpu *c, u64 index)
{
	u64 version = version_of(c, index);

	/* A page that lost its last write is caught before the next one hides it. */
	if (!latest_write_good(index, version))
		bad_page(c, index, version);
	version++;
	apply_write(index, version);
	plan.table[index] = table_entry(index, version);
	c->writes++;
	c->pub->writes++;
	if (c->sweep_stage != 0 || index < c->sweep_at)
		c->sweep_behind++;
}

static void read_page(struct cpu *c, u64 index)
{
	u64 version = version_of(c, index);

	if (!page_good(index, version))
		bad_page(c, index, version);
	c->pub->reads++;
}

static void operate(struct cpu *c)
{
	u64 index = pattern_next(c);

	if (opt.reads && scale(random_next(c), 100) < opt.reads)
		read_page(c, index);
	else
		write_page(c, index);
}

/* Sets the time of the next operation: interval = vcpus/rate, in TSC ticks with the
 * fraction carried, so that the rate holds over any time. */
static void schedule(struct cpu *c, u64 now)
{
	u64 catch_up = CATCH_UP_MS * tsc_per_ms;

	c->due_fraction += tsc_per_ms * 1000 * opt.vcpus % opt.rate;
	c->due += tsc_per_ms * 1000 * opt.vcpus / opt.rate;
	if (c->due_fraction >= opt.rate) {
		c->due_fraction -= opt.rate;
		c->due++;
	}
	if ((s64)(now - c->due) > (s64)catch_up)
		c->due = now - catch_up;
}

/* Grants the sweeper its share of the time since `before`. A gap does not count: it
 * would be followed by a stretch of sweeping alone. */
static void grant(struct cpu *c, u64 before, u64 now)
{
	s64 dt = now - before, most = tsc_per_ms;

	if (dt < 0 || dt > most / 4)
		dt = most / 4;
	c->sweep_budget += dt * (s64)opt.sweep / 100;
	if (c->sweep_budget > most)
		c->sweep_budget = most;
}

/* Returns whether it did anything. */
static int sweep_within_budget(struct cpu *c, u64 now)
{
	s64 floor = -(s64)(4 * tsc_per_ms);

	if (c->sweep_budget <= 0 || !sweep_step(c))
		return 0;
	c->sweep_budget -= (s64)(look(c) - now);
	if (c->sweep_budget < floor)
		c->sweep_budget = floor;
	return 1;
}

void work(struct cpu *c)
{
	u64 before, now = look(c), byte_at = now;
	u64 beat_every = opt.beat * tsc_per_ms, next_beat = now + beat_every;
	int busy = c->ws.to > c->ws.from;
	/* The last vCPU has the devices: vCPU 0 prints, and where there are two it should
	 * not do both. */
	int io = c->id == opt.vcpus - 1;

	c->due = now;
	for (;;) {
		int worked = 0;

		before = now;
		now = look(c);
		grant(c, before, now);
		if (busy && (opt.rate == 0 || (s64)(now - c->due) >= 0)) {
			operate(c);
			worked = 1;
			if (opt.rate)
				schedule(c, now);
		}
		if (io)
			worked |= disk_step(c) | net_step(c);
		if (c->id == 0) {
			if ((s64)(now - byte_at) >= 0) {
				serial_step(now);
				/* A byte at most every 50 us, whatever an exit costs here. */
				byte_at = now + tsc_per_ms / 20;
			}
			if ((s64)(now - next_beat) >= 0) {
				beat(now);
				if (opt.plant)
					plant_faults(c);
				while ((s64)(now - next_beat) >= 0)
					next_beat += beat_every;
			}
		}
		worked |= sweep_within_budget(c, now);
		if (!worked)
			pause();
	}
}
