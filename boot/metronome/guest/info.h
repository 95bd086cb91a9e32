/* The info page at INFO_GPA: the numbers of the serial lines, and where everything
 * lies. ../info.go decodes it. All fields are little-endian, 8 bytes unless said.
 *
 * A reader copies the page and takes it as consistent when `seq` is even and the
 * magic is there. The vCPU records at the end are live and outside of seq. */
#ifndef INFO_H
#define INFO_H

#include "layout.h"

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef long s64;

#define INFO_MAGIC 0x4d4f4e4f5254454dUL /* "METRONOM" */
#define INFO_VERSION 1

enum { STATE_STARTING = 1, STATE_FILLING = 2, STATE_RUNNING = 3, STATE_ERROR = 4, STATE_FAULT = 5 };
enum { KIND_ZERO, KIND_STALE, KIND_TORN, KIND_OTHER, KIND_TABLE, KINDS };

struct extent { u64 gpa, bytes; };

/* One cache line per vCPU, written by that vCPU alone. */
struct info_cpu {
	u64 writes;      /* page writes done */
	u64 reads;       /* pages read and verified because of reads= */
	u64 sweeps;      /* full sweeps done */
	u64 filled;      /* pages filled */
	u64 gap_tsc;     /* longest gap since the beat before, TSC ticks (vCPU 0 resets it) */
	u64 max_gap_tsc; /* longest gap ever */
	u64 back;        /* times the TSC was seen going backwards */
	u64 verified;    /* pages verified by sweeps */
};

struct info {
	u64 magic;        /* 0x000 */
	u32 version;      /* 0x008 */
	u32 bytes;        /* 0x00c length of this page: 4096 */
	u64 seq;          /* 0x010 odd while vCPU 0 changes the fields below */
	u32 state;        /* 0x018 STATE_x */
	u32 vcpus;        /* 0x01c */
	u64 tsc_khz;      /* 0x020 */
	u64 up_tsc;       /* 0x028 TSC at "up": t_ms counts from there */
	u64 t_ms;         /* 0x030 time of the last beat */
	u64 beats;        /* 0x038 */
	u64 writes;       /* 0x040 all vCPUs, at the last beat */
	u64 reads;        /* 0x048 */
	u64 sweeps;       /* 0x050 of the slowest vCPU */
	u64 gap_us;       /* 0x058 longest gap between the last two beats, worst vCPU */
	u64 max_gap_us;   /* 0x060 */
	u64 filled_ms;    /* 0x068 time of "filled" */
	u64 bad;          /* 0x070 sum of bad_kind */
	u64 bad_kind[KINDS]; /* 0x078 zero, stale, torn, other, table */
	u64 back;         /* 0x0a0 times a TSC went backwards */
	u64 dropped;      /* 0x0a8 serial lines that found no room */
	u64 seed;         /* 0x0b0 */
	u64 page_bytes;   /* 0x0b8 bytes changed per write */
	u64 rate;         /* 0x0c0 */
	u64 sample_count; /* 0x0c8 */
	u64 sample_gpa;   /* 0x0d0 first sampled page, within free[0] */
	u64 sample_step;  /* 0x0d8 bytes between samples, counted along free[0] then free[1] */
	struct extent io; /* 0x0e0 rings, buffers and tables of the loads on devices */
	u64 io_bad;       /* 0x0f0 those of bad that are of a device */
	u64 reserved;     /* 0x0f8 zero */
	struct extent image;    /* 0x100 code, data, tables, stacks, this page */
	struct extent mailbox;  /* 0x110 the guest never reads or writes it */
	struct extent table;    /* 0x120 version table, 8 bytes per working-set page */
	struct extent ram[2];   /* 0x130 RAM in use as arena, below and above the hole */
	struct extent fill[2];  /* 0x150 */
	struct extent ws[2];    /* 0x170 the first pages of fill */
	struct extent text[2];  /* 0x190 */
	struct extent free[2];  /* 0x1b0 never touched, save the sample (read only) */
	u8 pad[0x800 - 0x1d0];
	struct info_cpu cpu[MAX_VCPUS]; /* 0x800 */
};

_Static_assert(sizeof(struct info_cpu) == 64, "struct info_cpu");
_Static_assert(sizeof(struct info) == 4096, "struct info");
_Static_assert(__builtin_offsetof(struct info, image) == 0x100, "image");
_Static_assert(__builtin_offsetof(struct info, free) == 0x1b0, "free");

#endif
