/*
 * diskload: random reads and writes of mixed sizes on a block device, many at once, every byte read checked.
 *
 *   diskload disk=/dev/vdb [size=0] [jobs=8] [max=16] [write=50] [zero=2] [sync=64] [blank=pattern] [n=0] [seed=1]
 *
 *   disk   block device (or file), opened with O_DIRECT    write  percent of requests that write
 *   size   MiB used, 0 for all of it                       zero   percent of requests that zero a range (BLKZEROOUT)
 *   jobs   threads, a request in flight each               sync   requests of a thread between two fsync, 0 for none
 *   max    blocks of 4 KiB in a request, at most           n      requests in all, 0 for "until SIGTERM or SIGINT"
 *   blank  what the disk holds at first: pattern (each block as written in version 0) or zero
 *
 * Block B of version V starts with the words B and V; word i of the others is (mix(B << 32 | V) + i) * K. Each thread
 * has a part of the disk to itself and knows the version of every block there. Once a second it prints
 * "diskload DISK at t=MS requests=N gap_ms=LONGEST". At the end every block is read once more, and it prints
 * "diskload DISK done requests=N errors=E blocks=N sum=HEX gap_ms=LONGEST": sum adds up mix(B << 32 | V) over all
 * blocks, a zeroed one counts as of version 2^32 - 1, so that others can check the image. Exit status as of witness.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/fs.h>

#include "programs.h"
#include "workload.h"

#define BLOCK 4096u
#define WORDS (BLOCK / sizeof(uint64_t))
#define MAX_JOBS 64
#define MAX_BLOCKS 256
#define ZEROED UINT32_MAX

static struct settings {
	const char *disk, *blank;
	uint64_t size, jobs, max, write, zero, sync, n, seed;
} settings = {
	.blank = "pattern", .jobs = 8, .max = 16, .write = 50, .zero = 2, .sync = 64, .seed = 1,
};

static int disk_fd;
static atomic_uint_least64_t requests;

/* A thread and what belongs to it alone; gap is read by the printing thread too. */
struct job {
	pthread_t thread;
	uint64_t first, count; /* its blocks */
	uint64_t random;
	uint32_t *versions;
	uint64_t *buffer;
	atomic_int_least64_t gap; /* longest request, ns */
};

static void fill_block(uint64_t *w, uint64_t block, uint32_t version)
{
	uint64_t start = mix(block << 32 | version);

	w[0] = block;
	w[1] = version;
	for (size_t i = 2; i < WORDS; i++)
		w[i] = (start + i) * 0x9e3779b97f4a7c15u;
}

static void check_block(const uint64_t *w, uint64_t block, uint32_t version)
{
	uint64_t want[WORDS];

	if (version == ZEROED)
		memset(want, 0, sizeof want);
	else
		fill_block(want, block, version);
	for (size_t i = 0; i < WORDS; i++) {
		if (w[i] == want[i])
			continue;
		report("%s block %" PRIu64 " version %" PRIu32 " word %zu: %016" PRIx64 " not %016" PRIx64 ", says block %" PRIu64
		       " version %" PRIu64, settings.disk, block, version, i, w[i], want[i], w[0], w[1]);
		return;
	}
}

static uint64_t next_random(struct job *j, uint64_t below)
{
	j->random += 0x9e3779b97f4a7c15u;
	return mix(j->random) % below;
}

/* Reads into or writes from the job's buffer, all of it. */
static bool move_blocks(struct job *j, bool write, uint64_t block, uint64_t count)
{
	size_t size = count * BLOCK;
	off_t at = (off_t)(block * BLOCK);
	ssize_t n = write ? pwrite(disk_fd, j->buffer, size, at) : pread(disk_fd, j->buffer, size, at);

	if (n == (ssize_t)size)
		return true;
	report("%s: %s %zu bytes at block %" PRIu64 ": %s", settings.disk, write ? "write" : "read", size, block,
	       n < 0 ? strerror(errno) : "cut short");
	return false;
}

static void read_blocks(struct job *j, uint64_t block, uint64_t count)
{
	if (!move_blocks(j, false, block, count))
		return;
	for (uint64_t i = 0; i < count; i++)
		check_block(j->buffer + i * WORDS, block + i, j->versions[block + i - j->first]);
}

static void write_blocks(struct job *j, uint64_t block, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		uint32_t *v = &j->versions[block + i - j->first];
		*v = *v == ZEROED ? 1 : *v + 1;
		fill_block(j->buffer + i * WORDS, block + i, *v);
	}
	move_blocks(j, true, block, count);
}

static void zero_blocks(struct job *j, uint64_t block, uint64_t count)
{
	uint64_t range[2] = { block * BLOCK, count * BLOCK };

	if (ioctl(disk_fd, BLKZEROOUT, range)) {
		report("zero %" PRIu64 " blocks at %" PRIu64 ": %s", count, block, strerror(errno));
		return;
	}
	for (uint64_t i = 0; i < count; i++)
		j->versions[block + i - j->first] = ZEROED;
}

static void one_request(struct job *j)
{
	uint64_t most = settings.max < j->count ? settings.max : j->count;
	uint64_t count = 1 + next_random(j, most), block = j->first + next_random(j, j->count - count + 1);
	uint64_t dice = next_random(j, 100);
	int64_t start = read_clock(CLOCK_MONOTONIC);

	if (dice < settings.zero)
		zero_blocks(j, block, count);
	else if (dice < settings.zero + settings.write)
		write_blocks(j, block, count);
	else
		read_blocks(j, block, count);
	int64_t spent = read_clock(CLOCK_MONOTONIC) - start;
	if (spent > j->gap)
		j->gap = spent;
}

static void *work(void *argument)
{
	struct job *j = argument;

	for (uint64_t i = 1; !stop; i++) {
		uint64_t ticket = atomic_fetch_add(&requests, 1);
		if (settings.n && ticket >= settings.n) {
			atomic_fetch_sub(&requests, 1);
			break;
		}
		one_request(j);
		if (settings.sync && i % settings.sync == 0 && fsync(disk_fd))
			report("fsync: %s", strerror(errno));
	}
	return NULL;
}

static int64_t longest(const struct job *jobs)
{
	int64_t gap = 0;

	for (uint64_t i = 0; i < settings.jobs; i++)
		if (jobs[i].gap > gap)
			gap = jobs[i].gap;
	return gap / 1000000;
}

/* Prints where we are once a second, until the threads have something to end for. */
static void watch(const struct job *jobs)
{
	while (!stop && (!settings.n || requests < settings.n)) {
		nanosleep(&(struct timespec){ .tv_sec = 1 }, NULL);
		ask = 0;
		line("diskload %s at t=%" PRId64 " requests=%" PRIu64 " gap_ms=%" PRId64, settings.disk,
		     read_clock(CLOCK_MONOTONIC) / 1000000, (uint64_t)requests, longest(jobs));
	}
}

static bool make_job(struct job *j, uint64_t index, uint64_t blocks)
{
	j->first = blocks * index / settings.jobs;
	j->count = blocks * (index + 1) / settings.jobs - j->first;
	j->random = mix(settings.seed << 8 | index);
	j->versions = calloc(j->count, sizeof *j->versions);
	j->buffer = aligned_alloc(BLOCK, settings.max * BLOCK);
	if (!j->count || !j->versions || !j->buffer)
		return false;
	if (!strcmp(settings.blank, "zero"))
		memset(j->versions, 0xff, j->count * sizeof *j->versions);
	return true;
}

static bool open_disk(uint64_t *blocks)
{
	struct stat s;
	uint64_t size = 0;

	disk_fd = open(settings.disk, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (disk_fd < 0 || fstat(disk_fd, &s))
		return false;
	if (S_ISBLK(s.st_mode)) {
		if (ioctl(disk_fd, BLKGETSIZE64, &size))
			return false;
	} else
		size = (uint64_t)s.st_size;
	if (settings.size && settings.size << 20 < size)
		size = settings.size << 20;
	*blocks = size / BLOCK;
	return true;
}

static void run(struct job *jobs, uint64_t blocks)
{
	uint64_t sum = 0;

	line("diskload %s up blocks=%" PRIu64, settings.disk, blocks);
	for (uint64_t i = 0; i < settings.jobs; i++)
		if (pthread_create(&jobs[i].thread, NULL, work, &jobs[i])) {
			report("start thread %" PRIu64, i);
			stop = 1;
			settings.jobs = i;
		}
	watch(jobs);
	for (uint64_t i = 0; i < settings.jobs; i++)
		pthread_join(jobs[i].thread, NULL);
	if (fsync(disk_fd))
		report("fsync: %s", strerror(errno));
	for (struct job *j = jobs; j < jobs + settings.jobs; j++) {
		for (uint64_t b = 0; b < j->count; b += settings.max) {
			uint64_t left = j->count - b;
			read_blocks(j, j->first + b, left < settings.max ? left : settings.max);
		}
		for (uint64_t b = 0; b < j->count; b++)
			sum += mix((j->first + b) << 32 | j->versions[b]);
	}
	line("diskload %s done requests=%" PRIu64 " errors=%" PRIu64 " blocks=%" PRIu64 " sum=%016" PRIx64 " gap_ms=%" PRId64,
	     settings.disk, (uint64_t)requests, (uint64_t)errors, blocks, sum, longest(jobs));
}

int diskload_main(int argc, char **argv)
{
	static struct job jobs[MAX_JOBS];
	struct settings *s = &settings;
	uint64_t blocks = 0;
	const struct option known[] = {
		{ "disk", NULL, 0, &s->disk }, { "blank", NULL, 0, &s->blank }, { "size", &s->size, 1 << 24, NULL },
		{ "jobs", &s->jobs, MAX_JOBS, NULL }, { "max", &s->max, MAX_BLOCKS, NULL }, { "write", &s->write, 100, NULL },
		{ "zero", &s->zero, 100, NULL }, { "sync", &s->sync, UINT64_MAX, NULL }, { "n", &s->n, UINT64_MAX, NULL },
		{ "seed", &s->seed, UINT64_MAX, NULL },
	};

	if (!parse_options(argc, argv, known, sizeof known / sizeof *known))
		return 2;
	if (!s->disk || !s->jobs || !s->max)
		return 2;
	workload_start("diskload");
	if (!open_disk(&blocks)) {
		report("open %s: %s", s->disk, strerror(errno));
		return 1;
	}
	for (uint64_t i = 0; i < s->jobs; i++)
		if (!make_job(&jobs[i], i, blocks)) {
			report("%" PRIu64 " blocks on %s do not do for %" PRIu64 " jobs, or no memory", blocks, s->disk, s->jobs);
			return 1;
		}
	run(jobs, blocks);
	return errors ? 1 : 0;
}
