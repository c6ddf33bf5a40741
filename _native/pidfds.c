/* Pidfds that are closed while nobody needs them: a program that keeps a thousand sandboxes has a descriptor for each then, not
 * three. A process is told again by the number of its pidfd's inode, which is never given twice (pidfs, Linux 6.9): its
 * process id alone may be another's by then. */
#define _GNU_SOURCE
#include "spawn.h"
#include "sys.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>

#define PIDFS 0x50494446 /* PID_FS_MAGIC */
#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x1000
#endif

/* Which process it is, by its pidfd; 0 where the kernel does not tell. */
static uint64_t identity(int64_t fd)
{
	struct statfs fs;
	struct stat st;
	if (fstatfs((int)fd, &fs) < 0 || fs.f_type != PIDFS || fstat((int)fd, &st) < 0)
		return 0;
	return st.st_ino;
}

/* The pidfd of that process, if it still has this process id; else -errno, -ESRCH for it has gone. */
static int64_t open_again(int32_t pid, uint64_t which)
{
	int64_t r = SYS2(pidfd_open, pid, 0);
	if (r == -EINVAL)
		r = -ESRCH; /* the number is a thread's by now, if it is not nobody's */
	if (r >= 0 && identity(r) != which) {
		SYS1(close, r);
		r = -ESRCH;
	}
	return iso_lift(r);
}

void iso_rest(struct iso_start *s)
{
	int32_t *const slots[2] = {&s->pidfd, &s->payload};
	const int32_t pids[2] = {s->pid, s->sender};
	for (int i = 0; i < 2; i++) {
		const uint64_t which = *slots[i] >= 0 && pids[i] > 0 ? identity(*slots[i]) : 0;
		/* Not where the number is not known here: in another pid namespace. Or it has gone already. */
		int64_t r = which ? open_again(pids[i], which) : -1;
		if (r < 0)
			continue;
		SYS1(close, r);
		s->rests[i] = which;
		iso_close(slots[i]);
	}
}

static void end(void *p)
{
	(void)p;
	for (;;)
		SYS1(exit_group, 0);
}

/* Whether children of this thread get another pid namespace. A new one without a process has no file here (ENOENT). */
static int elsewhere(void)
{
	struct stat own, theirs;
	return stat("/proc/thread-self/ns/pid", &own) == 0 &&
	       (stat("/proc/thread-self/ns/pid_for_children", &theirs) != 0 || own.st_ino != theirs.st_ino);
}

/* The pidfd of a process that has gone: readable, and ESRCH for whatever is done by it. */
static int64_t of_nobody(void)
{
	if (elsewhere())
		return -ESRCH; /* it might be PID 1 there, after whose end nothing can be started */
	uint8_t stack[4096] __attribute__((aligned(16)));
	int32_t fd = -1;
	const uint64_t all = ~0ull;
	uint64_t before = 0;
	/* No handler of the program's may run in a process that shares its memory. */
	int64_t r = SYS4(rt_sigprocmask, SIG_SETMASK, PTR(&all), PTR(&before), 8);
	if (r < 0)
		return r;
	r = iso_clone_call(__NR_clone, CLONE_VM | CLONE_VFORK | CLONE_PIDFD, PTR(stack + sizeof stack), PTR(&fd), end, 0);
	if (r > 0)
		SYS4(wait4, r, 0, __WALL, 0);
	for (int i = 0; i < 3; i++)
		if (SYS4(rt_sigprocmask, SIG_SETMASK, PTR(&before), 0, 8) == 0)
			break;
	return r < 0 ? r : iso_lift(fd);
}

int64_t iso_pidfd(struct iso_start *s, int32_t payload)
{
	int32_t *const slot = payload ? &s->payload : &s->pidfd;
	int32_t found = __atomic_load_n(slot, __ATOMIC_ACQUIRE);
	const uint64_t which = s->rests[payload != 0];
	if (found >= 0 || !which)
		return found;
	int64_t r = open_again(payload ? s->sender : s->pid, which);
	if (r == -ESRCH)
		/* A forked child may be in another pid namespace, where nobody has that number. */
		r = s->owner && s->owner == iso_owner() ? of_nobody() : -1;
	if (r < 0)
		return r;
	if (__atomic_compare_exchange_n(slot, &found, (int32_t)r, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return r;
	SYS1(close, r); /* another thread was quicker */
	return found;
}

/* The pidfd, and whether it is to be closed again. */
static int64_t borrow(struct iso_start *s, int32_t payload, int *close)
{
	const int32_t found = __atomic_load_n(payload ? &s->payload : &s->pidfd, __ATOMIC_ACQUIRE);
	const uint64_t which = s->rests[payload != 0];
	*close = 0;
	if (found >= 0 || !which)
		return found < 0 ? -EBADF : found;
	*close = 1;
	return open_again(payload ? s->sender : s->pid, which);
}

int64_t iso_send(struct iso_start *s, int32_t payload, int32_t signal)
{
	int close;
	const int64_t fd = borrow(s, payload, &close);
	const int64_t r = fd < 0 ? fd : SYS4(pidfd_send_signal, fd, signal, 0, 0);
	if (close && fd >= 0)
		SYS1(close, fd);
	return r;
}

static const struct timespec *within(struct timespec *left, int64_t milliseconds)
{
	if (milliseconds < 0)
		return 0;
	left->tv_sec = milliseconds / 1000;
	left->tv_nsec = milliseconds % 1000 * 1000000;
	return left;
}

int64_t iso_wait(struct iso_start *s, int32_t records, int64_t milliseconds)
{
	struct timespec left;
	const struct timespec *most = within(&left, milliseconds);
	int close = 0;
	const int64_t pidfd = records ? borrow(s, 0, &close) : -1;
	int64_t r = 0, ready = pidfd == -ESRCH ? 8 : 0; /* gone: nothing else tells it where a forked child has the socket, too */
	while (!ready) {
		struct pollfd fds[5] = {
			{.fd = s->ours[0], .events = POLLOUT},
			{.fd = s->ours[1], .events = POLLIN},
			{.fd = s->ours[2], .events = POLLIN},
			{.fd = records ? s->control : -1, .events = POLLIN},
			{.fd = pidfd < 0 ? -1 : (int)pidfd, .events = POLLIN},
		};
		r = SYS5(ppoll, PTR(fds), 5, PTR(most), 0, 0); /* the kernel counts `left` down */
		if (r <= 0)
			break;
		ready = (fds[0].revents != 0) | (fds[3].revents || fds[4].revents ? 8 : 0);
		for (int i = 1; i < 3; i++) {
			/* Nothing is left in it and nobody can write to it any more. */
			if (fds[i].revents == POLLHUP)
				iso_close(&s->ours[i]);
			else if (fds[i].revents)
				ready |= 1 << i;
		}
	}
	if (close && pidfd >= 0)
		SYS1(close, pidfd);
	return r < 0 ? r : ready;
}

int64_t iso_gone(struct iso_start *s, int64_t milliseconds)
{
	struct timespec left;
	int close;
	const int64_t fd = borrow(s, 0, &close);
	if (fd < 0)
		return fd == -ESRCH ? -ECHILD : fd; /* somebody has reaped it */
	struct pollfd ended = {.fd = (int)fd, .events = POLLIN};
	int64_t r = SYS5(ppoll, PTR(&ended), 1, PTR(within(&left, milliseconds)), 0, 0);
	if (r <= 0)
		r = r ? r : -EAGAIN;
	else
		r = s->owner && s->owner == iso_owner() ? SYS5(waitid, 3 /* P_PIDFD */, fd, 0, WEXITED | WNOHANG, 0) : 0;
	if (close)
		SYS1(close, fd);
	return r;
}

int64_t iso_reap(struct iso_start *s)
{
	int close;
	const int64_t fd = borrow(s, 0, &close);
	if (fd < 0)
		return fd == -ESRCH ? -ECHILD : fd; /* somebody has done it */
	const int64_t r = SYS5(waitid, 3 /* P_PIDFD */, fd, 0, WEXITED | WNOHANG, 0);
	if (close)
		SYS1(close, fd);
	return r;
}
