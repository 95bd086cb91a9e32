/* What stands on the disk. ../disk.go has the same and checks images. */
#ifndef DISK_H
#define DISK_H

#include "guest.h"

#define UNIT 4096UL              /* what carries a header and has a version */
#define DISK_DATA MIB            /* unit 0 is here; before it the two copies of the superblock */
#define SUPER_COPIES 2
#define UNIT_MAGIC 0x4b53444f5254454dUL  /* "METRODSK" */
#define SUPER_MAGIC 0x5055534f5254454dUL /* "METROSUP" */
#define SUPER_WORDS 9
#define NO_VERSION (~0UL)

/* The superblock: what was written, and up to which write it is stable. */
struct super {
	u64 magic, version, generation, seed;
	u64 units;      /* that the pattern covers */
	u64 per_block;  /* units that one write changes */
	u64 sequential; /* order of the writes */
	u64 flushed;    /* writes 1..flushed are stable */
	u64 check;
};

void unit_write(u64 *p, u64 unit, u64 version);
int unit_good(const u64 *p, u64 unit, u64 version);
u64 unit_version(const u64 *p, u64 unit);
const char *unit_wrong(const u64 *p, u64 unit, u64 version);
u64 block_of_write(u64 number, u64 blocks, int sequential);
void super_write(u64 *p, const struct super *s);
int super_read(const u64 *p, struct super *s);

#endif
