/* A start that is made before it is asked for. The fork of a parked launcher that waits has its child already: init, with all
 * that is not the program's, waits for the run as one of a pool does (later.c). The run comes to the supervisor, which alone
 * can say whether whoever asks may have it, and is handed on. */
#include "launcher.h"

#include <linux/errno.h>
#include <linux/fcntl.h>

#define LATER (ISO_SLOT_START_TAPE + 1) /* where init finds the socket */

/* Whether all but the program can be made ahead: for an init that waits for it. */
int can_bear_ahead(const struct iso_machine *m)
{
	const uint32_t all = ISO_TAPE_INIT | ISO_TAPE_PIDNS | ISO_TAPE_AHEAD;
	return (m->header->flags & all) == all && m->header->slots <= LATER;
}

/* Put one of our descriptors above those that the child finds by their numbers. */
static int64_t lift(int32_t *fd)
{
	if (*fd < 0 || *fd > LATER)
		return 0;
	const int64_t r = SYS3(fcntl, *fd, F_DUPFD_CLOEXEC, LATER + 1);
	if (r >= 0)
		*fd = (int32_t)r; /* the other one is overwritten, or stays until there is a start */
	return r;
}

/* Make the child. 0, or -errno: what there is of it is to be left (leave_ahead). */
int64_t bear_ahead(struct supervisor *s, uint32_t flags)
{
	static struct iso_run run;
	int32_t *const held[] = {&s->tree.mounts, &s->tree.users, &s->tree.hidden, &s->tree.own,
				 &s->tree.root,	  &s->tree.starts, &s->tree.taken,  &s->unborn,	  &s->above};
	int32_t pair[2];
	int64_t r = 0;
	for (size_t i = 0; i < sizeof held / sizeof *held && r >= 0; i++)
		r = lift(held[i]);
	if (r >= 0)
		r = SYS4(openat, AT_FDCWD, PTR("/dev/null"), O_RDWR | O_CLOEXEC | O_NOCTTY, 0);
	if (r < 0)
		return r;
	/* It stands where the streams will be, as in the pool's. */
	const int64_t null = r;
	for (int32_t i = 0; i < 3 && r >= 0; i++)
		r = SYS3(dup3, null, i, O_CLOEXEC);
	SYS1(close, null);
	if (r >= 0)
		r = SYS4(socketpair, 1 /* AF_UNIX */, 5 /* SOCK_SEQPACKET */ | O_CLOEXEC, 0, PTR(pair));
	if (r < 0)
		return r;
	s->within = pair[0];
	r = lift(&s->within);
	if (r >= 0 && pair[1] != LATER)
		r = SYS3(dup3, pair[1], LATER, O_CLOEXEC);
	for (int i = 0; i < 2; i++)
		if (pair[i] != LATER && pair[i] != s->within)
			SYS1(close, pair[i]);
	if (r < 0)
		return r;
	SYS1(close, ISO_SLOT_TAPE);
	run.magic = ISO_RUN_MAGIC;
	run.flags = flags | ISO_RUN_AHEAD;
	run.slots = LATER + 1;
	run.later = LATER;
	s->machine.run = &run;
	r = bear(s);
	SYS1(close, LATER);
	return r;
}

/* Nobody asked for it, or it could not be made whole. */
void leave_ahead(struct supervisor *s)
{
	close_fd(s->within);
	s->within = -1;
	if (s->child <= 0)
		return;
	SYS4(pidfd_send_signal, s->child_fd, SIGKILL_, 0, 0);
	bury(s);
	s->child = 0;
}

/* A start is asked for: init takes it from here, and the supervisor goes on as after any birth. The descriptors are those of
 * the message: the control socket, three streams, what is passed, and a long block's. */
void hand_on(struct supervisor *s, struct iso_run *run, uint64_t size, int32_t *fds, uint32_t count)
{
	struct {
		uint64_t length;
		int32_t level, type, fds[ISO_MAX_PASSED + ISO_MAX_BESIDE + 1];
	} control = {16 + 4 * count, SOL_SOCKET_, SCM_RIGHTS_, {0}};
	struct part part = {run, size};
	struct message message = {0, 0, &part, 1, &control, (control.length + 7) & ~7ull, 0};
	int64_t r;
	memcpy(control.fds, fds, sizeof *fds * count);
	/* Somebody may have stopped init while it waited. Before it takes the run, for it drops what comes until then. */
	SYS4(pidfd_send_signal, s->child_fd, SIGCONT_, 0, 0);
	do
		r = SYS3(sendmsg, s->within, PTR(&message), MSG_NOSIGNAL_);
	while (r == -EINTR);
	if (r >= 0)
		r = SYS3(dup3, fds[0], ISO_SLOT_CONTROL, O_CLOEXEC);
	if (r < 0) {
		/* The end of the control socket says that there is no start. */
		leave_ahead(s);
		take_back(s);
		exit_now(1);
	}
	for (uint32_t i = 0; i < count; i++)
		SYS1(close, fds[i]);
	close_fd(s->within);
	close_fd(s->above);
	s->within = s->above = -1;
	SYS3(close_range, ISO_SLOT_STARTS, LATER, 0);
	s->run = *run;
	s->run.slots = ISO_SLOT_FREE; /* none of them is open here */
	s->machine.run = &s->run;
	if (!run->later)
		s->told_ns = s->started_ns = since(run->began_ns);
	tell_birth(s);
	to_the_end(s);
}
