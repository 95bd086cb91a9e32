/* io=net: the load on virtio-net. Like that on a disk it runs in slices of the last
 * vCPU's loop. Frames carry a number and a pattern; ../net.go makes and reads them on
 * the other side.
 *
 *	14 bytes   Ethernet header, type 0x88b5 (local experiments); with tso 40 more, IPv4
 *	           and TCP
 *	           magic (4), length from here on (4), number (8), check (8)
 *	           pattern, the same in every frame
 *	last 8     the check once more, inverted */
#include "io.h"

#define TYPE_NET 1
#define F_CSUM (1UL << 0)
#define F_MAC (1UL << 5)
#define F_HOST_TSO4 (1UL << 11)
#define F_MERGE (1UL << 15)

#define FRAME_MAGIC 0x54454e4dU /* "MNET" */
#define ETHERNET 14UL
#define IP_TCP 40UL
#define SEGMENT 1448UL
#define SEGMENTS 45UL /* as much as IPv4's length lets Linux send at once */
#define HEADER 24UL
#define LEAST (HEADER + 8)
#define A_SLICE 32
#define RX_BYTES 2048UL
#define STEP 0x9e3779b97f4a7c15UL
#define PACKED __attribute__((packed))

/* virtio 1.2, 5.1.6 */
struct net_header { u8 flags, gso_type; u16 hdr_len, gso_size, csum_start, csum_offset, buffers; };
enum { NEEDS_CSUM = 1, GSO_TCPV4 = 1 };
struct ethernet { u8 to[6], from[6]; u16 type; } PACKED;
struct stamp { u32 magic, length; u64 number, check; } PACKED;

static struct net {
	struct virtio dev;
	struct vq rx, tx;
	int running, broken;
	u8 mac[6];
	u8 *rx_data, *tx_data;
	u64 stride, frame_bytes; /* of what is sent */
	u64 sent[RING_MAX]; /* TSC */
	u32 length[RING_MAX];
	u16 idle[RING_MAX];
	u64 idle_count;
	u64 next, expect; /* numbers: of the next frame sent; of the next one received */
	u64 received, lost, again, other;
	struct io_stats stats;
} net;

static u64 swapped16(u64 v) { return (v >> 8 | v << 8) & 0xffff; }
static u64 check_of(u64 number, u64 length) { return mix(mix(opt.seed + 0x6e6574) ^ mix(number) ^ length); }
static u64 pattern_key(void) { return mix(opt.seed + 0x7061796c6f6164); }

static u64 rx_buffers(void) { return opt.net.depth < 16 ? 16 : opt.net.depth; }
static u64 payload_at(void) { return ETHERNET + (opt.net.tso ? IP_TCP : 0); }

/* What is sent at most: an echo is as long as what came. */
static u64 frame_bytes(void)
{
	if (opt.net.mode == NET_ECHO)
		return 1514;
	return opt.net.tso ? ETHERNET + IP_TCP + SEGMENT * SEGMENTS : opt.net.frame;
}

static u64 tx_stride(void) { return (sizeof(struct net_header) + frame_bytes() + 63) & ~63UL; }

u64 net_memory(void)
{
	if (!opt.net.depth)
		return 0;
	return 2 * RING_BYTES + rx_buffers() * RX_BYTES + ((opt.net.depth * tx_stride() + PAGE - 1) & ~(PAGE - 1));
}

/* The pattern lies on a grid of words from the stamp's end; its last word may be cut. */
static void pattern_write(u8 *p, u64 bytes)
{
	u64 x = pattern_key();

	for (; bytes >= 8; p += 8, bytes -= 8, x += STEP)
		__builtin_memcpy(p, &x, 8);
	for (u64 i = 0; i < bytes; i++)
		p[i] = (u8)(x >> 8 * i);
}

static int pattern_good(const u8 *p, u64 bytes)
{
	u64 x = pattern_key(), wrong = 0, word;

	for (; bytes >= 8; p += 8, bytes -= 8, x += STEP) {
		__builtin_memcpy(&word, p, 8);
		wrong |= word ^ x;
	}
	for (u64 i = 0; i < bytes; i++)
		wrong |= p[i] ^ (u8)(x >> 8 * i);
	return wrong == 0;
}

static void stamp(u8 *payload, u64 length, u64 number)
{
	u64 check = check_of(number, length), inverted = ~check;

	*(struct stamp *)payload = (struct stamp){ FRAME_MAGIC, (u32)length, number, check };
	__builtin_memcpy(payload + length - 8, &inverted, 8);
}

static u32 sum16(const u8 *p, u64 bytes, u32 sum)
{
	for (u64 i = 0; i < bytes; i += 2)
		sum += (u32)p[i] << 8 | p[i + 1];
	return sum;
}

static void put16(u8 *p, u64 v)
{
	p[0] = (u8)(v >> 8);
	p[1] = (u8)v;
}

static u64 folded(u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* Addresses of 198.18.0.0/15, which RFC 2544 keeps for measurements. TCP's checksum is
 * that of the pseudo header: the device does the rest. */
static void ip_tcp(u8 *p, struct net_header *h)
{
	static const u8 from_to[8] = { 198, 18, 0, 1, 198, 18, 0, 2 };
	u64 ip = IP_TCP + SEGMENT * SEGMENTS;

	memset(p, 0, IP_TCP);
	p[0] = 0x45;
	put16(p + 2, ip);
	p[6] = 0x40; /* do not fragment */
	p[8] = 64;
	p[9] = 6;
	memcpy(p + 12, from_to, 8);
	put16(p + 10, ~folded(sum16(p, 20, 0)));
	put16(p + 20, 9); /* discard */
	put16(p + 22, 9);
	p[32] = 5 << 4;
	p[33] = 0x10; /* ACK */
	put16(p + 34, 0xffff);
	put16(p + 36, folded(sum16(p + 12, 8, 6 + (u32)(ip - 20))));
	*h = (struct net_header){
		.flags = NEEDS_CSUM, .gso_type = GSO_TCPV4, .hdr_len = ETHERNET + IP_TCP, .gso_size = SEGMENT,
		.csum_start = ETHERNET + 20, .csum_offset = 16,
	};
}

static u8 *tx_at(u64 s) { return net.tx_data + s * net.stride; }

static void build_frames(void)
{
	static const u8 to[6] = { 2, 0, 0, 0, 0, 0xfe }; /* nobody's: switches pass it on, hosts drop it */
	u64 payload = payload_at(), length = net.frame_bytes - payload;

	for (u64 s = 0; s < opt.net.depth; s++) {
		struct net_header *h = (struct net_header *)tx_at(s);
		u8 *frame = (u8 *)(h + 1);
		struct ethernet *e = (struct ethernet *)frame;

		*h = (struct net_header){ 0 };
		memcpy(e->to, to, 6);
		memcpy(e->from, net.mac, 6);
		e->type = (u16)swapped16(opt.net.tso ? 0x0800 : 0x88b5);
		if (opt.net.tso)
			ip_tcp(frame + ETHERNET, h);
		pattern_write(frame + payload + HEADER, length - LEAST);
	}
}

/* Gives a receive buffer to the device (again). */
static void offer_rx(u64 b)
{
	net.rx.desc[b] = (struct vring_desc){ (u64)(net.rx_data + b * RX_BYTES), RX_BYTES, DESC_WRITE, 0 };
	vq_offer(&net.rx, (u16)b);
}

static void offer_tx(u64 s, u64 bytes, u64 now)
{
	net.sent[s] = now;
	net.length[s] = (u32)bytes;
	net.tx.desc[s] = (struct vring_desc){ (u64)tx_at(s), (u32)(sizeof(struct net_header) + bytes), 0, 0 };
	vq_offer(&net.tx, (u16)s);
}

static void wrong(const u8 *at, const char *kind)
{
	net.stats.bad++;
	bad_io((u64)at & ~(PAGE - 1), net.received, net.expect, kind, "net");
}

/* What was received. Returns the length if it is ours and right. */
static u64 received(u8 *buffer, u64 bytes)
{
	struct ethernet *e = (struct ethernet *)(buffer + sizeof(struct net_header));
	u8 *payload = (u8 *)(e + 1);
	struct stamp *s = (struct stamp *)payload;
	u64 inverted;

	if (bytes < sizeof(struct net_header) + ETHERNET + LEAST || bytes > RX_BYTES ||
	    e->type != swapped16(0x88b5) || s->magic != FRAME_MAGIC) {
		net.other++;
		return 0;
	}
	net.received++;
	if (s->length < LEAST || s->length + sizeof(struct net_header) + ETHERNET > bytes) {
		wrong(buffer, "torn");
		return 0;
	}
	__builtin_memcpy(&inverted, payload + s->length - 8, 8);
	if (s->check != check_of(s->number, s->length) || inverted != ~s->check ||
	    !pattern_good(payload + HEADER, s->length - LEAST)) {
		wrong(buffer, s->check == check_of(s->number, s->length) ? "torn" : "other");
		return 0;
	}
	/* A network may lose frames, and a switch that learns may send one twice. */
	if (s->number >= net.expect) {
		net.lost += s->number - net.expect;
		net.expect = s->number + 1;
	} else {
		net.again++;
	}
	return ETHERNET + s->length;
}

/* Sends a frame back to where it came from. There is a free slot: see take_rx. */
static void echo(const u8 *frame, u64 bytes, u64 now)
{
	u64 s;
	struct ethernet *e;

	if (bytes > net.stride - sizeof(struct net_header)) {
		net.other++; /* longer than any frame that is sent */
		return;
	}
	s = net.idle[--net.idle_count];
	e = (struct ethernet *)(tx_at(s) + sizeof(struct net_header));
	memcpy(e, frame, bytes);
	memcpy(e->to, ((const struct ethernet *)frame)->from, 6);
	memcpy(e->from, net.mac, 6);
	offer_tx(s, bytes, now);
}

static void break_down(void)
{
	wrong((u8 *)net.rx.used, "error");
	net.broken = 1;
}

/* What cannot be echoed yet stays in the ring, and what finds no room there in the
 * network: nothing is dropped here. */
static int take_rx(u64 now)
{
	u32 id, bytes;
	int n = 0, echoes = opt.net.mode == NET_ECHO;

	for (; n < A_SLICE && (!echoes || net.idle_count) && vq_take(&net.rx, &id, &bytes); n++) {
		u8 *buffer = net.rx_data + id * RX_BYTES;
		u64 good;

		if (id >= rx_buffers()) {
			break_down();
			return n;
		}
		good = received(buffer, bytes);
		if (good && opt.net.mode == NET_RX)
			io_count(&net.stats, good, 0);
		if (good && echoes)
			echo(buffer + sizeof(struct net_header), good, now);
		offer_rx(id);
	}
	return n;
}

static int take_tx(u64 now)
{
	u32 id, bytes;
	int n = 0;

	for (; n < A_SLICE && vq_take(&net.tx, &id, &bytes); n++) {
		if (id >= opt.net.depth) {
			break_down();
			return n;
		}
		io_count(&net.stats, net.length[id], now - net.sent[id]);
		net.idle[net.idle_count++] = (u16)id;
	}
	return n;
}

static int send_some(u64 now)
{
	u64 payload = sizeof(struct net_header) + payload_at(), length = net.frame_bytes - payload_at();
	int n = 0;

	for (; n < A_SLICE && net.idle_count; n++) {
		u64 s = net.idle[--net.idle_count];

		stamp(tx_at(s) + payload, length, net.next++);
		offer_tx(s, net.frame_bytes, now);
	}
	return n;
}

/* Returns whether there was anything to do. */
int net_step(struct cpu *c)
{
	int worked;

	if (!net.running || net.broken)
		return 0;
	worked = take_tx(c->last) | take_rx(c->last);
	if (opt.net.mode == NET_TX)
		worked |= send_some(c->last);
	vq_publish(&net.rx);
	vq_publish(&net.tx);
	return worked != 0;
}

void net_init(u8 *memory)
{
	static const u8 own[6] = { 2, 0, 0, 0, 0, 1 };
	u64 tso = opt.net.tso ? F_CSUM | F_HOST_TSO4 : 0;

	if (!opt.net.depth)
		return;
	if (!virtio_find(&net.dev, TYPE_NET))
		plain_error("io=net: there is no virtio-net device: a virtio_mmio.device= word must name it");
	virtio_start(&net.dev, F_MAC | F_MERGE, tso);
	memcpy(net.mac, own, 6);
	if (net.dev.features & F_MAC) {
		u32 low = virtio_config(&net.dev, 0);
		u16 high = virtio_config16(&net.dev, 4);

		memcpy(net.mac, &low, 4);
		memcpy(net.mac + 4, &high, 2);
	}
	virtio_queue(&net.dev, &net.rx, 0, memory, RING_MAX);
	virtio_queue(&net.dev, &net.tx, 1, memory + RING_BYTES, RING_MAX);
	if (opt.net.depth > net.tx.size || rx_buffers() > net.rx.size)
		plain_error("io=net: depth= is more than the device's queues hold");
	virtio_run(&net.dev);
	net.rx_data = memory + 2 * RING_BYTES;
	net.tx_data = net.rx_data + rx_buffers() * RX_BYTES;
	net.stride = tx_stride();
	net.frame_bytes = frame_bytes();
	build_frames();
	for (u64 s = opt.net.depth; s > 0; s--)
		net.idle[net.idle_count++] = (u16)(s - 1);
	for (u64 b = 0; b < rx_buffers(); b++)
		offer_rx(b);
	net.running = 1;
}

void net_beat(u64 now)
{
	if (!opt.net.depth)
		return;
	io_line(&net.stats, "net", net.broken ? "broken" : "run", now);
	line_number("sent", net.next);
	line_number("received", net.received);
	line_number("lost", net.lost);
	line_number("again", net.again);
	line_number("other", net.other);
	line_end();
}
