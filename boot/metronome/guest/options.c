/* The command line: key=value words. A word whose key holds a dot belongs to somebody
 * else (a VMM appends virtio_mmio.device=..) and is skipped; any other unknown key is
 * an error, so that a typing mistake is seen. ../options.go has the same rules. */
#include "io.h"

struct options opt = {
	.bytes = 8, .vcpus = 1, .beat = 1000, .seed = 1, .sweep = 20, .sample = 16,
};

struct word { const char *p; u64 n; };

static int is(struct word w, const char *s)
{
	u64 i = 0;

	for (; i < w.n && s[i]; i++)
		if (w.p[i] != s[i])
			return 0;
	return i == w.n && s[i] == 0;
}

/* After the line that says why. */
void give_up(void)
{
	serial_flush();
	info_page.state = STATE_ERROR;
	outb(PORT_EXIT, EXIT_BAD_OPTION);
	halt();
}

static void __attribute__((noreturn)) fail(struct word name, struct word value, const char *why)
{
	line_begin();
	line_text("metronome error: ");
	line_bytes(name.p, name.n < 40 ? name.n : 40);
	line_text("=");
	line_bytes(value.p, value.n < 40 ? value.n : 40);
	line_text(": ");
	line_text(why);
	line_end();
	give_up();
}

void plain_error(const char *what)
{
	line_begin();
	line_text("metronome error: ");
	line_text(what);
	line_end();
	give_up();
}

/* Cuts w at the first `sep`: returns what stands before it, leaves the rest in w. */
static struct word cut(struct word *w, char sep, int *found)
{
	struct word first = { w->p, 0 };

	while (first.n < w->n && w->p[first.n] != sep)
		first.n++;
	*found = first.n < w->n;
	w->p += first.n + *found;
	w->n -= first.n + *found;
	return first;
}

static int digits(struct word w, u64 *v)
{
	*v = 0;
	for (u64 i = 0; i < w.n; i++) {
		u64 d = (u64)(w.p[i] - '0');

		if (d > 9 || *v > (~0UL - d) / 10)
			return 0;
		*v = *v * 10 + d;
	}
	return w.n > 0;
}

static const struct numeric {
	const char *name;
	u64 *to, min, max, multiple;
} numerics[] = {
	{ "mem", &opt.mem, 1, MAX_GIB * 1024, 1 },
	{ "fill", &opt.fill, 0, MAX_GIB * 1024, 1 },
	{ "text", &opt.text, 0, MAX_GIB * 1024, 1 },
	{ "ws", &opt.ws, 0, MAX_GIB * 1024, 1 },
	{ "rate", &opt.rate, 0, 1000000000, 1 },
	{ "bytes", &opt.bytes, 8, 4096, 8 },
	{ "reads", &opt.reads, 0, 100, 1 },
	{ "vcpus", &opt.vcpus, 1, MAX_VCPUS, 1 },
	{ "beat", &opt.beat, 10, 3600000, 1 },
	{ "seed", &opt.seed, 0, ~0UL, 1 },
	{ "tsc_khz", &opt.tsc_khz, 1000, 100000000, 1 },
	{ "sweep", &opt.sweep, 0, 90, 1 },
	{ "sample", &opt.sample, 0, 65536, 1 },
};

static int number_option(struct word key, struct word value)
{
	for (u64 i = 0; i < sizeof(numerics) / sizeof(numerics[0]); i++) {
		const struct numeric *n = &numerics[i];

		if (!is(key, n->name))
			continue;
		if (!digits(value, n->to))
			fail(key, value, "not a number");
		if (*n->to < n->min || *n->to > n->max)
			fail(key, value, "out of range");
		if (*n->to % n->multiple)
			fail(key, value, "must be a multiple of 8");
		return 1;
	}
	return 0;
}

static int hotspot(struct word w)
{
	int slash, more;
	struct word share = cut(&w, '/', &slash), pages = cut(&w, '/', &more);

	opt.pattern = HOTSPOT;
	return slash && !more && digits(share, &opt.hot_share) && digits(pages, &opt.hot_pages) &&
	       opt.hot_share <= 100 && opt.hot_pages >= 1 && opt.hot_pages <= 100;
}

/* S with at most three decimals, over 0 and up to 4. */
static int zipf(struct word w)
{
	int dot, more;
	struct word whole = cut(&w, '.', &dot), part = cut(&w, '.', &more);
	u64 thousandths = 0;

	opt.pattern = ZIPF;
	if (more || !digits(whole, &opt.zipf_milli) || opt.zipf_milli > 4)
		return 0;
	if (dot && (part.n > 3 || !digits(part, &thousandths)))
		return 0;
	for (u64 i = part.n; i < 3; i++)
		thousandths *= 10;
	opt.zipf_milli = opt.zipf_milli * 1000 + thousandths;
	return opt.zipf_milli > 0 && opt.zipf_milli <= 4000;
}

static int pattern(struct word value)
{
	int colon;
	struct word name = cut(&value, ':', &colon);

	if (is(name, "hotspot") && colon)
		return hotspot(value);
	if (is(name, "zipf") && colon)
		return zipf(value);
	opt.pattern = is(name, "sequential") ? SEQUENTIAL : UNIFORM;
	return !colon && (is(name, "uniform") || is(name, "sequential"));
}

static int plant(struct word value)
{
	int comma;

	opt.plant = 0;
	do {
		struct word name = cut(&value, ',', &comma);

		if (is(name, "zero"))
			opt.plant |= PLANT_ZERO;
		else if (is(name, "stale"))
			opt.plant |= PLANT_STALE;
		else if (is(name, "torn"))
			opt.plant |= PLANT_TORN;
		else if (is(name, "table"))
			opt.plant |= PLANT_TABLE;
		else if (is(name, "fault"))
			opt.plant |= PLANT_FAULT;
		else
			return 0;
	} while (comma);
	return 1;
}

/* name=N within a load, with limits. Returns whether w is that; wrong is set if N is not. */
static int part(struct word w, const char *name, u64 *to, u64 min, u64 max, int *wrong)
{
	int equals;
	struct word key = cut(&w, '=', &equals);

	if (!equals || !is(key, name))
		return 0;
	*wrong |= !digits(w, to) || *to < min || *to > max;
	return 1;
}

/* 4k: a power of two up to 1024k. */
static int block_size(struct word w, u64 *kib)
{
	if (w.n < 2 || w.p[--w.n] != 'k' || !digits(w, kib))
		return 0;
	return *kib >= 4 && *kib <= 1024 && (*kib & (*kib - 1)) == 0;
}

static int io_blk(struct word value)
{
	int comma, wrong = 0;

	do {
		struct word w = cut(&value, ',', &comma);

		if (is(w, "read"))
			opt.blk.mode = BLK_READ;
		else if (is(w, "write"))
			opt.blk.mode = BLK_WRITE;
		else if (is(w, "mixed"))
			opt.blk.mode = BLK_MIXED;
		else if (is(w, "seq"))
			opt.blk.sequential = 1;
		else if (is(w, "random"))
			opt.blk.sequential = 0;
		else if (is(w, "prefill"))
			opt.blk.prefill = 1;
		else if (!part(w, "depth", &opt.blk.depth, 1, 128, &wrong) &&
			 !part(w, "span", &opt.blk.span, 1, 65536, &wrong) &&
			 !part(w, "flush", &opt.blk.flush, 0, 1000000000, &wrong) &&
			 !part(w, "queues", &opt.blk.queues, 1, 8, &wrong) && !block_size(w, &opt.blk.kib))
			return 0;
	} while (comma && !wrong);
	return !wrong;
}

static int io_net(struct word value)
{
	int comma, wrong = 0;
	u64 frame;

	do {
		struct word w = cut(&value, ',', &comma);

		if (is(w, "tx"))
			opt.net.mode = NET_TX;
		else if (is(w, "rx"))
			opt.net.mode = NET_RX;
		else if (is(w, "echo"))
			opt.net.mode = NET_ECHO;
		else if (is(w, "tso"))
			opt.net.tso = 1;
		else if (digits(w, &frame) && frame >= 64 && frame <= 1514)
			opt.net.frame = frame;
		else if (!part(w, "depth", &opt.net.depth, 1, 256, &wrong))
			return 0;
	} while (comma && !wrong);
	return !wrong && (!opt.net.tso || opt.net.mode == NET_TX);
}

static int io(struct word value)
{
	int comma;
	struct word dev = cut(&value, ',', &comma);

	if (is(dev, "blk")) {
		opt.blk = (__typeof__(opt.blk)){ .kib = 4, .depth = 32, .span = 64, .queues = 1 };
		return !comma || io_blk(value);
	}
	if (is(dev, "net")) {
		opt.net = (__typeof__(opt.net)){ .frame = 64, .depth = 64 };
		return !comma || io_net(value);
	}
	return 0;
}

static void option(struct word value)
{
	int equals, dot;
	struct word key = cut(&value, '=', &equals), rest = key;

	cut(&rest, '.', &dot);
	if (is(key, "virtio_mmio.device"))
		virtio_word(value.p, value.n);
	if (dot || number_option(key, value))
		return;
	if (is(key, "pattern")) {
		if (!pattern(value))
			fail(key, value, "must be uniform, sequential, hotspot:P/Q or zipf:S");
	} else if (is(key, "plant")) {
		if (!plant(value))
			fail(key, value, "must be a list of zero, stale, torn, table, fault");
	} else if (is(key, "io")) {
		if (!io(value))
			fail(key, value, "must be blk[,4k][,depth=N][,read|write|mixed][,seq|random][,flush=N][,span=MiB][,queues=N][,prefill] or net[,tx|rx|echo][,64|,tso][,depth=N]");
	} else {
		fail(key, value, "unknown option");
	}
}

void parse_options(const char *line)
{
	struct word w = { line, 0 };

	/* Longer than any loader passes; a missing end must not run through memory. */
	while (w.n < 4096 && line[w.n])
		w.n++;
	while (w.n) {
		int space;
		struct word one = cut(&w, ' ', &space);

		if (one.n)
			option(one);
	}
	if (opt.plant & ~PLANT_FAULT && opt.ws == 0)
		plain_error("plant: needs a working set: give ws=");
}
