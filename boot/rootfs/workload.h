/* What the workloads share: lines on the console, a count of errors, signals, options, numbers that look random. */
#ifndef GODWIT_WORKLOAD_H
#define GODWIT_WORKLOAD_H

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

/* Set by SIGTERM and SIGINT: end in good order. Set by SIGUSR1: tell where you are. */
extern volatile sig_atomic_t stop, ask;

/* All errors so far, printed or not. */
extern atomic_uint_least64_t errors;

/* Takes the signals. Without SA_RESTART for the first two: a signal may end a wait early. A hang-up is ignored. */
void workload_start(const char *name);

/* One write per line, so that lines of several programs on one console never mix. */
void line(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Counts an error and prints "NAME ERROR ..."; after the first 50 it only counts. */
void report(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* splitmix64's finaliser: neighbouring inputs give unrelated outputs. */
static inline uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

int64_t read_clock(clockid_t id); /* ns */

/* An option "name=value": a number up to max, or, where text is set, a word. */
struct option {
	const char *name;
	uint64_t *number, max;
	const char **text;
};

/* Reads the arguments; says on stderr what is wrong and how it should be. */
bool parse_options(int argc, char **argv, const struct option *options, size_t count);

#endif
