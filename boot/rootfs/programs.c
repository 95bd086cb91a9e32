/* One file for all small programs: static, each alone would be 700 KB. Which one it is, the name of the call says. */
#include <stdio.h>
#include <string.h>

#include "programs.h"

static const struct {
	const char *name;
	int (*main)(int argc, char **argv);
} programs[] = {
	{ "witness", witness_main }, { "stream", stream_main }, { "diskload", diskload_main },
	{ "rtomin", rtomin_main },   { "ioport", ioport_main },
};

int main(int argc, char **argv)
{
	const char *slash = argc ? strrchr(argv[0], '/') : NULL, *name = slash ? slash + 1 : argc ? argv[0] : "";

	for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
		if (!strcmp(name, programs[i].name))
			return programs[i].main(argc, argv);
	fprintf(stderr, "programs: \"%s\" is none of ours; call it by a link with the name of one\n", name);
	return 2;
}
