/*
 * The kernel command line, read by init itself. The kernel would hand words after " -- " to PID 1 as arguments, but
 * it puts every unknown word before them, so a mistyped kernel option would be taken for a program to run.
 */
#include <stdlib.h>
#include <string.h>

#include "guest.h"

#define MAX_WORDS 256

/*
 * Cuts the next word out of *p, in place: blanks end it, double quotes keep blanks and vanish, as in the kernel's
 * next_arg. Returns NULL at the end.
 */
static char *next_word(char **p)
{
	char *in = *p, *out, *word;
	bool quoted = false;

	in += strspn(in, " \t\n");
	if (!*in)
		return NULL;
	word = out = in;
	for (; *in && (quoted || !strchr(" \t\n", *in)); in++) {
		if (*in == '"')
			quoted = !quoted;
		else
			*out++ = *in;
	}
	*p = *in ? in + 1 : in;
	*out = '\0';
	return word;
}

/* Splits NAME,arg,arg into a vector. An empty NAME is no request. */
static char **split_commas(char *list)
{
	static char *vector[MAX_WORDS + 1];
	int n = 0;

	if (!*list || *list == ',')
		return NULL;
	for (char *word; n < MAX_WORDS && (word = strsep(&list, ",")); )
		vector[n++] = word;
	vector[n] = NULL;
	return vector;
}

/* Takes what is left of the line as a vector. */
static char **rest_of_line(char *p)
{
	static char *vector[MAX_WORDS + 1];
	int n = 0;

	for (char *word; n < MAX_WORDS && (word = next_word(&p)); )
		vector[n++] = word;
	vector[n] = NULL;
	return n ? vector : NULL;
}

void parse_request(char *text, struct request *r)
{
	*r = (struct request){ .shell = true };
	for (char *word; (word = next_word(&text)); ) {
		if (!strncmp(word, "godwit.run=", 11)) {
			r->run = split_commas(word + 11);
		} else if (!strncmp(word, "godwit.exec=", 12)) {
			r->exec = word + 12;
		} else if (!strcmp(word, "godwit.shell=0")) {
			r->shell = false;
		} else if (!strcmp(word, "ro")) {
			r->read_only = true;
		} else if (!strcmp(word, "rw")) {
			r->read_only = false;
		} else if (!strcmp(word, "--")) {
			char **rest = rest_of_line(text);
			if (rest)
				r->run = rest;
			break;
		}
	}
}
