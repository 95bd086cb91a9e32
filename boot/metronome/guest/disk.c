/* io=blk: the load on virtio-blk. It runs as slices of the last vCPU's loop: take what
 * the device gave back, check it, ask for more. Reads and writes of one block are never
 * under way together, so what a read brings must be exactly the last write's. */
#include "disk.h"
#include "io.h"

#define TYPE_BLOCK 2
#define F_READ_ONLY (1UL << 5)
#define F_FLUSH (1UL << 9)
#define F_QUEUES (1UL << 12)
enum { REQUEST_IN = 0, REQUEST_OUT = 1, REQUEST_FLUSH = 4 }; /* virtio 1.2, 5.2.6 */

#define MAX_QUEUES 8
#define MAX_SLOTS (128 + MAX_QUEUES)
#define CHUNK (256 * 1024UL) /* of filling and of looking at what is there */
#define CHUNKS 8UL
#define A_SLICE 4 /* answers of a queue, and new requests, in one turn of the loop */

/* Marks in the version table beside the version itself. */
#define BUSY (1UL << 63)
#define UNKNOWN (1UL << 62)
#define VERSION (UNKNOWN - 1)

enum phase { OFF, FILLING, FILLED, LOOKING, RUNNING, BROKEN };
static const char *const phase_names[] = { "off", "fill", "fill", "verify", "run", "broken" };

struct slot {
	u64 first, units; /* what is read or written */
	u64 number;       /* of a write */
	u64 sent;         /* TSC */
	u8 *data;
	u32 type;
	int busy;
};

/* What the device reads and writes beside the data, one cache line or more a slot. */
struct request {
	struct { u32 type, reserved; u64 sector; } header;
	volatile u8 status;
	u8 pad[15];
	struct vring_desc chain[3]; /* indirect */
	u8 fill[48];
};
_Static_assert(sizeof(struct request) == 128, "struct request");

static struct disk {
	struct virtio dev;
	struct vq queue[MAX_QUEUES];
	struct slot slot[MAX_SLOTS];
	u16 idle[MAX_SLOTS];
	u64 idle_count, slots;
	u64 control;      /* the slot of flushes and the superblock */
	enum phase phase;
	u64 units, per_block, blocks;
	u64 *versions;
	struct request *request;
	u8 *data, *control_data;
	u64 cursor;       /* next unit to fill or look at; next block of sequential reads */
	u64 next;         /* number of the next write */
	u64 unflushed;    /* writes answered since the last flush was sent */
	u64 mark;         /* what a flush under way makes stable */
	struct super super;
	struct io_stats stats;
} disk;

static u64 slot_count(void)
{
	/* The control slot is the first number past the depth that lies on queue 0. */
	return (opt.blk.depth + opt.blk.queues - 1) / opt.blk.queues * opt.blk.queues + 1;
}

static u64 data_bytes(void)
{
	u64 wanted = opt.blk.depth * opt.blk.kib * 1024;

	return wanted < CHUNKS * MIB ? CHUNKS * MIB : wanted;
}

static u64 table_bytes(void) { return (opt.blk.span * MIB / UNIT * 8 + PAGE - 1) & ~(PAGE - 1); }
static u64 requests_bytes(void) { return (slot_count() * sizeof(struct request) + PAGE - 1) & ~(PAGE - 1); }

u64 disk_memory(void)
{
	if (!opt.blk.kib)
		return 0;
	return opt.blk.queues * RING_BYTES + SUPER_COPIES * UNIT + requests_bytes() + table_bytes() + data_bytes();
}

/* Requests. Slot s is entry s / queues of queue s % queues: its own descriptor where
 * the device takes indirect ones, else its own three. */
static void send(u64 s, u32 type, u64 byte, u64 bytes, u8 *data)
{
	struct vq *q = &disk.queue[s % opt.blk.queues];
	struct slot *slot = &disk.slot[s];
	struct request *r = &disk.request[s];
	u16 local = (u16)(s / opt.blk.queues), head = local, n = 0;
	struct vring_desc *d = r->chain;

	if (!(disk.dev.features & F_INDIRECT)) {
		head = (u16)(local * 3);
		d = q->desc + head;
	}
	r->header.type = type;
	r->header.sector = byte / 512;
	r->status = 0xff;
	slot->type = type;
	slot->data = data;
	slot->busy = 1;
	slot->sent = rdtsc();
	n = d == r->chain ? 0 : head;
	d[0] = (struct vring_desc){ (u64)&r->header, 16, DESC_NEXT, (u16)(n + 1) };
	if (bytes)
		d[1] = (struct vring_desc){ (u64)data, (u32)bytes, DESC_NEXT | (type == REQUEST_IN ? DESC_WRITE : 0), (u16)(n + 2) };
	d[bytes ? 2 : 1] = (struct vring_desc){ (u64)&r->status, 1, DESC_WRITE, 0 };
	if (d == r->chain)
		q->desc[head] = (struct vring_desc){ (u64)d, (bytes ? 3 : 2) * sizeof(*d), DESC_INDIRECT, 0 };
	vq_offer(q, head);
}

static u64 unit_byte(u64 unit) { return DISK_DATA + unit * UNIT; }

static void bad(struct cpu *c, u8 *at, u64 unit, u64 version, const char *kind)
{
	(void)c;
	disk.stats.bad++;
	bad_io((u64)at, unit, version & VERSION, kind, "disk");
}

/* Flushes and the superblock, one at a time. A flush makes stable what was answered
 * before it was sent, so all writes below the oldest one under way; once it is answered
 * the superblock may say so, and the next flush makes that stable in turn. */
static void send_super(void)
{
	disk.super.generation++;
	disk.super.flushed = disk.mark;
	super_write((u64 *)disk.control_data, &disk.super);
	disk.slot[disk.control].units = 1;
	send(disk.control, REQUEST_OUT, disk.super.generation % SUPER_COPIES * UNIT, UNIT, disk.control_data);
}

static void checkpoint(void)
{
	disk.mark = disk.next - 1;
	for (u64 s = 0; s < opt.blk.depth; s++)
		if (disk.slot[s].busy && disk.slot[s].type == REQUEST_OUT && disk.slot[s].number <= disk.mark)
			disk.mark = disk.slot[s].number - 1;
	disk.unflushed = 0;
	if (disk.phase == FILLED)
		disk.mark = 0;
	if (disk.dev.features & F_FLUSH)
		send(disk.control, REQUEST_FLUSH, 0, 0, 0);
	else
		send_super();
}

static void control_answered(void)
{
	struct slot *slot = &disk.slot[disk.control];

	if (slot->type == REQUEST_FLUSH) {
		disk.stats.flushes++;
		send_super();
	} else if (disk.phase == FILLED) {
		disk.phase = RUNNING;
	}
}

/* What came back. */
static void check_unit(struct cpu *c, u64 unit, u64 *p)
{
	u64 *entry = &disk.versions[unit], version = *entry & VERSION;

	if (disk.phase == LOOKING) {
		*entry = unit_version(p, unit);
		if (*entry != NO_VERSION &&
		    (*entry == 0 || block_of_write(*entry, disk.super.units / disk.super.per_block, (int)disk.super.sequential) == unit / disk.super.per_block))
			return;
		version = 0;
	} else if (*entry & UNKNOWN || unit_good(p, unit, version)) {
		return;
	}
	bad(c, (u8 *)p, unit, version, unit_wrong(p, unit, version));
	*entry = UNKNOWN; /* it counts once, until it is written again */
}

static void release_block(u64 unit)
{
	disk.versions[unit] &= ~BUSY;
}

static void answered(struct cpu *c, u64 s)
{
	struct slot *slot = &disk.slot[s];
	u64 bytes = slot->units * UNIT;

	slot->busy = 0;
	if (disk.request[s].status != 0) {
		bad(c, (u8 *)&disk.request[s], slot->first, disk.request[s].status, "error");
		for (u64 u = 0; u < slot->units && s != disk.control; u++)
			disk.versions[slot->first + u] = UNKNOWN;
		if (s == disk.control)
			disk.phase = BROKEN; /* nothing can be promised any more */
	} else if (slot->type == REQUEST_IN) {
		for (u64 u = 0; u < slot->units; u++)
			check_unit(c, slot->first + u, (u64 *)(slot->data + u * UNIT));
	}
	if (s == disk.control) {
		if (disk.phase != BROKEN)
			control_answered();
		return;
	}
	if (disk.phase == RUNNING) {
		io_count(&disk.stats, bytes, rdtsc() - slot->sent);
		release_block(slot->first);
		if (slot->type == REQUEST_IN) {
			disk.stats.reads++;
		} else {
			disk.stats.writes++;
			disk.unflushed++;
		}
	}
	disk.idle[disk.idle_count++] = (u16)s;
}

static int take(struct cpu *c, struct vq *q)
{
	u32 id, len;
	int n = 0;

	for (; n < A_SLICE && vq_take(q, &id, &len); n++) {
		u64 local = disk.dev.features & F_INDIRECT ? id : id / 3;
		u64 s = local * opt.blk.queues + q->index;

		if (local >= RING_MAX || s >= disk.slots || !disk.slot[s].busy) {
			bad(c, (u8 *)q->used, id, len, "error");
			disk.phase = BROKEN;
			return n;
		}
		answered(c, s);
	}
	return n;
}

/* New requests. Each returns whether it sent one. */
static int stream(u64 s)
{
	struct slot *slot = &disk.slot[s];
	u64 units = CHUNK / UNIT > disk.per_block ? CHUNK / UNIT : disk.per_block;

	if (disk.cursor == disk.units || s >= CHUNKS)
		return 0;
	slot->first = disk.cursor;
	slot->units = disk.units - disk.cursor < units ? disk.units - disk.cursor : units;
	slot->number = 0;
	disk.cursor += slot->units;
	slot->data = disk.data + s * MIB;
	if (disk.phase == FILLING)
		for (u64 u = 0; u < slot->units; u++) {
			disk.versions[slot->first + u] = 0;
			unit_write((u64 *)(slot->data + u * UNIT), slot->first + u, 0);
		}
	send(s, disk.phase == FILLING ? REQUEST_OUT : REQUEST_IN, unit_byte(slot->first), slot->units * UNIT, slot->data);
	return 1;
}

static int claim(u64 s, u64 block)
{
	u64 first = block * disk.per_block;

	if (disk.versions[first] & BUSY)
		return 0;
	disk.versions[first] |= BUSY;
	disk.slot[s].first = first;
	disk.slot[s].units = disk.per_block;
	disk.slot[s].data = disk.data + s * disk.per_block * UNIT;
	return 1;
}

static int read_block(struct cpu *c, u64 s)
{
	int found = 0;

	if (opt.blk.sequential) {
		found = claim(s, disk.cursor);
		if (found && ++disk.cursor == disk.blocks)
			disk.cursor = 0;
	}
	for (int tries = 0; !opt.blk.sequential && !found && tries < 4; tries++)
		found = claim(s, scale(random_next(c), disk.blocks));
	if (found)
		send(s, REQUEST_IN, unit_byte(disk.slot[s].first), disk.per_block * UNIT, disk.slot[s].data);
	return found;
}

static int write_block(u64 s)
{
	struct slot *slot = &disk.slot[s];

	if (!claim(s, block_of_write(disk.next, disk.blocks, (int)opt.blk.sequential)))
		return 0;
	slot->number = disk.next++;
	for (u64 u = 0; u < slot->units; u++) {
		disk.versions[slot->first + u] = slot->number | (u ? 0 : BUSY);
		unit_write((u64 *)(slot->data + u * UNIT), slot->first + u, slot->number);
	}
	send(s, REQUEST_OUT, unit_byte(slot->first), slot->units * UNIT, slot->data);
	return 1;
}

static int ask(struct cpu *c, u64 s)
{
	if (disk.phase == FILLING || disk.phase == LOOKING)
		return stream(s);
	if (opt.blk.mode == BLK_READ || (opt.blk.mode == BLK_MIXED && random_next(c) & 1))
		return read_block(c, s);
	return write_block(s);
}

/* Filling and looking end when all is answered. */
static void next_phase(void)
{
	if (disk.cursor < disk.units || disk.idle_count < opt.blk.depth)
		return;
	disk.cursor = 0;
	if (disk.phase == LOOKING) {
		disk.phase = RUNNING;
		return;
	}
	disk.phase = FILLED;
	checkpoint();
}

/* Returns whether there was anything to do. */
int disk_step(struct cpu *c)
{
	u64 held[A_SLICE], kept = 0;
	int worked = 0;

	if (disk.phase == OFF || disk.phase == BROKEN)
		return 0;
	for (u64 q = 0; q < opt.blk.queues; q++)
		worked |= take(c, &disk.queue[q]);
	if (disk.phase == FILLING || disk.phase == LOOKING)
		next_phase();
	for (int n = 0; n < A_SLICE && disk.idle_count && disk.phase != FILLED && disk.phase != BROKEN; n++) {
		u64 s = disk.idle[--disk.idle_count];

		if (ask(c, s))
			worked = 1;
		else
			held[kept++] = s;
	}
	while (kept)
		disk.idle[disk.idle_count++] = (u16)held[--kept];
	if (disk.phase == RUNNING && opt.blk.flush && disk.unflushed >= opt.blk.flush && !disk.slot[disk.control].busy)
		checkpoint();
	for (u64 q = 0; q < opt.blk.queues; q++)
		vq_publish(&disk.queue[q]);
	return worked;
}

/* Before the load begins, on vCPU 0. */
static void wait_control(const char *what)
{
	u64 from = rdtsc();
	u32 id, len;

	vq_publish(&disk.queue[0]);
	while (!vq_take(&disk.queue[0], &id, &len)) {
		if (rdtsc() - from > 60000 * tsc_per_ms)
			plain_error("io=blk: no answer from the disk within a minute");
		pause();
	}
	disk.slot[disk.control].busy = 0;
	if (disk.request[disk.control].status != 0)
		plain_error(what);
}

static int all_zero(const u8 *p, u64 n)
{
	for (u64 i = 0; i < n; i++)
		if (p[i])
			return 0;
	return 1;
}

/* What the disk holds decides how to begin: an empty one is filled, an earlier run's is
 * looked at whole, another's is left alone. */
static void begin(void)
{
	struct super s, newest = { .generation = 0 };
	int found = 0;

	send(disk.control, REQUEST_IN, 0, SUPER_COPIES * UNIT, disk.control_data);
	wait_control("io=blk: the superblock cannot be read");
	for (u64 i = 0; i < SUPER_COPIES; i++)
		if (super_read((u64 *)(disk.control_data + i * UNIT), &s) && (!found || s.generation > newest.generation)) {
			newest = s;
			found = 1;
		}
	if (!found && !opt.blk.prefill && !all_zero(disk.control_data, SUPER_COPIES * UNIT))
		plain_error("io=blk: the disk holds something that is no pattern: give prefill to overwrite it");
	if (found && !opt.blk.prefill) {
		if (newest.seed != opt.seed || newest.units != disk.units)
			plain_error("io=blk: the disk holds the pattern of another seed or span: give prefill to overwrite it");
		if (opt.blk.mode != BLK_READ && (newest.per_block != disk.per_block || newest.sequential != opt.blk.sequential))
			plain_error("io=blk: the disk holds the pattern of another block size or order: give prefill to overwrite it");
		disk.super = newest;
		/* Writes that were not stable are done again: their contents follow from
		 * their numbers. */
		disk.next = newest.flushed + 1;
		disk.phase = LOOKING;
		return;
	}
	if (disk.dev.features & F_READ_ONLY)
		plain_error("io=blk: the disk is read-only and holds no pattern");
	/* A disk that is half filled must not look like a whole one. */
	memset(disk.control_data, 0, SUPER_COPIES * UNIT);
	send(disk.control, REQUEST_OUT, 0, SUPER_COPIES * UNIT, disk.control_data);
	wait_control("io=blk: the superblock cannot be written");
	disk.super = (struct super){
		.seed = opt.seed, .units = disk.units, .per_block = disk.per_block, .sequential = opt.blk.sequential,
	};
	disk.next = 1;
	disk.phase = FILLING;
}

static u8 *carve(u8 **memory, u64 bytes)
{
	u8 *p = *memory;

	*memory += bytes;
	return p;
}

void disk_init(u8 *memory)
{
	u64 capacity;

	if (!opt.blk.kib)
		return;
	if (!virtio_find(&disk.dev, TYPE_BLOCK))
		plain_error("io=blk: there is no virtio-blk device: a virtio_mmio.device= word must name it");
	virtio_start(&disk.dev, F_READ_ONLY | F_FLUSH | (opt.blk.queues > 1 ? F_QUEUES : 0), 0);
	capacity = virtio_config(&disk.dev, 0) | (u64)virtio_config(&disk.dev, 4) << 32;
	disk.units = opt.blk.span * MIB / UNIT;
	disk.per_block = opt.blk.kib * 1024 / UNIT;
	disk.blocks = disk.units / disk.per_block;
	if (capacity < (DISK_DATA + opt.blk.span * MIB) / 512)
		plain_error("io=blk: the disk is smaller than span= and the MiB before it");
	if (opt.blk.mode != BLK_READ && disk.dev.features & F_READ_ONLY)
		plain_error("io=blk: the disk is read-only: give read");
	if (opt.blk.queues > 1 && (!(disk.dev.features & F_QUEUES) || virtio_config16(&disk.dev, 34) < opt.blk.queues))
		plain_error("io=blk: the disk has fewer queues than queues=");
	for (u64 q = 0; q < opt.blk.queues; q++) {
		virtio_queue(&disk.dev, &disk.queue[q], (u16)q, carve(&memory, RING_BYTES), RING_MAX);
		if (slot_count() / opt.blk.queues >= (disk.dev.features & F_INDIRECT ? disk.queue[q].size : disk.queue[q].size / 3))
			plain_error("io=blk: depth= is more than the device's queues hold");
	}
	virtio_run(&disk.dev);
	disk.control_data = carve(&memory, SUPER_COPIES * UNIT);
	disk.request = (struct request *)carve(&memory, requests_bytes());
	disk.versions = (u64 *)carve(&memory, table_bytes());
	disk.data = memory;
	disk.slots = slot_count();
	disk.control = disk.slots - 1;
	for (u64 s = opt.blk.depth; s > 0; s--)
		disk.idle[disk.idle_count++] = (u16)(s - 1);
	begin();
}

void disk_beat(u64 now)
{
	if (!opt.blk.kib)
		return;
	io_line(&disk.stats, "blk", phase_names[disk.phase], now);
	line_number("reads", disk.stats.reads);
	line_number("writes", disk.stats.writes);
	line_number("flushes", disk.stats.flushes);
	line_number("flushed", disk.super.flushed);
	line_end();
}
