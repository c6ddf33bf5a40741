/* Numbers, words and small files, without a libc. */
#include "launcher.h"

#include <linux/errno.h>
#include <linux/fcntl.h>

size_t length(const char *s)
{
	size_t n = 0;
	while (s[n])
		n++;
	return n;
}

char *put_decimal(char *to, int64_t value)
{
	char digits[20];
	int n = 0;
	do {
		digits[n++] = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	while (n)
		*to++ = digits[--n];
	return to;
}

char *put(char *to, const char *text)
{
	while (*text)
		*to++ = *text++;
	*to = 0;
	return to;
}

int64_t write_at(int64_t dir, const char *name, const char *text)
{
	int64_t n = 0;
	while (text[n])
		n++;
	int64_t fd = SYS4(openat, dir, PTR(name), O_WRONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	int64_t r = SYS3(write, fd, PTR(text), n);
	SYS1(close, fd);
	return r == n ? 0 : r < 0 ? r : -EIO;
}

int64_t read_file(int64_t directory, const char *path, char *buffer, size_t size)
{
	int64_t fd = SYS4(openat, directory, PTR(path), O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	int64_t n = SYS3(read, fd, PTR(buffer), size - 1);
	close_fd(fd);
	buffer[n > 0 ? n : 0] = 0;
	return n;
}

const char *find(const char *text, const char *wanted)
{
	for (; *text; text++) {
		size_t n = 0;
		while (wanted[n] && text[n] == wanted[n])
			n++;
		if (!wanted[n])
			return text + n;
	}
	return 0;
}
