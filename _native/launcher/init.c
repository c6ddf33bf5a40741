/* Init, PID 1 of a new pid namespace: runs its section of the tape, starts the payload, forwards signals, reaps. */
#include "launcher.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/futex.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/sched.h>

/* Whether the supervisor has died: only it holds the other end. */
int64_t supervisor_lives(const struct iso_machine *m)
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

/* A signal's number is no cause: SIGSYS comes from a filter, or from whoever sends it. Only a process that is not reaped yet
 * still has the kernel's mark, and only the supervisor has a /proc that nobody inside has put there: it wakes when the last
 * reader of the other pipe has gone. */
static void have_it_looked_at(struct iso_machine *m, int64_t payload)
{
	int32_t info[32] = {0}; /* siginfo_t: code, pid and status are 2, 4 and 6 */
	uint32_t *suspect = &m->shared->suspect;
	struct __kernel_timespec most = {1, 0};
	if (payload == ALONE || m->sync_fd < 0 || !(m->header->flags & ISO_TAPE_FILTERED))
		return;
	if (SYS5(waitid, 1 /* P_PID */, payload, PTR(info), 0x01000005 /* WNOWAIT | WEXITED | WNOHANG */, 0) < 0 ||
	    info[4] != payload || info[6] != 31 /* SIGSYS */ || (info[2] != 2 && info[2] != 3) /* CLD_KILLED, CLD_DUMPED */)
		return;
	__atomic_store_n(suspect, (uint32_t)payload, __ATOMIC_RELEASE);
	close_fd(m->sync_fd);
	m->sync_fd = -1;
	while (__atomic_load_n(suspect, __ATOMIC_ACQUIRE) &&
	       SYS6(futex, PTR(suspect), FUTEX_WAIT, payload, PTR(&most), 0, 0) != -ETIMEDOUT)
		;
}

/* A filter of the caller's refuses what init waits by: it would ask for ever. Everything inside ends with it. */
static void give_up(const struct iso_machine *m, int64_t error) __attribute__((noreturn));
static void give_up(const struct iso_machine *m, int64_t error)
{
	fail(m->shared, ISO_STAGE_POLL, ISO_OP_NONE, error);
	exit_now(1);
}

static void init_loop(struct iso_machine *machine, int64_t payload) __attribute__((noreturn));
static void init_loop(struct iso_machine *machine, int64_t payload)
{
	const uint64_t all = ~0ull;
	/* All that is needed from here on stands in this frame. */
	struct iso_header header = *machine->header;
	struct iso_machine kept = *machine, *const m = &kept;
	struct __kernel_timespec moment = {0, QUIET}, *most = &moment;
	m->header = &header;
	uint8_t info[128];
	for (;;) {
		int32_t status = 0;
		/* The supervisor wants an end, and usage accounted for: see end_tree(). */
		if (__atomic_load_n(&m->shared->ending, __ATOMIC_ACQUIRE) == 1 && SYS2(kill, -1, SIGKILL_) == 0)
			__atomic_store_n(&m->shared->ending, 2, __ATOMIC_RELEASE);
		have_it_looked_at(m, payload);
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
		if (pid < 0 && pid != -ECHILD)
			give_up(m, pid);
		if (pid == -ECHILD && payload != ALONE)
			exit_now(0); /* the payload can only be gone unseen if somebody has reaped for us */
		if (pid != 0 && pid != -ECHILD)
			continue;
		int64_t signal = SYS4(rt_sigtimedwait, PTR(&all), PTR(info), PTR(most), 8);
		if (signal == -EAGAIN && most) {
			most = 0;
			shed_data();
			shed_maps(m->shared, sizeof *m->shared + header.steps);
		}
		if (signal < 0 && signal != -EAGAIN && signal != -EINTR)
			give_up(m, signal);
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

/* The program runs, or there is none to run: keep what init needs, tell it where that is wanted, and stay. */
static void settle(struct iso_machine *m, int64_t payload, int32_t pidfd) __attribute__((noreturn));
static void settle(struct iso_machine *m, int64_t payload, int32_t pidfd)
{
	struct iso_shared *shared = m->shared;
	const int tell = (m->run->flags & ISO_RUN_STARTED) != 0;
	shared->complete = ISO_COMPLETE_STARTED;
	if (tell)
		await_birth(shared);
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
	const int32_t sync = m->header->flags & ISO_TAPE_FILTERED ? m->sync_fd : -1;
	const int32_t kept[2] = {sync < m->exec_fd ? sync : m->exec_fd, sync < m->exec_fd ? m->exec_fd : sync};
	int32_t from = 0;
	for (int i = 0; i < 2; i++) {
		if (kept[i] > from)
			SYS3(close_range, from, kept[i] - 1, 0);
		from = kept[i] + 1;
	}
	SYS3(close_range, from, ~0u, 0);
	init_loop(m, payload);
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
	/* The report goes along, with what was pinned: our memory is not the launcher's. */
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
void run_init(struct supervisor *s, int32_t group)
{
	struct iso_machine *m = &s->machine;
	struct iso_shared *shared = m->shared;
	m->reg[ISO_REG_SELF] = SYS0(getpid);
	leave_tree(&s->tree);
	leave_starts(&s->tree);
	if (s->within >= 0) {
		close_fd(s->within); /* whose end tells us that nobody asks for this start */
		close_fd(s->above);
		close_fd(s->unborn);
		SYS3(close_range, ISO_SLOT_STARTS, ISO_SLOT_START_TAPE, 0);
	}
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
	if (r == 0 && (m->run->flags & ISO_RUN_ALONE))
		r = SYS0(setsid); /* a container's init stays: one session more is nothing beside that */
	else if (r == 0 && (m->header->flags & ISO_TAPE_INIT))
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
