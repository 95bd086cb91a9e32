/* From the first instruction at CPL 3 to the endless loop. */
#include "io.h"

u64 tsc_per_ms;
volatile u32 running;
static struct cpu cpus[MAX_VCPUS];

/* Every turn of every loop looks at the TSC here: a pause of the vCPU shows as a gap. */
u64 look(struct cpu *c)
{
	u64 now = rdtsc();
	u64 gap = now - c->last;

	if ((s64)gap < 0) {
		c->pub->back++;
	} else if (gap > c->pub->gap_tsc) {
		/* vCPU 0 sets gap_tsc to 0 at a beat. If that falls between our compare and
		 * store, this gap counts in the next beat: none is lost. */
		c->pub->gap_tsc = gap;
		if (gap > c->pub->max_gap_tsc)
			c->pub->max_gap_tsc = gap;
	}
	c->last = now;
	return now;
}

static void wait_all_filled(struct cpu *c)
{
	u64 pages = plan.fill + plan.text, done;

	do {
		look(c);
		pause();
		done = 0;
		for (u64 i = 0; i < opt.vcpus; i++)
			done += *(volatile u64 *)&info_page.cpu[i].filled;
	} while (done < pages);
}

static void filled(struct cpu *c)
{
	u64 ms = (look(c) - info_page.up_tsc) / tsc_per_ms;

	outb(PORT_BOOT_TIMER, 2);
	line_begin();
	line_text("metronome filled");
	line_number("ms", ms);
	line_end();
	info_begin();
	info_page.filled_ms = ms;
	info_page.state = STATE_RUNNING;
	info_end();
	barrier();
	running = 1;
}

static void first_cpu(u64 start_info)
{
	info_page.version = INFO_VERSION;
	info_page.bytes = PAGE;
	info_page.state = STATE_STARTING;
	info_page.magic = INFO_MAGIC;
	set_gates();
	serial_init();
	plan_memory(start_info);
	info_page.up_tsc = rdtsc();
	line_begin();
	line_text("metronome up");
	line_end();
	serial_flush();
	outb(PORT_BOOT_TIMER, 1);
	map_ram();
	calibrate();
	pattern_init();
	disk_init(plan.io);
	net_init(plan.io + disk_memory());
	info_begin();
	info_page.tsc_khz = tsc_per_ms;
	info_page.state = STATE_FILLING;
	info_end();
	start_cpus();
}

void guest_main(u64 id, u64 start_info)
{
	struct cpu *c = &cpus[id];

	if (id == 0)
		first_cpu(start_info);
	else
		cpu_started();
	c->id = id;
	c->pub = &info_page.cpu[id];
	c->last = rdtsc();
	work_init(c);
	fill_all(c);
	if (id == 0) {
		wait_all_filled(c);
		filled(c);
	}
	while (!running) {
		look(c);
		pause();
	}
	work(c);
}
