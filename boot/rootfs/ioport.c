/*
 * ioport: one access to an I/O port, for scripts. The kernel's /dev/port needs PCI or ISA, which the guest kernel
 * does not have.
 *
 *   ioport PORT          prints the byte read
 *   ioport PORT VALUE    writes a byte
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>

#include "programs.h"

/* Takes decimal, 0x and octal numbers up to max; ends the program on anything else. */
static unsigned long number(const char *text, unsigned long max)
{
	char *end;

	errno = 0;
	unsigned long value = strtoul(text, &end, 0);
	if (errno || *text < '0' || *text > '9' || *end || value > max) {
		fprintf(stderr, "ioport: \"%s\" is not a number from 0 to %lu\n", text, max);
		exit(2);
	}
	return value;
}

int ioport_main(int argc, char **argv)
{
	if (argc != 2 && argc != 3) {
		fprintf(stderr, "usage: ioport PORT [VALUE]\n");
		return 2;
	}
	unsigned long port = number(argv[1], 0xffff);
	if (ioperm(port, 1, 1)) {
		fprintf(stderr, "ioport: ioperm 0x%lx: %s; are you root?\n", port, strerror(errno));
		return 1;
	}
	if (argc == 3)
		outb((unsigned char)number(argv[2], 0xff), (unsigned short)port);
	else
		printf("0x%02x\n", inb((unsigned short)port));
	return 0;
}
