/*
 * witness: a workload that notices when a migration lost something. It counts on the console, appends to a file and
 * syncs it, rewrites and verifies memory, keeps vector registers across waits and watches both clocks.
 *
 *   witness [n=0] [pace=50] [mem=8] [touch=64] [sync=10] [spin=2] [file=/data/witness.log]
 *
 *   n      iterations, 0 for "until SIGTERM or SIGINT"      touch  pages rewritten per iteration
 *   pace   milliseconds between iterations                  sync   iterations between two fsync, 0 for none
 *   mem    MiB of patterned memory                          spin   milliseconds spent busy with live registers
 *
 * SIGUSR1 makes it print "witness ok count=N errors=E". Exit status: 0 without errors, 1 with, 2 for bad usage.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "programs.h"
#include "vector.h"
#include "workload.h"

#define PAGE 4096
#define WORDS (PAGE / sizeof(uint64_t))

struct options {
	uint64_t n, pace, mem, touch, sync, spin;
	const char *file;
};

/* ---- Memory: each page holds what its number and its version say; versions are kept apart from the pages. */

static uint64_t *pages;
static uint32_t *versions;
static uint64_t page_count;

static uint64_t word_of(uint64_t page, uint32_t version, size_t i)
{
	return (mix(page << 32 | version) + i) * 0x9e3779b97f4a7c15u;
}

static void fill_page(uint64_t page)
{
	uint64_t *w = pages + page * WORDS, first = mix(page << 32 | versions[page]);

	for (size_t i = 0; i < WORDS; i++)
		w[i] = (first + i) * 0x9e3779b97f4a7c15u;
}

/* Says what kind of loss a bad page is: zeroed, of the version before (stale), or a mixture (torn). */
static void report_page(uint64_t page, size_t at)
{
	const uint64_t *w = pages + page * WORDS;
	uint32_t v = versions[page];
	const char *kind = "wrong";
	size_t zero = 0, old = 0, good = 0;

	for (size_t i = 0; i < WORDS; i++) {
		zero += w[i] == 0;
		old += v > 0 && w[i] == word_of(page, v - 1, i);
		good += w[i] == word_of(page, v, i);
	}
	if (zero == WORDS)
		kind = "zeroed";
	else if (old == WORDS)
		kind = "stale";
	else if (good > 0)
		kind = "torn";
	report("memory page=%" PRIu64 " version=%" PRIu32 " word=%zu kind=%s", page, v, at, kind);
}

static void check_page(uint64_t page)
{
	const uint64_t *w = pages + page * WORDS;
	uint64_t first = mix(page << 32 | versions[page]);

	for (size_t i = 0; i < WORDS; i++) {
		if (w[i] != (first + i) * 0x9e3779b97f4a7c15u) {
			report_page(page, i);
			fill_page(page); /* one loss is reported once */
			return;
		}
	}
}

static bool make_memory(uint64_t mib)
{
	page_count = mib * (1 << 20) / PAGE;
	if (!page_count)
		return true;
	pages = mmap(NULL, page_count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	versions = calloc(page_count, sizeof *versions);
	if (pages == MAP_FAILED || !versions)
		return false;
	for (uint64_t p = 0; p < page_count; p++)
		fill_page(p);
	return true;
}

/* Rewrites pages picked at random, and walks over all pages a piece at a time, so that untouched ones are seen too. */
static void churn(uint64_t count, uint64_t touch)
{
	static uint64_t sweep;

	for (uint64_t i = 0; page_count && i < touch; i++) {
		uint64_t page = mix(count * touch + i) % page_count;

		check_page(page);
		versions[page]++;
		fill_page(page);
		check_page(sweep++ % page_count);
	}
}

/* ---- Clocks */

struct clocks {
	int64_t monotonic, realtime; /* last seen, ns */
	int64_t gap;                 /* longest time between two looks, ns */
};

static void look_at_clocks(struct clocks *c)
{
	int64_t monotonic = read_clock(CLOCK_MONOTONIC), realtime = read_clock(CLOCK_REALTIME);

	if (monotonic < c->monotonic)
		report("monotonic back by %" PRId64 " ns", c->monotonic - monotonic);
	if (realtime < c->realtime)
		report("realtime back by %" PRId64 " ns", c->realtime - realtime);
	if (c->monotonic && monotonic - c->monotonic > c->gap)
		c->gap = monotonic - c->monotonic;
	c->monotonic = monotonic;
	c->realtime = realtime;
}

/* ---- The file: line N is "N MS CHECK", so a lost, repeated, torn or foreign line shows. */

static int format_record(char *text, size_t size, uint64_t count, uint64_t ms)
{
	return snprintf(text, size, "%" PRIu64 " %" PRIu64 " %016" PRIx64 "\n", count, ms, mix(count << 40 ^ ms));
}

static void append_record(int fd, const char *path, uint64_t count, uint64_t ms, uint64_t sync_every)
{
	char text[64];
	int n = format_record(text, sizeof text, count, ms);

	if (write(fd, text, (size_t)n) != n)
		report("file append %s line %" PRIu64 ": %s", path, count, strerror(errno));
	if (sync_every && count % sync_every == 0 && fsync(fd))
		report("file fsync %s: %s", path, strerror(errno));
}

/* Reads the file again from its start; returns its number of lines. */
static uint64_t check_file(const char *path, uint64_t want)
{
	char text[128], expect[64];
	uint64_t lines = 0, count, ms, before = 0;
	FILE *f = fopen(path, "re");

	if (!f) {
		report("file open %s: %s", path, strerror(errno));
		return 0;
	}
	while (fgets(text, sizeof text, f)) {
		lines++;
		if (sscanf(text, "%" SCNu64 " %" SCNu64, &count, &ms) != 2 || count != lines || ms < before ||
		    (format_record(expect, sizeof expect, count, ms), strcmp(text, expect)))
			report("file %s line %" PRIu64 " is wrong", path, lines);
		else
			before = ms;
	}
	fclose(f);
	if (lines != want)
		report("file %s has %" PRIu64 " lines, not %" PRIu64, path, lines, want);
	return lines;
}

/* ---- The run */

/* How many turns of the spin loop fill the given time here; only a duration hangs on it, no result. */
static uint64_t measure_turns(enum vector_width width, uint64_t ms)
{
	const struct timespec now = { 0, 0 };
	uint64_t probe = 100000;
	int64_t start = read_clock(CLOCK_MONOTONIC);

	vector_hold(width, 1, &now, probe);
	int64_t spent = read_clock(CLOCK_MONOTONIC) - start;
	return spent > 0 ? (uint64_t)((double)probe * (double)ms * 1e6 / (double)spent) : 0;
}

static void run(const struct options *o, int fd)
{
	enum vector_width width = vector_detect();
	uint64_t turns = measure_turns(width, o->spin), count = 0;
	struct clocks clocks = { 0 };
	int64_t next = read_clock(CLOCK_MONOTONIC);

	line("witness up pid=%d mem=%" PRIu64 " vectors=%d", (int)getpid(), o->mem, (int)width * 8);
	while (!stop && (!o->n || count < o->n)) {
		look_at_clocks(&clocks);
		uint64_t ms = (uint64_t)(clocks.monotonic / 1000000);
		line("count %" PRIu64 " t=%" PRIu64, ++count, ms);
		append_record(fd, o->file, count, ms, o->sync);
		churn(count, o->touch);

		/* Late already (a migration, a slow disk): go on from now, without catching up in a burst. */
		next += (int64_t)o->pace * 1000000;
		if (next < clocks.monotonic)
			next = clocks.monotonic;
		struct timespec until = { next / 1000000000, next % 1000000000 };
		int bad = vector_hold(width, count, &until, turns);
		if (bad >= 0)
			report("avx register=%d bits=%d count=%" PRIu64, bad, (int)width * 8, count);
		look_at_clocks(&clocks);
		if (ask) {
			ask = 0;
			line("witness ok count=%" PRIu64 " errors=%" PRIu64, count, errors);
		}
	}
	for (uint64_t p = 0; p < page_count; p++)
		check_page(p);
	if (fsync(fd))
		report("file fsync %s: %s", o->file, strerror(errno));
	uint64_t lines = check_file(o->file, count);
	if (!errors)
		line("witness ok count=%" PRIu64 " errors=0", count);
	line("witness done count=%" PRIu64 " errors=%" PRIu64 " file_lines=%" PRIu64 " gap_ms=%" PRId64, count, errors,
	     lines, clocks.gap / 1000000);
}

int witness_main(int argc, char **argv)
{
	struct options o = { .pace = 50, .mem = 8, .touch = 64, .sync = 10, .spin = 2, .file = "/data/witness.log" };
	const struct option known[] = {
		{ "n", &o.n, UINT64_MAX, NULL }, { "pace", &o.pace, 3600000, NULL }, { "mem", &o.mem, 1 << 24, NULL },
		{ "touch", &o.touch, 1 << 24, NULL }, { "sync", &o.sync, UINT64_MAX, NULL }, { "spin", &o.spin, 10000, NULL },
		{ "file", NULL, 0, &o.file },
	};

	if (!parse_options(argc, argv, known, sizeof known / sizeof *known))
		return 2;
	workload_start("witness");

	int fd = open(o.file, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
	if (fd < 0) {
		line("witness ERROR file open %s: %s", o.file, strerror(errno));
		return 1;
	}
	if (!make_memory(o.mem)) {
		line("witness ERROR memory: no room for %" PRIu64 " MiB", o.mem);
		return 1;
	}
	run(&o, fd);
	return errors ? 1 : 0;
}
