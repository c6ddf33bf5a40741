/* Init's birth: under which owner, from which tree, into which cgroup the supervisor clones it. */
#include "launcher.h"

#include <linux/capability.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/futex.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/sched.h>

void leave_tree(struct template_tree *tree)
{
	close_fd(tree->mounts);
	close_fd(tree->users);
	close_fd(tree->hidden);
	close_fd(tree->own);
	close_fd(tree->root);
	tree->mounts = tree->users = tree->hidden = tree->own = tree->root = -1;
}

void leave_starts(struct template_tree *tree)
{
	close_fd(tree->starts);
	close_fd(tree->taken);
	tree->starts = tree->taken = -1;
}

/* The launcher makes the next one that waits, and is told (TAKEN_*) what became of this one. */
void tell_taken(struct template_tree *tree, uint64_t told)
{
	if (tree->taken >= 0)
		SYS3(write, tree->taken, PTR(&told), sizeof told);
	leave_starts(tree);
}

/* In a start from a tree: tell the Python program which process to wait for. It is told once nobody inside waits for us any
 * more, because it wakes up by this, on our processor as a rule. */
void tell_birth(struct supervisor *s)
{
	uint32_t *untold = &s->machine.shared->untold;
	struct iso_record born;
	if (!s->unborn || s->within >= 0)
		return;
	memset(&born, 0, sizeof born);
	born.kind = ISO_RECORD_LAUNCHER;
	born.status = (int32_t)SYS0(getpid);
	send_record(&born, sizeof born, s->unborn);
	close_fd(s->unborn);
	s->unborn = 0;
	__atomic_store_n(untold, 0, __ATOMIC_RELEASE);
	SYS6(futex, PTR(untold), FUTEX_WAKE, 2, 0, 0, 0);
}

static int holds(const struct supervisor *s, int capability)
{
	return (s->capabilities[capability / 32 * 3] >> capability % 32 & 1) != 0;
}

int64_t get_capabilities(uint32_t *sets)
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
static int64_t enter_tree(const struct template_tree *tree)
{
	int64_t r = 0;
	if (tree->users >= 0) {
		r = SYS2(setns, tree->users, CLONE_NEWUSER);
		/* The kernel's own value after a change of credentials is in fs.suid_dumpable; begin_child says which holds. */
		if (r >= 0)
			r = SYS2(prctl, PR_SET_DUMPABLE, 1);
	}
	if (r >= 0)
		r = SYS2(setns, tree->mounts, CLONE_NEWNS);
	return r < 0 ? r : SYS1(fchdir, tree->hidden);
}

/* Where the caller's own mounts are, and its root. Tried a few times: want of memory passes, and the clean-up is there, too. */
static int64_t back_outside(const struct template_tree *tree)
{
	int64_t r = -1;
	for (int tries = 0; r < 0 && tries < 4; tries++) {
		r = SYS2(setns, tree->own, CLONE_NEWNS);
		if (r >= 0)
			r = SYS1(fchdir, tree->root);
		if (r >= 0)
			r = SYS1(chroot, PTR("."));
	}
	return r;
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
	int64_t within = s->tree.mounts < 0 ? 0 : enter_tree(&s->tree);
	if (within < 0) {
		if (s->tree.own >= 0)
			back_outside(&s->tree);
		return within;
	}
	const int other = take_owner(s);
	int64_t pid = SYS2(clone3, PTR(&args), sizeof args);
	if (pid == -ENOSYS && !into_group)
		pid = SYS5(clone, args.flags | SIGCHLD_, 0, PTR(&s->child_fd), 0, 0);
	if (other && pid != 0) {
		/* With that everything permitted is effective again, which the clean-up needs: see back_outside(). */
		int64_t r = -1;
		for (int tries = 0; r < 0 && tries < 4; tries++)
			r = SYS3(setresuid, -1, 0, -1);
		if (r >= 0 && (s->capabilities[0] != s->capabilities[1] || s->capabilities[3] != s->capabilities[4]))
			r = set_capabilities(s->capabilities);
		if (r < 0 && pid > 0) {
			SYS4(pidfd_send_signal, s->child_fd, SIGKILL_, 0, 0);
			SYS4(wait4, pid, 0, 0x40000000 /* __WALL */, 0);
			return r;
		}
	}
	if (s->tree.own >= 0 && pid != 0 && (within = back_outside(&s->tree)) < 0) {
		/* The work outside is done in the caller's own mount namespace, or not at all. */
		if (pid > 0) {
			SYS4(pidfd_send_signal, s->child_fd, SIGKILL_, 0, 0);
			SYS4(wait4, pid, 0, 0x40000000 /* __WALL */, 0);
		}
		return within;
	}
	return pid;
}

/* Make the child and do for it what only the outside can; a failure is recorded. */
int64_t begin_child(struct supervisor *s, int32_t group)
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
	s->started_ns = m->run->later ? now() : since(m->run->began_ns);
	s->child = clone_init(s, m->header->cgroup_register != ISO_NONE && group < 0);
	if (s->child == 0) {
		close_fd(sync[1]);
		close_fd(exec[0]);
		m->sync_fd = sync[0];
		m->exec_fd = exec[1];
		run_init(s, group);
	}
	if (s->child < 0) {
		fail(m->shared, s->tree.mounts >= 0 ? ISO_STAGE_TEMPLATE : ISO_STAGE_CLONE_INIT, ISO_OP_NONE, s->child);
		return s->child;
	}
	close_fd(sync[0]);
	close_fd(exec[1]);
	s->exec_fd = exec[0];
	s->sync_fd = sync[1];
	r = m->reg[ISO_REG_CHILD] = shown(s->child, s->child_fd);
	if (r < 0) {
		fail(m->shared, ISO_STAGE_PROC, ISO_OP_NONE, r);
		return r;
	}
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
	tell_birth(s);
	if (r < 0 && r != -EPIPE) {
		fail(m->shared, ISO_STAGE_PIPE, ISO_OP_NONE, r);
		return r;
	}
	return 0;
}

/* Whether the child ended without having run at all. It has its own copy of everything and goes on while this waits. */
int died_at_birth(struct supervisor *s)
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

void bury(struct supervisor *s)
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
