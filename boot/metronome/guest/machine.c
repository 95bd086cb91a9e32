/* The parts of the machine beside memory and serial port: descriptor tables, page
 * directories, the other vCPUs, the timer that the TSC is measured against. All of
 * it runs at CPL 3: the tables lie in user pages. */
#include "guest.h"

extern u8 stubs[], tss[], fault_stacks[], trampoline[], trampoline_end[];
extern u64 idt[], gdt[], page_directories[];
volatile u32 starting_cpu;
static volatile u32 started_cpus = 1;

/* Interrupt gates to CPL 0 for the 32 exceptions. */
void set_gates(void)
{
	for (u64 v = 0; v < 32; v++) {
		u64 stub = (u64)stubs + 16 * v;

		idt[2 * v] = (stub & 0xffff) | (u64)SEL_CODE64 << 16 | 0x8e00UL << 32 | (stub >> 16 & 0xffff) << 48;
		idt[2 * v + 1] = stub >> 32;
	}
}

/* Page directories of everything above 1 GiB that is RAM. They were linked into the
 * PDPT when the image was made, so nothing here writes a table that a shadow MMU has
 * already write-protected. */
static void map_large(u64 gpa, u64 flags)
{
	page_directories[(gpa >> 21) - 512] = (gpa & ~(2 * MIB - 1)) | flags;
}

void map_ram(void)
{
	for (int s = 0; s < 2; s++) {
		u64 end = plan.seg[s].gpa + plan.seg[s].bytes;
		u64 gpa = plan.seg[s].gpa & ~(2 * MIB - 1);

		for (; gpa < end; gpa += 2 * MIB)
			if (gpa >= 1UL << 30)
				map_large(gpa, 0xe7); /* present, writable, user, accessed, dirty, 2 MiB */
	}
	map_large(LAPIC_GPA, 0xff); /* the same, uncached */
}

/* The 2 MiB around a device, uncached and open to CPL 3. Returns whether they are the
 * device's to take: above the first GiB, whose pages are all mapped, and no RAM. */
int map_device(u64 gpa)
{
	u64 entry;

	if (gpa < 1UL << 30 || gpa >= (u64)MAX_GIB << 30)
		return 0;
	entry = page_directories[(gpa >> 21) - 512];
	if (entry && !(entry & 0x10))
		return 0;
	map_large(gpa, 0xff);
	return 1;
}

static void set_tss(u64 id)
{
	u64 *t = (u64 *)(tss + id * TSS_BYTES), *pattern = (u64 *)tss;
	u64 base = (u64)t, stack = (u64)fault_stacks + (id + 1) * STACK_BYTES;
	u64 *descriptor = gdt + SEL_TSS / 8 + 2 * id;

	for (u64 i = 0; i < TSS_BYTES / 8; i++)
		t[i] = pattern[i];
	*(u32 *)((u8 *)t + 4) = (u32)stack; /* RSP0; all addresses are below 4 GiB */
	*(u32 *)((u8 *)t + 8) = 0;
	descriptor[0] = (TSS_BYTES - 1) | (base & 0xffffff) << 16 | 0x89UL << 40 | (base >> 24 & 0xff) << 56;
	descriptor[1] = 0;
}

static void lapic_command(u32 apic_id, u32 command)
{
	volatile u32 *lapic = (volatile u32 *)LAPIC_GPA;

	lapic[0x310 / 4] = apic_id << 24;
	lapic[0x300 / 4] = command;
	while (lapic[0x300 / 4] & 1 << 12)
		pause();
}

/* True once the other side has arrived, false after ms milliseconds. */
static int wait_started(u32 want, u64 ms)
{
	u64 from = rdtsc();

	while (started_cpus != want) {
		if (rdtsc() - from > ms * tsc_per_ms)
			return 0;
		pause();
	}
	return 1;
}

static void no_such_cpu(u64 id)
{
	line_begin();
	line_text("metronome error: vcpus");
	line_number("=", opt.vcpus);
	line_text(": a vCPU did not start:");
	line_number("apic_id", id);
	line_end();
	give_up();
}

/* One after the other, since they share the trampoline's variable. APIC IDs are
 * 0..vcpus-1. SDM 8.4.4.1: INIT, then SIPI, then a second SIPI if need be. */
void start_cpus(void)
{
	u8 *to = (u8 *)TRAMPOLINE_GPA;

	if (opt.vcpus == 1)
		return;
	for (u8 *from = trampoline; from < trampoline_end; from++)
		*to++ = *from;
	for (u32 id = 1; id < opt.vcpus; id++) {
		set_tss(id);
		starting_cpu = id;
		lapic_command(id, 0x4500);
		lapic_command(id, 0x4600 | TRAMPOLINE_GPA >> 12);
		if (wait_started(id + 1, 200))
			continue;
		lapic_command(id, 0x4600 | TRAMPOLINE_GPA >> 12);
		if (!wait_started(id + 1, 3000))
			no_such_cpu(id);
	}
}

void cpu_started(void)
{
	started_cpus = starting_cpu + 1;
}

#define PIT_HZ 1193182
#define PIT_ENOUGH 30000 /* about 25 ms, under half a turn of the 16-bit counter */

static u32 pit_count(void)
{
	u32 low;

	outb(0x43, 0x00); /* latch counter 0 */
	low = inb(0x40);
	return low | (u32)inb(0x40) << 8;
}

/* TSC ticks per 1000 s over one stretch of PIT counter 0. Both ends are read in the
 * same way, so the price of the port accesses cancels out. Counter 2 would need port
 * 0x61 for its gate, which QEMU's microvm does not have. 0: the PIT does not count. */
static u64 tsc_over_pit(void)
{
	u64 from = rdtsc(), now;
	u32 first = pit_count(), passed;

	do {
		now = rdtsc();
		passed = (first - pit_count()) & 0xffff;
		if (now - from > 20UL * 1000 * 1000 * 1000)
			return 0;
	} while (passed < PIT_ENOUGH);
	return (now - from) * PIT_HZ / passed * 1000;
}

/* A stretch that was interrupted for a whole turn of the counter is wrong by a factor:
 * take two that agree. */
void calibrate(void)
{
	u64 a, b = 0;

	tsc_per_ms = opt.tsc_khz;
	if (tsc_per_ms)
		return;
	outb(0x43, 0x34); /* counter 0, both bytes, mode 2, binary */
	outb(0x40, 0);
	outb(0x40, 0);
	for (int tries = 0; tries < 10; tries++) {
		a = b;
		b = tsc_over_pit();
		if (b == 0)
			break;
		if (a && (a > b ? a - b : b - a) < b / 256) {
			tsc_per_ms = (a + b) / 2 / 1000000;
			return;
		}
	}
	plain_error("tsc_khz is not given and cannot be measured against the PIT: give tsc_khz=");
}
