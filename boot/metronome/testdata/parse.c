/* The guest's parser of options as a program of the host: for each line it says what the
 * guest makes of it. TestGuestAgrees compiles it with guest/options.c. */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include "io.h"

static jmp_buf refused;
struct info info_page;

/* Giving up begins with this. */
void serial_flush(void) { longjmp(refused, 1); }
void halt(void) { abort(); }
void line_begin(void) {}
void line_text(const char *s) { (void)s; }
void line_bytes(const char *s, u64 n) { (void)s; (void)n; }
void line_end(void) {}
void virtio_word(const char *p, u64 n) { (void)p; (void)n; }

int main(void)
{
	static char line[8192];
	struct options defaults = opt;
	int c;

	do {
		volatile unsigned n = 0;

		while ((c = getchar()) != '\n' && c != EOF)
			if (n < sizeof(line) - 1)
				line[n++] = (char)c;
		line[n] = 0;
		if (c == EOF)
			return 0;
		opt = defaults;
		if (setjmp(refused)) {
			puts("refused");
		} else {
			parse_options(line);
			printf("%lu %lu %lu %lu %lu %lu %lu %lu %lu %lu %lu %lu %lu ", opt.mem, opt.fill, opt.text, opt.ws,
			       opt.rate, opt.bytes, opt.reads, opt.vcpus, opt.beat, opt.seed, opt.tsc_khz, opt.sweep, opt.sample);
			printf("%d %lu %lu %lu %lu ", opt.pattern, opt.pattern == HOTSPOT ? opt.hot_share : 0,
			       opt.pattern == HOTSPOT ? opt.hot_pages : 0, opt.pattern == ZIPF ? opt.zipf_milli : 0, opt.plant);
			printf("%lu %lu %lu %lu %lu %lu %lu %d ", opt.blk.kib, opt.blk.depth, opt.blk.span, opt.blk.flush,
			       opt.blk.queues, opt.blk.sequential, opt.blk.prefill, opt.blk.mode);
			printf("%lu %lu %lu %d\n", opt.net.frame, opt.net.depth, opt.net.tso, opt.net.mode);
		}
		fflush(stdout);
	} while (1);
}
