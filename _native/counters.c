/* Numbers in the text of a cgroup's files. Each run with limits reads a dozen of them, and is awaited meanwhile. */
#include "counters.h"

#include <string.h>

/* The number that a text is, with blanks around it: -1 if it is none, or one that is too large. */
static int64_t number(const uint8_t *text, uint64_t size)
{
	uint64_t value = 0, i = 0;
	while (size && (text[size - 1] == ' ' || text[size - 1] == '\n'))
		size--;
	while (i < size && text[i] == ' ')
		i++;
	if (i == size)
		return -1;
	for (; i < size; i++) {
		const uint8_t digit = (uint8_t)(text[i] - '0');
		if (digit > 9 || value > (uint64_t)(INT64_MAX - digit) / 10)
			return -1;
		value = value * 10 + digit;
	}
	return (int64_t)value;
}

/* The number behind a key, which begins a line. */
static int64_t behind(const uint8_t *text, uint64_t size, const char *key, uint64_t key_size)
{
	while (size) {
		const uint8_t *end = memchr(text, '\n', size);
		const uint64_t line = end ? (uint64_t)(end - text) : size;
		if (line > key_size && text[key_size] == ' ' && memcmp(text, key, key_size) == 0)
			return number(text + key_size, line - key_size);
		if (!end)
			break;
		text += line + 1;
		size -= line + 1;
	}
	return -1;
}

void iso_counters(const struct iso_counter *wanted, uint32_t count, const char *keys, const uint8_t *data, uint64_t size,
		  int64_t *values, uint32_t value_count)
{
	for (uint32_t i = 0; i < value_count; i++)
		values[i] = -1;
	for (const struct iso_counter *w = wanted; w < wanted + count; w++) {
		if (w->value >= value_count || values[w->value] >= 0 || w->at >= size || w->size > size - w->at)
			continue;
		const uint8_t *text = data + w->at;
		const uint64_t length = strnlen((const char *)text, w->size);
		if (!length)
			continue;
		int64_t found = w->key_size ? behind(text, length, keys + w->key, w->key_size) : number(text, length);
		if (found > 0 && w->scale > 1)
			found = found > INT64_MAX / w->scale ? -1 : found * w->scale;
		if (found < 0 && w->zero)
			found = 0;
		values[w->value] = found;
	}
}
