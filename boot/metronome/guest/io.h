/* The native load on virtio devices: what its parts share. */
#ifndef IO_H
#define IO_H

#include "guest.h"

/* A virtio-mmio device that was found, and its features after negotiation. */
struct virtio {
	u64 base;
	u64 features;
};

/* Split ring, virtio 1.2, 2.7. Memory: RING_BYTES from `desc`, page aligned. */
struct vring_desc { u64 addr; u32 len; u16 flags, next; };
struct vring_avail { u16 flags, idx, ring[]; };
struct vring_used { u16 flags, idx; struct { u32 id, len; } ring[]; };
struct vq {
	struct virtio *dev;
	struct vring_desc *desc;
	volatile struct vring_avail *avail;
	volatile struct vring_used *used;
	u16 index, size;
	u16 offered, published; /* avail entries written; of those, shown to the device */
	u16 seen;               /* used entries taken */
};
#define RING_MAX 256
#define RING_BYTES (3 * PAGE)
enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };
#define F_INDIRECT (1UL << 28)
#define F_EVENT_IDX (1UL << 29)
#define F_VERSION_1 (1UL << 32)

/* virtio.c */
void virtio_word(const char *p, u64 n);
int virtio_find(struct virtio *d, u32 id);
void virtio_start(struct virtio *d, u64 wanted, u64 needed);
void virtio_queue(struct virtio *d, struct vq *q, u16 index, void *memory, u16 most);
void virtio_run(struct virtio *d);
u32 virtio_config(struct virtio *d, u64 offset);
u16 virtio_config16(struct virtio *d, u64 offset);
void vq_offer(struct vq *q, u16 head);
void vq_publish(struct vq *q);
int vq_take(struct vq *q, u32 *id, u32 *len);

/* stats.c: one load's counts. The vCPU that does the load writes, vCPU 0 prints. */
#define BUCKETS 512
struct io_stats {
	u64 ops, bytes, reads, writes, flushes, bad, max_ticks;
	u64 bucket[BUCKETS];
	/* vCPU 0's alone: what stood there at the last line. */
	u64 last_ops, last_bytes, last_tsc, last_bucket[BUCKETS];
};
void io_count(struct io_stats *s, u64 bytes, u64 ticks);
void io_line(struct io_stats *s, const char *dev, const char *phase, u64 now);

/* disk.c */
u64 disk_memory(void);
void disk_init(u8 *memory);
int disk_step(struct cpu *c);
void disk_beat(u64 now);

/* net.c */
u64 net_memory(void);
void net_init(u8 *memory);
int net_step(struct cpu *c);
void net_beat(u64 now);

#endif
