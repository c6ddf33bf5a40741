/* Netlink, for requests that are sent again and again: one call from Python for a batch and its answers. */
#include "netlink.h"

#include <errno.h>
#include <linux/ethtool.h>
#include <linux/netlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

/* Have a socket answer briefly and in words, and never wait for ever. */
int64_t iso_netlink_prepare(int32_t fd, int32_t route)
{
	const struct timeval patience = {.tv_sec = 10}; /* the kernel answers within the call that asks */
	const int one = 1;
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) < 0 ||
	    setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof one) < 0 ||
	    setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof one) < 0 ||
	    (route && setsockopt(fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &one, sizeof one) < 0))
		return -errno;
	return 0;
}

/* Keep an answer that tells of an error, as it came. */
static int keep(struct iso_answers **errors, const struct nlmsghdr *answer)
{
	struct iso_answers *answers = *errors;
	const uint64_t before = answers ? answers->size : 0, more = NLMSG_ALIGN(answer->nlmsg_len);
	struct iso_answers *grown = realloc(answers, sizeof *answers + before + more);
	if (!grown)
		return -ENOMEM;
	memset(grown->data + before, 0, more);
	memcpy(grown->data + before, answer, answer->nlmsg_len);
	grown->size = before + more;
	*errors = grown;
	return 0;
}

/* Take answers until that to the request `last`, or until an error behind which nothing comes. */
static int64_t take(int32_t fd, uint32_t first, uint32_t count, uint32_t last, int32_t framed)
{
	union {
		struct nlmsghdr header;
		char room[4096]; /* each acknowledgement comes by itself */
	} answer;
	struct iso_answers *errors = 0;
	for (;;) {
		struct sockaddr_nl sender = {.nl_pid = 0};
		socklen_t length = sizeof sender;
		int64_t left = recvfrom(fd, &answer, sizeof answer, 0, (void *)&sender, &length);
		if (left < 0 && errno == EINTR)
			continue;
		if (left < 0) {
			const int64_t failed = errno == EAGAIN ? ETIMEDOUT : errno;
			free(errors);
			return -(failed | ISO_NETLINK_RECEIVING);
		}
		if (sender.nl_pid)
			continue; /* other processes can write to a socket too: the kernel's port is 0 */
		for (const struct nlmsghdr *m = &answer.header; NLMSG_OK(m, left); m = NLMSG_NEXT(m, left)) {
			if (m->nlmsg_type != NLMSG_ERROR || m->nlmsg_len < NLMSG_LENGTH(sizeof(struct nlmsgerr)) ||
			    m->nlmsg_seq - first >= count)
				continue; /* an answer to what was given up before, or a notice */
			const int failed = ((const struct nlmsgerr *)NLMSG_DATA(m))->error;
			if (failed && keep(&errors, m) < 0) {
				free(errors);
				return -(ENOMEM | ISO_NETLINK_RECEIVING);
			}
			const int frame = framed && (m->nlmsg_seq == first || m->nlmsg_seq == first + count - 1);
			if (m->nlmsg_seq == last || (failed && frame))
				return (int64_t)(uintptr_t)errors;
		}
	}
}

/* Send requests in one call, numbered from `first` on, and take their answers: of those that ask for one, until the last.
 * `framed`: the first and the last one are the begin and the end of a batch of nfnetlink, behind whose errors nothing comes.
 * 0 if there was no error; an address of struct iso_answers, for iso_netlink_free; or an errno below 0, with
 * ISO_NETLINK_RECEIVING if it is that of taking the answers. */
int64_t iso_netlink(int32_t fd, const uint8_t *requests, uint64_t size, uint32_t first, int32_t framed)
{
	union {
		struct nlmsghdr header;
		uint8_t room[2048];
	} small;
	uint8_t *data = size <= sizeof small ? small.room : malloc(size);
	if (!data)
		return -ENOMEM;
	memcpy(data, requests, size);
	uint32_t count = 0, last = first;
	int64_t left = size;
	for (struct nlmsghdr *m = (void *)data; NLMSG_OK(m, left); m = NLMSG_NEXT(m, left)) {
		m->nlmsg_seq = first + count++;
		if (m->nlmsg_flags & NLM_F_ACK)
			last = m->nlmsg_seq;
	}
	const struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
	int64_t sent;
	do
		sent = sendto(fd, data, size, 0, (const void *)&kernel, sizeof kernel);
	while (sent < 0 && errno == EINTR);
	sent = sent < 0 ? -errno : take(fd, first, count, last, framed);
	if (data != small.room)
		free(data);
	return sent;
}

/* Ask for the state of a device's link (ETHTOOL_GLINK). */
int64_t iso_netlink_settle(int32_t fd, const char *name)
{
	struct ethtool_value value = {.cmd = ETHTOOL_GLINK}; /* nobody reads the answer */
	struct ifreq request = {.ifr_data = (void *)&value};
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	return ioctl(fd, SIOCETHTOOL, &request) < 0 ? -errno : 0;
}

/* The head of a form (isolate/network/forms.py): sizes of its three batches, and how many places follow. */
struct form {
	uint16_t sizes[3], places;
};

/* Bytes at `from` of the values belong at `at` of the batches. */
struct place {
	uint16_t at, from, size;
};

/* Attach a member by a form: the batch for the switch's devices, the one for its rules, and the one for the member's own
 * network, each with its socket; then have the wire carry. The values are a descriptor of the member's network, which is
 * found here, the name of its port (16 bytes), and what else the form's places take.
 * 0, or the number of the batch that failed, 1 to 3; those before it hold. -1: the form is none, or there is no network. */
int32_t iso_netlink_attach(int32_t route, int32_t filters, int32_t inside, uint32_t first_route, uint32_t first_filters,
			   uint32_t first_inside, const uint8_t *form, uint64_t size, const uint8_t *values, uint64_t room)
{
	const int32_t fds[3] = {route, filters, inside};
	const uint32_t first[3] = {first_route, first_filters, first_inside};
	struct form head;
	uint8_t batches[4096], own[128];
	if (size < sizeof head || room < sizeof(int32_t) + IFNAMSIZ || room > sizeof own)
		return -1;
	memcpy(&head, form, sizeof head);
	const uint64_t total = (uint64_t)head.sizes[0] + head.sizes[1] + head.sizes[2];
	const uint64_t before = sizeof head + head.places * sizeof(struct place);
	if (total > sizeof batches || size != before + total)
		return -1;
	const int32_t namespace = ioctl(inside, SIOCGSKNS);
	if (namespace < 0)
		return -1;
	memcpy(own, values, room);
	memcpy(own, &namespace, sizeof namespace);
	memcpy(batches, form + before, total);
	int32_t result = 0;
	for (uint32_t i = 0; i < head.places && !result; i++) {
		struct place place;
		memcpy(&place, form + sizeof head + i * sizeof place, sizeof place);
		if (place.at + place.size > total || place.from + place.size > room)
			result = -1;
		else
			memcpy(batches + place.at, own + place.from, place.size);
	}
	for (int32_t i = 0, at = 0; i < 3 && !result; at += head.sizes[i++]) {
		const int64_t failed = iso_netlink(fds[i], batches + at, head.sizes[i], first[i], i == 1);
		if (failed > 0)
			free((void *)(uintptr_t)failed);
		if (failed)
			result = i + 1;
	}
	if (!result)
		iso_netlink_settle(route, (const char *)own + sizeof namespace);
	close(namespace);
	return result;
}

void iso_netlink_free(struct iso_answers *answers)
{
	free(answers);
}
