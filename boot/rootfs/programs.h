/* The programs in programs.c's table. */
#ifndef GODWIT_PROGRAMS_H
#define GODWIT_PROGRAMS_H

int witness_main(int argc, char **argv);
int stream_main(int argc, char **argv);
int diskload_main(int argc, char **argv);
int rtomin_main(int argc, char **argv);
int ioport_main(int argc, char **argv);

#endif
