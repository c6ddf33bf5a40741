/* One batch of netlink requests and the kernel's answers. */
#ifndef ISO_NETLINK_H
#define ISO_NETLINK_H

#include <stdint.h>

/* In an errno of iso_netlink: it is that of taking the answers. */
#define ISO_NETLINK_RECEIVING 0x10000

struct iso_answers {
	uint64_t size;
	uint8_t data[];
};

int64_t iso_netlink_prepare(int32_t fd, int32_t route);
int64_t iso_netlink(int32_t fd, const uint8_t *requests, uint64_t size, uint32_t first, int32_t framed);
int64_t iso_netlink_settle(int32_t fd, const char *name);
int32_t iso_netlink_attach(int32_t route, int32_t filters, int32_t inside, uint32_t first_route, uint32_t first_filters,
			   uint32_t first_inside, const uint8_t *form, uint64_t size, const uint8_t *values, uint64_t room);
void iso_netlink_free(struct iso_answers *answers);

#endif
