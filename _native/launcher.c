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
#include "interp.h"
#include "sys.h"

#include <linux/capability.h>
#include <linux/elf.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
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
};

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

static int64_t session(const struct iso_machine *m)
{
	int64_t r = SYS0(setsid);
	if (r < 0)
		return r;
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
	case ISO_OP_ASIDE:
		return begin_aside(m);
	case ISO_OP_MEET:
		return meet_aside(m);
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

static void send_started(int32_t pidfd)
{
	struct iso_record record;
	memset(&record, 0, sizeof record);
	record.kind = ISO_RECORD_STARTED;
	send_record(&record, sizeof record, pidfd);
}

static void init_loop(struct iso_machine *m, int64_t payload) __attribute__((noreturn));
static void init_loop(struct iso_machine *m, int64_t payload)
{
	const uint64_t all = ~0ull;
	uint8_t info[128];
	for (;;) {
		int32_t status = 0;
		int64_t pid = SYS4(wait4, -1, PTR(&status), 1 /* WNOHANG */, 0);
		if (pid == payload) {
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
		if (pid == -ECHILD)
			exit_now(0); /* the payload can only be gone unseen if somebody has reaped for us */
		if (pid != 0)
			continue;
		int64_t signal = SYS4(rt_sigtimedwait, PTR(&all), PTR(info), 0, 8);
		if (signal > 0 && signal != SIGCHLD_)
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
			for (uint64_t i = 16; i + 4 <= size && count < ISO_MAX_PASSED + 4; i += 4)
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
	int32_t fds[ISO_MAX_PASSED + 4];
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

static void run_init(struct iso_machine *m) __attribute__((noreturn));
static void run_init(struct iso_machine *m)
{
	struct iso_shared *shared = m->shared;
	m->reg[ISO_REG_SELF] = SYS0(getpid);
	/* Before the wait for the supervisor (OP_SYNC): if it dies earlier than this line, the wait ends with EPIPE;
	 * if later, the kernel kills us. A change of credentials clears this, hence once more below. */
	int64_t r = SYS2(prctl, PR_SET_PDEATHSIG, SIGKILL_);
	if (r == 0 && !(m->header->flags & ISO_TAPE_PIDNS))
		r = SYS2(prctl, PR_SET_CHILD_SUBREAPER, 1);
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
	shared->complete = ISO_COMPLETE_STARTED;
	r = iso_machine_run(m, ISO_AFTER);
	if (r < 0) {
		fail(shared, ISO_STAGE_OPS, m->failed_op, r);
		exit_now(1);
	}
	if (tell)
		send_started(pidfd);
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

/* ---- supervisor ----------------------------------------------------------------------------------------- */

static int64_t clone_init(struct supervisor *s)
{
	struct iso_machine *m = &s->machine;
	struct clone_args args;
	memset(&args, 0, sizeof args);
	args.flags = m->header->clone_flags | CLONE_PIDFD;
	args.pidfd = (uint64_t)(uintptr_t)&s->child_fd;
	args.exit_signal = SIGCHLD_;
	if (m->header->cgroup_register != ISO_NONE) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (uint64_t)m->reg[m->header->cgroup_register];
	}
	int64_t pid = SYS2(clone3, PTR(&args), sizeof args);
	if (pid == -ENOSYS && m->header->cgroup_register == ISO_NONE)
		pid = SYS5(clone, args.flags | SIGCHLD_, 0, PTR(&s->child_fd), 0, 0);
	return pid;
}

/* Without a pid namespace: kill children until none is left; orphans come to us, a subreaper. */
static void kill_children(void)
{
	char buffer[4096];
	for (;;) {
		int64_t fd = SYS4(openat, AT_FDCWD, PTR("/proc/thread-self/children"), O_RDONLY | O_CLOEXEC, 0);
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

static int64_t read_file(const char *path, char *buffer, size_t size)
{
	int64_t fd = SYS4(openat, AT_FDCWD, PTR(path), O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	int64_t n = SYS3(read, fd, PTR(buffer), size - 1);
	close_fd(fd);
	buffer[n > 0 ? n : 0] = 0;
	return n;
}

/* Its parent, from /proc/pid/stat: "pid (name) state parent"; the name may hold anything, so from the last parenthesis. */
static int64_t parent_of(int64_t pid)
{
	char path[64], text[512];
	put(put_decimal(put(path, "/proc/"), pid), "/stat");
	if (read_file(path, text, sizeof text) <= 0)
		return -1;
	const char *p = text, *last = 0;
	for (; *p; p++)
		if (*p == ')')
			last = p;
	if (!last || last + 4 >= p)
		return -1;
	int64_t parent = 0;
	for (p = last + 4; *p >= '0' && *p <= '9'; p++)
		parent = parent * 10 + (*p - '0');
	return parent;
}

/* Kill the children of init; how many there were. Init reaps meanwhile, so a number may be another's by now: what the
 * pidfd stands for was a child of init after it had been opened, or is dead. */
static int kill_children_of(int64_t init)
{
	char path[64], text[4096];
	put(put_decimal(put(put_decimal(put(path, "/proc/"), init), "/task/"), init), "/children");
	int64_t n = read_file(path, text, sizeof text), pid = 0;
	int seen = 0;
	/* The file is longer than this only with hundreds of children: a number cut off has no blank behind it. */
	for (int64_t i = 0; i < n; i++) {
		if (text[i] >= '0' && text[i] <= '9') {
			pid = pid * 10 + (text[i] - '0');
			continue;
		}
		int64_t fd = SYS2(pidfd_open, pid, 0);
		if (fd >= 0 && parent_of(pid) == init)
			SYS4(pidfd_send_signal, fd, SIGKILL_, 0, 0);
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
		int seen = kill_children_of(s->child);
		struct __kernel_timespec wait = {0, 1000000};
		quiet = seen ? 0 : quiet + 1;
		if (SYS5(ppoll, PTR(&fd), 1, PTR(&wait), 0, 0) > 0)
			return;
	}
}

static void kill_tree(struct supervisor *s)
{
	s->let_go = 1;
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

static void supervise(struct supervisor *s)
{
	struct iso_machine *m = &s->machine;
	struct pollfd fds[4] = {
		{.fd = s->child_fd, .events = POLLIN},
		{.fd = ISO_SLOT_CONTROL, .events = POLLIN},
		{.fd = ISO_SLOT_OWNER, .events = POLLIN},
		{.fd = s->exec_fd, .events = POLLIN},
	};
	for (;;) {
		int64_t r = SYS5(ppoll, PTR(fds), 4, 0, 0, 0);
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
					send_started(s->child_fd);
			}
		}
		if (fds[0].revents)
			return;
		/* The Python program ended (its pidfd), or let go of the sandbox (end of file, whatever else it sent). */
		if (fds[1].revents || fds[2].revents) {
			kill_tree(s);
			fds[1].fd = fds[2].fd = -1;
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
	record->complete = shared->complete;
	record->user_ns = nanoseconds(&tree.ru_utime);
	record->system_ns = nanoseconds(&tree.ru_stime);
	record->user_ns -= shared->own_ns[0] < record->user_ns ? shared->own_ns[0] : record->user_ns;
	record->system_ns -= shared->own_ns[1] < record->system_ns ? shared->own_ns[1] : record->system_ns;
	record->max_rss = (uint64_t)tree.ru_maxrss * 1024;
	record->wall_ns = now() - (shared->began_ns ? shared->began_ns : s->started_ns);
	record->skipped_size = skipped;
	record->report_size = report;
	if (shared->failed) {
		record->head_size = shared->head_size;
		memcpy(record->head, shared->head, ISO_HEAD);
	}
	uint8_t *rest = (uint8_t *)(record + 1);
	memcpy(rest, shared->skipped, skipped);
	memcpy(rest + skipped, m->data + m->header->report_offset, report);
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

static void load(struct supervisor *s)
{
	struct statx st;
	int64_t r = SYS5(statx, ISO_SLOT_TAPE, PTR(""), 0x1000 /* AT_EMPTY_PATH */, STATX_SIZE, PTR(&st));
	if (r < 0)
		refuse(ISO_STAGE_TAPE, r);
	if (st.stx_size < sizeof(struct iso_header) || st.stx_size > 2ull * ISO_MAX_TAPE)
		refuse(ISO_STAGE_TAPE, -EBADMSG);
	/* POPULATE: all of it will be read at once. Not writable yet: the kernel would copy every page of it at once,
	 * and few are written. */
	int64_t base = SYS6(mmap, 0, st.stx_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, ISO_SLOT_TAPE, 0);
	if (!mapped(base))
		refuse(ISO_STAGE_MEMORY, base);
	uint8_t *tape = (uint8_t *)base;
	r = iso_tape_check(tape, st.stx_size);
	if (r < 0)
		refuse(ISO_STAGE_TAPE, r);
	const struct iso_header *h = (const void *)tape;
	r = iso_run_check(tape + h->size, st.stx_size - h->size, h->slots);
	if (r == 0 && ((const struct iso_run *)(const void *)(tape + h->size))->later && !(h->flags & ISO_TAPE_INIT))
		r = -EBADMSG; /* only an init can wait for what the program is to be */
	if (r < 0)
		refuse(ISO_STAGE_TAPE, r);
	/* Registers' values and addresses are stored into the data, and into the tables of the run block behind it. */
	r = SYS3(mprotect, base, st.stx_size, PROT_RW);
	if (r < 0)
		refuse(ISO_STAGE_MEMORY, r);
	const uint64_t registers = h->registers * sizeof(int64_t);
	base = SYS6(mmap, 0, registers, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
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
	s->machine.run = (const void *)(tape + h->size);
}

/* Everything that only the child needs: with a copy here no pipe of the payload's would ever end. */
static void close_slots(const struct iso_machine *m)
{
	SYS3(close_range, 0, 2, 0);
	SYS1(close, ISO_SLOT_TAPE);
	if (m->run->slots > ISO_SLOT_FREE)
		SYS3(close_range, ISO_SLOT_FREE, m->run->slots - 1, 0);
}

static void run_supervisor(struct supervisor *s)
{
	struct iso_machine *m = &s->machine;
	int64_t r;
	const uint32_t flags = m->header->flags;
	m->reg[ISO_REG_SELF] = m->reg[ISO_REG_LAUNCHER] = SYS0(getpid);
	r = iso_machine_run(m, ISO_OUTER);
	if (r < 0) {
		fail(m->shared, ISO_STAGE_OPS, m->failed_op, r);
		return;
	}
	int32_t sync[2], exec[2] = {-1, -1};
	r = SYS2(pipe2, PTR(sync), O_CLOEXEC);
	/* Closed by exec, where the child itself becomes the program; else by init when it has ended, where that is wanted. */
	if (r == 0 && ((flags & (ISO_TAPE_INIT | ISO_TAPE_PIDNS)) != (ISO_TAPE_INIT | ISO_TAPE_PIDNS) ||
		       m->header->section[ISO_REPORT].count))
		r = SYS2(pipe2, PTR(exec), O_CLOEXEC);
	if (r < 0) {
		fail(m->shared, ISO_STAGE_PIPE, ISO_OP_NONE, r);
		return;
	}
	s->started_ns = now();
	s->child = clone_init(s);
	if (s->child == 0) {
		close_fd(sync[1]);
		close_fd(exec[0]);
		m->sync_fd = sync[0];
		m->exec_fd = exec[1];
		run_init(m);
	}
	if (s->child < 0) {
		fail(m->shared, ISO_STAGE_CLONE_INIT, ISO_OP_NONE, s->child);
		return;
	}
	close_fd(sync[0]);
	close_fd(exec[1]);
	s->exec_fd = exec[0];
	s->sync_fd = sync[1];
	m->reg[ISO_REG_CHILD] = s->child;
	r = iso_machine_run(m, ISO_SUPERVISOR);
	if (r < 0) {
		fail(m->shared, ISO_STAGE_OPS, m->failed_op, r);
		kill_tree(s);
	} else {
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
			kill_tree(s);
		}
	}
	close_slots(m);
	supervise(s);
	int32_t status = 0;
	do
		r = SYS4(wait4, s->child, PTR(&status), 0x40000000 /* __WALL */, PTR(&s->usage));
	while (r == -EINTR);
	s->init_status = status;
	/* Init tells of a program that was killed on its way; if it was us who did that, nothing has failed. */
	if (s->let_go && m->shared->failed && m->shared->stage == ISO_STAGE_DEATH)
		m->shared->failed = 0;
	if (!s->let_go && !(m->shared->complete & ISO_COMPLETE_STARTED))
		fail(m->shared, ISO_STAGE_DEATH, ISO_OP_NONE, -ESRCH);
	if (!(flags & ISO_TAPE_PIDNS))
		kill_children();
	if (!(flags & ISO_TAPE_INIT) && !m->shared->failed) {
		m->shared->status = status;
		m->shared->complete |= ISO_COMPLETE_STATUS;
	}
}

__attribute__((used)) void iso_main(void);
void iso_main(void)
{
	static struct supervisor s;
	/* The extension has blocked them before vfork; without it no SIGCHLD would ever wake init. */
	int64_t r = set_mask(~0ull);
	if (r >= 0)
		r = default_signals();
	if (r < 0)
		refuse(ISO_STAGE_SIGNALS, r);
	SYS2(prctl, PR_SET_NAME, PTR(build_mark));
	load(&s);
	struct iso_machine *m = &s.machine;
	s.child_fd = -1;
	s.exec_fd = -1;
	s.sync_fd = -1;
	/* A process that is not dumpable owns no file in its own /proc: with a new user namespace the id maps come first. */
	if (!(m->header->clone_flags & CLONE_NEWUSER))
		r = SYS2(prctl, PR_SET_DUMPABLE, 0);
	/* A session of our own: a SIGKILL to the Python program's process group must not keep us from cleaning up. */
	if (r >= 0)
		r = SYS0(setsid);
	if (r >= 0)
		r = SYS2(prctl, PR_SET_CHILD_SUBREAPER, 1);
	if (r < 0)
		refuse(ISO_STAGE_OWNER, r);
	SYS1(umask, 0);
	run_supervisor(&s);
	/* The clean-up runs whatever failed before it; its ops tolerate what was never made. */
	if (!s.reported)
		report(&s);
	clean(&s, ISO_CLEANUP);
	tell_end(&s);
	exit_now(0);
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tand $-16, %rsp\n\tcall iso_main\n\thlt\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, xzr\n\tmov x30, xzr\n\tbl iso_main\n\tbrk #1\n");
#endif
