/* Which page of its share of the working set a vCPU takes next. */
#include "guest.h"

/* zipf:S. Ranks are gathered in buckets, each rank alone up to 64 and 16 buckets per
 * octave above; within a bucket every rank is as likely. `upto` is cumulative. */
static struct { u64 first, count, upto; } buckets[ZIPF_BUCKETS];
static u64 bucket_count, weight_sum;

u64 random_next(struct cpu *c)
{
	c->rng += 0x9e3779b97f4a7c15UL;
	return mix(c->rng);
}

/* log2 of x >= 1 with 32 fractional bits, bit by bit. */
static u64 log2_q32(u64 x)
{
	u64 whole = 63 - __builtin_clzl(x), result = whole << 32;
	u64 m = x << (63 - whole) >> 32; /* mantissa in [1,2), 31 fractional bits */

	for (int bit = 31; bit >= 0; bit--) {
		m = m * m >> 31;
		if (m >> 32) {
			m >>= 1;
			result |= 1UL << bit;
		}
	}
	return result;
}

/* 2^-(2^-k) for k = 1..16, 63 fractional bits. */
static const u64 half_powers[16] = {
	0x5a827999fcef3242UL, 0x6ba27e656b4eb57aUL, 0x75606373ee921c97UL, 0x7a92be8a92436616UL,
	0x7d41d96db915019dUL, 0x7e9f06067a4360baUL, 0x7f4f08ae3dc7c426UL, 0x7fa765aca88f6453UL,
	0x7fd3ab290e46d769UL, 0x7fe9d3a8e07bf086UL, 0x7ff4e9597bed93abUL, 0x7ffa748dff8dc61fUL,
	0x7ffd3a3f50020332UL, 0x7ffe9d1dbc0a75aaUL, 0x7fff4e8e6306ed59UL, 0x7fffa74712c3cdfdUL,
};

/* 2^-y for y with 32 fractional bits; the result has 36. */
static u64 exp2_neg_q36(u64 y)
{
	u64 m = 1UL << 63, whole = y >> 32;

	for (int k = 0; k < 16; k++)
		if (y >> (31 - k) & 1)
			m = (u64)((unsigned __int128)m * half_powers[k] >> 63);
	return whole > 36 ? 0 : m >> 27 >> whole;
}

static void add_bucket(u64 first, u64 count)
{
	u64 middle = first + (count - 1) / 2;
	u64 y = log2_q32(middle) * opt.zipf_milli / 1000;

	weight_sum += exp2_neg_q36(y) * count;
	buckets[bucket_count].first = first;
	buckets[bucket_count].count = count;
	buckets[bucket_count++].upto = weight_sum;
}

/* One table for all vCPUs: their shares differ by one page at most. */
void pattern_init(void)
{
	u64 n = plan.ws / opt.vcpus, width;

	if (opt.pattern != ZIPF)
		return;
	for (u64 first = 1; first <= n; first += width) {
		width = first < 64 ? 1 : 1UL << (63 - __builtin_clzl(first)) >> 4;
		if (width > n - first + 1)
			width = n - first + 1;
		add_bucket(first, width);
	}
}

/* Rank 0 is the hottest page. */
static u64 zipf_rank(struct cpu *c)
{
	u64 r = scale(random_next(c), weight_sum), low = 0, high = bucket_count - 1;

	while (low < high) {
		u64 mid = (low + high) / 2;

		if (r < buckets[mid].upto)
			high = mid;
		else
			low = mid + 1;
	}
	return buckets[low].first - 1 + scale(random_next(c), buckets[low].count);
}

u64 pattern_next(struct cpu *c)
{
	u64 n = c->ws.to - c->ws.from, hot;

	switch (opt.pattern) {
	case SEQUENTIAL:
		if (c->next_sequential >= n)
			c->next_sequential = 0;
		return c->ws.from + c->next_sequential++;
	case HOTSPOT:
		hot = n * opt.hot_pages / 100;
		if (hot == 0)
			hot = 1;
		if (hot == n || scale(random_next(c), 100) < opt.hot_share)
			return c->ws.from + scale(random_next(c), hot);
		return c->ws.from + hot + scale(random_next(c), n - hot);
	case ZIPF:
		/* A prime above every n scatters the ranks, so that hot pages are not neighbours. */
		return c->ws.from + zipf_rank(c) * 2654435761UL % (plan.ws / opt.vcpus);
	default:
		return c->ws.from + scale(random_next(c), n);
	}
}
