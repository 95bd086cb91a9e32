/* What the parts of init share, and where godwit's two test ports are. */
#ifndef GODWIT_GUEST_H
#define GODWIT_GUEST_H

#include <stdbool.h>
#include <sys/types.h>

/* Boot-timer port: the monitor notes the time of each write. Value 1 says "init reached". */
#define BOOT_TIMER_PORT 0x508
#define BOOT_TIMER_INIT 1

/* Debug-exit port: 0 powers the machine off, anything else ends it as a guest fault with that value. */
#define DEBUG_EXIT_PORT 0x501

/* What the kernel command line asks of init. Strings live as long as PID 1. */
struct request {
	char **run;     /* godwit.run= or what follows " -- ", as an argument vector; NULL for none */
	char *exec;     /* godwit.exec=, a shell command; NULL for none */
	bool shell;     /* a shell on the console; godwit.shell=0 says no */
	bool read_only; /* "ro": the root file system stays as it is */
};

enum ending { END_POWER_OFF, END_REBOOT, END_HALT };

/* Reads a command line (as in /proc/cmdline). The text is changed and kept. */
void parse_request(char *text, struct request *r);

/* Prints one line "godwit init: ..." on the console in a single write, so that it never mixes with another program's. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Writes one byte to a port. Where the port has no device the write goes nowhere. */
void port_write(unsigned short port, unsigned char value);

/*
 * Ends every process, brings the disks to rest and ends the machine. status is the value for the debug-exit port
 * when powering off: 0 for a plain power-off, else a guest fault. Does not return.
 */
void end_machine(enum ending how, unsigned char status) __attribute__((noreturn));

#endif
