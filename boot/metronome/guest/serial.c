/* COM1, a 16550 with FIFO. A byte is one exit (about 30 us under PVM), so lines wait
 * in a ring and leave byte by byte between two pieces of work. The line status is
 * read once per 16 bytes: when the transmitter is empty, the FIFO takes 16. */
#include "guest.h"

#define RING 4096
static char ring[RING];
static u64 head, tail, line_head; /* free-running; line_head: end of the line being built */
static int line_lost;
static u64 credit, retry_at;

void serial_init(void)
{
	outb(PORT_COM1 + 3, 0x83); /* divisor latch, 8n1 */
	outb(PORT_COM1 + 0, 1);    /* 115200 baud */
	outb(PORT_COM1 + 1, 0);
	outb(PORT_COM1 + 3, 0x03);
	outb(PORT_COM1 + 2, 0x07); /* FIFO on and empty */
}

/* Sends at most one byte. Returns whether anything is left. */
int serial_step(u64 now)
{
	if (head == tail)
		return 0;
	if (credit == 0) {
		if ((s64)(now - retry_at) < 0)
			return 1;
		if (!(inb(PORT_COM1 + 5) & 0x20)) {
			retry_at = now + 100000; /* some 30 us: a third of a byte at 115200 baud */
			return 1;
		}
		credit = 16;
	}
	credit--;
	outb(PORT_COM1, ring[tail++ % RING]);
	return head != tail;
}

void serial_flush(void)
{
	while (serial_step(rdtsc()))
		pause();
}

void line_begin(void)
{
	line_head = head;
	line_lost = 0;
}

void line_bytes(const char *s, u64 n)
{
	for (u64 i = 0; i < n; i++) {
		if (line_head - tail == RING) {
			line_lost = 1;
			return;
		}
		ring[line_head++ % RING] = s[i];
	}
}

void line_text(const char *s)
{
	u64 n = 0;

	while (s[n])
		n++;
	line_bytes(s, n);
}

static void line_digits(const char *key, u64 value, u64 base)
{
	char digits[20];
	int n = sizeof(digits);

	if (key[0] != '=')
		line_bytes(" ", 1);
	line_text(key);
	if (key[0] != '=')
		line_bytes("=", 1);
	if (base == 16)
		line_text("0x");
	do {
		digits[--n] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	line_bytes(digits + n, sizeof(digits) - n);
}

void line_number(const char *key, u64 value) { line_digits(key, value, 10); }
void line_hex(const char *key, u64 value) { line_digits(key, value, 16); }

/* A line goes out whole or, when the ring is full, not at all. */
void line_end(void)
{
	line_text("\r\n");
	if (line_lost)
		info_page.dropped++;
	else
		head = line_head;
}
