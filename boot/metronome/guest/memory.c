/* Where things lie, from the PVH start info's memory map or, without one, mem=. */
#include "io.h"

struct plan plan;

/* Xen public header arch-x86/hvm/start_info.h. */
#define START_MAGIC 0x336ec578
struct start_info {
	u32 magic, version, flags, modules;
	u64 modlist, cmdline, rsdp, memmap;
	u32 memmap_entries, reserved;
};
struct memmap_entry { u64 addr, size; u32 type, reserved; };
#define TYPE_RAM 1
#define MAX_ENTRIES 128

/* Only the first GiB is mapped this early. */
static void *early(u64 gpa, const char *what)
{
	if (gpa == 0 || gpa >= 1UL << 30)
		plain_error(what);
	return (void *)gpa;
}

/* RAM that holds the arena's start, and the largest piece from 4 GiB on. */
static void from_map(struct start_info *si)
{
	struct memmap_entry *e = early(si->memmap, "the memory map is not in the first GiB");
	u64 high = 4UL << 30;

	for (u32 i = 0; i < si->memmap_entries && i < MAX_ENTRIES; i++) {
		u64 from = e[i].addr, to = e[i].addr + e[i].size;

		if (e[i].type != TYPE_RAM || to < from)
			continue;
		if (from <= ARENA_GPA && to > ARENA_GPA) {
			plan.seg[0].gpa = ARENA_GPA;
			plan.seg[0].bytes = (to < high ? to : high) - ARENA_GPA;
		} else if (from >= high && e[i].size > plan.seg[1].bytes) {
			plan.seg[1].gpa = from;
			plan.seg[1].bytes = e[i].size;
		}
	}
}

static void from_mem(void)
{
	u64 bytes = opt.mem * MIB, low = bytes < 3UL << 30 ? bytes : 3UL << 30;

	if (low <= ARENA_GPA)
		plain_error("no memory map in the start info: give mem= in MiB");
	plan.seg[0].gpa = ARENA_GPA;
	plan.seg[0].bytes = low - ARENA_GPA;
	plan.seg[1].gpa = 4UL << 30;
	plan.seg[1].bytes = bytes - low;
}

/* mem= caps what a map gives, as it does in Linux. */
static void cap(u64 s, u64 limit)
{
	if (plan.seg[s].bytes > limit)
		plan.seg[s].bytes = limit;
	plan.seg[s].bytes &= ~(PAGE - 1);
	if (plan.seg[s].bytes == 0)
		plan.seg[s].gpa = 0;
}

static void limit_segments(void)
{
	u64 mem = opt.mem ? opt.mem * MIB : (u64)MAX_GIB << 30, end = (u64)MAX_GIB << 30;

	cap(0, mem > ARENA_GPA ? mem - ARENA_GPA : 0);
	mem -= plan.seg[0].bytes + ARENA_GPA < mem ? plan.seg[0].bytes + ARENA_GPA : mem;
	if (plan.seg[1].gpa >= end)
		plan.seg[1].bytes = 0;
	else if (mem > end - plan.seg[1].gpa)
		mem = end - plan.seg[1].gpa;
	plan.seg[1].gpa = (plan.seg[1].gpa + PAGE - 1) & ~(PAGE - 1);
	cap(1, mem);
}

/* The extents of pages [from, from+count) on both sides of the hole. */
static void extents(struct extent *e, u64 from, u64 count)
{
	u64 low = from < plan.seg_pages[0] ? plan.seg_pages[0] - from : 0;

	if (low > count)
		low = count;
	e[0].gpa = low ? (u64)page_at(from) : 0;
	e[0].bytes = low * PAGE;
	e[1].gpa = count > low ? (u64)page_at(from + low) : 0;
	e[1].bytes = (count - low) * PAGE;
}

static void too_little(const char *name, u64 need, u64 have)
{
	line_begin();
	line_text("metronome error: ");
	line_text(name);
	line_text(": more than the memory holds:");
	line_number("need_mib", (need + MIB - 1) / MIB);
	line_number("have_mib", have / MIB);
	line_end();
	give_up();
}

static u64 io_memory(void) { return disk_memory() + net_memory(); }

static void publish(void)
{
	struct info *p = &info_page;
	u64 used = plan.fill + plan.text, total = plan.seg_pages[0] + plan.seg_pages[1];

	info_begin();
	p->vcpus = opt.vcpus;
	p->seed = opt.seed;
	p->page_bytes = opt.bytes;
	p->rate = opt.rate;
	p->image = (struct extent){ IMAGE_GPA, MAILBOX_GPA - IMAGE_GPA };
	p->mailbox = (struct extent){ MAILBOX_GPA, MAILBOX_PAGES * PAGE };
	p->table = (struct extent){ plan.ws ? (u64)plan.table : 0, plan.ws * 8 };
	p->io = (struct extent){ io_memory() ? (u64)plan.io : 0, io_memory() };
	p->ram[0] = plan.seg[0];
	p->ram[1] = plan.seg[1];
	extents(p->fill, 0, plan.fill);
	extents(p->ws, 0, plan.ws);
	extents(p->text, plan.fill, plan.text);
	extents(p->free, used, total - used);
	if (opt.sample > total - used)
		opt.sample = total - used;
	p->sample_count = opt.sample;
	if (opt.sample) {
		p->sample_gpa = (u64)page_at(sample_index(0));
		p->sample_step = (total - used) / opt.sample * PAGE;
	}
	info_end();
}

void plan_memory(u64 start_info)
{
	struct start_info *si = early(start_info, "no PVH start info");
	u64 table, io, need;

	if (si->magic != START_MAGIC)
		plain_error("EBX does not point to a PVH start info");
	if (si->cmdline)
		parse_options(early(si->cmdline, "the command line is not in the first GiB"));
	if (si->version >= 1 && si->memmap_entries)
		from_map(si);
	else
		from_mem();
	limit_segments();

	plan.ws = opt.ws * MIB / PAGE;
	plan.fill = (opt.fill > opt.ws ? opt.fill : opt.ws) * MIB / PAGE;
	plan.text = opt.text * MIB / PAGE;
	/* Whole 2 MiB, so that huge pages of the host hold one kind of content. */
	table = (plan.ws * 8 + 2 * MIB - 1) & ~(2 * MIB - 1);
	io = (io_memory() + 2 * MIB - 1) & ~(2 * MIB - 1);
	need = table + io + (plan.fill + plan.text) * PAGE;
	if (table + io > plan.seg[0].bytes || need > plan.seg[0].bytes + plan.seg[1].bytes)
		too_little("fill+text+ws+io", need + ARENA_GPA,
			   plan.seg[0].bytes + plan.seg[1].bytes + ARENA_GPA);
	plan.table = (u64 *)plan.seg[0].gpa;
	plan.io = (u8 *)plan.table + table;
	table += io;
	plan.seg_pages[0] = (plan.seg[0].bytes - table) / PAGE;
	plan.seg_pages[1] = plan.seg[1].bytes / PAGE;
	plan.seg[0].gpa += table;
	plan.seg[0].bytes -= table;
	publish();
}
