/*
 * stream: one connection, bytes both ways at once, every byte checked. It notices what a migration broke: a reset, a
 * byte that is wrong, lost or there twice, a stall.
 *
 *   stream to=10.0.0.1 port=7000        connects by TCP
 *   stream to=vsock:2 port=7000         connects to the host (CID 2) by vsock
 *   stream to=listen port=7000          waits for one TCP connection
 *   stream to=vsock:listen port=7000    waits for one vsock connection
 *
 *   rate   KiB/s to send, 0 for as fast as it goes     n   bytes to send, 0 for "until SIGTERM or SIGINT"
 *
 * Word i of what the connecting side sends is (1 + i) * K, of what the other sends (2^63 + i) * K, little-endian, with
 * K = 0x9e3779b97f4a7c15. Once a second it prints "stream at t=MS rx=BYTES tx=BYTES gap_ms=LONGEST": the longest time
 * without a byte in, so far. At the end it closes its direction, reads on until the peer closed the other, and prints
 * "stream done rx=BYTES tx=BYTES errors=E gap_ms=LONGEST". Exit status: 0 without errors, 1 with, 2 for bad usage.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "programs.h"
#include "workload.h"

#define PIECE 65536
#define TICK_MS 10
#define WORD sizeof(uint64_t)
#define FIRST_CONNECTED 1u
#define FIRST_LISTENING (1ull << 63)

struct end {
	uint64_t first; /* word 0 before it is multiplied */
	uint64_t bytes; /* position in the stream */
	bool closed;
};

/* Bytes of the pattern from position at on. The buffer has room for a word more, since at may be inside of one. */
static const unsigned char *pattern(uint64_t first, uint64_t at, size_t size)
{
	static uint64_t words[PIECE / WORD + 2];

	for (size_t i = 0; i * WORD < size + WORD; i++)
		words[i] = (first + at / WORD + i) * 0x9e3779b97f4a7c15u;
	return (const unsigned char *)words + at % WORD;
}

static void check(struct end *in, const unsigned char *got, size_t size)
{
	const unsigned char *want = pattern(in->first, in->bytes, size);

	if (memcmp(got, want, size)) {
		size_t at = 0;
		while (got[at] == want[at])
			at++;
		report("byte %" PRIu64 " is %02x, not %02x", in->bytes + at, got[at], want[at]);
	}
	in->bytes += size;
}

/* Both give false when the connection is broken. */
static bool receive(int fd, struct end *in)
{
	static unsigned char buffer[PIECE];
	ssize_t n = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);

	if (n > 0)
		check(in, buffer, (size_t)n);
	else if (n == 0)
		in->closed = true;
	else if (errno != EAGAIN && errno != EINTR) {
		report("receive after %" PRIu64 " bytes: %s", in->bytes, strerror(errno));
		return false;
	}
	return true;
}

static bool transmit(int fd, struct end *out, uint64_t allowed)
{
	size_t size = allowed < PIECE ? (size_t)allowed : PIECE;
	ssize_t n = send(fd, pattern(out->first, out->bytes, size), size, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n >= 0)
		out->bytes += (uint64_t)n;
	else if (errno != EAGAIN && errno != EINTR) {
		report("send after %" PRIu64 " bytes: %s", out->bytes, strerror(errno));
		return false;
	}
	return true;
}

/*
 * How many bytes may leave now: by the rate since start, and by what is left of n. Under a rate they leave a tick's worth
 * at a time: whoever sends each byte as it falls due never sleeps, and makes a frame of every few bytes.
 */
static uint64_t allowance(const struct end *out, uint64_t rate, uint64_t n, int64_t running)
{
	uint64_t limit = n ? n : UINT64_MAX;

	if (rate) {
		double by_now = (double)rate * 1024 * ((double)running / 1e9);
		if (by_now < (double)limit) {
			limit = (uint64_t)by_now;
			if (limit < out->bytes + rate * 1024 * TICK_MS / 1000)
				return 0;
		}
	}
	return limit > out->bytes ? limit - out->bytes : 0;
}

static void run(int fd, bool connected, uint64_t rate, uint64_t n)
{
	struct end in = { .first = connected ? FIRST_LISTENING : FIRST_CONNECTED };
	struct end out = { .first = connected ? FIRST_CONNECTED : FIRST_LISTENING };
	int64_t start = read_clock(CLOCK_MONOTONIC), last_in = start, gap = 0, told = start;

	while (!in.closed || !out.closed) {
		int64_t now = read_clock(CLOCK_MONOTONIC);
		if (!out.closed && (stop || in.closed || (n && out.bytes >= n))) {
			shutdown(fd, SHUT_WR);
			out.closed = true;
		}
		if (now - told >= 1000000000 || ask) {
			ask = 0;
			told = now;
			line("stream at t=%" PRId64 " rx=%" PRIu64 " tx=%" PRIu64 " gap_ms=%" PRId64, now / 1000000, in.bytes,
			     out.bytes, gap / 1000000);
		}
		uint64_t allowed = out.closed ? 0 : allowance(&out, rate, n, now - start);
		struct pollfd p = { .fd = fd, .events = (short)((in.closed ? 0 : POLLIN) | (allowed ? POLLOUT : 0)) };
		/* A signal may have come since the look at stop: not for long does it wait. */
		if (poll(&p, 1, rate && !out.closed ? TICK_MS : 100) < 0 && errno != EINTR) {
			report("poll: %s", strerror(errno));
			return;
		}
		if (p.revents & (POLLIN | POLLERR | POLLHUP) && !in.closed) {
			uint64_t before = in.bytes;
			if (!receive(fd, &in))
				return;
			if (in.bytes > before) {
				now = read_clock(CLOCK_MONOTONIC);
				if (now - last_in > gap)
					gap = now - last_in;
				last_in = now;
			}
		}
		if (p.revents & POLLOUT && allowed && !transmit(fd, &out, allowed))
			return;
	}
	line("stream done rx=%" PRIu64 " tx=%" PRIu64 " errors=%" PRIu64 " gap_ms=%" PRId64, in.bytes, out.bytes,
	     (uint64_t)errors, gap / 1000000);
}

static int wait_for_one(int listener, const struct sockaddr *address, socklen_t size)
{
	if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int)) || bind(listener, address, size) ||
	    listen(listener, 1))
		return -1;
	line("stream listening");
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	close(listener);
	return fd;
}

/* Gives the socket, or -1 with errno; tells which side we are. */
static int open_stream(const char *to, uint64_t port, bool *connected)
{
	struct sockaddr_in inet = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	struct sockaddr_vm vm = { .svm_family = AF_VSOCK, .svm_port = (unsigned int)port, .svm_cid = VMADDR_CID_ANY };
	bool vsock = !strncmp(to, "vsock:", 6);
	const char *peer = vsock ? to + 6 : to;
	const struct sockaddr *address = vsock ? (struct sockaddr *)&vm : (struct sockaddr *)&inet;
	socklen_t size = vsock ? sizeof vm : sizeof inet;

	*connected = strcmp(peer, "listen") != 0;
	if (*connected && vsock)
		vm.svm_cid = (unsigned int)strtoul(peer, NULL, 10);
	else if (*connected && inet_pton(AF_INET, peer, &inet.sin_addr) != 1) {
		errno = EINVAL;
		return -1;
	}
	int fd = socket(vsock ? AF_VSOCK : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	if (!*connected)
		return wait_for_one(fd, address, size);
	if (connect(fd, address, size)) {
		int reason = errno;
		close(fd);
		errno = reason;
		return -1;
	}
	return fd;
}

int stream_main(int argc, char **argv)
{
	const char *to = NULL;
	uint64_t port = 0, rate = 0, n = 0;
	bool connected;
	const struct option known[] = {
		{ "to", NULL, 0, &to }, { "port", &port, UINT32_MAX, NULL }, { "rate", &rate, 1 << 30, NULL },
		{ "n", &n, UINT64_MAX, NULL },
	};

	if (!parse_options(argc, argv, known, sizeof known / sizeof *known))
		return 2;
	workload_start("stream");
	int fd = to ? open_stream(to, port, &connected) : (errno = EINVAL, -1);
	if (fd < 0) {
		report("open %s port %" PRIu64 ": %s", to ? to : "(no to=)", port, strerror(errno));
		return 1;
	}
	/* TCP only: a small piece must not wait for the acknowledgement of the one before. */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int));
	line("stream up");
	run(fd, connected, rate, n);
	return errors ? 1 : 0;
}
