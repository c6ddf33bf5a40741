/* What the kernel's own calls cost, for benchmarks/network.py: the messages that isolate sends, from C.
 *
 *   attach BRIDGE-INDEX    for each line on stdin: a new network namespace, a veth pair with a port of that bridge, an
 *                          address, a route, all up, in two sends; prints microseconds
 *   replay ROUTE FILTERS   the same with requests that somebody else has put together: for each line on stdin, PORT OFFSET
 *                          BATCH BATCH BATCH, a new network namespace, then the batches (in hexadecimal) by the two
 *                          netlink sockets that were inherited and by one inside; the namespace's descriptor goes to
 *                          the offset in the first; last, the state of the link of that port is asked for
 *   sink PORT              takes what comes by one TCP connection, prints bytes a second
 *   send ADDRESS PORT SECONDS
 *   connects ADDRESS PORT COUNT   prints microseconds of each connection, on the average
 *   serve PORT             takes connections and closes them */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

struct batch {
	char data[4096];
	size_t size;
	struct nlmsghdr *message;
	int count;
};

static void *begin(struct batch *b, int kind, int flags, size_t body)
{
	b->message = (void *)(b->data + b->size);
	memset(b->message, 0, NLMSG_SPACE(body));
	b->message->nlmsg_type = kind;
	b->message->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
	b->message->nlmsg_seq = ++b->count;
	b->message->nlmsg_len = NLMSG_LENGTH(body);
	return NLMSG_DATA(b->message);
}

static struct rtattr *put(struct batch *b, int kind, const void *data, size_t size)
{
	struct rtattr *a = (void *)((char *)b->message + NLMSG_ALIGN(b->message->nlmsg_len));
	a->rta_type = kind;
	a->rta_len = RTA_LENGTH(size);
	if (size)
		memcpy(RTA_DATA(a), data, size);
	b->message->nlmsg_len = NLMSG_ALIGN(b->message->nlmsg_len) + RTA_ALIGN(a->rta_len);
	return a;
}

static void close_nest(struct batch *b, struct rtattr *a)
{
	a->rta_len = (char *)b->message + NLMSG_ALIGN(b->message->nlmsg_len) - (char *)a;
}

static void end(struct batch *b)
{
	b->size += NLMSG_ALIGN(b->message->nlmsg_len);
}

/* Send requests in one call, and wait for the answer to the last that asks for one: the kernel answers in their order. */
static void exchange(int fd, const void *data, size_t size, unsigned last)
{
	struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
	char answer[65536];
	if (sendto(fd, data, size, 0, (void *)&kernel, sizeof kernel) < 0)
		die("sendto");
	for (;;) {
		ssize_t n = recv(fd, answer, sizeof answer, 0);
		if (n < 0)
			die("recv");
		for (struct nlmsghdr *m = (void *)answer; NLMSG_OK(m, n); m = NLMSG_NEXT(m, n)) {
			struct nlmsgerr *e = NLMSG_DATA(m);
			if (m->nlmsg_type != NLMSG_ERROR)
				continue;
			if (e->error) {
				fprintf(stderr, "request %u: %s\n", m->nlmsg_seq, strerror(-e->error));
				exit(1);
			}
			if (m->nlmsg_seq == last)
				return;
		}
	}
}

static void ask(int fd, const struct batch *b)
{
	exchange(fd, b->data, b->size, b->count);
}

static void attach(int bridge)
{
	int outer = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	char line[16];
	for (unsigned number = 0; fgets(line, sizeof line, stdin); number++) {
		const double t = now();
		if (unshare(CLONE_NEWNET) < 0)
			die("unshare");
		int inner = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
		int fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
		struct batch b = {.size = 0};
		struct ifinfomsg *link = begin(&b, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, sizeof *link);
		char name[IFNAMSIZ];
		snprintf(name, sizeof name, "f%u", number);
		link->ifi_flags = link->ifi_change = IFF_UP;
		put(&b, IFLA_IFNAME, name, strlen(name) + 1);
		put(&b, IFLA_MASTER, &bridge, 4);
		struct rtattr *info = put(&b, IFLA_LINKINFO, 0, 0);
		put(&b, IFLA_INFO_KIND, "veth", 4);
		struct rtattr *data = put(&b, IFLA_INFO_DATA, 0, 0), *peer = put(&b, VETH_INFO_PEER, 0, 0);
		struct ifinfomsg other = {.ifi_index = 2};
		memcpy((char *)b.message + b.message->nlmsg_len, &other, sizeof other);
		b.message->nlmsg_len += sizeof other;
		put(&b, IFLA_IFNAME, "eth0", 5);
		put(&b, IFLA_NET_NS_FD, &fd, 4);
		close_nest(&b, peer);
		close_nest(&b, data);
		close_nest(&b, info);
		end(&b);
		ask(outer, &b);
		struct batch c = {.size = 0};
		struct ifaddrmsg *address = begin(&c, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, sizeof *address);
		uint32_t own = htonl(0x0a630002 + number % 60000), gateway = htonl(0x0a630001);
		int index = 2;
		*address = (struct ifaddrmsg){.ifa_family = AF_INET, .ifa_prefixlen = 16, .ifa_index = 2};
		put(&c, IFA_LOCAL, &own, 4);
		put(&c, IFA_ADDRESS, &own, 4);
		end(&c);
		link = begin(&c, RTM_NEWLINK, 0, sizeof *link);
		link->ifi_index = 2;
		link->ifi_flags = link->ifi_change = IFF_UP;
		end(&c);
		struct rtmsg *route = begin(&c, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, sizeof *route);
		*route = (struct rtmsg){.rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_STATIC,
					.rtm_scope = RT_SCOPE_UNIVERSE, .rtm_type = RTN_UNICAST};
		put(&c, RTA_GATEWAY, &gateway, 4);
		put(&c, RTA_OIF, &index, 4);
		end(&c);
		ask(inner, &c);
		printf("%.1f\n", (now() - t) * 1e6);
		fflush(stdout);
		close(inner);
		close(fd);
		if (setns(home, CLONE_NEWNET) < 0)
			die("setns");
	}
}

static size_t parsed(char *word, unsigned char *data, size_t room)
{
	size_t n = 0;
	for (unsigned byte; n < room && sscanf(word + 2 * n, "%2x", &byte) == 1; n++)
		data[n] = byte;
	return n;
}

/* One batch, in which only the last request asks for an answer, or the last but one (nftables has an end of the batch). */
static void replayed(int fd, const unsigned char *data, size_t size)
{
	unsigned last = 0;
	ssize_t left = size;
	for (const struct nlmsghdr *m = (const void *)data; NLMSG_OK(m, left); m = NLMSG_NEXT(m, left))
		if (m->nlmsg_flags & NLM_F_ACK)
			last = m->nlmsg_seq;
	exchange(fd, data, size, last);
}

static void replay(int route, int filters)
{
	static char line[1 << 16];
	static unsigned char data[3][1 << 14];
	int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	while (fgets(line, sizeof line, stdin)) {
		size_t size[3];
		char *port = strtok(line, " "), *offset = strtok(0, " ");
		for (int i = 0; i < 3; i++)
			size[i] = parsed(strtok(0, " \n"), data[i], sizeof data[i]);
		const double t = now();
		if (unshare(CLONE_NEWNET) < 0)
			die("unshare");
		int inner = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
		int fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
		memcpy(data[0] + atoi(offset), &fd, sizeof fd);
		replayed(route, data[0], size[0]);
		replayed(filters, data[1], size[1]);
		replayed(inner, data[2], size[2]);
		struct ethtool_value value = {.cmd = ETHTOOL_GLINK};
		struct ifreq request = {.ifr_data = (void *)&value};
		strncpy(request.ifr_name, port, IFNAMSIZ - 1);
		if (ioctl(route, SIOCETHTOOL, &request) < 0)
			die("ioctl");
		close(fd);
		close(inner);
		printf("%.1f\n", (now() - t) * 1e6);
		fflush(stdout);
		if (setns(home, CLONE_NEWNET) < 0)
			die("setns");
	}
}

static int listening(int port)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(fd, (void *)&a, sizeof a) < 0 || listen(fd, 1024) < 0)
		die("listen");
	puts("ready");
	fflush(stdout);
	return fd;
}

static int connected(const char *address, int port)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
	inet_pton(AF_INET, address, &a.sin_addr);
	if (connect(fd, (void *)&a, sizeof a) < 0)
		die("connect");
	return fd;
}

int main(int argc, char **argv)
{
	static char buffer[1 << 20];
	signal(SIGPIPE, SIG_IGN);
	if (argc == 3 && !strcmp(argv[1], "attach")) {
		attach(atoi(argv[2]));
	} else if (argc == 4 && !strcmp(argv[1], "replay")) {
		replay(atoi(argv[2]), atoi(argv[3]));
	} else if (argc == 3 && !strcmp(argv[1], "sink")) {
		int fd = accept(listening(atoi(argv[2])), 0, 0);
		double total = 0, t = now();
		ssize_t n;
		while ((n = read(fd, buffer, sizeof buffer)) > 0)
			total += n;
		printf("%.0f\n", total / (now() - t));
	} else if (argc == 5 && !strcmp(argv[1], "send")) {
		int fd = connected(argv[2], atoi(argv[3]));
		const double until = now() + atof(argv[4]);
		while (now() < until && write(fd, buffer, sizeof buffer) > 0)
			;
	} else if (argc == 5 && !strcmp(argv[1], "connects")) {
		const int count = atoi(argv[4]);
		const double t = now();
		for (int i = 0; i < count; i++) {
			int fd = connected(argv[2], atoi(argv[3]));
			struct linger off = {1, 0};
			setsockopt(fd, SOL_SOCKET, SO_LINGER, &off, sizeof off); /* no TIME_WAIT: ports come back */
			close(fd);
		}
		printf("%.1f\n", (now() - t) * 1e6 / count);
	} else if (argc == 3 && !strcmp(argv[1], "serve")) {
		int fd = listening(atoi(argv[2]));
		for (;;)
			close(accept(fd, 0, 0));
	} else {
		return 2;
	}
	return 0;
}
