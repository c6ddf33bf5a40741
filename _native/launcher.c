/* The launcher: a freestanding static program that stands between the Python program and a sandbox.
 *
 *   supervisor  this process: outside the sandbox. Makes the child, writes its id maps, watches for the end of
 *               the Python program, takes the whole tree down, cleans up, tells how it ended.
 *   init        child of clone: PID 1 of a new pid namespace. Runs the tape's INIT section, starts the payload,
 *               forwards signals, reaps. Its death is the death of everything in the namespace.
 *   payload     runs the PAYLOAD section and executes the program.
 *
 * No libc, no malloc, no signal handler. All signals stay blocked in supervisor and init; every descriptor of
 * ours is close-on-exec. */
#include "cover.h"
#include "interp.h"
#include "sys.h"

#include <linux/capability.h>
#include <linux/elf.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/futex.h>
#include <linux/mman.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/resource.h>
#include <linux/sched.h>
#include <linux/signal.h>
#include <linux/socket.h>
#include <linux/stat.h>
#include <linux/time_types.h>
#include <linux/wait.h>

#ifndef ISOLATE_VERSION
#error "ISOLATE_VERSION comes from the builder"
#endif

/* Python checks at import that launcher and extension were built together. */
__attribute__((used)) static const char build_mark[] = "isolate-launcher " ISOLATE_VERSION;

#define SOL_SOCKET_ 1
#define SCM_RIGHTS_ 1
#define MSG_NOSIGNAL_ 0x4000
#define CLOSE_RANGE_CLOEXEC_ 4
#define SIGCHLD_ 17
#define SIGKILL_ 9
#define SIGSTOP_ 19
#define SIGCONT_ 18
#define SIGNALS 64
#define PROT_RW (PROT_READ | PROT_WRITE)
#define STACK_SIZE 65536

/* struct iovec and struct msghdr, as the kernel has them. */
struct part {
	void *base;
	uint64_t length;
};

struct message {
	void *name;
	uint64_t name_length;
	struct part *parts;
	uint64_t part_count;
	void *control;
	uint64_t control_length;
	uint64_t flags;
};

struct supervisor {
	struct iso_machine machine;
	uint64_t started_ns;
	int64_t child;
	int32_t child_fd;
	int32_t exec_fd; /* the other end of the machine's */
	int32_t sync_fd;
	int64_t init_status;
	struct iso_record *record; /* made before anything can be short of memory */
	int32_t let_go;            /* we killed it: the Python program ended or wanted it so */
	int32_t reported;          /* the section REPORT has been run */
	int64_t clean_error;       /* the first error of REPORT and CLEANUP, and its op */
	uint32_t clean_op;
	struct rusage usage;
	uint32_t shared_size;
	int32_t proc;        /* /proc of our own pid namespace, as it was before anything was joined; or -errno */
	uint64_t deadline;   /* CLOCK_MONOTONIC; 0: no limit */
	uint64_t cpu_ns;     /* the limit of CPU time; 0: none */
	uint64_t sample;     /* when to look at the CPU time again */
	uint64_t cpus;       /* as many seconds of it can be used in one */
	uint64_t used_ns;    /* what the tree had used when that was over the limit */
	int32_t exceeded;    /* ISO_COMPLETE_TIMEOUT, ISO_COMPLETE_CPU_TIME: why we killed it */
	uint64_t ended_ns;
	uint32_t capabilities[6]; /* of the launcher at its start, as capget gives them */
	int32_t root;          /* its effective uid is 0 */
};

/* What a launcher that is parked holds, and each supervisor that is a fork of it until it has cloned: the mount namespace
 * with the finished tree, the user namespace that owns it (-1 where we may enter it without), the hidden directory beneath
 * the tree's root, and our own mount namespace and root (-1 where there is no way back). */
static struct {
	int32_t mounts, users, hidden, own, root;
} tree = {-1, -1, -1, -1, -1};

static void exit_now(int64_t status) __attribute__((noreturn));
static void exit_now(int64_t status)
{
	for (;;)
		SYS1(exit_group, status);
}

static int mapped(int64_t address)
{
	return address < -4095 || address > 0;
}

static void close_fd(int64_t fd)
{
	if (fd >= 0)
		SYS1(close, fd);
}

static uint64_t now(void)
{
	struct __kernel_timespec t = {0, 0};
	SYS2(clock_gettime, 1 /* CLOCK_MONOTONIC */, PTR(&t));
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t nanoseconds(const struct __kernel_old_timeval *t)
{
	return (uint64_t)t->tv_sec * 1000000000u + (uint64_t)t->tv_usec * 1000u;
}

static void fail(struct iso_shared *s, uint32_t stage, uint32_t op, int64_t error)
{
	if (s->failed)
		return;
	s->error = (int32_t)-error;
	s->op = op;
	s->stage = stage;
	s->failed = 1;
}

/* ---- ops of a program's start -------------------------------------------------------------------------- */

static const char *run_string(const struct iso_run *run, uint32_t at)
{
	return (const char *)run + at;
}

static char **run_table(const struct iso_run *run, uint32_t at, uint32_t count)
{
	uint64_t *table = (uint64_t *)(uintptr_t)((const uint8_t *)run + at);
	for (uint32_t i = 0; i < count; i++)
		table[i] = (uint64_t)(uintptr_t)((const uint8_t *)run + table[i]);
	table[count] = 0;
	return (char **)(void *)table;
}

static size_t length(const char *s)
{
	size_t n = 0;
	while (s[n])
		n++;
	return n;
}

/* A directory can be "executable"; a program is a regular file that we may execute. */
static int64_t is_program(const char *path)
{
	struct statx st;
	int64_t r = SYS5(statx, AT_FDCWD, PTR(path), 0, STATX_TYPE, PTR(&st));
	if (r < 0)
		return r;
	if ((st.stx_mode & S_IFMT) != S_IFREG)
		return -EACCES;
	/* faccessat with the real ids: credentials have been set, real and effective are the same. */
	return SYS3(faccessat, AT_FDCWD, PTR(path), 1 /* X_OK */);
}

/* Why a file that is there is refused: its mode, its mount's flags and its path, in place of a program's head. */
static int64_t refused(const struct iso_machine *m, const char *path)
{
	struct {
		int64_t type, block_size;
		uint64_t counts[5], id;
		int64_t name_length, fragment_size, flags, spare[4];
	} fs; /* struct statfs of the 64-bit architectures */
	struct statx st;
	uint8_t *head = m->shared->head;
	memset(&fs, 0, sizeof fs);
	memset(&st, 0, sizeof st);
	SYS5(statx, AT_FDCWD, PTR(path), 0, STATX_TYPE | STATX_MODE, PTR(&st));
	SYS2(statfs, PTR(path), PTR(&fs));
	const uint32_t facts[2] = {st.stx_mode, (uint32_t)fs.flags};
	size_t n = length(path);
	if (n > ISO_HEAD - sizeof facts)
		n = ISO_HEAD - sizeof facts;
	memcpy(head, facts, sizeof facts);
	memcpy(head + sizeof facts, path, n);
	m->shared->head_size = (uint32_t)(sizeof facts + n);
	return -EACCES;
}

static uint8_t start[4096] __attribute__((aligned(8)));

/* What stands at a program's start tells a foreign architecture from a missing interpreter, should exec refuse it: an ELF
 * header with the path of its loader behind it, or the first bytes. Read now, while no filter is in force. */
static void keep_head(struct iso_machine *m)
{
	uint8_t *head = m->shared->head;
	m->shared->head_size = 0;
	int64_t fd = SYS4(openat, AT_FDCWD, PTR(m->program), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0);
	if (fd < 0)
		return; /* may be executed but not read: then there is no head */
	const int64_t size = SYS3(read, fd, PTR(start), sizeof start);
	SYS1(close, fd);
	if (size <= 0)
		return;
	m->shared->head_size = size < ISO_HEAD ? (uint32_t)size : ISO_HEAD;
	memcpy(head, start, m->shared->head_size);
	const struct elf64_hdr *elf = (const void *)start;
	if (size < ISO_HEAD || start[0] != 0x7f || start[1] != 'E' || start[2] != 'L' || start[3] != 'F' ||
	    start[EI_CLASS] != ELFCLASS64 || elf->e_phentsize != sizeof(struct elf64_phdr) || elf->e_phoff > sizeof start)
		return;
	const size_t room = ISO_HEAD - sizeof *elf;
	memset(head + sizeof *elf, 0, room);
	for (size_t i = 0; i < elf->e_phnum; i++) {
		const size_t at = elf->e_phoff + i * sizeof(struct elf64_phdr);
		if (at + sizeof(struct elf64_phdr) > (size_t)size)
			return;
		struct elf64_phdr p;
		memcpy(&p, start + at, sizeof p);
		if (p.p_type != PT_INTERP)
			continue;
		if (p.p_offset < (size_t)size && p.p_filesz <= (size_t)size - p.p_offset)
			memcpy(head + sizeof *elf, start + p.p_offset, p.p_filesz < room ? p.p_filesz : room);
		return;
	}
}

static char found[4096];

/* The search that execvp makes, here inside the sandbox: its root, its credentials. The filter comes later. */
static int64_t find_program(struct iso_machine *m)
{
	const struct iso_run *run = m->run;
	const char *name = run_string(run, run->program);
	int64_t result = -ENOENT;
	if (!*name)
		return -ENOENT;
	int slash = 0;
	for (const char *p = name; *p; p++)
		slash |= *p == '/';
	if (slash) {
		result = is_program(name);
		if (result == -EACCES)
			refused(m, name);
		m->program = name;
	} else {
		const size_t n = length(name);
		for (const char *path = run_string(run, run->path);; path++) {
			size_t d = 0;
			while (path[d] && path[d] != ':')
				d++;
			if (d + n + 2 <= sizeof found) {
				/* An empty element means the working directory (execvp(3)): not here, a surprise nobody asked for. */
				memcpy(found, path, d);
				found[d] = '/';
				memcpy(found + d + 1, name, n + 1);
				int64_t r = d ? is_program(found) : -ENOENT;
				if (r == 0) {
					m->program = found;
					result = 0;
					break;
				}
				if (r == -EACCES && result != r)
					result = refused(m, found);
			}
			path += d;
			if (!*path)
				break;
		}
	}
	if (result < 0)
		return result;
	keep_head(m);
	return 0;
}

/* Whether the supervisor has died: only it holds the other end. */
static int64_t supervisor_lives(const struct iso_machine *m)
{
	struct pollfd fd = {.fd = m->sync_fd, .events = POLLIN};
	struct __kernel_timespec none = {0, 0};
	int64_t r;
	do
		r = SYS5(ppoll, PTR(&fd), 1, PTR(&none), 0, 0);
	while (r == -EINTR);
	if (r < 0)
		return r;
	return fd.revents & (POLLHUP | POLLERR) ? -EPIPE : 0;
}

static int64_t place_descriptors(const struct iso_machine *m)
{
	const struct iso_run *run = m->run;
	const struct iso_fd *fds = (const void *)((const uint8_t *)run + run->fds);
	const uint32_t n = run->fdc;
	int64_t above = run->slots;
	int64_t r;
	if (n && (int64_t)fds[n - 1].target >= above)
		above = (int64_t)fds[n - 1].target + 1;
	/* The change of credentials undid the signal that we get when our parent dies, a step has renewed it; and between? */
	if (!(m->header->flags & ISO_TAPE_INIT) && (r = supervisor_lives(m)) < 0)
		return r;
	int32_t copies[ISO_MAX_SLOTS];
	if (n > ISO_MAX_SLOTS)
		return -EMFILE;
	/* First lift every source above all targets, then put each down: no target overwrites a source still wanted. */
	for (uint32_t i = 0; i < n; i++) {
		copies[i] = (int32_t)fds[i].slot;
		if (fds[i].slot == fds[i].target)
			continue;
		r = SYS3(fcntl, fds[i].slot, F_DUPFD_CLOEXEC, above);
		if (r < 0)
			return r;
		copies[i] = (int32_t)r;
	}
	r = SYS3(close_range, 0, ~0u, CLOSE_RANGE_CLOEXEC_);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < n; i++) {
		/* dup3 clears close-on-exec on the copy; where source and target are one, fcntl does. */
		if ((uint32_t)copies[i] == fds[i].target)
			r = SYS3(fcntl, copies[i], F_SETFD, 0);
		else
			r = SYS3(dup3, copies[i], fds[i].target, 0);
		if (r < 0)
			return r;
	}
	return 0;
}

static void send_record(const void *record, size_t size, int32_t pass);

/* A terminal of the sandbox's own, so that it has a name inside, with the settings and the size of what stands for it.
 * Nothing where there is no devpts: the streams are a terminal already. Programs may run inside that have put something
 * else there: what it is, is asked of the descriptor. */
static void own_terminal(const struct iso_machine *m)
{
	int64_t fs[16] = {0}, settings[8] = {0};
	int32_t unlocked = 0;
	const uint32_t wanted = m->run->flags >> ISO_RUN_PTY_SHIFT & 7, kind = ISO_RECORD_TERMINAL;
	const int64_t ours = SYS4(openat, AT_FDCWD, PTR("/dev/pts/ptmx"), O_RDWR | O_NOCTTY | O_CLOEXEC | O_NOFOLLOW, 0);
	int64_t theirs = -1;
	if (ours < 0)
		return;
	if (SYS2(fstatfs, ours, PTR(fs)) == 0 && fs[0] == 0x1cd1 /* DEVPTS_SUPER_MAGIC */ &&
	    SYS3(ioctl, ours, 0x40045431 /* TIOCSPTLCK */, PTR(&unlocked)) == 0)
		theirs = SYS3(ioctl, ours, 0x5441 /* TIOCGPTPEER */, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (theirs >= 0) {
		const int from = wanted & 1 ? 0 : wanted & 2 ? 1 : 2;
		if (SYS3(ioctl, from, 0x5401 /* TCGETS */, PTR(settings)) == 0)
			SYS3(ioctl, theirs, 0x5402 /* TCSETS */, PTR(settings));
		if (SYS3(ioctl, from, 0x5413 /* TIOCGWINSZ */, PTR(settings)) == 0)
			SYS3(ioctl, theirs, 0x5414 /* TIOCSWINSZ */, PTR(settings));
		if (m->run->tty_uid != ISO_NONE)
			SYS3(fchown, theirs, m->run->tty_uid, -1);
		send_record(&kind, sizeof kind, (int32_t)ours);
		for (int i = 0; i < 3; i++)
			if (wanted >> i & 1)
				SYS3(dup3, theirs, i, O_CLOEXEC);
		SYS1(close, theirs);
	}
	SYS1(close, ours);
}

static int64_t session(const struct iso_machine *m)
{
	int64_t r = SYS0(setsid);
	if (r < 0)
		return r;
	if (m->run->flags & ISO_RUN_PTY)
		own_terminal(m);
	if (m->run->flags & ISO_RUN_TTY)
		return SYS3(ioctl, 0, 0x540e /* TIOCSCTTY */, 0);
	return 0;
}

static int64_t default_signals(void)
{
	/* A program that ignores SIGCHLD or SIGPIPE would hand that on: exec resets handlers, not SIG_IGN. */
	struct {
		uint64_t handler, flags, restorer, mask;
	} action = {0, 0, 0, 0};
	for (int signal = 1; signal <= SIGNALS; signal++) {
		if (signal == SIGKILL_ || signal == SIGSTOP_)
			continue;
		int64_t r = SYS4(rt_sigaction, signal, PTR(&action), 0, 8);
		if (r < 0)
			return r;
	}
	return 0;
}

static int64_t set_mask(uint64_t mask)
{
	return SYS4(rt_sigprocmask, SIG_SETMASK, PTR(&mask), 0, 8);
}

static int64_t execute_program(struct iso_machine *m)
{
	const struct iso_run *run = m->run;
	char **argv = run_table(run, run->argv, run->argc);
	char **envp = run_table(run, run->envp, run->envc);
	m->shared->executing = 1;
	return SYS3(execve, PTR(m->program), PTR(argv), PTR(envp));
}

struct helper {
	const char *path;
	char **argv;
	int64_t error; /* why it was not executed: memory is shared until then */
};

static void run_helper(void *p)
{
	struct helper *h = p;
	char *environment[] = {0};
	/* Without either it may not run: with signals blocked it could not be stopped, with our descriptors it could act for us. */
	h->error = set_mask(0);
	if (h->error >= 0)
		h->error = SYS3(close_range, 0, ~0u, CLOSE_RANGE_CLOEXEC_);
	if (h->error >= 0)
		h->error = SYS3(execve, PTR(h->path), PTR(h->argv), PTR(environment));
	exit_now(127);
}

static uint8_t child_stack[STACK_SIZE] __attribute__((aligned(16)));

/* clone with memory shared, on this stack. `tid`, unless it is 0, is the pid it is to have, which clone3 alone can give. */
static int64_t clone_shared(uint8_t (*stack)[STACK_SIZE], uint64_t flags, uint64_t exit_signal, void (*fn)(void *), void *arg,
			    int32_t *pidfd, int32_t tid)
{
	struct clone_args args;
	memset(&args, 0, sizeof args);
	args.set_tid = tid ? (uint64_t)(uintptr_t)&tid : 0;
	args.set_tid_size = tid != 0;
	args.flags = flags;
	args.pidfd = (uint64_t)(uintptr_t)pidfd;
	args.exit_signal = exit_signal;
	args.stack = (uint64_t)(uintptr_t)stack;
	args.stack_size = sizeof *stack;
	int64_t pid = iso_clone_call(__NR_clone3, PTR(&args), sizeof args, 0, fn, arg);
	if (pid == -ENOSYS && !tid)
		/* Docker's filter answers so, since it cannot read clone3's flags; clone has all that is needed here. */
		pid = iso_clone_call(__NR_clone, (int64_t)(flags | exit_signal), PTR(stack + 1), PTR(pidfd), fn, arg);
	return pid;
}

static int64_t run_host_program(struct iso_machine *m, const int64_t *arg)
{
	/* The table holds offsets into the data where a STORE has not put an address: all strings lie there. */
	struct helper h = {(const char *)(uintptr_t)arg[0], (char **)(uintptr_t)arg[1], 0};
	int32_t status = 0;
	(void)m;
	int64_t pid = clone_shared(&child_stack, CLONE_VM | CLONE_VFORK, SIGCHLD_, run_helper, &h, NULL, 0);
	if (pid < 0)
		return pid;
	int64_t r;
	do
		r = SYS4(wait4, pid, PTR(&status), 0, 0);
	while (r == -EINTR);
	if (r < 0 || h.error < 0)
		return r < 0 ? r : h.error;
	return status == 0 ? 0 : -ECHILD;
}

static char *put_decimal(char *to, int64_t value)
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

static char *put(char *to, const char *text)
{
	while (*text)
		*to++ = *text++;
	*to = 0;
	return to;
}

static int64_t write_at(int64_t dir, const char *name, const char *text)
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

/* A process that is there for its user namespace alone, until it is killed. It shares nothing with us. */
static void stand_by(void *p)
{
	const int64_t *parent = p;
	SYS2(prctl, PR_SET_DUMPABLE, 0);
	SYS2(prctl, PR_SET_PDEATHSIG, SIGKILL_);
	while (SYS0(getppid) == *parent)
		SYS5(ppoll, 0, 0, 0, 0, 0);
	exit_now(0);
}

/* A user namespace with an id map, for mounts to show the owners of files by: nothing ever runs in it. */
static int64_t map_of_ids(const int64_t *arg)
{
	char path[32];
	int64_t self = SYS0(getpid);
	int64_t pid = clone_shared(&child_stack, CLONE_NEWUSER, SIGCHLD_, stand_by, &self, NULL, 0);
	if (pid < 0)
		return pid;
	put(put_decimal(put(path, "/proc/"), pid), "");
	int64_t dir = SYS4(openat, AT_FDCWD, PTR(path), O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	int64_t r = dir;
	if (dir >= 0) {
		r = write_at(dir, "gid_map", (const char *)(uintptr_t)arg[1]);
		if (r >= 0)
			r = write_at(dir, "uid_map", (const char *)(uintptr_t)arg[0]);
		if (r >= 0)
			r = SYS4(openat, dir, PTR("ns/user"), O_RDONLY | O_CLOEXEC, 0);
		SYS1(close, dir);
	}
	/* It never ends by itself: were it not killed, the wait would be for ever. */
	for (int i = 0; i < 3 && SYS2(kill, pid, SIGKILL_) < 0; i++)
		;
	while (SYS4(wait4, pid, 0, 0, 0) == -EINTR)
		;
	return r;
}

/* What takes long and needs nothing of what init does meanwhile (the kernel's set-up of a network namespace takes as
 * long as all else together) is done by a second process. Memory and descriptors are init's, so what it finds is found
 * there too; namespaces are what it changes, and those are each process's own. */
static struct {
	struct iso_machine machine; /* registers are shared, where it failed is not */
	int64_t pid, result;
} aside;

/* Init goes on meanwhile, and a step of its own may run a program of the host's on the other. */
static uint8_t aside_stack[STACK_SIZE] __attribute__((aligned(16)));

static void run_aside(void *p)
{
	(void)p;
	/* Without a pid namespace nothing else ends it should init die on its own; and if init has died before this line,
	 * so has the supervisor, or it kills what it inherits. */
	int64_t r = SYS2(prctl, PR_SET_PDEATHSIG, SIGKILL_);
	if (r >= 0)
		r = supervisor_lives(&aside.machine);
	aside.result = r < 0 ? r : iso_machine_run(&aside.machine, ISO_ASIDE);
	exit_now(0);
}

static int64_t begin_aside(const struct iso_machine *m)
{
	aside.machine = *m;
	aside.result = -ESRCH; /* somebody killed it */
	/* No signal at its end: the payload's is the one that init waits for. A number that is asked for does not advance
	 * the count: the payload is 2, as it would be without this. */
	aside.pid = clone_shared(&aside_stack, CLONE_VM | CLONE_FILES, 0, run_aside, NULL, NULL, m->header->flags & ISO_TAPE_PIDNS ? 2 : 0);
	if (aside.pid < 0)
		/* There was no room for a second one. What it does can be done here as well, it takes longer. */
		aside.result = iso_machine_run(&aside.machine, ISO_ASIDE);
	return 0;
}

static int64_t meet_aside(struct iso_machine *m)
{
	int64_t r = 0;
	while (aside.pid > 0 && (r = SYS4(wait4, aside.pid, 0, 0x40000000 /* __WALL */, 0)) == -EINTR)
		;
	if (r < 0)
		return r;
	m->aside_op = aside.machine.failed_op;
	return aside.result;
}

int64_t iso_engine_op(struct iso_machine *m, const struct iso_op *op, const int64_t *arg)
{
	uint8_t byte = 0;
	int64_t r;
	switch (op->code) {
	case ISO_OP_SYNC:
		/* End of file instead of the byte: the supervisor has died. */
		do
			r = SYS3(read, m->sync_fd, PTR(&byte), 1);
		while (r == -EINTR);
		/* It stays open: its other end tells whether the supervisor lives. */
		return r == 1 ? 0 : r < 0 ? r : -EPIPE;
	case ISO_OP_SESSION:
		return session(m);
	case ISO_OP_FIND:
		return find_program(m);
	case ISO_OP_FDS:
		return place_descriptors(m);
	case ISO_OP_EXEC:
		return execute_program(m);
	case ISO_OP_RUN:
		return run_host_program(m, arg);
	case ISO_OP_MAP:
		return map_of_ids(arg);
	case ISO_OP_ASIDE:
		return begin_aside(m);
	case ISO_OP_MEET:
		return meet_aside(m);
	case ISO_OP_COVER:
		return iso_cover(arg[0], arg[1], arg[2]);
	default:
		return -ENOSYS;
	}
}

/* ---- payload and init ----------------------------------------------------------------------------------- */

static void run_payload(void *p)
{
	struct iso_machine *m = p;
	m->reg[ISO_REG_SELF] = SYS0(getpid);
	/* Only SIGKILL could have ended us so far; what the program gets is an empty mask and default actions. */
	int64_t r = set_mask(0);
	if (r < 0) {
		fail(m->shared, ISO_STAGE_SIGNALS, ISO_OP_NONE, r);
		exit_now(1);
	}
	r = iso_machine_run(m, ISO_PAYLOAD);
	fail(m->shared, ISO_STAGE_OPS, m->failed_op, r ? r : -ENOEXEC);
	exit_now(1);
}

static void pause_1ms(void)
{
	struct __kernel_timespec t = {.tv_sec = 0, .tv_nsec = 1000000};
	SYS2(nanosleep, PTR(&t), 0);
}

static void send_record(const void *record, size_t size, int32_t pass)
{
	struct {
		uint64_t length;
		int32_t level, type, fd, pad;
	} control = {20, SOL_SOCKET_, SCM_RIGHTS_, pass, 0};
	struct part iov = {(void *)(uintptr_t)record, size};
	struct message message = {0, 0, &iov, 1, pass >= 0 ? &control : 0, pass >= 0 ? sizeof control : 0, 0};
	/* The kernel may be short of memory for a moment; and without the last record nobody knows how it ended. */
	for (int i = 0; i < 1000; i++) {
		int64_t r = SYS3(sendmsg, ISO_SLOT_CONTROL, PTR(&message), MSG_NOSIGNAL_);
		if (r >= 0 || r == -EPIPE || r == -ECONNRESET || r == -EBADF || r == -EMSGSIZE)
			return; /* told, or nobody listens any more */
		pause_1ms();
	}
}

/* `pid`: the program's, where it is the same for the Python program; else 0. */
static void send_started(int32_t pidfd, int64_t pid)
{
	struct iso_record record;
	memset(&record, 0, sizeof record);
	record.kind = ISO_RECORD_STARTED;
	record.status = (int32_t)pid;
	send_record(&record, sizeof record, pidfd);
}

/* Who waits for "started" is told the program's pid, as the kernel translates it: nobody has to look into a /proc that may
 * be another's, or be late. To name another process than oneself takes CAP_SYS_ADMIN over the pid namespace: whoever has
 * made or joined one has it. 0, or -errno. */
static int64_t send_pid(int64_t pid)
{
	const uint32_t kind = ISO_RECORD_PROGRAM;
	struct {
		uint64_t length;
		int32_t level, type, pid;
		uint32_t uid, gid, pad;
	} control = {28, SOL_SOCKET_, 2 /* SCM_CREDENTIALS */, (int32_t)pid, 0, 0, 0};
	control.uid = (uint32_t)SYS0(getuid);
	control.gid = (uint32_t)SYS0(getgid);
	struct part iov = {(void *)(uintptr_t)&kind, sizeof kind};
	struct message message = {0, 0, &iov, 1, &control, sizeof control, 0};
	return SYS3(sendmsg, ISO_SLOT_CONTROL, PTR(&message), MSG_NOSIGNAL_);
}

/* CPU time of a process alone, without its children; also of one that has ended and was not reaped. */
static uint64_t cpu_clock(int64_t pid)
{
	struct __kernel_timespec t = {0, 0};
	/* MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_PROF): the one that RLIMIT_CPU is compared with. It counts in ticks, and can be
	 * ahead of the scheduler's. */
	if (SYS2(clock_gettime, (int64_t)(int32_t)(~(uint32_t)pid << 3), PTR(&t)) < 0)
		return 0;
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

#define ALONE (-2) /* in place of a payload's pid: there is none, and init stays until it is killed */

static void init_loop(struct iso_machine *m, int64_t payload) __attribute__((noreturn));
static void init_loop(struct iso_machine *m, int64_t payload)
{
	const uint64_t all = ~0ull;
	uint8_t info[128];
	for (;;) {
		int32_t status = 0;
		const uint64_t used = payload == ALONE ? 0 : cpu_clock(payload); /* once it is reaped nobody can say */
		int64_t pid = SYS4(wait4, -1, PTR(&status), 1 /* WNOHANG */, 0);
		if (pid == payload) {
			m->shared->ended_ns = now();
			m->shared->program_ns = used;
			m->shared->status = status;
			m->shared->complete |= ISO_COMPLETE_STATUS;
			/* PID 1 would take its namespace along, but what the kernel reaps then nobody accounts for: so kill and
			 * reap here. In a pid namespace that was joined, what is left when we go would be another's for good. */
			if (m->header->flags & ISO_TAPE_PIDNS) {
				/* Everybody here descends from us, so no child left means nobody left; and kill(-1) looks at every
				 * process of the host. */
				if (SYS4(wait4, -1, 0, 0x40000001 /* __WALL | WNOHANG */, 0) != -ECHILD)
					SYS2(kill, -1, SIGKILL_);
			} else {
				close_fd(m->exec_fd); /* tells the supervisor, which sees our children and kills them */
			}
			while (SYS4(wait4, -1, 0, 0x40000000 /* __WALL */, 0) > 0)
				;
			if (m->header->flags & ISO_TAPE_PIDNS) {
				m->shared->reaped = 1;
				close_fd(m->exec_fd); /* tells the supervisor, if there is something to report */
			}
			exit_now(0);
		}
		if (pid == -ECHILD && payload != ALONE)
			exit_now(0); /* the payload can only be gone unseen if somebody has reaped for us */
		if (pid != 0 && pid != -ECHILD)
			continue;
		int64_t signal = SYS4(rt_sigtimedwait, PTR(&all), PTR(info), 0, 8);
		if (signal > 0 && signal != SIGCHLD_ && payload != ALONE)
			SYS2(kill, payload, signal);
	}
}

/* The kernel kills us when the supervisor dies from here on; and if it died before this, nobody would. */
static int64_t die_with_supervisor(const struct iso_machine *m)
{
	int64_t r = SYS2(prctl, PR_SET_PDEATHSIG, SIGKILL_);
	return r < 0 ? r : supervisor_lives(m);
}

/* Move one of our descriptors off the numbers that the program's are put at. */
static int64_t lift(const struct iso_machine *m, int32_t *fd)
{
	const struct iso_fd *fds = (const void *)((const uint8_t *)m->run + m->run->fds);
	for (uint32_t i = 0; i < m->run->fdc; i++) {
		if ((int64_t)fds[i].target != *fd)
			continue;
		int64_t r = SYS3(fcntl, *fd, F_DUPFD_CLOEXEC, (int64_t)fds[m->run->fdc - 1].target + 1);
		if (r < 0)
			return r;
		close_fd(*fd);
		*fd = (int32_t)r;
		break;
	}
	return 0;
}

/* Descriptors of a message; how many. */
static uint32_t received(const uint8_t *control, uint64_t length, int32_t *fds)
{
	uint32_t count = 0;
	for (uint64_t at = 0; at + 16 <= length;) {
		uint64_t size;
		int32_t level, type;
		memcpy(&size, control + at, sizeof size);
		memcpy(&level, control + at + 8, sizeof level);
		memcpy(&type, control + at + 12, sizeof type);
		if (size < 16 || size > length - at)
			break;
		if (level == SOL_SOCKET_ && type == SCM_RIGHTS_)
			for (uint64_t i = 16; i + 4 <= size && count < ISO_MAX_PASSED + 5; i += 4)
				memcpy(&fds[count++], control + at + i, 4);
		at += (size + 7) & ~7ull;
	}
	return count;
}

static int is_null(int64_t fd)
{
	struct statx st;
	return SYS5(statx, fd, PTR(""), 0x1000 /* AT_EMPTY_PATH */, STATX_BASIC_STATS, PTR(&st)) == 0 &&
	       (st.stx_mode & S_IFMT) == S_IFCHR && st.stx_rdev_major == 1 && st.stx_rdev_minor == 3;
}

static uint8_t later_block[65536] __attribute__((aligned(8)));

/* Everything is set up but the program: wait for what it is to be, and put its descriptors where its block has them.
 * Nothing that is not ours runs inside yet. */
static int64_t take_run(struct iso_machine *m)
{
	static uint8_t control[16 + 4 * (ISO_MAX_PASSED + 4)] __attribute__((aligned(8)));
	int32_t fds[ISO_MAX_PASSED + 5];
	struct part iov = {later_block, sizeof later_block};
	struct message message = {0, 0, &iov, 1, control, sizeof control, 0};
	const int64_t socket = m->run->later;
	int64_t r;
	do
		r = SYS3(recvmsg, socket, PTR(&message), 0x40000000 /* MSG_CMSG_CLOEXEC */);
	while (r == -EINTR);
	if (r < 0)
		return r;
	if (r == 0)
		exit_now(0); /* nobody wants it any more: the supervisor has seen that too */
	m->shared->began_ns = now();
	if (message.flags & 0x28 /* MSG_CTRUNC | MSG_TRUNC */)
		return -EMFILE;
	uint32_t count = received(control, message.control_length, fds);
	int32_t *fd = fds;
	struct iso_run *run = (void *)later_block;
	uint64_t size = (uint64_t)r;
	if (size == sizeof *run && count) {
		struct statx st;
		r = SYS5(statx, fd[0], PTR(""), 0x1000 /* AT_EMPTY_PATH */, STATX_SIZE, PTR(&st));
		if (r < 0)
			return r;
		size = st.stx_size;
		int64_t base = SYS6(mmap, 0, size, PROT_RW, MAP_PRIVATE | MAP_POPULATE, fd[0], 0);
		if (!mapped(base))
			return base;
		SYS1(close, fd[0]);
		run = (void *)base;
		fd++;
		count--;
	}
	r = iso_run_check((const uint8_t *)run, size, m->header->slots);
	if (r < 0)
		return r;
	if (count < 3 || run->slots < ISO_SLOT_FREE + (count - 3))
		return -EBADMSG;
	for (int i = 0; i < 3; i++) {
		/* What stands there is the null device, and steps may have exchanged it for one that is not the host's. */
		r = is_null(fd[i]) && is_null(i) ? 0 : SYS3(dup3, fd[i], i, O_CLOEXEC);
		if (r < 0)
			return r;
		SYS1(close, fd[i]);
	}
	/* Taken: whoever sent it waits for this, and gives it to another where it does not come. */
	r = SYS6(sendto, socket, PTR("1"), 1, MSG_NOSIGNAL_, 0, 0);
	if (r < 0 && r != -EPIPE && r != -ECONNRESET)
		return r; /* not said, so it must not be done: the run is another's by now */
	SYS1(close, socket);
	/* Down into the gaps: the program's limit of open files is in force before they are put where it wants them, and they
	 * need no more room then than those of a sandbox that did not wait. */
	for (uint32_t i = 3; i < count; i++) {
		r = SYS3(fcntl, fd[i], F_DUPFD_CLOEXEC, ISO_SLOT_FREE);
		if (r < 0)
			break;
		const int32_t higher = r < fd[i] ? fd[i] : (int32_t)r;
		fd[i] = r < fd[i] ? (int32_t)r : fd[i];
		SYS1(close, higher);
	}
	struct iso_fd *table = (void *)((uint8_t *)run + run->fds);
	const uint32_t first = run->slots - (count - 3);
	for (uint32_t i = 0; i < run->fdc; i++)
		if (table[i].slot >= first)
			table[i].slot = (uint32_t)fd[3 + table[i].slot - first];
	m->run = run;
	return 0;
}

/* The program runs, or there is none to run: keep what init needs, tell it where that is wanted, and stay. */
static void settle(struct iso_machine *m, int64_t payload, int32_t pidfd) __attribute__((noreturn));
static void settle(struct iso_machine *m, int64_t payload, int32_t pidfd)
{
	struct iso_shared *shared = m->shared;
	const int tell = (m->run->flags & ISO_RUN_STARTED) != 0;
	shared->complete = ISO_COMPLETE_STARTED;
	/* While we have the right to. */
	const int64_t known = tell ? send_pid(payload == ALONE ? SYS0(getpid) : payload) : 0;
	int64_t r = iso_machine_run(m, ISO_AFTER);
	if (r < 0) {
		fail(shared, ISO_STAGE_OPS, m->failed_op, r);
		exit_now(1);
	}
	if (tell)
		send_started(pidfd, known < 0 && !(m->header->flags & ISO_TAPE_PIDNS) ? payload : 0);
	/* Of ourselves, and of the children reaped so far: the second process. */
	for (int who = 0 /* RUSAGE_SELF */; who >= -1 /* RUSAGE_CHILDREN */; who--) {
		struct rusage own;
		if (SYS2(getrusage, who, PTR(&own)) == 0) {
			shared->own_ns[0] += nanoseconds(&own.ru_utime);
			shared->own_ns[1] += nanoseconds(&own.ru_stime);
		}
	}
	if (m->exec_fd > 0)
		SYS3(close_range, 0, m->exec_fd - 1, 0);
	SYS3(close_range, m->exec_fd + 1, ~0u, 0);
	init_loop(m, payload);
}

static void leave_tree(void)
{
	close_fd(tree.mounts);
	close_fd(tree.users);
	close_fd(tree.hidden);
	close_fd(tree.own);
	close_fd(tree.root);
	tree.mounts = tree.users = tree.hidden = tree.own = tree.root = -1;
}

/* The tree is built and the working directory is the hidden one: give the launcher what it enters it by. */
static void hand_tree_over(struct iso_machine *m) __attribute__((noreturn));
static void hand_tree_over(struct iso_machine *m)
{
	struct {
		uint64_t length;
		int32_t level, type, fds[4];
	} control = {28, SOL_SOCKET_, SCM_RIGHTS_, {-1, -1, -1, 0}};
	static const char *const names[] = {"proc/self/ns/mnt", "proc/self/ns/user", "."};
	uint8_t byte = 1;
	/* What was pinned goes along: our memory is not the launcher's. */
	struct part parts[2] = {{&byte, 1}, {m->data + m->header->report_offset, m->header->report_size}};
	struct message message = {0, 0, parts, 2, &control, sizeof control, 0};
	int64_t r = 0;
	for (int i = 0; i < 3 && r >= 0; i++) {
		r = SYS4(openat, AT_FDCWD, PTR(names[i]), (i < 2 ? O_RDONLY : O_PATH | O_DIRECTORY) | O_CLOEXEC, 0);
		control.fds[i] = (int32_t)r;
	}
	if (r >= 0)
		r = SYS3(sendmsg, m->exec_fd, PTR(&message), MSG_NOSIGNAL_);
	if (r < 0) {
		fail(m->shared, ISO_STAGE_TEMPLATE, ISO_OP_NONE, r);
		exit_now(1);
	}
	/* Nobody answers: the end of the other end is the word that they have been taken. */
	do
		r = SYS3(read, m->exec_fd, PTR(&byte), 1);
	while (r == -EINTR);
	exit_now(0);
}

/* Tell that we run. The kernel kills who is born into a group by CLONE_INTO_CGROUP if that group and the parent's were
 * not killed (cgroup.kill) as often as one another: Linux 6.16 and later compare the counts. `group` is then -1 or, the
 * second time, the file by which we go there ourselves. */
static void run_init(struct iso_machine *m, int32_t group) __attribute__((noreturn));
static void run_init(struct iso_machine *m, int32_t group)
{
	struct iso_shared *shared = m->shared;
	m->reg[ISO_REG_SELF] = SYS0(getpid);
	leave_tree();
	if (m->header->cgroup_register != ISO_NONE) {
		__atomic_store_n(&shared->born, 1, __ATOMIC_RELEASE);
		SYS6(futex, PTR(&shared->born), FUTEX_WAKE, 1, 0, 0, 0);
	}
	if (group >= 0) {
		const int64_t moved = SYS3(write, group, PTR("0"), 1);
		if (moved < 0) {
			fail(shared, ISO_STAGE_CLONE_INIT, ISO_OP_NONE, moved);
			exit_now(1);
		}
		close_fd(group);
	}
	/* Before the wait for the supervisor (OP_SYNC): if it dies earlier than this line, the wait ends with EPIPE;
	 * if later, the kernel kills us. A change of credentials clears this, hence once more below. */
	int64_t r = SYS2(prctl, PR_SET_PDEATHSIG, SIGKILL_);
	if (r == 0 && !(m->header->flags & ISO_TAPE_PIDNS))
		r = SYS2(prctl, PR_SET_CHILD_SUBREAPER, 1);
	/* A process group of its own: what is sent to the launcher's is not for init. The session stays the launcher's, which
	 * has no terminal: with each new one the scheduler makes a group (autogroup), which takes longer than all else here.
	 * Where there is no init, the program itself makes a session later (OP_SESSION). */
	if (r == 0 && (m->header->flags & ISO_TAPE_INIT))
		r = SYS2(setpgid, 0, 0);
	if (r < 0) {
		fail(shared, ISO_STAGE_OWNER, ISO_OP_NONE, r);
		exit_now(1);
	}
	r = iso_machine_run(m, ISO_INIT);
	if (r < 0) {
		fail(shared, ISO_STAGE_OPS, m->failed_op, r);
		exit_now(1);
	}
	r = die_with_supervisor(m);
	if (r < 0) {
		fail(shared, ISO_STAGE_OWNER, ISO_OP_NONE, r);
		exit_now(1);
	}
	if (m->header->flags & ISO_TAPE_PARKED)
		hand_tree_over(m);
	if (m->run->later && (r = take_run(m)) < 0) {
		fail(shared, ISO_STAGE_LATER, ISO_OP_NONE, r);
		exit_now(1);
	}
	if (!(m->header->flags & ISO_TAPE_INIT)) {
		/* The program's descriptors may be wanted where these two stand: the one that exec closes would say "executed"
		 * when it is overwritten. */
		if (lift(m, &m->sync_fd) < 0 || lift(m, &m->exec_fd) < 0) {
			fail(shared, ISO_STAGE_PIPE, ISO_OP_NONE, -EMFILE);
			exit_now(1);
		}
		run_payload(m);
	}

	if (m->run->flags & ISO_RUN_ALONE)
		settle(m, ALONE, (int32_t)SYS2(pidfd_open, SYS0(getpid), 0));

	int32_t pidfd = -1;
	const int tell = (m->run->flags & ISO_RUN_STARTED) != 0;
	/* CLONE_VFORK: we go on when the program has been executed or has died, which is the moment to know which. */
	uint64_t flags = CLONE_VFORK | (tell ? CLONE_PIDFD : 0);
	if (m->header->flags & ISO_TAPE_SHARE)
		flags |= CLONE_VM;
	int64_t payload;
	if (flags & CLONE_VM) {
		payload = clone_shared(&child_stack, flags, SIGCHLD_, run_payload, m, &pidfd, 0);
	} else {
		payload = SYS5(clone, flags | SIGCHLD_, 0, PTR(&pidfd), 0, 0);
		if (payload == 0)
			run_payload(m);
	}
	if (payload < 0) {
		fail(shared, ISO_STAGE_CLONE_PAYLOAD, ISO_OP_NONE, payload);
		exit_now(1);
	}
	if (!shared->executing)
		fail(shared, ISO_STAGE_DEATH, ISO_OP_NONE, -ESRCH); /* somebody killed it on its way */
	if (shared->failed)
		exit_now(1);
	settle(m, payload, tell ? pidfd : -1);
}

/* ---- supervisor ----------------------------------------------------------------------------------------- */

static int holds(const struct supervisor *s, int capability)
{
	return (s->capabilities[capability / 32 * 3] >> capability % 32 & 1) != 0;
}

static int64_t get_capabilities(uint32_t *sets)
{
	const struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	return SYS2(capget, PTR(&header), PTR(sets));
}

static int64_t set_capabilities(const uint32_t *sets)
{
	const struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	return SYS2(capset, PTR(&header), PTR(sets));
}

/* A user namespace belongs to the effective uid of whoever makes it, and every process with that uid outside of it has all
 * capabilities over it, even one that was given none: a program that runs as root in another sandbox could trace what runs
 * in this one, and by its root directory get at the host's files. So root makes it under a uid that nobody has. Root needs
 * CAP_SYS_PTRACE then to look into its own sandboxes, hence not without. */
#define OWNER 0xfffffffdu

static int take_owner(const struct supervisor *s)
{
	if (!(s->machine.header->clone_flags & CLONE_NEWUSER) || (s->machine.header->flags & ISO_TAPE_OWNED) || !s->root ||
	    !holds(s, CAP_SYS_PTRACE) || !holds(s, CAP_SETUID) || !holds(s, CAP_SETFCAP))
		return 0;
	/* EINVAL in a user namespace that does not map it: root of that one stays the owner. */
	if (SYS3(setresuid, -1, OWNER, -1) < 0)
		return 0;
	/* Files are opened as root all the same, and the change of uid has put the capabilities aside. */
	SYS1(setfsuid, 0);
	set_capabilities(s->capabilities);
	SYS2(prctl, PR_SET_DUMPABLE, 0); /* fs.suid_dumpable may say otherwise of a change of uid */
	return 1;
}

/* Into the mount namespace with the tree: the child gets a copy of it. Its root is then the tree's, its working directory
 * the hidden one, which nothing but this leads to. */
static int64_t enter_tree(void)
{
	int64_t r = 0;
	if (tree.users >= 0) {
		r = SYS2(setns, tree.users, CLONE_NEWUSER);
		/* The kernel's own value after a change of credentials is in fs.suid_dumpable; begin_child says which holds. */
		if (r >= 0)
			r = SYS2(prctl, PR_SET_DUMPABLE, 1);
	}
	if (r >= 0)
		r = SYS2(setns, tree.mounts, CLONE_NEWNS);
	return r < 0 ? r : SYS1(fchdir, tree.hidden);
}

/* Where the caller's own mounts are, and its root. */
static int64_t back_outside(void)
{
	int64_t r = SYS2(setns, tree.own, CLONE_NEWNS);
	if (r >= 0)
		r = SYS1(fchdir, tree.root);
	return r < 0 ? r : SYS1(chroot, PTR("."));
}

static int64_t clone_init(struct supervisor *s, int into_group)
{
	struct iso_machine *m = &s->machine;
	struct clone_args args;
	memset(&args, 0, sizeof args);
	args.flags = m->header->clone_flags | CLONE_PIDFD;
	args.pidfd = (uint64_t)(uintptr_t)&s->child_fd;
	args.exit_signal = SIGCHLD_;
	if (into_group) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (uint64_t)m->reg[m->header->cgroup_register];
	}
	int64_t within = tree.mounts < 0 ? 0 : enter_tree();
	if (within < 0)
		return within;
	const int other = take_owner(s);
	int64_t pid = SYS2(clone3, PTR(&args), sizeof args);
	if (pid == -ENOSYS && !into_group)
		pid = SYS5(clone, args.flags | SIGCHLD_, 0, PTR(&s->child_fd), 0, 0);
	if (other && pid != 0) {
		/* With that everything permitted is effective again. */
		int64_t r = SYS3(setresuid, -1, 0, -1);
		if (r >= 0 && (s->capabilities[0] != s->capabilities[1] || s->capabilities[3] != s->capabilities[4]))
			r = set_capabilities(s->capabilities);
		if (r < 0 && pid > 0) {
			SYS4(pidfd_send_signal, s->child_fd, SIGKILL_, 0, 0);
			SYS4(wait4, pid, 0, 0x40000000 /* __WALL */, 0);
			return r;
		}
	}
	if (tree.own >= 0 && pid != 0 && (within = back_outside()) < 0) {
		/* What is to be done outside is done in the caller's own mount namespace, or not at all. */
		if (pid > 0) {
			SYS4(pidfd_send_signal, s->child_fd, SIGKILL_, 0, 0);
			SYS4(wait4, pid, 0, 0x40000000 /* __WALL */, 0);
		}
		return within;
	}
	return pid;
}

/* Without a pid namespace: kill children until none is left; orphans come to us, a subreaper. */
static void kill_children(struct supervisor *s)
{
	char buffer[4096];
	for (;;) {
		iso_machine_clean(&s->machine, ISO_THAW);
		int64_t fd = SYS4(openat, s->proc, PTR("thread-self/children"), O_RDONLY | O_CLOEXEC, 0);
		if (fd >= 0) {
			int64_t n, pid = 0;
			while ((n = SYS3(read, fd, PTR(buffer), sizeof buffer)) > 0) {
				for (int64_t i = 0; i < n; i++) {
					if (buffer[i] >= '0' && buffer[i] <= '9') {
						pid = pid * 10 + (buffer[i] - '0');
					} else if (pid > 0) {
						SYS2(kill, pid, SIGKILL_);
						pid = 0;
					}
				}
			}
			close_fd(fd);
		}
		if (SYS4(wait4, -1, 0, 0x40000000 /* __WALL */, 0) < 0)
			return;
	}
}

static int64_t read_file(int64_t directory, const char *path, char *buffer, size_t size)
{
	int64_t fd = SYS4(openat, directory, PTR(path), O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	int64_t n = SYS3(read, fd, PTR(buffer), size - 1);
	close_fd(fd);
	buffer[n > 0 ? n : 0] = 0;
	return n;
}

static const char *find(const char *text, const char *wanted)
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

/* Whether the process that a /proc shows as ours has one number there: one for each pid namespace from that of the
 * mount on down to our own. (A name that a process gives itself has no newline in this file.) */
static int is_ours(int64_t proc)
{
	static char text[4096];
	if (read_file(proc, "self/status", text, sizeof text) <= 0)
		return 0;
	const char *p = find(text, "\nNSpid:\t");
	while (p && *p >= '0' && *p <= '9')
		p++;
	return p && *p == '\n';
}

/* /proc of our own pid namespace: the one that is mounted, or else an instance that is attached nowhere, where we may make
 * one. What another pid namespace's /proc says of a number is about somebody else. */
static int64_t open_proc(void)
{
	int64_t fd = SYS4(openat, AT_FDCWD, PTR("/proc"), O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	if (fd >= 0 && is_ours(fd))
		return fd;
	close_fd(fd);
	const int64_t context = SYS2(fsopen, PTR("proc"), 1 /* FSOPEN_CLOEXEC */);
	if (context < 0)
		return context;
	fd = SYS5(fsconfig, context, 6 /* FSCONFIG_CMD_CREATE */, 0, 0, 0);
	if (fd >= 0)
		fd = SYS3(fsmount, context, 1 /* FSMOUNT_CLOEXEC */, 0xe /* MOUNT_ATTR_NOSUID, NODEV, NOEXEC */);
	close_fd(context);
	if (fd >= 0 && !is_ours(fd)) {
		close_fd(fd);
		fd = -ENOENT;
	}
	return fd;
}

/* The fields of /proc/pid/stat behind the name, which may hold anything: so from the last parenthesis. The first is the
 * state. NULL if there is no such process. */
static const char *stat_fields(const struct supervisor *s, int64_t pid, char *text, size_t size)
{
	char path[64];
	put(put_decimal(path, pid), "/stat");
	if (read_file(s->proc, path, text, size) <= 0)
		return 0;
	const char *p = text, *last = 0;
	for (; *p; p++)
		if (*p == ')')
			last = p;
	return last && last + 4 < p ? last + 2 : 0;
}

static int64_t parent_of(const struct supervisor *s, int64_t pid)
{
	char text[512];
	const char *p = stat_fields(s, pid, text, sizeof text);
	if (!p)
		return -1;
	int64_t parent = 0;
	for (p += 2; *p >= '0' && *p <= '9'; p++)
		parent = parent * 10 + (*p - '0');
	return parent;
}

/* What a walk over the tree finds: bounded, and what does not fit is not seen this time. */
static int32_t pending[16384];

/* Put the children of all threads of a process into `pending` behind the first `count`; how many there are then. */
static uint32_t add_children(const struct supervisor *s, int64_t pid, uint32_t count)
{
	static char names[8192], text[16384];
	char path[64];
	put(put_decimal(path, pid), "/task");
	const int64_t tasks = SYS4(openat, s->proc, PTR(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	if (tasks < 0)
		return count;
	int64_t n;
	while ((n = SYS3(getdents64, tasks, PTR(names), sizeof names)) > 0) {
		for (int64_t at = 0; at < n;) {
			uint16_t length;
			memcpy(&length, names + at + 16, sizeof length);
			const char *name = names + at + 19;
			at += length;
			if (*name == '.')
				continue;
			put(put(path, name), "/children");
			const int64_t size = read_file(tasks, path, text, sizeof text);
			int64_t child = 0;
			for (int64_t i = 0; i < size; i++) {
				if (text[i] >= '0' && text[i] <= '9') {
					child = child * 10 + (text[i] - '0');
					continue;
				}
				if (child && count < sizeof pending / sizeof *pending)
					pending[count++] = (int32_t)child;
				child = 0;
			}
		}
	}
	close_fd(tasks);
	return count;
}

/* CPU time of everything below us: of who lives, and of those they have reaped. (proc(5): fields 14 to 17, in ticks of
 * USER_HZ, which is 100 on every architecture that we know.) */
static uint64_t tree_cpu(const struct supervisor *s)
{
	char text[512];
	uint64_t ticks = 0;
	pending[0] = (int32_t)s->child;
	for (uint32_t count = 1; count;) {
		const int64_t pid = pending[--count];
		const char *p = stat_fields(s, pid, text, sizeof text);
		for (int field = 0; p && field < 15; field++) {
			uint64_t value = 0;
			for (; *p && *p != ' '; p++)
				value = value * 10 + (uint64_t)(*p - '0');
			p += *p == ' ';
			if (field >= 11)
				ticks += value;
		}
		count = add_children(s, pid, count);
	}
	const uint64_t used = ticks * 10000000u, own = s->machine.shared->own_ns[0] + s->machine.shared->own_ns[1];
	return used > own ? used - own : 0;
}

/* Signal the children of init; how many there were. Init reaps meanwhile, so a number may be another's by now: what the
 * pidfd stands for was a child of init after it had been opened, or is dead. */
static int signal_children(const struct supervisor *s, int signal)
{
	char path[64], text[4096];
	put(put_decimal(put(put_decimal(path, s->child), "/task/"), s->child), "/children");
	int64_t n = read_file(s->proc, path, text, sizeof text), pid = 0;
	int seen = 0;
	/* The file is longer than this only with hundreds of children: a number cut off has no blank behind it. */
	for (int64_t i = 0; i < n; i++) {
		if (text[i] >= '0' && text[i] <= '9') {
			pid = pid * 10 + (text[i] - '0');
			continue;
		}
		int64_t fd = SYS2(pidfd_open, pid, 0);
		if (fd >= 0 && parent_of(s, pid) == s->child)
			SYS4(pidfd_send_signal, fd, signal, 0, 0);
		close_fd(fd);
		seen++;
		pid = 0;
	}
	return seen;
}

/* Without a pid namespace of its own init is a subreaper: every descendant is its child in the end, and while it lives
 * nobody else inherits them (in a pid namespace that was joined, another's PID 1 would). So they go first. */
static void drain(struct supervisor *s)
{
	struct pollfd fd = {.fd = s->child_fd, .events = POLLIN};
	/* A stopped init reaps nothing, and one that still sets up has no children: neither is waited for. */
	const uint64_t end = now() + 300000000;
	for (int quiet = 0; quiet < 20 && now() < end;) {
		int seen = signal_children(s, SIGKILL_);
		struct __kernel_timespec wait = {0, 1000000};
		quiet = seen ? 0 : quiet + 1;
		if (SYS5(ppoll, PTR(&fd), 1, PTR(&wait), 0, 0) > 0)
			return;
	}
}

static void kill_tree(struct supervisor *s)
{
	s->let_go = 1;
	/* Frozen by a v1 freezer nothing dies, whatever signal it has. */
	iso_machine_clean(&s->machine, ISO_THAW);
	if ((s->machine.header->flags & (ISO_TAPE_PIDNS | ISO_TAPE_INIT)) == ISO_TAPE_INIT)
		drain(s);
	/* Not reaped yet, so its pid is still its own. */
	if (SYS4(pidfd_send_signal, s->child_fd, SIGKILL_, 0, 0) < 0)
		SYS2(kill, s->child, SIGKILL_);
}

/* A section of the end; its first error is kept. */
static int64_t clean(struct supervisor *s, int section)
{
	const int64_t r = iso_machine_clean(&s->machine, section);
	if (r < 0 && s->clean_error == 0) {
		s->clean_error = r;
		s->clean_op = s->machine.failed_op;
	}
	return r;
}

static void report(struct supervisor *s)
{
	s->reported = 1;
	clean(s, ISO_REPORT);
}

static void limit(struct supervisor *s, uint64_t began, uint64_t timeout_ns, uint64_t cpu_ns)
{
	s->deadline = timeout_ns ? began + timeout_ns : 0;
	s->cpu_ns = cpu_ns;
	/* Without /proc of our own there is nothing to sample by: the caller has refused such a limit, or counts by a cgroup. */
	s->sample = cpu_ns && s->proc >= 0 ? began + 1 : 0;
	if (s->sample) {
		uint64_t mask[128];
		const int64_t size = SYS3(sched_getaffinity, 0, sizeof mask, PTR(mask));
		s->cpus = 0;
		for (int64_t i = 0; i < size / 8; i++)
			for (uint64_t bits = mask[i]; bits; bits &= bits - 1)
				s->cpus++;
		s->cpus = s->cpus ? s->cpus : 1;
	}
}

/* What came on the control socket: limits of a run that came later, or that we are to let go: end of file. Whatever else
 * there is has no meaning. */
static int wants_end(struct supervisor *s)
{
	for (;;) {
		struct iso_limits limits;
		const int64_t r = SYS6(recvfrom, ISO_SLOT_CONTROL, PTR(&limits), sizeof limits, 0x40 /* MSG_DONTWAIT */, 0, 0);
		if (r == -EAGAIN)
			return 0;
		if (r == sizeof limits)
			limit(s, now(), limits.timeout_ns, limits.cpu_ns);
		else if (r <= 0 && r != -EINTR)
			return 1;
	}
}

#define SAMPLE_SHORTEST 10000000u  /* the resolution of what /proc tells */
#define SAMPLE_LONGEST 1000000000u
#define AGAIN 100000000u           /* a kill is repeated: somebody may have frozen or stopped it again */
#define STOPPED 20000000u          /* how long set-up may take before we look whether somebody has stopped it */

static void exceed(struct supervisor *s, int32_t limit)
{
	if (!s->let_go)
		s->exceeded = limit;
	kill_tree(s);
}

/* Hold the limits of time; when to be called again, 0 for never. */
static uint64_t tick(struct supervisor *s)
{
	const uint64_t t = now();
	if (s->let_go) {
		kill_tree(s);
		return now() + AGAIN;
	}
	if (s->deadline && t >= s->deadline) {
		exceed(s, ISO_COMPLETE_TIMEOUT);
		return now() + AGAIN;
	}
	if (s->sample && t >= s->sample) {
		const uint64_t used = tree_cpu(s);
		if (used >= s->cpu_ns) {
			s->used_ns = used;
			exceed(s, ISO_COMPLETE_CPU_TIME);
			return now() + AGAIN;
		}
		uint64_t wait = (s->cpu_ns - used) / s->cpus;
		wait = wait < SAMPLE_SHORTEST ? SAMPLE_SHORTEST : wait > SAMPLE_LONGEST ? SAMPLE_LONGEST : wait;
		s->sample = t + wait;
	}
	uint64_t next = s->deadline;
	if (s->sample && (!next || s->sample < next))
		next = s->sample;
	/* Who shares our pid namespace, or the one that was joined, can have stopped what still sets up. */
	if (!(s->machine.header->flags & ISO_TAPE_PIDNS) && !(s->machine.shared->complete & ISO_COMPLETE_STARTED)) {
		SYS4(pidfd_send_signal, s->child_fd, SIGCONT_, 0, 0);
		signal_children(s, SIGCONT_);
		if (!next || t + STOPPED < next)
			next = t + STOPPED;
	}
	return next;
}

static void supervise(struct supervisor *s)
{
	struct iso_machine *m = &s->machine;
	/* Nothing can be late yet: the first look at the clock comes when there is a reason to. */
	uint64_t next = s->let_go ? now() + AGAIN : s->deadline;
	if (s->sample || (!s->let_go && !(m->header->flags & ISO_TAPE_PIDNS))) {
		const uint64_t soon = now() + STOPPED;
		next = !next || soon < next ? soon : next;
	}
	struct pollfd fds[4] = {
		{.fd = s->child_fd, .events = POLLIN},
		{.fd = ISO_SLOT_CONTROL, .events = POLLIN},
		{.fd = ISO_SLOT_OWNER, .events = POLLIN},
		{.fd = s->exec_fd, .events = POLLIN},
	};
	for (;;) {
		struct __kernel_timespec wait = {0, 0};
		if (next) {
			const uint64_t t = now(), left = next > t ? next - t : 0;
			wait.tv_sec = (int64_t)(left / 1000000000u);
			wait.tv_nsec = (int64_t)(left % 1000000000u);
		}
		int64_t r = SYS5(ppoll, PTR(fds), 4, next ? PTR(&wait) : 0, 0, 0);
		if (r == -EINTR || r == -EAGAIN || r == -ENOMEM)
			continue;
		if (r < 0) {
			fail(m->shared, ISO_STAGE_POLL, ISO_OP_NONE, r);
			kill_tree(s);
			return;
		}
		if (fds[3].revents) {
			fds[3].fd = -1;
			if ((m->header->flags & (ISO_TAPE_PIDNS | ISO_TAPE_INIT)) == (ISO_TAPE_PIDNS | ISO_TAPE_INIT)) {
				/* The counters are read while the kernel takes the namespaces down. Init that was killed has reaped nobody. */
				if (m->shared->reaped)
					report(s);
			} else if (m->header->flags & ISO_TAPE_INIT) {
				drain(s); /* the program has ended: what it left behind goes too */
			} else if (!m->shared->failed && m->shared->executing) {
				m->shared->complete |= ISO_COMPLETE_STARTED;
				if (m->run->flags & ISO_RUN_STARTED)
					send_started(s->child_fd, s->child);
			}
		}
		if (fds[0].revents)
			return;
		/* The Python program ended (its pidfd), or let go of the sandbox. */
		if (fds[2].revents || (fds[1].revents && wants_end(s))) {
			kill_tree(s);
			fds[1].fd = fds[2].fd = -1;
			next = now() + AGAIN;
		} else if (fds[1].revents || (next && now() >= next)) {
			next = tick(s);
		}
	}
}

static size_t record_size(const struct iso_header *h)
{
	return sizeof(struct iso_record) + h->steps + h->report_size;
}

static void tell_end(const struct supervisor *s)
{
	const struct iso_machine *m = &s->machine;
	struct iso_record *record = s->record;
	const struct iso_shared *shared = m->shared;
	const uint32_t skipped = m->header->steps;
	const uint32_t report = m->header->report_size;
	struct rusage tree;
	memset(&tree, 0, sizeof tree);
	SYS2(getrusage, -1 /* RUSAGE_CHILDREN */, PTR(&tree));
	record->kind = shared->failed ? ISO_RECORD_FAILED : ISO_RECORD_ENDED;
	record->error = shared->failed ? shared->error : (int32_t)-s->clean_error;
	record->op = shared->failed ? shared->op : s->clean_error ? s->clean_op : ISO_OP_NONE;
	record->stage = shared->stage;
	record->status = shared->status;
	record->init_status = (int32_t)s->init_status;
	record->complete = shared->complete | s->exceeded;
	record->user_ns = nanoseconds(&tree.ru_utime);
	record->system_ns = nanoseconds(&tree.ru_stime);
	record->user_ns -= shared->own_ns[0] < record->user_ns ? shared->own_ns[0] : record->user_ns;
	record->system_ns -= shared->own_ns[1] < record->system_ns ? shared->own_ns[1] : record->system_ns;
	/* What the kernel reaps itself when init is killed nobody accounts for, but it was seen before. */
	if (record->user_ns + record->system_ns < s->used_ns)
		record->user_ns = s->used_ns - record->system_ns;
	record->max_rss = (uint64_t)tree.ru_maxrss * 1024;
	const uint64_t began = shared->began_ns ? shared->began_ns : s->started_ns;
	/* Init's clock is another one where it has joined a time namespace: a time that cannot be is not used. */
	const uint64_t ended = shared->ended_ns > began && shared->ended_ns < s->ended_ns ? shared->ended_ns : s->ended_ns;
	record->wall_ns = ended > began ? ended - began : 0;
	record->program_ns = shared->program_ns;
	record->skipped_size = skipped;
	record->report_size = report;
	if (shared->failed) {
		record->head_size = shared->head_size;
		memcpy(record->head, shared->head, ISO_HEAD);
	}
	uint8_t *rest = (uint8_t *)(record + 1);
	memcpy(rest, shared->skipped, skipped);
	memcpy(rest + skipped, m->data + m->header->report_offset, report);
	if (shared->parked)
		record->kind = ISO_RECORD_PARKED;
	send_record(record, record_size(m->header), -1);
}

static void refuse(uint32_t stage, int64_t error) __attribute__((noreturn));
static void refuse(uint32_t stage, int64_t error)
{
	struct iso_record record;
	memset(&record, 0, sizeof record);
	record.kind = ISO_RECORD_FAILED;
	record.error = (int32_t)-error;
	record.stage = stage;
	record.op = ISO_OP_NONE;
	send_record(&record, sizeof record, -1);
	exit_now(1);
}

/* A tape, with or without a run block behind it, as memory of ours; its descriptor is closed. */
static uint8_t *map_tape(int32_t fd, uint64_t *size)
{
	struct statx st;
	int64_t r = SYS5(statx, fd, PTR(""), 0x1000 /* AT_EMPTY_PATH */, STATX_SIZE | STATX_TYPE, PTR(&st));
	if (r < 0)
		refuse(ISO_STAGE_TAPE, r);
	/* A pipe that holds all of it already, where a file may not be so long (RLIMIT_FSIZE). */
	const int piped = (st.stx_mode & S_IFMT) == S_IFIFO;
	int32_t available = 0;
	if (piped && (r = SYS3(ioctl, fd, 0x541b /* FIONREAD */, PTR(&available))) < 0)
		refuse(ISO_STAGE_TAPE, r);
	if (piped)
		st.stx_size = (uint64_t)available;
	if (st.stx_size < sizeof(struct iso_header) || st.stx_size > 2ull * ISO_MAX_TAPE)
		refuse(ISO_STAGE_TAPE, -EBADMSG);
	/* POPULATE: all of it will be read at once. Not writable yet: the kernel would copy every page of it at once,
	 * and few are written. */
	int64_t base = piped ? SYS6(mmap, 0, st.stx_size, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
			     : SYS6(mmap, 0, st.stx_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
	if (!mapped(base))
		refuse(ISO_STAGE_MEMORY, base);
	uint8_t *tape = (uint8_t *)base;
	for (uint64_t at = 0; piped && at < st.stx_size; at += (uint64_t)r) {
		r = SYS3(read, fd, PTR(tape + at), st.stx_size - at);
		if (r == -EINTR)
			r = 0;
		else if (r <= 0)
			refuse(ISO_STAGE_TAPE, r ? r : -EBADMSG);
	}
	/* Nobody needs it any more, and no process of the sandbox's has a way to it. */
	SYS1(close, fd);
	r = iso_tape_check(tape, st.stx_size);
	if (r < 0)
		refuse(ISO_STAGE_TAPE, r);
	*size = st.stx_size;
	return tape;
}

/* Memory for what a tape of ours fills. */
static void equip(struct supervisor *s, uint8_t *tape)
{
	const struct iso_header *h = (const void *)tape;
	const uint64_t registers = h->registers * sizeof(int64_t);
	int64_t base = SYS6(mmap, 0, registers, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!mapped(base))
		refuse(ISO_STAGE_MEMORY, base);
	s->shared_size = (uint32_t)(sizeof(struct iso_shared) + h->steps);
	int64_t shared = SYS6(mmap, 0, s->shared_size, PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!mapped(shared))
		refuse(ISO_STAGE_MEMORY, shared);
	int64_t record = SYS6(mmap, 0, record_size(h), PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!mapped(record))
		refuse(ISO_STAGE_MEMORY, record);
	s->record = (struct iso_record *)record;
	iso_machine_init(&s->machine, tape, (int64_t *)base, (struct iso_shared *)shared);
}

static void load(struct supervisor *s)
{
	uint64_t size;
	uint8_t *tape = map_tape(ISO_SLOT_TAPE, &size);
	const struct iso_header *h = (const void *)tape;
	int64_t r = iso_run_check(tape + h->size, size - h->size, h->slots);
	if (r == 0 && ((const struct iso_run *)(const void *)(tape + h->size))->later && !(h->flags & ISO_TAPE_INIT))
		r = -EBADMSG; /* only an init can wait for what the program is to be */
	if (r < 0)
		refuse(ISO_STAGE_TAPE, r);
	/* Registers' values and addresses are stored into the data, and into the tables of the run block behind it. */
	r = SYS3(mprotect, PTR(tape), size, PROT_RW);
	if (r < 0)
		refuse(ISO_STAGE_MEMORY, r);
	equip(s, tape);
	s->machine.run = (const void *)(tape + h->size);
}

/* Everything that only the child needs: with a copy here no pipe of the payload's would ever end. */
static void close_slots(const struct iso_machine *m)
{
	SYS3(close_range, 0, 2, 0);
	if (m->run->slots > ISO_SLOT_FREE)
		SYS3(close_range, ISO_SLOT_FREE, m->run->slots - 1, 0);
}

/* Make the child and do for it what only the outside can; a failure is recorded. */
static int64_t begin_child(struct supervisor *s, int32_t group)
{
	struct iso_machine *m = &s->machine;
	const uint32_t flags = m->header->flags;
	int32_t sync[2], exec[2] = {-1, -1};
	s->child = -1;
	/* The /proc files of a process that is not dumpable are root's. Root writes a new user namespace's id maps all the same;
	 * an ordinary user could not, so for those until the maps are written. That shows it to nobody but the processes of that
	 * user which are in no user namespace below, and those may trace the Python program itself; a pid namespace that was
	 * joined may hold others, so there it is refused. */
	int64_t r = 0;
	if ((m->header->clone_flags & CLONE_NEWUSER) && !s->root && !holds(s, CAP_DAC_OVERRIDE) &&
	    !(m->header->flags & ISO_TAPE_STRANGERS))
		r = SYS2(prctl, PR_SET_DUMPABLE, 1);
	if (r >= 0)
		r = SYS2(pipe2, PTR(sync), O_CLOEXEC);
	/* Closed by exec, where the child itself becomes the program; else by init when it has ended, where that is wanted. */
	if (r == 0 && (flags & ISO_TAPE_PARKED))
		r = SYS4(socketpair, 1 /* AF_UNIX */, 5 /* SOCK_SEQPACKET */ | O_CLOEXEC, 0, PTR(exec));
	else if (r == 0 && ((flags & (ISO_TAPE_INIT | ISO_TAPE_PIDNS)) != (ISO_TAPE_INIT | ISO_TAPE_PIDNS) ||
		       m->header->section[ISO_REPORT].count))
		r = SYS2(pipe2, PTR(exec), O_CLOEXEC);
	if (r < 0) {
		fail(m->shared, ISO_STAGE_PIPE, ISO_OP_NONE, r);
		return r;
	}
	s->started_ns = now();
	s->child = clone_init(s, m->header->cgroup_register != ISO_NONE && group < 0);
	if (s->child == 0) {
		close_fd(sync[1]);
		close_fd(exec[0]);
		m->sync_fd = sync[0];
		m->exec_fd = exec[1];
		run_init(m, group);
	}
	if (s->child < 0) {
		fail(m->shared, tree.mounts >= 0 ? ISO_STAGE_TEMPLATE : ISO_STAGE_CLONE_INIT, ISO_OP_NONE, s->child);
		return s->child;
	}
	close_fd(sync[0]);
	close_fd(exec[1]);
	s->exec_fd = exec[0];
	s->sync_fd = sync[1];
	m->reg[ISO_REG_CHILD] = s->child;
	r = iso_machine_run(m, ISO_SUPERVISOR);
	if (r < 0) {
		fail(m->shared, ISO_STAGE_OPS, m->failed_op, r);
		return r;
	}
	const uint8_t byte = 1;
	/* SIGPIPE is blocked; if the child is gone its pidfd says so. */
	do
		r = SYS3(write, s->sync_fd, PTR(&byte), 1);
	while (r == -EINTR);
	/* It stays open: a child that finds the other end gone ends itself. */
	if (r >= 0)
		r = SYS2(prctl, PR_SET_DUMPABLE, 0);
	if (r < 0 && r != -EPIPE) {
		fail(m->shared, ISO_STAGE_PIPE, ISO_OP_NONE, r);
		return r;
	}
	return 0;
}

/* Whether the child ended without having run at all. It has its own copy of everything and goes on while this waits. */
static int died_at_birth(struct supervisor *s)
{
	uint32_t *born = &s->machine.shared->born;
	const uint64_t until = now() + 1000000000; /* frozen, or stopped by somebody, it is at least alive */
	struct pollfd fd = {.fd = s->child_fd, .events = POLLIN};
	struct __kernel_timespec moment = {0, 2000000}, none = {0, 0};
	for (;;) {
		if (__atomic_load_n(born, __ATOMIC_ACQUIRE) || now() > until)
			return 0;
		SYS6(futex, PTR(born), FUTEX_WAIT, 0, PTR(&moment), 0, 0);
		none.tv_sec = none.tv_nsec = 0;
		if (SYS5(ppoll, PTR(&fd), 1, PTR(&none), 0, 0) > 0)
			return !__atomic_load_n(born, __ATOMIC_ACQUIRE);
		/* Somebody may have stopped it: whoever wants an end of this says so there. */
		struct pollfd ends[2] = {{.fd = ISO_SLOT_CONTROL, .events = POLLHUP}, {.fd = ISO_SLOT_OWNER, .events = POLLIN}};
		none.tv_sec = none.tv_nsec = 0;
		if (SYS5(ppoll, PTR(ends), 2, PTR(&none), 0, 0) > 0)
			return 0;
	}
}

static void bury(struct supervisor *s)
{
	int64_t r;
	do
		r = SYS4(wait4, s->child, 0, 0x40000000 /* __WALL */, 0);
	while (r == -EINTR);
	close_fd(s->child_fd);
	close_fd(s->exec_fd);
	close_fd(s->sync_fd);
	s->child_fd = s->exec_fd = s->sync_fd = -1;
}

static void run_supervisor(struct supervisor *s)
{
	struct iso_machine *m = &s->machine;
	int64_t r;
	const uint32_t flags = m->header->flags;
	/* Before anything is joined: later /proc may be another's. Where init is PID 1 the kernel ends all with it, and it is
	 * needed for a limit of CPU time alone. */
	if (!(flags & ISO_TAPE_PIDNS) || m->run->cpu_ns || m->run->later) {
		s->proc = (int32_t)open_proc();
	}
	m->reg[ISO_REG_SELF] = m->reg[ISO_REG_LAUNCHER] = SYS0(getpid);
	r = iso_machine_run(m, ISO_OUTER);
	if (r < 0) {
		fail(m->shared, ISO_STAGE_OPS, m->failed_op, r);
		return;
	}
	if (s->proc < 0 && !(flags & ISO_TAPE_PIDNS)) {
		fail(m->shared, ISO_STAGE_PROC, ISO_OP_NONE, s->proc);
		return;
	}
	int32_t group = -1;
	r = begin_child(s, group);
	/* Only where a child was made and is dead before its first instruction: once more, and it goes there by itself. */
	if (s->child > 0 && m->header->cgroup_register != ISO_NONE && died_at_birth(s)) {
		group = (int32_t)SYS4(openat, m->reg[m->header->cgroup_register], PTR("cgroup.procs"), O_WRONLY | O_CLOEXEC, 0);
		bury(s);
		if (group < 0) {
			s->child = -1;
			fail(m->shared, ISO_STAGE_CLONE_INIT, ISO_OP_NONE, group);
			return;
		}
		m->shared->failed = 0;
		r = begin_child(s, group);
		close_fd(group);
	}
	leave_tree();
	if (s->child < 0)
		return;
	if (r < 0)
		kill_tree(s);
	close_slots(m);
	if (!m->run->later)
		limit(s, s->started_ns, m->run->timeout_ns, m->run->cpu_ns);
	supervise(s);
	int32_t status = 0;
	if (!(flags & ISO_TAPE_INIT))
		m->shared->program_ns = cpu_clock(s->child);
	do
		r = SYS4(wait4, s->child, PTR(&status), 0x40000000 /* __WALL */, PTR(&s->usage));
	while (r == -EINTR);
	s->init_status = status;
	s->ended_ns = now();
	/* Init tells of a program that was killed on its way; if it was us who did that, nothing has failed. */
	if (s->let_go && m->shared->failed && m->shared->stage == ISO_STAGE_DEATH)
		m->shared->failed = 0;
	if (!s->let_go && !(m->shared->complete & ISO_COMPLETE_STARTED))
		fail(m->shared, ISO_STAGE_DEATH, ISO_OP_NONE, -ESRCH);
	if (!(flags & ISO_TAPE_PIDNS))
		kill_children(s);
	if (!(flags & ISO_TAPE_INIT) && !m->shared->failed) {
		m->shared->status = status;
		m->shared->complete |= ISO_COMPLETE_STATUS;
	}
}

/* The state of a supervisor that has run nothing yet. */
static void begin_supervisor(struct supervisor *s, int forked)
{
	s->child_fd = -1;
	s->exec_fd = -1;
	s->sync_fd = -1;
	s->proc = -ENOENT;
	/* A session of our own: a SIGKILL to the Python program's process group must not keep us from cleaning up. A launcher
	 * that is parked has one, so for its forks it takes no more than a process group. */
	int64_t r = forked ? SYS2(setpgid, 0, 0) : SYS0(setsid);
	if (r >= 0)
		r = SYS2(prctl, PR_SET_CHILD_SUBREAPER, 1);
	if (r < 0)
		refuse(ISO_STAGE_OWNER, r);
	SYS1(umask, 0);
}

static void to_the_end(struct supervisor *s) __attribute__((noreturn));
static void to_the_end(struct supervisor *s)
{
	run_supervisor(s);
	/* The clean-up runs whatever failed before it; its ops tolerate what was never made. */
	if (!s->ended_ns)
		s->ended_ns = now();
	if (!s->reported)
		report(s);
	clean(s, ISO_CLEANUP);
	tell_end(s);
	exit_now(0);
}

/* ---- a launcher that is parked -------------------------------------------------------------------------- */

#define IDLE_SECONDS 60 /* so long it stays without a start: what it holds of the host's file systems it holds no longer */

static uint8_t starts_control[16 + 4 * (ISO_MAX_PASSED + 5)] __attribute__((aligned(8)));

/* Wait for one of two descriptors or for the end of who owns us, which ends us; 0 if nothing came in time. */
static int wait_for(int32_t fd, uint64_t seconds)
{
	struct pollfd fds[3] = {
		{.fd = fd, .events = POLLIN},
		{.fd = ISO_SLOT_CONTROL, .events = POLLIN},
		{.fd = ISO_SLOT_OWNER, .events = POLLIN},
	};
	struct __kernel_timespec wait = {(int64_t)seconds, 0};
	for (;;) {
		int64_t r = SYS5(ppoll, PTR(fds), 3, seconds ? PTR(&wait) : 0, 0, 0);
		if (r == -EINTR || r == -EAGAIN || r == -ENOMEM)
			continue;
		if (r < 0 || fds[1].revents || fds[2].revents)
			exit_now(0);
		return r > 0;
	}
}

/* Have the tree built by a child, and take what it is entered by. 0, or -errno with the failure recorded. */
static int64_t build_tree(struct supervisor *s)
{
	struct iso_machine *m = &s->machine;
	int32_t fds[ISO_MAX_PASSED + 5] = {-1, -1, -1};
	uint8_t byte;
	m->reg[ISO_REG_SELF] = m->reg[ISO_REG_LAUNCHER] = SYS0(getpid);
	int64_t r = iso_machine_run(m, ISO_OUTER);
	if (r < 0) {
		fail(m->shared, ISO_STAGE_OPS, m->failed_op, r);
		return r;
	}
	r = begin_child(s, -1);
	uint32_t count = 0;
	if (r >= 0) {
		struct part parts[2] = {{&byte, 1}, {m->data + m->header->report_offset, m->header->report_size}};
		struct message message = {0, 0, parts, 2, starts_control, sizeof starts_control, 0};
		wait_for(s->exec_fd, 0);
		r = SYS3(recvmsg, s->exec_fd, PTR(&message), 0x40000000 /* MSG_CMSG_CLOEXEC */);
		if (r > 0 && !(message.flags & 8 /* MSG_CTRUNC */))
			count = received(starts_control, message.control_length, fds);
		r = count == 3 && r == 1 + (int64_t)m->header->report_size ? 0 : -ESRCH;
	}
	if (s->child > 0) {
		if (r < 0)
			SYS4(pidfd_send_signal, s->child_fd, SIGKILL_, 0, 0);
		close_fd(s->exec_fd); /* it waits for this */
		s->exec_fd = -1;
		bury(s);
	}
	if (r < 0) {
		fail(m->shared, ISO_STAGE_TEMPLATE, ISO_OP_NONE, r);
		return r;
	}
	tree.mounts = fds[0];
	tree.hidden = fds[2];
	if (s->root) {
		close_fd(fds[1]);
		r = SYS4(openat, AT_FDCWD, PTR("/proc/self/ns/mnt"), O_RDONLY | O_CLOEXEC, 0);
		tree.own = (int32_t)r;
		if (r >= 0) {
			r = SYS4(openat, AT_FDCWD, PTR("/"), O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
			tree.root = (int32_t)r;
		}
	} else {
		tree.users = fds[1];
	}
	if (r < 0)
		fail(m->shared, ISO_STAGE_TEMPLATE, ISO_OP_NONE, r);
	return r;
}

/* In a fork of the parked launcher: put what came with the message where a launcher has it, and be one. */
static void begin_start(struct supervisor *s, uint8_t *tape, struct iso_run *run, uint64_t size, int32_t *fds, uint32_t count)
	__attribute__((noreturn));
static void begin_start(struct supervisor *s, uint8_t *tape, struct iso_run *run, uint64_t size, int32_t *fds, uint32_t count)
{
	const struct iso_header *h = (const void *)tape;
	struct {
		uint64_t handler, flags, restorer, mask;
	} action = {0, 0, 0, 0};
	int64_t r = SYS3(dup3, fds[0], ISO_SLOT_CONTROL, O_CLOEXEC);
	if (r < 0)
		exit_now(1); /* its other end is at its end, which says so */
	if (size == sizeof *run && count > 4) {
		struct statx st;
		const int32_t fd = fds[--count];
		r = SYS5(statx, fd, PTR(""), 0x1000 /* AT_EMPTY_PATH */, STATX_SIZE, PTR(&st));
		if (r < 0)
			refuse(ISO_STAGE_TAPE, r);
		size = st.stx_size;
		const int64_t base = SYS6(mmap, 0, size, PROT_RW, MAP_PRIVATE | MAP_POPULATE, fd, 0);
		if (!mapped(base))
			refuse(ISO_STAGE_MEMORY, base);
		run = (void *)base;
	}
	r = iso_run_check((const uint8_t *)run, size, h->slots);
	if (r < 0 || run->later || run->slots != h->slots + (count - 4))
		refuse(ISO_STAGE_TAPE, r < 0 ? r : -EBADMSG);
	/* Above all slots first: those of ours, and of what came whatever stands where another is wanted. */
	int32_t *const held[] = {&tree.mounts, &tree.users, &tree.hidden, &tree.own, &tree.root};
	for (size_t i = 0; i < sizeof held / sizeof *held; i++) {
		if (*held[i] < 0 || *held[i] >= (int32_t)run->slots)
			continue;
		r = SYS3(fcntl, *held[i], F_DUPFD_CLOEXEC, run->slots);
		if (r < 0)
			refuse(ISO_STAGE_TEMPLATE, r);
		*held[i] = (int32_t)r;
	}
	for (uint32_t i = 1; i < count; i++) {
		if (fds[i] >= (int32_t)run->slots)
			continue;
		r = SYS3(fcntl, fds[i], F_DUPFD_CLOEXEC, run->slots);
		if (r < 0)
			refuse(ISO_STAGE_TEMPLATE, r);
		fds[i] = (int32_t)r;
	}
	SYS1(close, ISO_SLOT_TAPE);
	for (uint32_t i = 1; i < count; i++) {
		const int32_t at = i < 4 ? (int32_t)i - 1 : (int32_t)(h->slots + i - 4);
		r = SYS3(dup3, fds[i], at, O_CLOEXEC);
		if (r < 0)
			refuse(ISO_STAGE_TEMPLATE, r);
		SYS1(close, fds[i]);
	}
	/* Nothing else stays open: what was the parked launcher's, or came twice. */
	int32_t from = (int32_t)run->slots;
	for (;;) {
		int32_t next = -1;
		for (size_t i = 0; i < sizeof held / sizeof *held; i++)
			if (*held[i] >= from && (next < 0 || *held[i] < next))
				next = *held[i];
		if (next < 0)
			break;
		if (next > from)
			SYS3(close_range, from, next - 1, 0);
		from = next + 1;
	}
	SYS3(close_range, from, ~0u, 0);
	r = SYS4(rt_sigaction, SIGCHLD_, PTR(&action), 0, 8);
	if (r < 0)
		refuse(ISO_STAGE_SIGNALS, r);
	begin_supervisor(s, 1);
	equip(s, tape);
	s->machine.run = run;
	/* From here on it is known who is to be waited for. */
	struct iso_record born;
	memset(&born, 0, sizeof born);
	born.kind = ISO_RECORD_LAUNCHER;
	born.status = (int32_t)SYS0(getpid);
	r = SYS2(pidfd_open, born.status, 0);
	if (r < 0)
		refuse(ISO_STAGE_OWNER, r);
	send_record(&born, sizeof born, (int32_t)r);
	close_fd(r);
	to_the_end(s);
}

static void park(struct supervisor *s) __attribute__((noreturn));
static void park(struct supervisor *s)
{
	static int32_t fds[ISO_MAX_PASSED + 5];
	struct {
		uint64_t handler, flags, restorer, mask;
	} action = {1 /* SIG_IGN */, 0, 0, 0};
	uint64_t size;
	uint8_t *tape = map_tape(ISO_SLOT_START_TAPE, &size);
	int64_t r = SYS3(mprotect, PTR(tape), size, PROT_RW);
	if (r < 0)
		refuse(ISO_STAGE_MEMORY, r);
	if (build_tree(s) < 0) {
		s->let_go = 1;
		tell_end(s);
		exit_now(1);
	}
	/* Nobody waits for those that we start: the kernel reaps them. Where the supervisor's numbers are, nothing of the host's. */
	r = SYS4(rt_sigaction, SIGCHLD_, PTR(&action), 0, 8);
	for (int32_t i = 0; i <= ISO_SLOT_START_TAPE && r >= 0; i++)
		if (i != ISO_SLOT_CONTROL && i != ISO_SLOT_OWNER && i != ISO_SLOT_STARTS && i != tree.mounts && i != tree.users &&
		    i != tree.hidden && i != tree.own && i != tree.root)
			r = SYS3(dup3, ISO_SLOT_STARTS, i, O_CLOEXEC);
	if (r < 0)
		refuse(ISO_STAGE_TEMPLATE, r);
	/* Nor is a directory of the caller's held that it may want to unmount. */
	SYS1(chdir, PTR("/"));
	s->machine.shared->parked = 1;
	tell_end(s);
	while (wait_for(ISO_SLOT_STARTS, IDLE_SECONDS)) {
		struct part iov = {later_block, sizeof later_block};
		struct message message = {0, 0, &iov, 1, starts_control, sizeof starts_control, 0};
		r = SYS3(recvmsg, ISO_SLOT_STARTS, PTR(&message), 0x40000040 /* MSG_CMSG_CLOEXEC | MSG_DONTWAIT */);
		if (r == -EAGAIN || r == -EINTR)
			continue;
		if (r <= 0)
			break;
		const uint32_t count = received(starts_control, message.control_length, fds);
		if (!(message.flags & 0x28 /* MSG_CTRUNC | MSG_TRUNC */) && count >= 4) {
			const int64_t pid = SYS5(clone, SIGCHLD_, 0, 0, 0, 0);
			if (pid == 0)
				begin_start(s, tape, (void *)later_block, (uint64_t)r, fds, count);
		}
		/* Where there is no process for it the end of its socket says so. */
		for (uint32_t i = 0; i < count; i++)
			close_fd(fds[i]);
	}
	exit_now(0);
}

__attribute__((used)) void iso_main(void);
void iso_main(void)
{
	static struct supervisor s;
	/* First of all not dumpable, and so are the children from their birth on. The signals: the extension has blocked them
	 * before vfork; without it no SIGCHLD would ever wake init. */
	int64_t r = SYS2(prctl, PR_SET_DUMPABLE, 0);
	if (r >= 0)
		r = set_mask(~0ull);
	if (r >= 0)
		r = default_signals();
	if (r < 0)
		refuse(ISO_STAGE_SIGNALS, r);
	SYS2(prctl, PR_SET_NAME, PTR(build_mark));
	load(&s);
	r = get_capabilities(s.capabilities);
	if (r < 0)
		refuse(ISO_STAGE_OWNER, r);
	s.root = SYS0(geteuid) == 0;
	begin_supervisor(&s, 0);
	if (s.machine.header->flags & ISO_TAPE_PARKED)
		park(&s);
	to_the_end(&s);
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tand $-16, %rsp\n\tcall iso_main\n\thlt\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, xzr\n\tmov x30, xzr\n\tbl iso_main\n\tbrk #1\n");
#endif
