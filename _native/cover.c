/* A program that can write the files of a cgroup lifts its limits, or leaves it for another one. The mounts are known only
 * when all of them are made, so the mount table is read here, at the end of the set-up, and once more after it. */
#include "cover.h"
#include "sys.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <linux/stat.h>

#ifndef O_PATH
#define O_PATH 010000000
#endif
#ifndef __NR_mount_setattr
#define __NR_mount_setattr 442
#endif
#define AT_EMPTY_PATH_ 0x1000
#define STATX_MNT_ID_ 0x1000
#define MNT_ID_AT 144 /* stx_mnt_id: younger than the oldest headers that this is built with */
#define ATTR_RDONLY 1
#define MS_REC_SLAVE (16384 | (1 << 19))
#define ROUNDS 4
#define LONGEST 65536 /* a mount point has at most 4096 bytes, each of which may be written as four */

static char line[LONGEST], path[LONGEST];

struct reader {
	int64_t fd, length, at;
	char text[4096];
};

/* A line without its end; 0 at the end of the file. */
static int64_t read_line(struct reader *r)
{
	size_t n = 0;
	for (;;) {
		if (r->at == r->length) {
			r->length = SYS3(read, r->fd, PTR(r->text), sizeof r->text);
			r->at = 0;
			if (r->length < 0)
				return r->length;
			if (r->length == 0) {
				line[n] = 0;
				return n > 0;
			}
		}
		const char c = r->text[r->at++];
		if (c == '\n') {
			line[n] = 0;
			return 1;
		}
		if (n + 1 < sizeof line)
			line[n++] = c;
	}
}

static int starts(const char *text, const char *with)
{
	while (*with)
		if (*text++ != *with++)
			return 0;
	return 1;
}

static const char *next_field(const char *p)
{
	while (*p && *p != ' ')
		p++;
	return *p ? p + 1 : p;
}

/* The mount point with its octal escapes undone (proc_pid_mountinfo(5)). */
static void unescape(const char *p)
{
	size_t n = 0;
	while (*p && *p != ' ') {
		if (p[0] == '\\' && p[1] >= '0' && p[1] <= '3' && p[2] >= '0' && p[2] <= '7' && p[3] >= '0' && p[3] <= '7') {
			path[n++] = (char)(((p[1] - '0') << 6) | ((p[2] - '0') << 3) | (p[3] - '0'));
			p += 4;
		} else {
			path[n++] = *p++;
		}
	}
	path[n] = 0;
}

/* Whether the line tells of a cgroup file system that can be written; its id and, in `path`, its place. */
static int writable_group(uint64_t *id)
{
	const char *p = line;
	*id = 0;
	while (*p >= '0' && *p <= '9')
		*id = *id * 10 + (uint64_t)(*p++ - '0');
	for (int i = 0; i < 4; i++)
		p = next_field(p); /* parent, device, root, mount point */
	const char *place = p;
	const char *options = next_field(p);
	for (p = next_field(options); *p && !starts(p, "- "); p = next_field(p))
		;
	if (!*p)
		return 0;
	p += 2;
	if (!starts(p, "cgroup ") && !starts(p, "cgroup2 "))
		return 0;
	if (starts(options, "ro,") || starts(options, "ro "))
		return 0;
	unescape(place);
	return 1;
}

/* The mount that is seen at `path`, as a descriptor; -ENOENT when it is another one's or none: then nobody gets at ours. */
static int64_t open_mount(uint64_t id)
{
	uint8_t st[256] __attribute__((aligned(8)));
	uint64_t seen;
	memset(st, 0, sizeof st);
	int64_t fd = SYS4(openat, AT_FDCWD, PTR(path), O_PATH | O_NOFOLLOW | O_CLOEXEC, 0);
	if (fd < 0)
		return fd == -ENOENT || fd == -ENOTDIR || fd == -ELOOP ? -ENOENT : fd;
	int64_t r = SYS5(statx, fd, PTR(""), AT_EMPTY_PATH_, STATX_MNT_ID_, PTR(st));
	memcpy(&seen, st + MNT_ID_AT, sizeof seen);
	if (r == 0 && seen == id)
		return fd;
	SYS1(close, fd);
	return r < 0 ? r : -ENOENT;
}

/* One reading of the table. How many were changed. */
static int64_t cover_all(int64_t proc, int64_t *apart)
{
	static struct reader r;
	int64_t changed = 0, result;
	r.length = r.at = 0;
	r.fd = SYS4(openat, proc, PTR("self/mountinfo"), O_RDONLY | O_CLOEXEC, 0);
	if (r.fd < 0)
		return r.fd;
	while ((result = read_line(&r)) > 0) {
		uint64_t id;
		if (!writable_group(&id))
			continue;
		const int64_t fd = open_mount(id);
		if (fd == -ENOENT)
			continue;
		result = fd;
		if (result >= 0 && *apart) {
			/* The copy's mounts have other numbers: begin again in there. */
			SYS1(close, fd);
			*apart = 0;
			result = SYS1(unshare, CLONE_NEWNS);
			if (result == 0)
				result = SYS5(mount, 0, PTR("/"), 0, MS_REC_SLAVE, 0);
			changed = 1;
			break;
		}
		if (result >= 0) {
			uint64_t attributes[4] = {ATTR_RDONLY, 0, 0, 0};
			result = SYS5(mount_setattr, fd, PTR(""), AT_EMPTY_PATH_, PTR(attributes), sizeof attributes);
			SYS1(close, fd);
			changed++;
		}
		if (result < 0)
			break;
	}
	SYS1(close, r.fd);
	return result < 0 ? result : changed;
}

/* Whether this process is in the mount namespace that `outer` is a descriptor of. */
static int64_t same_namespace(int64_t proc, int64_t outer)
{
	struct statx ours, theirs;
	int64_t r = SYS5(statx, proc, PTR("self/ns/mnt"), 0, STATX_INO, PTR(&ours));
	if (r == 0)
		r = SYS5(statx, outer, PTR(""), AT_EMPTY_PATH_, STATX_INO, PTR(&theirs));
	return r < 0 ? r : ours.stx_ino == theirs.stx_ino;
}

int64_t iso_cover(int64_t proc, int64_t outer, int64_t apart)
{
	int64_t r = same_namespace(proc, outer);
	if (r < 0)
		return r;
	apart |= r;
	r = 1;
	for (int round = 0; round < ROUNDS && r > 0; round++)
		r = cover_all(proc, &apart);
	return r > 0 ? -EBUSY : r;
}
