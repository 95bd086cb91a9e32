/* What the parts of the guest share. */
#ifndef GUEST_H
#define GUEST_H

#include "info.h"

#define PAGE 4096UL
#define MIB (1UL << 20)
#define ZIPF_BUCKETS 512

enum pattern { UNIFORM, SEQUENTIAL, HOTSPOT, ZIPF };
enum { PLANT_ZERO = 1, PLANT_STALE = 2, PLANT_TORN = 4, PLANT_TABLE = 8, PLANT_FAULT = 16 };

enum blk_mode { BLK_READ, BLK_WRITE, BLK_MIXED };
enum net_mode { NET_TX, NET_RX, NET_ECHO };

/* The command line. */
struct options {
	u64 mem, fill, text, ws; /* MiB */
	u64 rate, bytes, reads, vcpus, beat, seed, tsc_khz, sweep, sample;
	enum pattern pattern;
	u64 hot_share, hot_pages; /* hotspot:P/Q, percent */
	u64 zipf_milli;           /* zipf:S in thousandths */
	u64 plant;
	struct {
		u64 kib, depth, span, flush, queues; /* kib == 0: no such load */
		u64 sequential, prefill;
		enum blk_mode mode;
	} blk;
	struct {
		u64 frame, depth, tso; /* depth == 0: no such load */
		enum net_mode mode;
	} net;
};
extern struct options opt;

/* Arena pages are numbered from 0, through the hole. The first ones hold fill, then
 * text, then free memory. The version table lies before page 0. */
struct plan {
	struct extent seg[2];
	u64 seg_pages[2];
	u64 fill, text, ws; /* pages */
	u64 *table;
	u8 *io; /* rings, buffers and tables of the loads on devices */
};
extern struct plan plan;
extern struct info info_page;

static inline u64 *page_at(u64 index)
{
	if (index < plan.seg_pages[0])
		return (u64 *)(plan.seg[0].gpa + index * PAGE);
	return (u64 *)(plan.seg[1].gpa + (index - plan.seg_pages[0]) * PAGE);
}

struct range { u64 from, to; };

/* State of one vCPU. Only that vCPU touches it. */
struct cpu {
	u64 id;
	struct info_cpu *pub;
	u64 last;               /* TSC at the last look */
	u64 rng;
	struct range ws, fill, text; /* its share of each */
	u64 writes;             /* a second count beside pub->writes */
	u64 due, due_fraction;  /* when the next operation is due */
	u64 next_sequential;
	s64 sweep_budget;       /* TSC ticks that the sweeper may still take */
	u64 sweep_at, sweep_stage, sweep_started;
	u64 sweep_versions;     /* sum of versions passed in this sweep */
	u64 sweep_behind;       /* writes to pages that this sweep has passed */
	u64 versions_base;      /* correction after a table fault was reported */
	u64 excused;            /* sums that a table fault already reported makes wrong */
} __attribute__((aligned(64)));

/* start.c */
void guest_main(u64 id, u64 start_info);
extern u64 tsc_per_ms;
extern volatile u32 running;
u64 look(struct cpu *c);

/* machine.c */
void map_ram(void);
int map_device(u64 gpa);
void set_gates(void);
void start_cpus(void);
void cpu_started(void);
void calibrate(void);
void __attribute__((noreturn)) halt(void);

/* memory.c */
void plan_memory(u64 start_info);

/* options.c */
void parse_options(const char *line);
void __attribute__((noreturn)) give_up(void);
void __attribute__((noreturn)) plain_error(const char *what);

/* serial.c */
void serial_init(void);
int serial_step(u64 now);
void serial_flush(void);
void line_begin(void);
void line_text(const char *s);
void line_bytes(const char *s, u64 n);
void line_number(const char *key, u64 value);
void line_hex(const char *key, u64 value);
void line_end(void);

/* pages.c */
void fill_page(u64 index, u64 version);
void fill_text(u64 index);
int page_good(u64 index, u64 version);
int text_good(u64 index);
int page_mixed(u64 index, u64 version);
int text_mixed(u64 index);
int zero_good(u64 index);
int latest_write_good(u64 index, u64 version);
void apply_write(u64 index, u64 version);
u64 table_entry(u64 index, u64 version);
u64 mix(u64 x);
void *memset(void *to, int value, u64 n);
void *memcpy(void *to, const void *from, u64 n);

/* witness.c */
void bad_page(struct cpu *c, u64 index, u64 version);
void bad_text(u64 index);
void bad_table(u64 index, u64 version);
void bad_sample(u64 index);
void bad_io(u64 gpa, u64 index, u64 version, const char *kind, const char *where);
void print_bad(void);

/* pattern.c */
void pattern_init(void);
u64 pattern_next(struct cpu *c);
u64 random_next(struct cpu *c);

/* work.c */
void work_init(struct cpu *c);
void fill_all(struct cpu *c);
void __attribute__((noreturn)) work(struct cpu *c);

/* sweep.c */
int sweep_step(struct cpu *c);
u64 version_of(struct cpu *c, u64 index);
u64 sample_index(u64 n);

/* beat.c */
void beat(u64 now);
void info_begin(void);
void info_end(void);

/* plant.c */
void plant_faults(struct cpu *c);

static inline u64 rdtsc(void)
{
	u32 lo, hi;
	__asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
	return (u64)hi << 32 | lo;
}
static inline void outb(u16 port, u8 v) { __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port)); }
static inline u8 inb(u16 port)
{
	u8 v;
	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}
static inline void pause(void) { __asm__ volatile("pause" ::: "memory"); }
static inline void barrier(void) { __asm__ volatile("" ::: "memory"); }
/* High half of a product: scales a random word to [0, n) without a division. */
static inline u64 scale(u64 random, u64 n) { return (u64)(((unsigned __int128)random * n) >> 64); }

#endif
