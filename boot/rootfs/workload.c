#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "workload.h"

/* Errors of one run that are printed. */
#define MAX_PRINTED 50

volatile sig_atomic_t stop, ask;
atomic_uint_least64_t errors;

static const char *workload_name;

static void on_stop(int sig)
{
	(void)sig;
	stop = 1;
}

static void on_ask(int sig)
{
	(void)sig;
	ask = 1;
}

void workload_start(const char *name)
{
	workload_name = name;
	sigaction(SIGTERM, &(struct sigaction){ .sa_handler = on_stop }, NULL);
	sigaction(SIGINT, &(struct sigaction){ .sa_handler = on_stop }, NULL);
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = on_ask, .sa_flags = SA_RESTART }, NULL);
	signal(SIGPIPE, SIG_IGN); /* a write's own error says more */
	signal(SIGHUP, SIG_IGN);  /* the end of a shell is not our end */
}

static void write_line(const char *start, const char *format, va_list args)
{
	char text[256];
	int n = snprintf(text, sizeof text - 1, "%s", start);
	int m = vsnprintf(text + n, sizeof text - 1 - (size_t)n, format, args);

	if (m < 0)
		return;
	n += m;
	if (n > (int)sizeof text - 2)
		n = sizeof text - 2;
	text[n++] = '\n';
	if (write(STDOUT_FILENO, text, (size_t)n) < 0)
		stop = 1; /* nobody listens any more */
}

void line(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	write_line("", format, args);
	va_end(args);
}

void report(const char *format, ...)
{
	char start[64];
	va_list args;

	if (atomic_fetch_add(&errors, 1) >= MAX_PRINTED)
		return;
	snprintf(start, sizeof start, "%s ERROR ", workload_name);
	va_start(args, format);
	write_line(start, format, args);
	va_end(args);
}

int64_t read_clock(clockid_t id)
{
	struct timespec t;

	clock_gettime(id, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static bool parse_option(char *argument, const struct option *options, size_t count)
{
	char *value = strchr(argument, '='), *end = NULL;

	if (!value || !value[1])
		return false;
	*value++ = '\0';
	for (const struct option *o = options; o < options + count; o++) {
		if (strcmp(argument, o->name))
			continue;
		if (o->text) {
			*o->text = value;
			return true;
		}
		errno = 0;
		*o->number = strtoull(value, &end, 10);
		return *value >= '0' && *value <= '9' && !*end && !errno && *o->number <= o->max;
	}
	return false;
}

bool parse_options(int argc, char **argv, const struct option *options, size_t count)
{
	for (int i = 1; i < argc; i++) {
		if (parse_option(argv[i], options, count))
			continue;
		fprintf(stderr, "%s: bad option \"%s\"; usage: %s", argv[0], argv[i], argv[0]);
		for (const struct option *o = options; o < options + count; o++)
			fprintf(stderr, " [%s=]", o->name);
		fprintf(stderr, "\n");
		return false;
	}
	return true;
}
