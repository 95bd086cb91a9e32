/*
 * rtomin: sets the minimum retransmission timeout of TCP on a route, as "ip route change PREFIX dev DEV rto_min MSms"
 * of iproute2 does; busybox's ip cannot.
 *
 *   rtomin 10.0.0.0/24 eth0 5      0 puts the kernel's 200 ms back
 *
 * The route must be there: the one that the kernel made for the address of the device.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include "programs.h"

struct request {
	struct nlmsghdr header;
	struct rtmsg route;
	char attributes[256];
};

static struct rtattr *put(struct request *r, unsigned short type, const void *data, size_t size)
{
	struct rtattr *a = (struct rtattr *)((char *)r + NLMSG_ALIGN(r->header.nlmsg_len));

	a->rta_type = type;
	a->rta_len = (unsigned short)RTA_LENGTH(size);
	if (size)
		memcpy(RTA_DATA(a), data, size);
	r->header.nlmsg_len = NLMSG_ALIGN(r->header.nlmsg_len) + RTA_ALIGN(a->rta_len);
	return a;
}

/* Sends the request and gives the kernel's answer as an errno value. */
static int ask_kernel(const struct request *r)
{
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
		char rest[1024];
	} answer;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), reason = 0;

	if (fd < 0)
		return errno;
	if (send(fd, r, r->header.nlmsg_len, 0) < 0 || recv(fd, &answer, sizeof answer, 0) < 0)
		reason = errno;
	else if (answer.header.nlmsg_type == NLMSG_ERROR)
		reason = -answer.error.error;
	close(fd);
	return reason;
}

int rtomin_main(int argc, char **argv)
{
	struct request r = {
		.header = { .nlmsg_len = NLMSG_LENGTH(sizeof(struct rtmsg)), .nlmsg_type = RTM_NEWROUTE,
			    .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE },
		.route = { .rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_KERNEL,
			   .rtm_scope = RT_SCOPE_LINK, .rtm_type = RTN_UNICAST },
	};
	struct in_addr prefix;
	char *slash = argc == 4 ? strchr(argv[1], '/') : NULL;

	if (slash)
		*slash++ = '\0';
	if (!slash || inet_pton(AF_INET, argv[1], &prefix) != 1) {
		fprintf(stderr, "usage: rtomin PREFIX/LENGTH DEVICE MILLISECONDS\n");
		return 2;
	}
	unsigned int device = if_nametoindex(argv[2]), timeout = (unsigned int)strtoul(argv[3], NULL, 10);
	r.route.rtm_dst_len = (unsigned char)strtoul(slash, NULL, 10);
	put(&r, RTA_DST, &prefix, sizeof prefix);
	put(&r, RTA_OIF, &device, sizeof device);
	if (timeout) {
		struct rtattr *metrics = put(&r, RTA_METRICS, NULL, 0);
		put(&r, RTAX_RTO_MIN, &timeout, sizeof timeout);
		metrics->rta_len = (unsigned short)((char *)&r + r.header.nlmsg_len - (char *)metrics);
	}
	int reason = device ? ask_kernel(&r) : errno;
	if (reason) {
		fprintf(stderr, "rtomin: route %s/%s on %s: %s\n", argv[1], slash, argv[2], strerror(reason));
		return 1;
	}
	return 0;
}
