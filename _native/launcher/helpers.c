/* Processes that set-up makes beside init: a program of the host's, one that an id map stands for, the section ASIDE. And
 * the ops that are the launcher's alone. */
#include "../cover.h"
#include "launcher.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/prctl.h>
#include <linux/sched.h>

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

uint8_t child_stack[STACK_SIZE] __attribute__((aligned(4096))); /* its end, too: the first page used is a whole one */

/* clone with memory shared, on this stack. `tid`, unless it is 0, is the pid it is to have, which clone3 alone can give. */
int64_t clone_shared(uint8_t (*stack)[STACK_SIZE], uint64_t flags, uint64_t exit_signal, void (*fn)(void *), void *arg,
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
	int32_t pidfd = -1;
	int64_t pid = clone_shared(&child_stack, CLONE_NEWUSER | CLONE_PIDFD, SIGCHLD_, stand_by, &self, &pidfd, 0);
	if (pid < 0)
		return pid;
	put(put_decimal(put(path, "/proc/"), shown(pid, pidfd)), "");
	close_fd(pidfd);
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

/* A second process does work that takes long and needs nothing of what init does meanwhile: the kernel's set-up of a network
 * namespace takes as long as all else together. It shares init's memory and descriptors, so init has its results. It changes
 * only namespaces, and those are each process's own. */
static struct {
	struct iso_machine machine; /* registers are shared, where it failed is not */
	int64_t pid, result;
} aside;

/* Init goes on meanwhile, and a step of its own may run a program of the host's on the other. */
static uint8_t aside_stack[STACK_SIZE] __attribute__((aligned(4096)));

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
