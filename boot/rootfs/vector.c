/* See vector.h. Loading, waiting and storing are one asm block: between two of them the compiler may use any register. */
#include <cpuid.h>
#include <string.h>
#include <sys/syscall.h>

#include "vector.h"

/* Intel SDM vol. 1, 13.3: XCR0 bits for SSE and AVX state, and for the three parts of AVX-512 state. */
#define XCR0_AVX 0x6
#define XCR0_AVX512 0xe6

static uint64_t xcr0(void)
{
	uint32_t low, high;

	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return (uint64_t)high << 32 | low;
}

enum vector_width vector_detect(void)
{
	uint32_t a, b, c, d;

	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_AVX))
		return VECTOR_XMM;
	uint64_t enabled = xcr0();
	if ((enabled & XCR0_AVX) != XCR0_AVX)
		return VECTOR_XMM;
	if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX512F) && (enabled & XCR0_AVX512) == XCR0_AVX512)
		return VECTOR_ZMM;
	return VECTOR_YMM;
}

#define STR_(x) #x
#define STR(x) STR_(x)

#define EACH_16(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11) f(12) f(13) f(14) f(15)
#define EACH_HIGH(f) f(16) f(17) f(18) f(19) f(20) f(21) f(22) f(23) f(24) f(25) f(26) f(27) f(28) f(29) f(30) f(31)

#define LOAD_XMM(i) "movdqu " STR(i) "*16(%[in]), %%xmm" STR(i) "\n\t"
#define STORE_XMM(i) "movdqu %%xmm" STR(i) ", " STR(i) "*16(%[out])\n\t"
#define LOAD_YMM(i) "vmovdqu " STR(i) "*32(%[in]), %%ymm" STR(i) "\n\t"
#define STORE_YMM(i) "vmovdqu %%ymm" STR(i) ", " STR(i) "*32(%[out])\n\t"
#define LOAD_ZMM(i) "vmovdqu64 " STR(i) "*64(%[in]), %%zmm" STR(i) "\n\t"
#define STORE_ZMM(i) "vmovdqu64 %%zmm" STR(i) ", " STR(i) "*64(%[out])\n\t"

/* clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, until, NULL), then the spin. A signal ends the sleep early: no harm. */
#define WAIT                                  \
	"mov %[number], %%eax\n\t"            \
	"mov %[clock], %%edi\n\t"             \
	"mov %[absolute], %%esi\n\t"          \
	"mov %[until], %%rdx\n\t"             \
	"xor %%r10d, %%r10d\n\t"              \
	"syscall\n\t"                         \
	"mov %[turns], %%rcx\n\t"             \
	"1: test %%rcx, %%rcx\n\t"            \
	"jz 2f\n\t"                           \
	"dec %%rcx\n\t"                       \
	"jmp 1b\n\t"                          \
	"2:\n\t"

#define OPERANDS                                                                                            \
	:                                                                                                   \
	: [in] "r"(in), [out] "r"(out), [until] "r"(until), [turns] "r"(turns), [number] "i"(SYS_clock_nanosleep), \
	  [clock] "i"(CLOCK_MONOTONIC), [absolute] "i"(TIMER_ABSTIME)                                       \
	: "rax", "rcx", "rdx", "rdi", "rsi", "r10", "r11", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", \
	  "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

static void hold_xmm(const uint8_t *in, uint8_t *out, const struct timespec *until, uint64_t turns)
{
	__asm__ volatile(EACH_16(LOAD_XMM) WAIT EACH_16(STORE_XMM) OPERANDS);
}

/* vzeroupper: code that follows is SSE code, and dirty upper halves would slow it. */
static void hold_ymm(const uint8_t *in, uint8_t *out, const struct timespec *until, uint64_t turns)
{
	__asm__ volatile(EACH_16(LOAD_YMM) WAIT EACH_16(STORE_YMM) "vzeroupper\n\t" OPERANDS);
}

/* zmm16-31 are not in the clobber list: a program compiled without AVX-512 never uses them. */
static void hold_zmm(const uint8_t *in, uint8_t *out, const struct timespec *until, uint64_t turns)
{
	__asm__ volatile(EACH_16(LOAD_ZMM) EACH_HIGH(LOAD_ZMM) WAIT EACH_16(STORE_ZMM) EACH_HIGH(STORE_ZMM)
			 "vzeroupper\n\t" OPERANDS);
}

int vector_hold(enum vector_width width, uint64_t seed, const struct timespec *until, uint64_t turns)
{
	uint8_t in[32 * VECTOR_ZMM], out[32 * VECTOR_ZMM];
	int registers = width == VECTOR_ZMM ? 32 : 16;

	for (size_t i = 0; i < sizeof in; i++) {
		seed = seed * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX generator */
		in[i] = (uint8_t)(seed >> 56);
	}
	memset(out, 0, sizeof out);
	switch (width) {
	case VECTOR_XMM:
		hold_xmm(in, out, until, turns);
		break;
	case VECTOR_YMM:
		hold_ymm(in, out, until, turns);
		break;
	case VECTOR_ZMM:
		hold_zmm(in, out, until, turns);
		break;
	}
	for (int i = 0; i < registers; i++)
		if (memcmp(in + i * width, out + i * width, width))
			return i;
	return -1;
}
