/* Numbers in the text of a cgroup's files, many in one call. */
#ifndef ISOLATE_COUNTERS_H
#define ISOLATE_COUNTERS_H

#include <stdint.h>

/* One number: in the text at an offset of the data, of so many bytes at most, up to a NUL. */
struct iso_counter {
	uint32_t at, size;
	uint32_t key, key_size; /* the line that it is in begins with this key and a blank; without one it is the whole text */
	uint32_t scale; /* what it is multiplied by */
	uint32_t zero; /* 0 where the file is there, and has no such line */
	uint32_t value; /* which of the values it is, unless one before it was found */
};

/* Look them all up, in their order. A value that none of them has is -1. */
void iso_counters(const struct iso_counter *wanted, uint32_t count, const char *keys, const uint8_t *data, uint64_t size,
		  int64_t *values, uint32_t value_count);

#endif
