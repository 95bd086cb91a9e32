/* virtio over MMIO, version 2 (virtio 1.2, 4.2), and split rings (2.7), as a driver at
 * CPL 3 needs them that polls: no interrupt is ever wanted, and the device is kicked
 * only where it asks to be. */
#include "io.h"

#define MAX_DEVICES 32
static u64 bases[MAX_DEVICES];
static u32 device_count;

enum {
	REG_MAGIC = 0x00, REG_VERSION = 0x04, REG_DEVICE = 0x08,
	REG_FEATURES = 0x10, REG_FEATURES_SEL = 0x14, REG_ACCEPT = 0x20, REG_ACCEPT_SEL = 0x24,
	REG_QUEUE_SEL = 0x30, REG_QUEUE_MAX = 0x34, REG_QUEUE_NUM = 0x38, REG_QUEUE_READY = 0x44,
	REG_NOTIFY = 0x50, REG_STATUS = 0x70, REG_DESC = 0x80, REG_AVAIL = 0x90, REG_USED = 0xa0,
	REG_CONFIG = 0x100,
};
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };

/* Plain moves: what the VMM has to emulate should be simple. */
static u32 get(struct virtio *d, u64 reg)
{
	u32 v;

	__asm__ volatile("movl (%1), %0" : "=r"(v) : "r"(d->base + reg) : "memory");
	return v;
}

static void set(struct virtio *d, u64 reg, u32 v)
{
	__asm__ volatile("movl %0, (%1)" : : "r"(v), "r"(d->base + reg) : "memory");
}

static void set64(struct virtio *d, u64 reg, u64 v)
{
	set(d, reg, (u32)v);
	set(d, reg + 4, (u32)(v >> 32));
}

u32 virtio_config(struct virtio *d, u64 offset) { return get(d, REG_CONFIG + offset); }

u16 virtio_config16(struct virtio *d, u64 offset)
{
	u16 v;

	__asm__ volatile("movw (%1), %0" : "=r"(v) : "r"(d->base + REG_CONFIG + offset) : "memory");
	return v;
}

/* virtio_mmio.device=4K@0xd0000000:5: of the size@base:irq, the base is all that a
 * driver needs that takes no interrupt. A word of another shape names no device. */
void virtio_word(const char *p, u64 n)
{
	u64 i = 0, base = 0;

	while (i < n && p[i] != '@')
		i++;
	if (i + 3 > n || p[i + 1] != '0' || p[i + 2] != 'x')
		return;
	for (i += 3; i < n && p[i] != ':'; i++) {
		u64 digit = p[i] >= 'a' && p[i] <= 'f' ? (u64)(p[i] - 'a' + 10) : (u64)(p[i] - '0');

		if (digit > 15 || base >> 60)
			return;
		base = base << 4 | digit;
	}
	if (i < n && base && base % 4 == 0 && device_count < MAX_DEVICES)
		bases[device_count++] = base;
}

/* The first device of that type. A transport with nothing behind it has type 0. */
int virtio_find(struct virtio *d, u32 id)
{
	for (u32 i = 0; i < device_count; i++) {
		if (!map_device(bases[i]))
			plain_error("virtio_mmio.device: the address is not between 1 GiB and 64 GiB outside of memory");
		d->base = bases[i];
		if (get(d, REG_MAGIC) != 0x74726976 || get(d, REG_DEVICE) != id)
			continue;
		if (get(d, REG_VERSION) != 2)
			plain_error("io: the virtio device is legacy: in QEMU give -global virtio-mmio.force-legacy=false");
		return 1;
	}
	return 0;
}

/* virtio 1.2, 3.1.1, up to step 6. */
void virtio_start(struct virtio *d, u64 wanted, u64 needed)
{
	u64 offered;

	set(d, REG_STATUS, 0);
	while (get(d, REG_STATUS))
		pause();
	set(d, REG_STATUS, ACKNOWLEDGE);
	set(d, REG_STATUS, ACKNOWLEDGE | DRIVER);
	set(d, REG_FEATURES_SEL, 1);
	offered = (u64)get(d, REG_FEATURES) << 32;
	set(d, REG_FEATURES_SEL, 0);
	offered |= get(d, REG_FEATURES);
	needed |= F_VERSION_1;
	d->features = offered & (wanted | needed | F_EVENT_IDX | F_INDIRECT);
	if (needed & ~offered)
		plain_error("io: the virtio device lacks a feature that the load needs");
	set(d, REG_ACCEPT_SEL, 1);
	set(d, REG_ACCEPT, (u32)(d->features >> 32));
	set(d, REG_ACCEPT_SEL, 0);
	set(d, REG_ACCEPT, (u32)d->features);
	set(d, REG_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	if (!(get(d, REG_STATUS) & FEATURES_OK))
		plain_error("io: the virtio device refused the features");
}

/* Step 7: a queue of at most `most` entries. */
void virtio_queue(struct virtio *d, struct vq *q, u16 index, void *memory, u16 most)
{
	u32 size;

	set(d, REG_QUEUE_SEL, index);
	size = get(d, REG_QUEUE_MAX);
	if (size == 0)
		plain_error("io: the virtio device has too few queues");
	if (size > most)
		size = most;
	*q = (struct vq){
		.dev = d, .index = index, .size = (u16)size, .desc = memory,
		.avail = (void *)((u8 *)memory + PAGE), .used = (void *)((u8 *)memory + 2 * PAGE),
	};
	memset(memory, 0, RING_BYTES);
	/* Where interrupts are not suppressed by index, this does it (2.7.7). */
	q->avail->flags = 1;
	q->avail->ring[size] = 0x8000;
	set(d, REG_QUEUE_NUM, size);
	set64(d, REG_DESC, (u64)q->desc);
	set64(d, REG_AVAIL, (u64)q->avail);
	set64(d, REG_USED, (u64)q->used);
	set(d, REG_QUEUE_READY, 1);
}

void virtio_run(struct virtio *d)
{
	set(d, REG_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

void vq_offer(struct vq *q, u16 head)
{
	q->avail->ring[q->offered++ & (q->size - 1)] = head;
}

/* Shows the device what was offered, and kicks it if it asks for that: with an event
 * index when that has been passed (2.7.10), else by its flag. */
void vq_publish(struct vq *q)
{
	u16 before = q->published, event;
	int kick;

	if (q->offered == before)
		return;
	barrier();
	q->avail->idx = q->published = q->offered;
	__sync_synchronize(); /* the index must be out before the wish is read */
	if (q->dev->features & F_EVENT_IDX) {
		event = *(volatile u16 *)&q->used->ring[q->size];
		kick = (u16)(q->offered - event - 1) < (u16)(q->offered - before);
	} else {
		kick = !(q->used->flags & 1);
	}
	if (kick)
		set(q->dev, REG_NOTIFY, q->index);
}

/* The next chain that the device gave back. */
int vq_take(struct vq *q, u32 *id, u32 *len)
{
	if (q->used->idx == q->seen)
		return 0;
	barrier();
	*id = q->used->ring[q->seen & (q->size - 1)].id;
	*len = q->used->ring[q->seen & (q->size - 1)].len;
	q->seen++;
	/* An interrupt is wanted half a turn from here, which is never. */
	q->avail->ring[q->size] = q->seen + 0x8000;
	return 1;
}
