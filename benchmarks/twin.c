/* The reference for the cost of a sandbox: a C program that makes the same processes and the same system calls.
 *
 * One source, three programs, told apart by what the compiler is given:
 *   -DTWIN_DRIVER    stands where the Python program stands: starts one after the other and times each
 *   -DTWIN_LAUNCHER  stands where the launcher stands: supervisor, init and payload. Its calls are straight-line C that
 *                    spawn.py writes from the plan of the very sandbox it is compared with (TWIN_CALLS)
 *                    With TWIN_TREE (the calls that make a template's tree) it is parked: it makes the tree once, and a
 *                    fork of it is the supervisor of each start; TWIN_CALLS are then those of a start from the tree
 *   -DTWIN_TRUE      the program that is run: it exits
 *   -DTWIN_SAY       one that writes a line and ends with status 7
 *   -DTWIN_WAIT      one that stays until its standard input ends
 * No error is diagnosed here: whatever fails ends the launcher with 1, and the benchmark with it. */
#define _GNU_SOURCE
#ifndef TWIN_DRIVER
#define ISO_FREESTANDING
#endif
#include "../_native/sys.h"

#include <linux/sched.h>
#include <linux/time_types.h>

#if defined(TWIN_TRUE) || defined(TWIN_SAY) || defined(TWIN_WAIT)
__attribute__((used)) void twin_main(void);
void twin_main(void)
{
#ifdef TWIN_WAIT
	char byte;
	while (SYS3(read, 0, PTR(&byte), 1) > 0)
		;
#endif
#ifdef TWIN_SAY
	SYS3(write, 1, PTR("started\n"), 8);
	SYS1(exit_group, 7);
#endif
	for (;;)
		SYS1(exit_group, 0);
}
#endif

#ifdef TWIN_LAUNCHER
#include <linux/fcntl.h>
#include <linux/openat2.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/resource.h>
#include <linux/stat.h>

#define CONTROL 3
#define TAPE 4
#define OWNER 5
#define STARTS 6 /* parked: each start comes by it */

static void stop(void)
{
	for (;;)
		SYS1(exit_group, 1);
}

static long ok(long r)
{
	if (r < 0 && r > -4096)
		stop();
	return r;
}

void *memset(void *to, int c, size_t n)
{
	unsigned char *p = to;
	while (n--)
		*p++ = (unsigned char)c;
	return to;
}

static struct shared {
	int failed, status, complete;
	unsigned long own[2];
} *shared;
static long reg[512];
static int sync_fd;

static long open2(long dir, const char *path, unsigned long flags, unsigned long resolve)
{
	struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = resolve};
	return SYS4(openat2, dir, PTR(path), PTR(&how), sizeof how);
}

/* As the interpreter's: resolve beneath a root, make what is missing. Only what a sandbox of the benchmark asks for. */
static long make(long dir, const char *name, int directory, unsigned mode)
{
	if (directory) {
		long r = SYS3(mkdirat, dir, PTR(name), mode);
		if (r < 0)
			return r;
	} else {
		long r = SYS4(openat, dir, PTR(name), O_CREAT | O_EXCL | O_NOFOLLOW | O_WRONLY | O_CLOEXEC, mode);
		if (r < 0)
			return r;
		SYS1(close, r);
	}
	return open2(dir, name, (unsigned long)(O_PATH | O_NOFOLLOW | (directory ? O_DIRECTORY : 0)),
		     RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS);
}

enum { T_DIR = 1, T_FILE = 2, T_NO_SYMLINKS = 4, T_NEW = 8, T_PARENT = 16, T_WRITE = 32, T_READ = 64 };

static long resolve(long root, const char *given, unsigned flags, unsigned mode)
{
	const unsigned long how = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | (flags & T_NO_SYMLINKS ? RESOLVE_NO_SYMLINKS : 0);
	char path[1024];
	size_t length = 0;
	while (*given == '/')
		given++;
	for (; *given && length < sizeof path - 1; given++)
		path[length++] = *given;
	path[length] = 0;
	if (flags & T_PARENT) {
		while (length && path[length - 1] != '/')
			length--;
		while (length && path[length - 1] == '/')
			length--;
		path[length] = 0;
		flags = (flags & T_NO_SYMLINKS) | T_DIR;
	}
	if (!length)
		return open2(root, ".", O_PATH | O_DIRECTORY, how);
	unsigned long wanted = flags & T_WRITE ? O_WRONLY | O_NOCTTY | O_NONBLOCK : flags & T_READ ? O_RDONLY | O_NOCTTY | O_NONBLOCK : O_PATH;
	long fd = open2(root, path, wanted, how);
	if (fd >= 0 && (flags & T_NEW)) {
		SYS1(close, fd);
		return -17;
	}
	if (fd != -2 || !(flags & (T_DIR | T_FILE)))
		return fd;
	size_t end = length;
	do {
		while (end && path[end - 1] != '/')
			end--;
		if (!end) {
			fd = root;
			break;
		}
		path[--end] = 0;
		fd = open2(root, path, O_PATH | O_DIRECTORY, how);
	} while (fd == -2);
	size_t at = end ? end + 1 : 0;
	while (fd >= 0 && at < length) {
		size_t n = 0;
		while (at + n < length && path[at + n] && path[at + n] != '/')
			n++;
		path[at + n] = 0;
		int last = at + n >= length;
		long next = make(fd, path + at, !last || (flags & T_DIR), last ? mode : 0755);
		if (fd != root)
			SYS1(close, fd);
		fd = next;
		at += n + 1;
	}
	return fd;
}

static long target(long root, const char *path, unsigned flags, unsigned mode, long type)
{
	long fd = resolve(root, path, flags, mode);
	long fs[32];
	if (fd < 0 || !type)
		return fd;
	if (SYS2(fstatfs, fd, PTR(fs)) < 0 || fs[0] != type)
		return -18;
	return fd;
}

static void store(unsigned char *to, unsigned long value, int width)
{
	unsigned char digits[20];
	int n = 0;
	if (width) {
		for (int i = 0; i < width; i++)
			to[i] = (unsigned char)(value >> (8 * i));
		return;
	}
	do {
		digits[n++] = (unsigned char)('0' + value % 10);
		value /= 10;
	} while (value);
	while (n)
		*to++ = digits[--n];
	*to = 0;
}

static void engine_sync(void)
{
	char byte;
	if (SYS3(read, sync_fd, PTR(&byte), 1) != 1)
		stop();
}

static void engine_session(void)
{
	ok(SYS0(setsid));
}

static void engine_find(void)
{
	struct statx st;
	char head[128];
	ok(SYS5(statx, AT_FDCWD, PTR(TWIN_PROGRAM), 0, STATX_TYPE, PTR(&st)));
	ok(SYS3(faccessat, AT_FDCWD, PTR(TWIN_PROGRAM), 1));
	long fd = SYS4(openat, AT_FDCWD, PTR(TWIN_PROGRAM), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0);
	if (fd >= 0) {
		SYS3(read, fd, PTR(head), sizeof head);
		SYS1(close, fd);
	}
}

static void engine_fds(void)
{
	ok(SYS3(close_range, 0, ~0u, 4));
	for (int i = 0; i < 3; i++)
		ok(SYS3(fcntl, i, 2 /* F_SETFD */, 0));
}

static void engine_exec(void)
{
	char *argv[] = {TWIN_PROGRAM, 0};
	char *envp[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 0};
	SYS3(execve, PTR(TWIN_PROGRAM), PTR(argv), PTR(envp));
	stop();
}

static void engine_aside(void);
static void engine_meet(void);

/* Defines outer, supervisor, init, payload, after, report, cleanup, aside; CLONE_FLAGS, HAS_PIDNS, SHARE, STEPS. */
#ifdef TWIN_TREE
#define data tree_data
#define outer tree_outer
#define supervisor tree_supervisor
#define init tree_init
#define payload tree_payload
#define after tree_after
#define report tree_report
#define cleanup tree_cleanup
#define aside tree_aside
#include TWIN_TREE
static const unsigned long tree_flags = CLONE_FLAGS;
#undef data
#undef outer
#undef supervisor
#undef init
#undef payload
#undef after
#undef report
#undef cleanup
#undef aside
#undef CLONE_FLAGS
#undef HAS_PIDNS
#undef SHARE
#undef STEPS
#endif
#include TWIN_CALLS

static unsigned char stack[65536] __attribute__((aligned(16)));

static long clone_shared(unsigned long flags, unsigned long signal, void (*fn)(void *), int tid)
{
	struct clone_args args;
	memset(&args, 0, sizeof args);
	args.flags = flags;
	args.exit_signal = signal;
	args.set_tid = tid ? (unsigned long)&tid : 0;
	args.set_tid_size = tid != 0;
	args.stack = (unsigned long)stack;
	args.stack_size = sizeof stack;
	return iso_clone_call(__NR_clone3, PTR(&args), sizeof args, 0, fn, 0);
}

static long second;

static void run_aside(void *p)
{
	(void)p;
	aside();
	for (;;)
		SYS1(exit_group, 0);
}

static void engine_aside(void)
{
	second = ok(clone_shared(CLONE_VM | CLONE_FILES, 0, run_aside, HAS_PIDNS ? 2 : 0));
}

static void engine_meet(void)
{
	int status = 0;
	ok(SYS4(wait4, second, PTR(&status), 0x40000000, 0));
	if (status)
		stop();
}

static void run_payload(void *p)
{
	const unsigned long none = 0;
	(void)p;
	reg[1] = SYS0(getpid);
	SYS4(rt_sigprocmask, 2, PTR(&none), 0, 8);
	payload();
	stop();
}

static void run_init(int write_end)
{
	const unsigned long all = ~0ul;
	unsigned char info[128];
	SYS1(close, write_end);
	reg[1] = SYS0(getpid);
	SYS2(prctl, PR_SET_PDEATHSIG, 9);
	if (!HAS_PIDNS)
		SYS2(prctl, PR_SET_CHILD_SUBREAPER, 1);
	init();
	SYS2(prctl, PR_SET_PDEATHSIG, 9);
	struct pollfd fd = {.fd = sync_fd, .events = 0};
	struct __kernel_timespec none = {0, 0};
	if (SYS5(ppoll, PTR(&fd), 1, PTR(&none), 0, 8) != 0)
		stop(); /* the supervisor has died */
	long pid;
	if (SHARE) {
		pid = clone_shared(CLONE_VFORK | CLONE_VM, 17, run_payload, 0);
	} else {
		pid = SYS5(clone, CLONE_VFORK | 17, 0, 0, 0, 0);
		if (pid == 0)
			run_payload(0);
	}
	ok(pid);
	shared->complete = 1;
	after();
	struct rusage own;
	SYS2(getrusage, 0, PTR(&own));
	SYS2(getrusage, -1, PTR(&own));
	SYS3(close_range, 0, ~0u, 0);
	for (;;) {
		int status = 0;
		long r = SYS4(wait4, -1, PTR(&status), 1, 0);
		if (r == pid) {
			shared->status = status;
			shared->complete |= 2;
			if (HAS_PIDNS) {
				if (SYS4(wait4, -1, 0, 0x40000001, 0) != -10)
					SYS2(kill, -1, 9);
				while (SYS4(wait4, -1, 0, 0x40000000, 0) > 0)
					;
			}
			for (;;)
				SYS1(exit_group, 0);
		}
		if (r <= 0)
			SYS4(rt_sigtimedwait, PTR(&all), PTR(info), 0, 8);
	}
}

struct iov {
	void *base;
	unsigned long length;
};

struct message {
	void *name;
	unsigned long name_length;
	struct iov *iov;
	unsigned long iov_count;
	void *control;
	unsigned long control_length;
	unsigned long flags;
};

struct rights {
	unsigned long length;
	int level, type, fds[4];
};

#ifdef TWIN_TREE
static struct {
	int mounts, users, hidden, own, root, taken, pidfd, privileged;
} tree;

/* As an ordinary user the mount namespace is entered by way of the user namespace that owns it, and there is no way back. */
static void enter_tree(void)
{
	if (!tree.privileged) {
		ok(SYS2(setns, tree.users, CLONE_NEWUSER));
		ok(SYS2(prctl, PR_SET_DUMPABLE, 1));
	}
	ok(SYS2(setns, tree.mounts, CLONE_NEWNS));
	ok(SYS1(fchdir, tree.hidden));
}

static void leave_tree(void)
{
	if (!tree.privileged)
		return;
	ok(SYS2(setns, tree.own, CLONE_NEWNS));
	ok(SYS1(fchdir, tree.root));
	ok(SYS1(chroot, PTR(".")));
}

static void tell_birth(void)
{
	static unsigned char record[128];
	struct rights rights = {20, 1, 1, {tree.pidfd}};
	struct iov iov = {record, sizeof record};
	struct message message = {0, 0, &iov, 1, &rights, 24, 0};
	record[0] = 'b';
	ok(SYS3(sendmsg, CONTROL, PTR(&message), 0x4000));
	SYS1(close, tree.pidfd);
}

static void tell_taken(void)
{
	const unsigned long one = 1;
	SYS3(write, tree.taken, PTR(&one), sizeof one);
}
#else
static void enter_tree(void) {}
static void leave_tree(void) {}
static void tell_birth(void) {}
static void tell_taken(void) {}
#endif

static unsigned char record[256]; /* in a page that is written to anyway */

static void supervise(void)
{
	struct __kernel_timespec t;
	outer();
	int sync[2];
	ok(SYS2(pipe2, PTR(sync), O_CLOEXEC));
	SYS2(clock_gettime, 1, PTR(&t));
	struct clone_args args;
	int child_fd = -1;
	memset(&args, 0, sizeof args);
	args.flags = CLONE_FLAGS | CLONE_PIDFD;
	args.pidfd = (unsigned long)&child_fd;
	args.exit_signal = 17;
	enter_tree();
	long child = ok(SYS2(clone3, PTR(&args), sizeof args));
	if (child == 0) {
		sync_fd = sync[0];
		run_init(sync[1]);
	}
	leave_tree();
	SYS1(close, sync[0]);
	reg[0] = child;
	supervisor();
	SYS3(write, sync[1], PTR("x"), 1);
	SYS2(prctl, PR_SET_DUMPABLE, 0);
	tell_birth();
	SYS3(close_range, 0, 2, 0);
	SYS1(close, TAPE);
	struct pollfd fds[4] = {
		{.fd = child_fd, .events = POLLIN}, {.fd = CONTROL, .events = POLLIN}, {.fd = OWNER, .events = POLLIN}, {.fd = -1}};
	for (;;) {
		long r = SYS5(ppoll, PTR(fds), 4, 0, 0, 0);
		if (r > 0 && fds[0].revents)
			break;
		if (r > 0)
			stop();
	}
	int status;
	struct rusage usage;
	SYS4(wait4, child, PTR(&status), 0x40000000, PTR(&usage));
	report();
	cleanup();
	SYS2(getrusage, -1, PTR(&usage));
	SYS2(clock_gettime, 1, PTR(&t));
	record[0] = shared->complete == 3 && shared->status == 0 ? 'y' : 'n';
	struct iov iov = {record, sizeof record};
	struct message message = {0, 0, &iov, 1, 0, 0, 0};
	SYS3(sendmsg, CONTROL, PTR(&message), 0x4000);
	tell_taken();
	for (;;)
		SYS1(exit_group, 0);
}

static void equip(void)
{
	shared = (void *)ok(SYS6(mmap, 0, sizeof *shared + (STEPS + 7) / 8, 3, 0x21 /* MAP_SHARED|MAP_ANONYMOUS */, -1, 0));
}

#ifdef TWIN_TREE
/* A child makes the tree. The table of descriptors is one: what it opens stays here. */
static void build(void)
{
	struct clone_args args;
	volatile int *found = (void *)ok(SYS6(mmap, 0, 4096, 3, 0x21, -1, 0));
	int child_fd = -1, sync[2], done[2];
	char byte;
	tree_outer();
	ok(SYS2(pipe2, PTR(sync), O_CLOEXEC));
	ok(SYS2(pipe2, PTR(done), O_CLOEXEC));
	ok(SYS2(prctl, PR_SET_DUMPABLE, 1));
	memset(&args, 0, sizeof args);
	args.flags = tree_flags | CLONE_PIDFD | CLONE_FILES;
	args.pidfd = (unsigned long)&child_fd;
	args.exit_signal = 17;
	long child = ok(SYS2(clone3, PTR(&args), sizeof args));
	if (child == 0) {
		sync_fd = sync[0];
		tree_init();
		found[0] = (int)ok(SYS4(openat, AT_FDCWD, PTR("proc/self/ns/mnt"), O_RDONLY | O_CLOEXEC, 0));
		found[1] = (int)ok(SYS4(openat, AT_FDCWD, PTR("proc/self/ns/user"), O_RDONLY | O_CLOEXEC, 0));
		found[2] = (int)ok(SYS4(openat, AT_FDCWD, PTR("."), O_PATH | O_DIRECTORY | O_CLOEXEC, 0));
		ok(SYS3(write, done[1], PTR("x"), 1));
		for (;;)
			SYS1(exit_group, 0);
	}
	reg[0] = child;
	tree_supervisor();
	SYS3(write, sync[1], PTR("x"), 1);
	struct pollfd fds[2] = {{.fd = done[0], .events = POLLIN}, {.fd = child_fd, .events = POLLIN}};
	ok(SYS5(ppoll, PTR(fds), 2, 0, 0, 0));
	if (!fds[0].revents || SYS3(read, done[0], PTR(&byte), 1) != 1)
		stop();
	SYS4(wait4, child, 0, 0x40000000, 0);
	for (int i = 0; i < 2; i++) {
		SYS1(close, sync[i]);
		SYS1(close, done[i]);
	}
	SYS1(close, child_fd);
	ok(SYS2(prctl, PR_SET_DUMPABLE, 0));
	tree.mounts = found[0];
	tree.users = found[1];
	tree.hidden = found[2];
	tree.privileged = SYS0(geteuid) == 0;
	tree.own = (int)ok(SYS4(openat, AT_FDCWD, PTR("/proc/self/ns/mnt"), O_RDONLY | O_CLOEXEC, 0));
	tree.root = (int)ok(SYS4(openat, AT_FDCWD, PTR("/"), O_PATH | O_DIRECTORY | O_CLOEXEC, 0));
	tree.taken = (int)ok(SYS2(eventfd2, 0, O_CLOEXEC));
}

/* A fork that waits for a start, and becomes its supervisor. */
static void serve(long launcher)
{
	static unsigned char block[4096];
	struct rights rights;
	struct iov iov = {block, sizeof block};
	struct message message = {0, 0, &iov, 1, &rights, sizeof rights, 0};
	struct {
		unsigned long handler, flags, restorer, mask;
	} action = {0, 0, 0, 0};
	ok(SYS2(prctl, PR_SET_PDEATHSIG, 9));
	if (SYS0(getppid) != launcher)
		stop();
	SYS4(rt_sigaction, 17, PTR(&action), 0, 8);
	ok(SYS2(setpgid, 0, 0));
	SYS2(prctl, PR_SET_CHILD_SUBREAPER, 1);
	SYS1(umask, 0);
	equip();
	tree.pidfd = (int)ok(SYS2(pidfd_open, SYS0(getpid), 0));
	/* The kernel writes the length that there is. */
	if (SYS3(recvmsg, STARTS, PTR(&message), 0x40000000) <= 0 || message.control_length < 32)
		for (;;)
			SYS1(exit_group, 0);
	SYS2(prctl, PR_SET_PDEATHSIG, 0);
	ok(SYS3(dup3, rights.fds[0], CONTROL, O_CLOEXEC));
	for (int i = 0; i < 3; i++)
		ok(SYS3(dup3, rights.fds[i + 1], i, O_CLOEXEC));
	for (int i = 0; i < 4; i++)
		SYS1(close, rights.fds[i]);
	reg[1] = reg[2] = SYS0(getpid);
	supervise();
}

static void park(void)
{
	struct {
		unsigned long handler, flags, restorer, mask;
	} action = {1 /* SIG_IGN */, 0, 0, 0};
	const long self = SYS0(getpid);
	unsigned long taken;
	char byte = 'p';
	build();
	/* Where streams will be, nothing stands in the way; whoever is started is reaped by the kernel. */
	SYS4(rt_sigaction, 17, PTR(&action), 0, 8);
	SYS1(chdir, PTR("/"));
	ok(SYS3(write, STARTS, PTR(&byte), 1));
	for (;;) {
		long pid = ok(SYS5(clone, 17, 0, 0, 0, 0));
		if (pid == 0)
			serve(self);
		struct pollfd fds[3] = {
			{.fd = tree.taken, .events = POLLIN}, {.fd = STARTS, .events = 0}, {.fd = OWNER, .events = POLLIN}};
		ok(SYS5(ppoll, PTR(fds), 3, 0, 0, 0));
		if (fds[1].revents || fds[2].revents || SYS3(read, tree.taken, PTR(&taken), sizeof taken) != sizeof taken)
			for (;;)
				SYS1(exit_group, 0);
	}
}
#endif

__attribute__((used)) void twin_main(void);
void twin_main(void)
{
	struct {
		unsigned long handler, flags, restorer, mask;
	} action = {0, 0, 0, 0};
	for (int s = 1; s <= 64; s++)
		if (s != 9 && s != 19)
			SYS4(rt_sigaction, s, PTR(&action), 0, 8);
	SYS2(prctl, PR_SET_NAME, PTR("isolate-twin"));
	struct statx st;
	ok(SYS5(statx, TAPE, PTR(""), 0x1000, STATX_SIZE, PTR(&st)));
	long tape = ok(SYS6(mmap, 0, st.stx_size, 1, 2 | 0x8000 /* MAP_PRIVATE|MAP_POPULATE */, TAPE, 0));
	ok(SYS3(mprotect, tape, st.stx_size, 3));
	equip();
	if (!(CLONE_FLAGS & CLONE_NEWUSER))
		SYS2(prctl, PR_SET_DUMPABLE, 0);
	SYS0(setsid);
	SYS2(prctl, PR_SET_CHILD_SUBREAPER, 1);
	SYS1(umask, 0);
	reg[1] = reg[2] = SYS0(getpid);
#ifdef TWIN_TREE
	park();
#endif
	supervise();
}
#endif

#ifndef TWIN_DRIVER
#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tand $-16, %rsp\n\tcall twin_main\n\thlt\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, xzr\n\tmov x30, xzr\n\tbl twin_main\n\tbrk #1\n");
#endif
#else

/* driver KIND PROGRAM [argument …]: one start per byte on stdin, its nanoseconds as eight bytes on stdout; 0: it failed.
 *   twin   PROGRAM is the launcher; started as the extension does, through a middle process, with a tape's worth of bytes
 *   plain  the same, by one vfork and without the bytes: what a C program with nothing to hide would do
 *   parked PROGRAM is the launcher with a tree: started once, then each start is a message to it
 *   exec   any program, by vfork and exec
 * TWIN_RESIDENT bytes of the driver's memory are touched first. TWIN_FILTER is a file that the program finds open as 9. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STACK 16384
#define FILTER 9 /* where bubblewrap finds its filter */
#ifndef PACKED
#define PACKED 8192 /* bytes of a tape and its run block */
#endif

static struct {
	int program, fds[7], count, pidfd; /* `count` of them are handed over */
	char **argv;
	const char *filter;
	unsigned char middle_stack[STACK] __attribute__((aligned(16)));
	unsigned char launcher_stack[STACK] __attribute__((aligned(16)));
} s;

static void become(void *p)
{
	int highest = s.program;
	(void)p;
	for (int i = 0; i < s.count; i++)
		highest = s.fds[i] > highest ? s.fds[i] : highest;
	SYS3(close_range, highest + 1, ~0u, 2 /* UNSHARE */);
	int copy[7];
	for (int i = 0; i < s.count; i++)
		copy[i] = s.fds[i] < s.count ? (int)SYS3(fcntl, s.fds[i], F_DUPFD_CLOEXEC, s.count) : s.fds[i];
	int program = s.program < s.count ? (int)SYS3(fcntl, s.program, F_DUPFD_CLOEXEC, s.count) : s.program;
	for (int i = 0; i < s.count; i++)
		SYS3(dup3, copy[i], i, 0);
	SYS3(close_range, s.count, ~0u, 4 /* CLOEXEC */);
	static char *const argv[] = {"twin", NULL}, *const envp[] = {NULL};
	SYS5(execveat, program, PTR(""), PTR(argv), PTR(envp), 0x1000);
	for (;;)
		SYS1(exit_group, 127);
}

static long start(void)
{
	return iso_clone_call(__NR_clone, CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_PIDFD | SIGCHLD,
			      PTR(s.launcher_stack + STACK), PTR(&s.pidfd), become, 0);
}

static void middle(void *p)
{
	(void)p;
	start();
	for (;;)
		SYS1(exit_group, 0);
}

static void nulls(void)
{
	s.fds[0] = s.fds[1] = s.fds[2] = open("/dev/null", O_RDWR | O_CLOEXEC);
}

static int parked; /* the socket by which starts are asked for */

/* Start the launcher that makes a tree, and wait until it has. */
static int park(void)
{
	const unsigned long all = ~0ul;
	unsigned long before = 0;
	int starts[2];
	char byte;
	nulls();
	socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, starts);
	s.fds[3] = open("/dev/null", O_RDWR | O_CLOEXEC);
	s.fds[4] = memfd_create("twin-tape", 1);
	if (ftruncate(s.fds[4], 1))
		return 0;
	s.fds[5] = (int)SYS2(pidfd_open, getpid(), 0);
	s.fds[6] = starts[1];
	s.count = 7;
	SYS4(rt_sigprocmask, SIG_SETMASK, PTR(&all), PTR(&before), 8);
	start();
	SYS4(rt_sigprocmask, SIG_SETMASK, PTR(&before), 0, 8);
	for (int i = 2; i < 7; i++)
		close(s.fds[i]);
	parked = starts[0];
	return recv(parked, &byte, 1, 0) == 1 && byte == 'p';
}

/* A start from the tree: one message, its supervisor's pidfd in answer, and its end. */
static int from_tree(void)
{
	static char block[512];
	int pair[2];
	char record[1024];
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(4 * sizeof(int))];
	} control;
	struct iovec iov = {block, sizeof block};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	nulls();
	socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
	int sent[4] = {pair[1], s.fds[0], s.fds[1], s.fds[2]};
	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(sizeof sent);
	memcpy(CMSG_DATA(&control.header), sent, sizeof sent);
	if (sendmsg(parked, &message, MSG_NOSIGNAL) < 0)
		return 0;
	close(pair[1]);
	close(s.fds[2]);
	iov = (struct iovec){record, sizeof record};
	message.msg_controllen = sizeof control;
	ssize_t n = recvmsg(pair[0], &message, MSG_CMSG_CLOEXEC);
	if (n <= 0 || record[0] != 'b' || message.msg_controllen < CMSG_LEN(sizeof(int)))
		return 0;
	memcpy(&s.pidfd, CMSG_DATA(&control.header), sizeof(int));
	struct pollfd fd = {.fd = pair[0], .events = POLLIN};
	poll(&fd, 1, -1);
	n = recv(pair[0], record, sizeof record, MSG_DONTWAIT);
	struct pollfd gone = {.fd = s.pidfd, .events = POLLIN};
	poll(&gone, 1, 1000);
	close(pair[0]);
	close(s.pidfd);
	return n > 0 && record[0] == 'y';
}

static int launch(int plain)
{
	static char bytes[PACKED];
	int pair[2];
	const unsigned long all = ~0ul;
	unsigned long before = 0;
	char record[1024];
	nulls();
	socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
	s.fds[3] = pair[1];
	s.fds[4] = memfd_create("twin-tape", 1);
	if (plain) {
		if (ftruncate(s.fds[4], 1))
			return 0;
	} else if (write(s.fds[4], bytes, sizeof bytes - 256) < 0 || write(s.fds[4], bytes, 256) < 0) {
		return 0;
	}
	s.fds[5] = (int)SYS2(pidfd_open, getpid(), 0);
	SYS4(rt_sigprocmask, SIG_SETMASK, PTR(&all), PTR(&before), 8);
	long pid;
	if (plain) {
		pid = start();
	} else {
		pid = iso_clone_call(__NR_clone, CLONE_VM | CLONE_VFORK | CLONE_FILES, PTR(s.middle_stack + STACK), 0, middle, 0);
		SYS4(wait4, pid, 0, __WALL, 0);
	}
	SYS4(rt_sigprocmask, SIG_SETMASK, PTR(&before), 0, 8);
	for (int i = 2; i < 6; i++)
		close(s.fds[i]);
	struct pollfd fd = {.fd = pair[0], .events = POLLIN};
	poll(&fd, 1, -1);
	ssize_t n = recv(pair[0], record, sizeof record, MSG_DONTWAIT);
	struct pollfd gone = {.fd = s.pidfd, .events = POLLIN};
	poll(&gone, 1, 1000);
	siginfo_t info;
	waitid(P_PIDFD, (id_t)s.pidfd, &info, WEXITED | WNOHANG);
	shutdown(pair[0], SHUT_WR);
	close(pair[0]);
	close(s.pidfd);
	return n > 0 && record[0] == 'y';
}

static int execute(void)
{
	int status = -1;
	pid_t pid = vfork();
	if (pid == 0) {
		nulls();
		for (int i = 0; i < 3; i++)
			dup2(s.fds[i], i);
		if (s.filter)
			dup2(open(s.filter, O_RDONLY), FILTER);
		execv(s.argv[0], s.argv);
		_exit(127);
	}
	waitpid(pid, &status, 0);
	return status == 0;
}

int main(int argc, char **argv)
{
	char byte;
	if (argc < 3)
		return 2;
	s.argv = argv + 2;
	s.filter = getenv("TWIN_FILTER");
	const char *resident = getenv("TWIN_RESIDENT");
	if (resident && atol(resident)) {
		char *memory = mmap(0, (size_t)atol(resident), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (memory == MAP_FAILED)
			return 2;
		for (long i = 0; i < atol(resident); i += 4096)
			memory[i] = 1;
	}
	if (strcmp(argv[1], "exec") != 0) {
		/* A sealed copy in memory, as the extension makes. */
		static char image[1 << 20];
		int fd = open(argv[2], O_RDONLY | O_CLOEXEC);
		ssize_t n = read(fd, image, sizeof image);
		s.program = memfd_create("twin", 3);
		if (n <= 0 || write(s.program, image, (size_t)n) != n || fcntl(s.program, F_ADD_SEALS, 0xf))
			return 2;
		close(fd);
	}
	s.count = 6;
	const char kind = strcmp(argv[1], "parked") == 0 ? 'k' : argv[1][0];
	if (kind == 'k' && !park())
		return 2;
	while (read(0, &byte, 1) == 1) {
		struct timespec a, b;
		clock_gettime(CLOCK_MONOTONIC, &a);
		int good = kind == 'e' ? execute() : kind == 'k' ? from_tree() : launch(kind == 'p');
		clock_gettime(CLOCK_MONOTONIC, &b);
		unsigned long ns = (unsigned long)((b.tv_sec - a.tv_sec) * 1000000000L + b.tv_nsec - a.tv_nsec);
		if (!good)
			ns = 0;
		if (write(1, &ns, 8) != 8)
			return 1;
	}
	return 0;
}
#endif
