/* Exceptions. This runs at CPL 0, on the vCPU's fault stack, and does not return. It
 * prints past the ring: what stands there may be what broke. */
#include "guest.h"

static void put(char ch)
{
	for (int tries = 0; tries < 1000 && !(inb(PORT_COM1 + 5) & 0x20); tries++)
		pause();
	outb(PORT_COM1, ch);
}

static void put_text(const char *s)
{
	while (*s)
		put(*s++);
}

static void put_hex(const char *key, u64 value)
{
	int shift = 60;

	put_text(key);
	while (shift > 0 && value >> shift == 0)
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		put("0123456789abcdef"[value >> shift & 15]);
}

extern u8 halt_instruction[];

/* frame: vector, error code, rip, cs, rflags, rsp, ss. The caller halts. */
void fault(u64 *frame, u64 cr2)
{
	if (frame[2] == (u64)halt_instruction)
		return;
	info_page.state = STATE_FAULT;
	put_hex("\r\nmetronome fault vector=0x", frame[0]);
	put_hex(" error=0x", frame[1]);
	put_hex(" rip=0x", frame[2]);
	put_hex(" cr2=0x", cr2);
	put_text("\r\n");
	outb(PORT_EXIT, EXIT_FAULT);
}
