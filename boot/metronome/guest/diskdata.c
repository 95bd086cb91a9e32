/* Contents of the disk, as functions of seed, unit and version alone.
 *
 * A unit is 512 words: magic, unit, version, seed, key, then key + j*STEP in word j.
 * The key mixes seed, unit and version, so a unit that is old, torn or another's has no
 * word right. Write number n (from 1) changes one block, which is a function of n, and
 * gives its units version n. */
#include "disk.h"

#define WORDS 512
#define FIRST 5
#define STEP 0x9e3779b97f4a7c15UL

static u64 unit_key(u64 unit, u64 version) { return mix(mix(mix(opt.seed + 0x6469736b) ^ unit) ^ version); }

void unit_write(u64 *p, u64 unit, u64 version)
{
	u64 key = unit_key(unit, version), x = key + FIRST * STEP;

	p[0] = UNIT_MAGIC;
	p[1] = unit;
	p[2] = version;
	p[3] = opt.seed;
	p[4] = key;
	for (u64 j = FIRST; j < WORDS; j++, x += STEP)
		p[j] = x;
}

int unit_good(const u64 *p, u64 unit, u64 version)
{
	u64 key = unit_key(unit, version), x = key + FIRST * STEP, wrong;

	wrong = (p[0] ^ UNIT_MAGIC) | (p[1] ^ unit) | (p[2] ^ version) | (p[3] ^ opt.seed) | (p[4] ^ key);
	for (u64 j = FIRST; j < WORDS; j++, x += STEP)
		wrong |= p[j] ^ x;
	return wrong == 0;
}

/* The version that the unit holds as a whole, or NO_VERSION. */
u64 unit_version(const u64 *p, u64 unit) { return unit_good(p, unit, p[2]) ? p[2] : NO_VERSION; }

/* What is wrong with a unit that should be of that version. */
const char *unit_wrong(const u64 *p, u64 unit, u64 version)
{
	u64 key = unit_key(unit, version), some = 0, right = 0;

	for (u64 j = 0; j < WORDS; j++)
		some |= p[j];
	if (!some)
		return "zero";
	if (unit_version(p, unit) != NO_VERSION)
		return p[2] < version ? "stale" : "other";
	for (u64 j = FIRST; j < WORDS; j++)
		right += p[j] == key + j * STEP;
	return right ? "torn" : "other";
}

u64 block_of_write(u64 number, u64 blocks, int sequential)
{
	return sequential ? (number - 1) % blocks : scale(mix(mix(opt.seed + 0x6f72646572) ^ number), blocks);
}

static u64 super_check(const u64 *p)
{
	u64 check = 0;

	for (u64 j = 0; j < SUPER_WORDS - 1; j++)
		check = mix(check ^ p[j]);
	return check;
}

void super_write(u64 *p, const struct super *s)
{
	memset(p, 0, UNIT);
	memcpy(p, s, sizeof(*s));
	p[0] = SUPER_MAGIC;
	p[1] = 1;
	p[SUPER_WORDS - 1] = super_check(p);
}

int super_read(const u64 *p, struct super *s)
{
	memcpy(s, p, sizeof(*s));
	return p[0] == SUPER_MAGIC && p[1] == 1 && p[SUPER_WORDS - 1] == super_check(p);
}
