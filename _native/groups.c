/* The payload chooses how many groups it makes inside its own, how deep they are and which it freezes. So nothing
 * here recurses, and the memory that it takes does not depend on the tree: one descriptor goes down by name and up by
 * "..", which for a cgroup is always the group that it was made in (kernfs moves no directory to another parent). */
#include "groups.h"
#include "sys.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/stat.h>
#include <linux/time_types.h>

#define CGROUP_FS 0x27e0eb
#define CGROUP2_FS 0x63677270
#define LONGEST_NAME 256
#define BATCH 64
#define SIGKILL_ 9
#define WHOLE_SECONDS 10

struct entry {
	uint64_t ino;
	int64_t off;
	uint16_t reclen;
	uint8_t type;
	char name[];
};

static void pause_once(void)
{
	struct __kernel_timespec t = {.tv_sec = 0, .tv_nsec = 1000000};
	SYS2(nanosleep, PTR(&t), 0);
}

static uint64_t monotonic(void)
{
	struct __kernel_timespec t = {0, 0};
	SYS2(clock_gettime, 1 /* CLOCK_MONOTONIC */, PTR(&t));
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void iso_be_patient(struct iso_patience *p, int32_t milliseconds)
{
	p->until = monotonic() + WHOLE_SECONDS * 1000000000ull;
	p->pauses = milliseconds;
}

static int64_t open_directory(int64_t dir, const char *name)
{
	return SYS4(openat, dir, PTR(name), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
}

static int is_group(int64_t fd)
{
	int64_t fs[32]; /* struct statfs begins with its type */
	return SYS2(fstatfs, fd, PTR(fs)) == 0 && (fs[0] == CGROUP_FS || fs[0] == CGROUP2_FS);
}

/* The first directory in another one, or the first one behind that with the inode `after`. 1, 0: none, or an error. */
static int64_t next_child(int64_t fd, uint64_t after, char *name, uint64_t *ino)
{
	char buffer[2048] __attribute__((aligned(8)));
	int64_t n;
	SYS3(lseek, fd, 0, 0);
	while ((n = SYS3(getdents64, fd, PTR(buffer), sizeof buffer)) > 0) {
		for (int64_t at = 0; at < n;) {
			const struct entry *e = (const void *)(buffer + at);
			at += e->reclen;
			if (e->type != 4 /* DT_DIR */ || (e->name[0] == '.' && (!e->name[1] || (e->name[1] == '.' && !e->name[2]))))
				continue;
			if (after) {
				if (e->ino == after)
					after = 0;
				continue;
			}
			size_t i = 0;
			while (e->name[i] && i + 1 < LONGEST_NAME) {
				name[i] = e->name[i];
				i++;
			}
			name[i] = 0;
			*ino = e->ino;
			return 1;
		}
	}
	return n;
}

static uint64_t inode(int64_t fd)
{
	struct statx st;
	memset(&st, 0, sizeof st);
	SYS5(statx, fd, PTR(""), 0x1000 /* AT_EMPTY_PATH */, STATX_INO, PTR(&st));
	return st.stx_ino;
}

/* Call for a group and then for each below it, those above first. */
static int64_t each_group(int64_t dir, const char *top, void (*visit)(int64_t fd, int64_t *count), int64_t *count)
{
	char name[LONGEST_NAME];
	uint64_t depth = 0, after = 0, ino = 0;
	const uint64_t until = monotonic() + WHOLE_SECONDS * 1000000000ull;
	int64_t fd = open_directory(dir, top);
	if (fd < 0)
		return fd;
	if (!is_group(fd)) {
		SYS1(close, fd);
		return -ENOTDIR;
	}
	visit(fd, count);
	for (;;) {
		int64_t next;
		if (next_child(fd, after, name, &ino) == 1) {
			next = open_directory(fd, name);
			if (next < 0) {
				after = ino; /* gone meanwhile */
				continue;
			}
			visit(next, count);
			after = 0;
			depth++;
		} else {
			if (depth == 0)
				break;
			after = inode(fd);
			next = open_directory(fd, "..");
			depth--;
		}
		SYS1(close, fd);
		fd = next;
		if (fd < 0 || monotonic() > until)
			break;
	}
	if (fd >= 0)
		SYS1(close, fd);
	return 0;
}

static int64_t write_to(int64_t dir, const char *file, const char *text, size_t size)
{
	int64_t fd = SYS4(openat, dir, PTR(file), O_WRONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	int64_t r = SYS3(write, fd, PTR(text), size);
	SYS1(close, fd);
	return r;
}

static void thaw(int64_t fd, int64_t *count)
{
	/* v2's frozen tasks die of SIGKILL as they are (cgroup-v2.rst, "cgroup.freeze"). */
	*count += write_to(fd, "freezer.state", "THAWED", 6) > 0;
}

int64_t iso_thaw_groups(int64_t dir, const char *name)
{
	int64_t count = 0;
	int64_t r = each_group(dir, name, thaw, &count);
	return r < 0 ? r : count;
}

/* Numbers in a list of pids, one after the other; the position is kept over reads. */
struct pids {
	int64_t fd, length, at;
	char text[1024];
};

static int64_t next_pid(struct pids *p)
{
	int64_t pid = 0;
	int digits = 0;
	for (;;) {
		if (p->at == p->length) {
			p->length = SYS3(read, p->fd, PTR(p->text), sizeof p->text);
			p->at = 0;
			if (p->length <= 0) {
				p->length = 0;
				return digits ? pid : -1;
			}
		}
		const char c = p->text[p->at++];
		if (c >= '0' && c <= '9') {
			pid = pid * 10 + (c - '0');
			digits = 1;
		} else if (digits) {
			return pid;
		}
	}
}

/* A number may be another process's by the time that it is used: signalled is who is in the list after its pidfd was
 * opened. Ourselves never, nor whom this pid namespace does not see (0). */
static void kill_listed(int64_t dir, int64_t *count)
{
	struct pids list = {0};
	int64_t pids[BATCH], pidfds[BATCH];
	const int64_t own = SYS0(getpid);
	list.fd = SYS4(openat, dir, PTR("cgroup.procs"), O_RDONLY | O_CLOEXEC, 0);
	if (list.fd < 0)
		return;
	for (int64_t skip = 0, more = 1; more;) {
		int n = 0;
		int64_t pid, seen = 0;
		more = 0;
		SYS3(lseek, list.fd, 0, 0);
		list.length = list.at = 0;
		while ((pid = next_pid(&list)) >= 0) {
			if (seen++ < skip || pid == 0 || pid == own)
				continue;
			if (n == BATCH) {
				more = 1;
				break;
			}
			pidfds[n] = SYS2(pidfd_open, pid, 0);
			pids[n] = pid;
			n += pidfds[n] >= 0;
		}
		skip = seen - more;
		SYS3(lseek, list.fd, 0, 0);
		list.length = list.at = 0;
		while ((pid = next_pid(&list)) >= 0)
			for (int i = 0; i < n; i++)
				if (pids[i] == pid && pidfds[i] >= 0 && SYS4(pidfd_send_signal, pidfds[i], SIGKILL_, 0, 0) == 0) {
					pids[i] = -1;
					*count += 1;
				}
		for (int i = 0; i < n; i++)
			SYS1(close, pidfds[i]);
	}
	SYS1(close, list.fd);
}

int64_t iso_kill_groups(int64_t dir, const char *name)
{
	int64_t count = 0;
	int64_t r = each_group(dir, name, kill_listed, &count);
	return r < 0 ? r : count;
}

/* For a group that will be removed: nobody is born in it any more, so that it may be killed by its own file (Linux 5.14). */
static void empty(int64_t dir, const char *name, int everybody)
{
	int64_t fd = open_directory(dir, name);
	if (fd < 0)
		return;
	iso_thaw_groups(dir, name);
	if (write_to(fd, "cgroup.kill", "1", 1) < 0 && everybody)
		iso_kill_groups(dir, name);
	SYS1(close, fd);
}

int64_t iso_remove_groups(int64_t dir, const char *top, int everybody, struct iso_patience *p)
{
	char name[LONGEST_NAME];
	uint64_t ino = 0, depth = 0;
	int64_t r = SYS3(unlinkat, dir, PTR(top), 0x200 /* AT_REMOVEDIR */);
	if (r == 0 || r == -ENOENT)
		return 0;
	if (r != -EBUSY && r != -ENOTEMPTY)
		return r;
	int64_t fd = open_directory(dir, top);
	if (fd < 0)
		return fd == -ENOENT ? 0 : fd;
	const int groups = is_group(fd);
	if (groups)
		empty(dir, top, everybody);
	/* Down to a group that has none below it, remove it, and up. What is busy is tried again and again: it is killed
	 * already, and its tasks leave a moment after they have been reaped. */
	for (;;) {
		int64_t next = -1;
		int busy = 0;
		if (next_child(fd, 0, name, &ino) == 1) {
			r = SYS3(unlinkat, fd, PTR(name), 0x200);
			if (r == 0 || r == -ENOENT)
				goto turn;
			if (r != -EBUSY && r != -ENOTEMPTY)
				break;
			next = open_directory(fd, name);
			if (next < 0)
				goto turn; /* gone meanwhile, or not to be had for a moment: within the patience */
			/* A leaf that does not go holds somebody: then not down and up at full speed. */
			uint64_t below = 0;
			char unused[LONGEST_NAME];
			if (next_child(next, 0, unused, &below) != 1) {
				SYS1(close, next);
				busy = 1;
				if (groups)
					empty(fd, name, everybody);
			} else {
				SYS1(close, fd);
				fd = next;
				depth++;
			}
		} else if (depth) {
			next = open_directory(fd, "..");
			SYS1(close, fd);
			fd = next;
			depth--;
			if (fd < 0)
				return fd;
		} else {
			r = SYS3(unlinkat, dir, PTR(top), 0x200);
			if (r == 0 || r == -ENOENT || (r != -EBUSY && r != -ENOTEMPTY))
				break;
			busy = 1;
			if (groups)
				empty(dir, top, everybody);
		}
		if (busy) {
			if (p->pauses <= 0)
				break;
			p->pauses--;
			pause_once();
		}
	turn:
		if (monotonic() > p->until) {
			r = -EBUSY;
			break;
		}
	}
	SYS1(close, fd);
	return r == -ENOENT ? 0 : r;
}
