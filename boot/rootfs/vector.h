/* Known values in vector registers, kept there while time passes. */
#ifndef GODWIT_VECTOR_H
#define GODWIT_VECTOR_H

#include <stdint.h>
#include <time.h>

/* The widest registers that processor and kernel give: 16 xmm, 16 ymm, or 32 zmm. */
enum vector_width { VECTOR_XMM = 16, VECTOR_YMM = 32, VECTOR_ZMM = 64 };

enum vector_width vector_detect(void);

/*
 * Fills the registers with values made from seed, sleeps until the absolute CLOCK_MONOTONIC time, spins for the given
 * number of loop turns, and compares, all without leaving them. The sleep shows that the kernel's saved copy lives;
 * the spin shows that the registers of the processor itself do. Returns the number of the first wrong register, or -1.
 */
int vector_hold(enum vector_width width, uint64_t seed, const struct timespec *until, uint64_t turns);

#endif
