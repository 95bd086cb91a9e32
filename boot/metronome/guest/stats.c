/* What a load on a device got done: counts, and how long each request took. The vCPU
 * that does the load only ever adds, and vCPU 0 prints differences, so neither waits. */
#include "io.h"

/* Bucket of a time in quarters of a microsecond: exact below 16, then 16 an octave. */
static u64 bucket_of(u64 quarters)
{
	u64 octave, b;

	if (quarters < 16)
		return quarters;
	octave = 63 - (u64)__builtin_clzl(quarters);
	b = (octave - 3) * 16 + (quarters >> (octave - 4) & 15);
	return b < BUCKETS ? b : BUCKETS - 1;
}

static u64 bucket_us(u64 b)
{
	u64 quarters = b < 16 ? b : (16 + b % 16) << (b / 16 - 1);

	return quarters / 4;
}

void io_count(struct io_stats *s, u64 bytes, u64 ticks)
{
	s->ops++;
	s->bytes += bytes;
	s->bucket[bucket_of(ticks * 4000 / tsc_per_ms)]++;
	if (ticks > s->max_ticks)
		s->max_ticks = ticks;
}

/* The time below which `percent` of the requests since the last line stayed. */
static u64 percentile(struct io_stats *s, u64 total, u64 percent)
{
	u64 need = (total * percent + 99) / 100, have = 0;

	for (u64 b = 0; b < BUCKETS; b++) {
		have += s->bucket[b] - s->last_bucket[b];
		if (have >= need && have)
			return bucket_us(b);
	}
	return 0;
}

/* The part of the line that all loads have. The caller goes on and ends it. */
void io_line(struct io_stats *s, const char *dev, const char *phase, u64 now)
{
	u64 ops = s->ops, bytes = s->bytes, total = 0;
	u64 ms = (now - (s->last_tsc ? s->last_tsc : info_page.up_tsc)) / tsc_per_ms;

	for (u64 b = 0; b < BUCKETS; b++)
		total += s->bucket[b] - s->last_bucket[b];
	line_begin();
	line_text("metronome io dev=");
	line_text(dev);
	line_text(" phase=");
	line_text(phase);
	line_number("t_ms", (now - info_page.up_tsc) / tsc_per_ms);
	line_number("ops", ops);
	line_number("bytes", bytes);
	line_number("ops_s", ms ? (ops - s->last_ops) * 1000 / ms : 0);
	line_number("bytes_s", ms ? (bytes - s->last_bytes) * 1000 / ms : 0);
	line_number("p50_us", percentile(s, total, 50));
	line_number("p99_us", percentile(s, total, 99));
	line_number("max_us", s->max_ticks * 1000 / tsc_per_ms);
	line_number("bad", s->bad);
	s->last_ops = ops;
	s->last_bytes = bytes;
	s->last_tsc = now;
	for (u64 b = 0; b < BUCKETS; b++)
		s->last_bucket[b] = s->bucket[b];
}
