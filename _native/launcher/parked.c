/* A launcher that is parked: it holds a finished tree, and forks a supervisor for each start that is asked of it. */
#include "launcher.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/stat.h>

#define CALM 2000000u /* ns: while the last start runs, the next one is not prepared before */
#define IDLE_SECONDS 60 /* so long it stays without a start: what it holds of the host's file systems it holds no longer */

static uint8_t starts_control[16 + 4 * (ISO_MAX_PASSED + ISO_MAX_BESIDE)] __attribute__((aligned(8)));

/* Wait for a descriptor, or for the end of who owns us, which ends us. */
static void wait_for(int32_t fd)
{
	struct pollfd fds[3] = {
		{.fd = fd, .events = POLLIN},
		{.fd = ISO_SLOT_CONTROL, .events = POLLIN},
		{.fd = ISO_SLOT_OWNER, .events = POLLIN},
	};
	int64_t r;
	do
		r = SYS5(ppoll, PTR(fds), 3, 0, 0, 0);
	while (r == -EINTR || r == -EAGAIN || r == -ENOMEM);
	if (r < 0 || fds[1].revents || fds[2].revents)
		exit_now(0);
}

/* Have the tree built by a child, and take what it is entered by. 0, or -errno with the failure recorded. */
static int64_t build_tree(struct supervisor *s)
{
	struct iso_machine *m = &s->machine;
	int32_t fds[ISO_MAX_PASSED + ISO_MAX_BESIDE] = {-1, -1, -1};
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
		wait_for(s->exec_fd);
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
	s->tree.mounts = fds[0];
	s->tree.hidden = fds[2];
	if (s->root) {
		close_fd(fds[1]);
		r = SYS4(openat, AT_FDCWD, PTR("/proc/self/ns/mnt"), O_RDONLY | O_CLOEXEC, 0);
		s->tree.own = (int32_t)r;
		if (r >= 0) {
			r = SYS4(openat, AT_FDCWD, PTR("/"), O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
			s->tree.root = (int32_t)r;
		}
	} else {
		s->tree.users = fds[1];
	}
	if (r < 0)
		fail(m->shared, ISO_STAGE_TEMPLATE, ISO_OP_NONE, r);
	return r;
}

/* A fork that waits ends without a start. */
static void leave_unborn(struct supervisor *s) __attribute__((noreturn));
static void leave_unborn(struct supervisor *s)
{
	leave_ahead(s);
	take_back(s);
	exit_now(0);
}

/* Nothing comes of a start: it is made without the tree. */
void decline(struct supervisor *s, uint32_t stage, int64_t error)
{
	take_back(s);
	refuse(stage, error);
}

/* In a fork of the parked launcher: put what came with the message where a launcher has it, and be one. */
static void begin_start(struct supervisor *s, struct iso_run *run, uint64_t size, int32_t *fds, uint32_t count)
	__attribute__((noreturn));
static void begin_start(struct supervisor *s, struct iso_run *run, uint64_t size, int32_t *fds, uint32_t count)
{
	const struct iso_header *h = s->machine.header;
	int64_t r = SYS3(dup3, fds[0], ISO_SLOT_CONTROL, O_CLOEXEC);
	if (r < 0)
		leave_unborn(s); /* its other end is at its end, which says so */
	if (size == sizeof *run && count > 4) {
		uint8_t *block;
		uint32_t stage;
		r = map_block(fds[--count], PROT_RW, &block, &size, &stage);
		if (r < 0)
			decline(s, stage, r);
		run = (void *)block;
	}
	r = iso_run_check((const uint8_t *)run, size, h->slots);
	if (r < 0 || (run->later && run->later + 1 != run->slots) || run->slots != h->slots + (count - 4))
		decline(s, ISO_STAGE_TAPE, r < 0 ? r : -EBADMSG);
	/* Above all slots first: those of ours, and of what came whatever stands where another is wanted. */
	int32_t *const held[] = {&s->tree.mounts, &s->tree.users, &s->tree.hidden, &s->tree.own, &s->tree.root, &s->tree.starts, &s->tree.taken, &s->unborn};
	for (size_t i = 0; i < sizeof held / sizeof *held; i++) {
		if (*held[i] < 0 || *held[i] >= (int32_t)run->slots)
			continue;
		r = SYS3(fcntl, *held[i], F_DUPFD_CLOEXEC, run->slots);
		if (r < 0)
			decline(s, ISO_STAGE_TEMPLATE, r);
		*held[i] = (int32_t)r;
	}
	for (uint32_t i = 1; i < count; i++) {
		if (fds[i] >= (int32_t)run->slots)
			continue;
		r = SYS3(fcntl, fds[i], F_DUPFD_CLOEXEC, run->slots);
		if (r < 0)
			decline(s, ISO_STAGE_TEMPLATE, r);
		fds[i] = (int32_t)r;
	}
	SYS1(close, ISO_SLOT_TAPE);
	for (uint32_t i = 1; i < count; i++) {
		const int32_t at = i < 4 ? (int32_t)i - 1 : (int32_t)(h->slots + i - 4);
		r = SYS3(dup3, fds[i], at, O_CLOEXEC);
		if (r < 0)
			decline(s, ISO_STAGE_TEMPLATE, r);
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
	s->above = -1;
	s->machine.run = run;
	to_the_end(s);
}

/* Give the run to the child that was made ahead, unless it is one that such a child cannot take. */
static void use_ahead(struct supervisor *s, struct iso_run *run, uint64_t size, int32_t *fds, uint32_t count)
{
	const uint32_t slots = s->machine.header->slots, large = size == sizeof *run && count > 4;
	const uint32_t passed = count - 4 - large;
	int64_t r = large ? run->magic == ISO_RUN_MAGIC ? 0 : -EBADMSG : iso_run_check((const uint8_t *)run, size, slots);
	if (r == 0 && run->slots == slots + passed && (!run->later || run->later + 1 == run->slots) && !(run->flags & ISO_RUN_ALONE))
		hand_on(s, run, size, fds, count);
	leave_ahead(s);
	take_back(s);
}

/* Whether a thread is in no other Landlock domain than we are: it has made sure that it has access to us, and in none but our
 * own and those above it has it. See iso_sees(). */
static int shares(int32_t thread)
{
	uint64_t head = 0, size = 0;
	return thread == 0 || SYS3(get_robust_list, thread, PTR(&head), PTR(&size)) == 0;
}

/* Nothing can be made ahead, or it has ended: this fork is none to wait with. */
static void fail_ahead(struct supervisor *s) __attribute__((noreturn));
static void fail_ahead(struct supervisor *s)
{
	leave_ahead(s);
	take_back(s);
	tell_taken(&s->tree, TAKEN_FAILED);
	exit_now(1);
}

/* Do what of a start can be done ahead. A SIGKILL with the launcher would leave what was made: from here on the fork watches
 * for the launcher's end. What fails is done with the start, which tells of it. */
static void prepare(struct supervisor *s, int64_t launcher, uint64_t last, uint32_t flags)
{
	const int bears = can_bear_ahead(&s->machine);
	if (!last || (!bears && !s->machine.header->section[ISO_AHEAD].count))
		return;
	if (last != TAKEN_ENDED) {
		/* It would slow that one down. A start that comes meanwhile does not wait. */
		struct pollfd fd = {.fd = ISO_SLOT_STARTS, .events = POLLIN};
		struct __kernel_timespec wait = {0, CALM};
		if (SYS5(ppoll, PTR(&fd), 1, PTR(&wait), 0, 0) != 0)
			return;
	}
	const int64_t above = SYS2(pidfd_open, launcher, 0);
	if (above < 0)
		return;
	if (SYS2(prctl, PR_SET_PDEATHSIG, 0) < 0 || SYS0(getppid) != launcher)
		exit_now(1);
	s->above = (int32_t)above;
	if (go_ahead(s) >= 0 && bears && bear_ahead(s, flags) < 0)
		fail_ahead(s);
}

/* Wait for a start; or for the end of the Python program or of the launcher, which is that of the fork. */
static void await_start(struct supervisor *s)
{
	struct pollfd fds[4] = {
		{.fd = ISO_SLOT_STARTS, .events = POLLIN},
		{.fd = ISO_SLOT_OWNER, .events = POLLIN},
		{.fd = s->above, .events = POLLIN},
		{.fd = s->child > 0 ? s->child_fd : -1, .events = POLLIN},
	};
	int64_t r;
	do
		r = SYS5(ppoll, PTR(fds), 4, 0, 0, 0);
	while (r == -EINTR || r == -EAGAIN || r == -ENOMEM);
	if (r < 0 || fds[1].revents || fds[2].revents)
		leave_unborn(s);
	if (fds[3].revents)
		fail_ahead(s);
}

/* Whether whoever asks for a start may have it. It finds that out while its message comes here, and tells by the control socket;
 * the socket's end says that it may not, and that nothing was asked for. */
static int confirmed(struct supervisor *s, int32_t control)
{
	struct pollfd fds[3] = {
		{.fd = control, .events = POLLIN},
		{.fd = ISO_SLOT_OWNER, .events = POLLIN},
		{.fd = s->above, .events = POLLIN},
	};
	uint8_t yes;
	int64_t r;
	do {
		do
			r = SYS5(ppoll, PTR(fds), 3, 0, 0, 0);
		while (r == -EINTR || r == -EAGAIN || r == -ENOMEM);
		if (r < 0 || fds[1].revents || fds[2].revents)
			leave_unborn(s);
		r = SYS6(recvfrom, control, PTR(&yes), 1, 0x40 /* MSG_DONTWAIT */, 0, 0);
	} while (r == -EINTR || r == -EAGAIN);
	return r == 1;
}

/* A fork of the parked launcher: all that can be done before there is a start to be made, then wait for one. It ends with the
 * launcher until it has one. `last` is what the last start has told, or 0: after one there is hope of more, see prepare(). */
static void serve(struct supervisor *s, uint8_t *tape, int64_t launcher, uint64_t last, uint32_t flags) __attribute__((noreturn));
static void serve(struct supervisor *s, uint8_t *tape, int64_t launcher, uint64_t last, uint32_t flags)
{
	static int32_t fds[ISO_MAX_PASSED + ISO_MAX_BESIDE];
	struct {
		uint64_t handler, flags, restorer, mask;
	} action = {0, 0, 0, 0};
	int64_t r = SYS2(prctl, PR_SET_PDEATHSIG, SIGKILL_);
	if (r < 0 || SYS0(getppid) != launcher || SYS4(rt_sigaction, SIGCHLD_, PTR(&action), 0, 8) < 0)
		exit_now(1);
	begin_supervisor(s, 1);
	equip(s, tape);
	r = SYS2(pidfd_open, SYS0(getpid), 0);
	if (r < 0)
		exit_now(1);
	s->unborn = (int32_t)r;
	s->machine.shared->untold = 1;
	prepare(s, launcher, last, flags);
	for (;;) {
		struct iso_begin begin = {0, 0};
		if (s->above >= 0)
			await_start(s);
		struct part parts[2] = {{&begin, sizeof begin}, {later_block, sizeof later_block}};
		struct message message = {0, 0, parts, 2, starts_control, sizeof starts_control, 0};
		r = SYS3(recvmsg, ISO_SLOT_STARTS, PTR(&message), 0x40000000 /* MSG_CMSG_CLOEXEC */);
		if (r == -EINTR)
			continue;
		if (r <= 0)
			leave_unborn(s);
		const uint32_t count = received(starts_control, message.control_length, fds);
		if (!(message.flags & 0x28 /* MSG_CTRUNC | MSG_TRUNC */) && count >= 4 && r > (int64_t)sizeof begin &&
		    shares(begin.thread) && confirmed(s, fds[0])) {
			struct pollfd more = {.fd = ISO_SLOT_STARTS, .events = POLLIN};
			struct __kernel_timespec none = {0, 0};
			if (SYS2(prctl, PR_SET_PDEATHSIG, 0) < 0)
				leave_unborn(s);
			/* Another one waits already. Else the launcher is told later: see supervise(). */
			if (SYS5(ppoll, PTR(&more), 1, PTR(&none), 0, 0) > 0)
				tell_taken(&s->tree, TAKEN_RUNS);
			if (s->child > 0)
				use_ahead(s, (void *)later_block, (uint64_t)r - sizeof begin, fds, count);
			begin_start(s, (void *)later_block, (uint64_t)r - sizeof begin, fds, count);
		}
		/* The end of its socket says that there is none. */
		for (uint32_t i = 0; i < count; i++)
			close_fd(fds[i]);
	}
}

/* The launcher ends. If the fork that waited was killed, what it had made ahead is taken back here; one that lives sees to that
 * itself, or has a start. */
static void leave(struct supervisor *s, uint8_t *tape, int64_t pid, int32_t pidfd) __attribute__((noreturn));
static void leave(struct supervisor *s, uint8_t *tape, int64_t pid, int32_t pidfd)
{
	struct pollfd fd = {.fd = pidfd, .events = POLLIN};
	struct __kernel_timespec none = {0, 0};
	if (((const struct iso_header *)(const void *)tape)->section[ISO_AHEAD].count && SYS5(ppoll, PTR(&fd), 1, PTR(&none), 0, 0) > 0) {
		equip(s, tape);
		s->machine.reg[ISO_REG_LAUNCHER] = pid;
		s->ahead = 1;
		take_back(s);
	}
	exit_now(0);
}

/* Whether whoever owns us lets go, or has gone. A byte from it says that a start is not answered: somebody may have stopped the
 * fork that waits, as it may have stopped us (SIGCONT came before). */
static int is_let_go(int32_t fork)
{
	uint8_t byte;
	const int64_t r = SYS6(recvfrom, ISO_SLOT_CONTROL, PTR(&byte), 1, 0x40 /* MSG_DONTWAIT */, 0, 0);
	if (r == 1)
		SYS4(pidfd_send_signal, fork, SIGCONT_, 0, 0);
	return r <= 0 && r != -EAGAIN && r != -EINTR;
}

void park(struct supervisor *s)
{
	struct {
		uint64_t handler, flags, restorer, mask;
	} action = {1 /* SIG_IGN */, 0, 0, 0};
	const int64_t self = SYS0(getpid);
	struct iso_machine *m = &s->machine;
	uint8_t *const built = (uint8_t *)m->header;
	const uint64_t built_size = s->tape_size;
	const uint32_t flags = m->run->flags & ISO_RUN_KILLABLE; /* each start inherits what we have */
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
	r = SYS2(eventfd2, 0, 02004000 /* EFD_CLOEXEC | EFD_NONBLOCK */);
	s->tree.taken = (int32_t)r;
	if (r >= 0)
		r = SYS4(rt_sigaction, SIGCHLD_, PTR(&action), 0, 8);
	for (int32_t i = 0; i <= ISO_SLOT_START_TAPE && r >= 0; i++)
		if (i != ISO_SLOT_CONTROL && i != ISO_SLOT_OWNER && i != ISO_SLOT_STARTS && i != s->tree.mounts && i != s->tree.users &&
		    i != s->tree.hidden && i != s->tree.own && i != s->tree.root && i != s->tree.taken)
			r = SYS3(dup3, ISO_SLOT_STARTS, i, O_CLOEXEC);
	if (r < 0)
		refuse(ISO_STAGE_TEMPLATE, r);
	/* Nor is a directory of the caller's held that it may want to unmount. */
	SYS1(chdir, PTR("/"));
	s->tree.starts = ISO_SLOT_STARTS;
	s->machine.shared->parked = 1;
	tell_end(s);
	/* None of this is for the forks. */
	SYS2(munmap, PTR(built), built_size);
	if (s->working_size)
		SYS2(munmap, PTR(m->reg), s->working_size);
	SYS2(munmap, PTR(m->shared), s->shared_size);
	s->tape_size = size;
	s->child = 0; /* that was another's birth */
	shed_data();
	/* One that waits is always there: a start has not to wait for a fork. Where there can be none, nobody may wait here. */
	for (uint64_t taken = 0;;) {
		int32_t pidfd = -1;
		const int64_t pid = SYS5(clone, CLONE_PIDFD | SIGCHLD_, 0, PTR(&pidfd), 0, 0);
		if (pid == 0)
			serve(s, tape, self, taken < TAKEN_FAILED ? taken : 0, flags);
		if (pid < 0)
			exit_now(1);
		struct pollfd fds[5] = {
			{.fd = s->tree.taken, .events = POLLIN},
			{.fd = pidfd, .events = POLLIN},
			{.fd = ISO_SLOT_STARTS, .events = 0 /* its end alone */},
			{.fd = ISO_SLOT_CONTROL, .events = POLLIN},
			{.fd = ISO_SLOT_OWNER, .events = POLLIN},
		};
		struct __kernel_timespec wait = {IDLE_SECONDS, 0};
		do
			r = SYS5(ppoll, PTR(fds), 5, PTR(&wait), 0, 0);
		while (r == -EINTR || r == -EAGAIN || r == -ENOMEM ||
		       (r == 1 && fds[3].revents == POLLIN && !is_let_go(pidfd)));
		if (r <= 0 || fds[2].revents || fds[3].revents || fds[4].revents ||
		    SYS3(read, s->tree.taken, PTR(&taken), sizeof taken) != sizeof taken)
			leave(s, tape, pid, pidfd); /* nobody needs us any more, or the one that waited was killed */
		close_fd(pidfd);
	}
}
