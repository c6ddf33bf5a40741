/* The run that comes later: a sandbox that is set up waits for its program, and takes it from a socket. */
#include "launcher.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/stat.h>

/* Descriptors of a message; how many. */
uint32_t received(const uint8_t *control, uint64_t length, int32_t *fds)
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
			for (uint64_t i = 16; i + 4 <= size && count < ISO_MAX_PASSED + ISO_MAX_BESIDE; i += 4)
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

uint8_t later_block[LATER_SIZE] __attribute__((aligned(8)));

/* Everything is set up but the program: wait for what it is to be, and put its descriptors where its block has them.
 * Nothing that is not ours runs inside yet. */
static int64_t take_one(struct iso_machine *m)
{
	static uint8_t control[16 + 4 * (ISO_MAX_PASSED + ISO_MAX_BESIDE)] __attribute__((aligned(8)));
	int32_t fds[ISO_MAX_PASSED + ISO_MAX_BESIDE];
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
	uint64_t size = (uint64_t)r;
	const int ahead = (m->run->flags & ISO_RUN_AHEAD) != 0;
	if (ahead) {
		/* By a supervisor that was there before anybody asked for a start: the socket for what we tell comes along. */
		r = count ? SYS3(dup3, fds[0], ISO_SLOT_CONTROL, O_CLOEXEC) : -EBADMSG;
		if (r < 0)
			return r;
		SYS1(close, fds[0]);
		count--;
		for (uint32_t i = 0; i < count; i++)
			fds[i] = fds[i + 1];
	}
	struct iso_run *run = (void *)later_block;
	if (size == sizeof *run && count > 3) {
		uint8_t *block;
		uint32_t stage;
		r = map_block(fds[--count], PROT_RW, &block, &size, &stage);
		if (r < 0)
			return r;
		run = (void *)block;
	}
	r = iso_run_check((const uint8_t *)run, size, m->header->slots);
	if (r < 0)
		return r;
	if (count < 3 || run->slots < ISO_SLOT_FREE + (count - 3))
		return -EBADMSG;
	for (int i = 0; i < 3; i++) {
		/* The null device stands there. Steps may have exchanged it for one that is not the host's. */
		r = is_null(fds[i]) && is_null(i) ? 0 : SYS3(dup3, fds[i], i, O_CLOEXEC);
		if (r < 0)
			return r;
		SYS1(close, fds[i]);
	}
	/* Taken: whoever sent it waits for this, and gives it to another where it does not come. */
	r = ahead ? 0 : SYS6(sendto, socket, PTR("1"), 1, MSG_NOSIGNAL_, 0, 0);
	if (r < 0 && r != -EPIPE && r != -ECONNRESET)
		return r; /* not said, so it must not be done: the run is another's by now */
	SYS1(close, socket);
	/* Down into the gaps: the program's limit of open files is in force before they are put where it wants them, and they
	 * need no more room then than those of a sandbox that did not wait. */
	for (uint32_t i = 3; i < count; i++) {
		r = SYS3(fcntl, fds[i], F_DUPFD_CLOEXEC, ISO_SLOT_FREE);
		if (r < 0)
			break;
		const int32_t higher = r < fds[i] ? fds[i] : (int32_t)r;
		fds[i] = r < fds[i] ? (int32_t)r : fds[i];
		SYS1(close, higher);
	}
	struct iso_fd *table = (void *)((uint8_t *)run + run->fds);
	const uint32_t first = run->slots - (count - 3);
	for (uint32_t i = 0; i < run->fdc; i++)
		if (table[i].slot >= first)
			table[i].slot = (uint32_t)fds[3 + table[i].slot - first];
	if (run->later)
		run->later = run->later >= first ? (uint32_t)fds[3 + run->later - first] : 0;
	m->run = run;
	return 0;
}

/* One that was made ahead may be asked for by somebody who does not know the program yet. */
int64_t take_run(struct iso_machine *m)
{
	int64_t r = take_one(m);
	if (r >= 0 && m->run->later)
		r = take_one(m);
	/* A signal that somebody has sent to who waits is not for the program, which did not exist yet: init hands on what
	 * comes from here on. */
	const uint64_t all = ~0ull;
	const struct __kernel_timespec none = {0, 0};
	while (SYS4(rt_sigtimedwait, PTR(&all), 0, PTR(&none), 8) > 0)
		;
	return r;
}
