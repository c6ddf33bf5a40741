/* Start the launcher: vfork and exec, whatever the size of the Python program.
 *
 * Two processes are made. The middle one exits at once, so the launcher is nobody's child here: the program's
 * own os.wait() cannot steal it and no SIGCHLD comes. The middle one itself is made without an exit signal, and
 * such children are seen only by wait calls that ask for them (__WCLONE, __WALL in wait(2)).
 *
 * Both share our memory and suspend the calling thread (CLONE_VFORK), so they use raw system calls only: no
 * errno, no malloc, no lock that another thread may hold. Neither enters a namespace. */
#define _GNU_SOURCE
#include "spawn.h"
#include "sys.h"
#include "tape.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x1000
#endif

#define STACK 16384
#define INLINE 16384 /* bytes of a run block within a message */

struct start {
	struct iso_spawn *request;
	int64_t error;
	int32_t middle; /* its number in our own pid namespace */
	int32_t joined; /* the middle one is the launcher */
	uint8_t middle_stack[STACK] __attribute__((aligned(16)));
	uint8_t launcher_stack[STACK] __attribute__((aligned(16)));
};

static void stop(struct start *s, int stage, int64_t error)
{
	s->request->stage = stage;
	s->error = error;
	for (;;)
		SYS1(exit_group, 127);
}

static void become_launcher(void *p)
{
	struct start *s = p;
	const struct iso_spawn *q = s->request;
	/* A child of ours may be in another pid namespace than the /proc that it finds: it is told by a second word. */
	const char *const argv[] = {"isolate-launcher", s->joined || q->direct ? "child" : NULL, NULL};
	static const char *const envp[] = {NULL};
	const int32_t n = q->fd_count;
	int32_t highest = n - 1;
	int32_t copy[1024];
	int64_t r;
	for (int32_t i = 0; i < n; i++) {
		copy[i] = q->fds[i];
		if (copy[i] > highest)
			highest = copy[i];
	}
	if (q->program > highest)
		highest = q->program;
	/* The table is still the program's. Ours from here on, copied only as far as it is needed: a program with a hundred
	 * thousand open files costs no more. If this fails nothing may be touched. */
	r = SYS3(close_range, highest + 1, ~0u, CLOSE_RANGE_UNSHARE);
	if (r < 0)
		stop(s, ISO_SPAWN_FILES, r);
	/* Lift what stands below n and is wanted elsewhere, so that no dup3 overwrites a source still to come. */
	int32_t program = q->program;
	for (int32_t i = 0; i < n; i++) {
		if (copy[i] >= n || copy[i] == i)
			continue;
		r = SYS3(fcntl, copy[i], F_DUPFD_CLOEXEC, n);
		if (r < 0)
			stop(s, ISO_SPAWN_FILES, r);
		copy[i] = (int32_t)r;
	}
	if (program >= 0 && program < n) {
		r = SYS3(fcntl, program, F_DUPFD_CLOEXEC, n);
		if (r < 0)
			stop(s, ISO_SPAWN_FILES, r);
		program = (int32_t)r;
	}
	for (int32_t i = 0; i < n; i++) {
		/* Not close-on-exec: the launcher is an exec away. It sets the flag itself. */
		r = copy[i] == i ? SYS3(fcntl, i, F_SETFD, 0) : SYS3(dup3, copy[i], i, 0);
		if (r < 0)
			stop(s, ISO_SPAWN_FILES, r);
	}
	r = SYS3(close_range, n, ~0u, CLOSE_RANGE_CLOEXEC);
	if (r < 0)
		stop(s, ISO_SPAWN_FILES, r);
	if (program >= 0)
		r = SYS5(execveat, program, PTR(""), PTR(argv), PTR(envp), 0x1000 /* AT_EMPTY_PATH */);
	else
		r = SYS3(execve, PTR(q->path), PTR(argv), PTR(envp));
	stop(s, ISO_SPAWN_EXEC, r);
}

static int64_t start_launcher(struct start *s)
{
	/* exit signal: exec would set SIGCHLD anyway. The pidfd lands in the program's table, which we share. */
	return iso_clone_call(__NR_clone, CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_PIDFD | SIGCHLD,
			      PTR(s->launcher_stack + STACK), PTR(&s->request->pidfd), become_launcher, s);
}

static void middle(void *p)
{
	struct start *s = p;
	const int64_t self = SYS0(getpid);
	/* The thread has given its children another pid namespace (unshare, setns). There a first process that ends at once takes
	 * the namespace along, as its PID 1, and an orphan is that one's. So this one is the launcher, and a child of ours. */
	if (self != s->middle) {
		const int64_t pidfd = SYS2(pidfd_open, self, 0);
		if (pidfd < 0)
			stop(s, ISO_SPAWN_CLONE, pidfd);
		s->request->pidfd = (int32_t)pidfd;
		s->joined = 1;
		become_launcher(s);
	}
	int64_t pid = start_launcher(s);
	if (pid < 0)
		stop(s, ISO_SPAWN_CLONE, pid);
	s->request->pid = (int32_t)pid;
	if (s->error)
		SYS4(wait4, pid, 0, __WALL, 0);
	for (;;)
		SYS1(exit_group, 0);
}

int64_t iso_spawn(struct iso_spawn *q)
{
	struct start s;
	s.request = q;
	s.error = 0;
	s.joined = 0;
	q->pid = q->pidfd = -1;
	q->stage = 0;
	if (q->fd_count < 3 || q->fd_count > 1024)
		return -EINVAL;
	for (int32_t i = 0; i < q->fd_count; i++)
		if (q->fds[i] < 0)
			return -EBADF;
	/* A handler of the program's must not run in a process that shares its memory; the launcher inherits this mask.
	 * All 64: also the two that libc keeps for itself. */
	const uint64_t all = ~0ull;
	uint64_t before = 0;
	int64_t r = SYS4(rt_sigprocmask, SIG_SETMASK, PTR(&all), PTR(&before), 8);
	if (r < 0) {
		q->stage = ISO_SPAWN_SIGNALS;
		return r;
	}
	int64_t pid;
	if (q->direct) {
		pid = start_launcher(&s);
		if (pid < 0) {
			q->stage = ISO_SPAWN_CLONE;
			s.error = pid;
		} else if (s.error) {
			SYS4(wait4, pid, 0, __WALL, 0);
		}
		q->pid = (int32_t)pid;
	} else {
		pid = iso_clone_call(__NR_clone, CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_PARENT_SETTID,
				     PTR(s.middle_stack + STACK), PTR(&s.middle), middle, &s);
		if (pid < 0) {
			q->stage = ISO_SPAWN_CLONE;
			s.error = pid;
		} else if (s.joined && !s.error) {
			q->direct = 1;
			q->pid = (int32_t)pid;
		} else {
			SYS4(wait4, pid, 0, __WALL, 0);
		}
	}
	/* The mask is this thread's own to set, so this cannot fail; were it to, the thread would be deaf for good. */
	for (int i = 0; i < 3; i++)
		if (SYS4(rt_sigprocmask, SIG_SETMASK, PTR(&before), 0, 8) == 0)
			break;
	if (!s.error && q->pid < 0) {
		/* A SIGKILL to our process group found the one in the middle before it had told. */
		q->stage = ISO_SPAWN_CLONE;
		s.error = -ESRCH;
	}
	if (s.error) {
		if (q->pidfd >= 0)
			SYS1(close, q->pidfd);
		q->pid = q->pidfd = -1;
	}
	return s.error;
}

void iso_close(int32_t *fd)
{
	if (*fd >= 0)
		SYS1(close, *fd);
	*fd = -1;
}

int64_t iso_device(const char *path)
{
	struct stat status;
	return stat(path, &status) < 0 ? -errno : (int64_t)status.st_dev;
}

static uint64_t *wiped; /* a page that the kernel empties in a forked child */

uint64_t iso_owner(void)
{
	uint64_t *page = __atomic_load_n(&wiped, __ATOMIC_ACQUIRE);
	if (!page) {
		const int64_t made = SYS6(mmap, 0, 4096, 3 /* PROT_READ | PROT_WRITE */, 0x22 /* MAP_PRIVATE | MAP_ANONYMOUS */, -1, 0);
		if (made < 0 && made > -4096)
			return 0;
		if (SYS3(madvise, made, 4096, 18 /* MADV_WIPEONFORK, Linux 4.14 */) < 0) {
			SYS2(munmap, made, 4096);
			return 0;
		}
		if (__atomic_compare_exchange_n(&wiped, &page, (uint64_t *)(uintptr_t)made, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
			page = (uint64_t *)(uintptr_t)made;
		else
			SYS2(munmap, made, 4096); /* another thread was quicker */
	}
	uint64_t token = __atomic_load_n(page, __ATOMIC_ACQUIRE);
	while (!token) {
		uint64_t fresh = 0;
		if (SYS3(getrandom, PTR(&fresh), sizeof fresh, 1 /* GRND_NONBLOCK */) != sizeof fresh) {
			struct timespec t = {0, 0};
			SYS2(clock_gettime, 1 /* CLOCK_MONOTONIC */, PTR(&t));
			fresh = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
		}
		if (fresh && __atomic_compare_exchange_n(page, &token, fresh, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
			token = fresh;
	}
	return token;
}

int64_t iso_lift(int64_t fd)
{
	if (fd < 0 || fd > 2)
		return fd;
	const int64_t r = SYS3(fcntl, fd, F_DUPFD_CLOEXEC, 3);
	SYS1(close, fd);
	return r;
}

void iso_let_go(struct iso_start *s)
{
	if (s->control >= 0 && s->owner && s->owner == iso_owner())
		SYS2(shutdown, s->control, SHUT_WR);
}

void iso_release(struct iso_start *s)
{
	iso_let_go(s);
	s->rests[0] = s->rests[1] = 0;
	for (int i = 0; i < 3; i++)
		iso_close(&s->ours[i]);
	iso_close(&s->control);
	iso_close(&s->later);
	iso_close(&s->payload);
	iso_close(&s->terminal);
	iso_close(&s->pidfd);
}

void iso_close_pty(int32_t *ends)
{
	iso_close(&ends[0]);
	iso_close(&ends[1]);
}

int32_t iso_take_terminal(struct iso_start *s, int32_t *ends)
{
	if (s->terminal < 0)
		return 0;
	iso_close_pty(ends);
	ends[0] = s->terminal;
	s->terminal = -1;
	return 1;
}

int64_t iso_open_pty(int32_t *ends, int64_t uid)
{
	const int32_t locked = 0;
	int64_t r = SYS4(openat, AT_FDCWD, PTR("/dev/ptmx"), O_RDWR | O_NOCTTY | O_CLOEXEC, 0);
	ends[0] = ends[1] = -1;
	if (r < 0)
		return r;
	r = iso_lift(r);
	if (r < 0)
		return r;
	ends[0] = (int32_t)r;
	r = SYS3(ioctl, ends[0], TIOCSPTLCK, PTR(&locked));
	if (r >= 0)
		/* By descriptor (Linux 4.13): no path in a devpts that may be another's. */
		r = SYS3(ioctl, ends[0], TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (r >= 0) {
		ends[1] = (int32_t)r;
		if (uid >= 0)
			r = SYS3(fchown, ends[1], uid, -1);
	}
	if (r < 0) {
		iso_close_pty(ends);
		return r;
	}
	return 0;
}

struct streams {
	int32_t wanted[3], nonblocking;
	int32_t null; /* one for all, as in subprocess */
};

static int64_t connect_stream(struct iso_start *s, struct streams *q, int i, int32_t *table, int32_t *opened)
{
	int32_t ends[2];
	int64_t r;
	switch (q->wanted[i]) {
	case ISO_PIPE:
		r = SYS2(pipe2, PTR(ends), O_CLOEXEC);
		if (r < 0)
			return r;
		*opened = table[i] = ends[i ? 1 : 0];
		r = iso_lift(ends[i ? 0 : 1]);
		if (r < 0)
			return r;
		s->ours[i] = (int32_t)r;
		/* The program opens it again by /dev/stdin and the like, with any id inside. A pipe has no path but that of a
		 * process that holds it, so nobody else gets at it. */
		r = SYS2(fchmod, *opened, 0666);
		if (r < 0)
			return r;
		/* Only our end: file status flags belong to the open file, and theirs is another. */
		return q->nonblocking ? SYS3(fcntl, s->ours[i], F_SETFL, O_NONBLOCK | (i ? O_RDONLY : O_WRONLY)) : 0;
	case ISO_DEVNULL:
		if (q->null < 0) {
			r = SYS4(openat, AT_FDCWD, PTR("/dev/null"), O_RDWR | O_CLOEXEC, 0);
			if (r < 0)
				return r;
			*opened = q->null = (int32_t)r;
		}
		table[i] = q->null;
		return 0;
	case ISO_STDOUT:
		table[i] = table[1];
		return 0;
	default:
		table[i] = q->wanted[i];
		return 0;
	}
}

static int64_t write_all(int32_t fd, const uint8_t *data, uint64_t size)
{
	while (size) {
		int64_t r = SYS3(write, fd, PTR(data), size);
		if (r == -EINTR)
			continue;
		if (r <= 0)
			return r ? r : -EIO;
		data += r;
		size -= (uint64_t)r;
	}
	return 0;
}

/* Whether this process's oom_score_adj is 0 or above. Asked here, since the kernel would have to make the launcher's files
 * in /proc first. 0 also where it is unknown. */
static uint32_t killable(void)
{
	char first = '-';
	const int64_t fd = SYS4(openat, AT_FDCWD, PTR("/proc/self/oom_score_adj"), O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return 0;
	const int64_t n = SYS3(read, fd, PTR(&first), 1);
	SYS1(close, fd);
	return n == 1 && first >= '0' && first <= '9' ? ISO_RUN_KILLABLE : 0;
}

/* Nobody changes it any more: what the launcher has mapped of it would change too. */
static int64_t seal(int32_t fd)
{
	return SYS3(fcntl, fd, 1033 /* F_ADD_SEALS */, 0xf /* seal, shrink, grow, write */);
}

/* Whether a file may not grow so long here (RLIMIT_FSIZE, which holds for a memfd, too, and sends SIGXFSZ). */
static int too_long(uint64_t size)
{
	uint64_t limit[2] = {~0ull, ~0ull};
	return SYS4(prlimit64, 0, 1 /* RLIMIT_FSIZE */, 0, PTR(limit)) >= 0 && size > limit[0];
}

/* All of the pieces; they are used up. */
static int64_t write_pieces(int32_t fd, struct iovec *pieces, int32_t count)
{
	while (count) {
		int64_t r = SYS3(writev, fd, PTR(pieces), count);
		if (r == -EINTR)
			continue;
		if (r <= 0)
			return r ? r : -EIO;
		for (; count && (uint64_t)r >= pieces->iov_len; pieces++, count--)
			r -= (int64_t)pieces->iov_len;
		if (count) {
			pieces->iov_base = (uint8_t *)pieces->iov_base + r;
			pieces->iov_len -= (uint64_t)r;
		}
	}
	return 0;
}

/* A descriptor from which the launcher gets the tape with the run block behind it, or such a block alone: a memfd, or where
 * that may not be so long a pipe that holds all of it. Or -errno. */
static int64_t carry(struct iovec *pieces, int32_t count)
{
	int32_t ends[2] = {-1, -1};
	uint64_t size = 0;
	int64_t r;
	for (int32_t i = 0; i < count; i++)
		size += pieces[i].iov_len;
	if (too_long(size)) {
		r = SYS2(pipe2, PTR(ends), O_CLOEXEC | O_NONBLOCK);
		if (r >= 0)
			/* To the next power of two, and above a mebibyte with CAP_SYS_RESOURCE alone: then it is an error below. */
			SYS3(fcntl, ends[1], 1031 /* F_SETPIPE_SZ */, size);
	} else {
		r = SYS2(memfd_create, PTR("isolate-tape"), 1 | 2 /* MFD_CLOEXEC | MFD_ALLOW_SEALING */);
		ends[0] = (int32_t)r;
	}
	if (r < 0)
		return r;
	r = write_pieces(ends[1] < 0 ? ends[0] : ends[1], pieces, count);
	if (r == 0 && ends[1] < 0)
		r = seal(ends[0]);
	if (r == -EAGAIN && ends[1] >= 0)
		r = -EFBIG; /* the pipe is full */
	iso_close(&ends[1]);
	if (r < 0)
		iso_close(&ends[0]);
	return r < 0 ? r : ends[0];
}

static uint64_t monotonic(void)
{
	struct timespec t = {0, 0};
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A run block in two pieces: its header with what is known now, and the rest. */
static void with_header(struct iovec *pieces, struct iso_run *header, const uint8_t *run, uint64_t size, uint32_t flags, uint64_t began)
{
	memcpy(header, run, sizeof *header);
	header->flags |= flags;
	header->began_ns = began;
	pieces[0] = (struct iovec){header, sizeof *header};
	pieces[1] = (struct iovec){(void *)(uintptr_t)(run + sizeof *header), size - sizeof *header};
}

struct launcher {
	int32_t fd;
	dev_t device;
	ino_t inode;
};

static struct launcher *known;

static int64_t valid(const struct launcher *l)
{
	struct stat now;
	/* The number may be another file's by now: device and inode tell. */
	if (!l || fstat(l->fd, &now) < 0 || now.st_dev != l->device || now.st_ino != l->inode)
		return -ENOENT;
	/* A program "#!/proc/self/exe" is the launcher's: by /proc/pid/exe somebody inside with our uid can get at its mode. */
	if (!(now.st_mode & S_IXUSR))
		return -ENOENT;
	return l->fd;
}

int64_t iso_launcher_fd(void)
{
	return valid(__atomic_load_n(&known, __ATOMIC_ACQUIRE));
}

static int64_t make_launcher(const uint8_t *image, uint64_t size, struct launcher *made)
{
	struct stat status;
	if (too_long(size))
		return -EFBIG;
	/* MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC; the last came with Linux 6.3. */
	int64_t fd = SYS2(memfd_create, PTR("isolate-launcher"), 1 | 2 | 0x10);
	if (fd == -EINVAL)
		fd = SYS2(memfd_create, PTR("isolate-launcher"), 1 | 2);
	if (fd < 0)
		return fd == -EPERM ? -EACCES : fd; /* vm.memfd_noexec=2, or a filter */
	fd = iso_lift(fd);
	if (fd < 0)
		return fd;
	int64_t r = write_all((int32_t)fd, image, size);
	if (r == 0) {
		r = SYS3(fcntl, fd, 1033 /* F_ADD_SEALS */, 0x2f /* seal, shrink, grow, write, exec */);
		if (r == -EINVAL) /* the last came with Linux 6.3 */
			r = seal((int32_t)fd);
	}
	if (r == 0 && fstat((int32_t)fd, &status) < 0)
		r = -errno;
	if (r == 0 && !(status.st_mode & S_IXUSR))
		r = -EACCES; /* vm.memfd_noexec=1 takes the execute bits away */
	if (r < 0) {
		SYS1(close, fd);
		return r;
	}
	made->fd = (int32_t)fd;
	made->device = status.st_dev;
	made->inode = status.st_ino;
	return fd;
}

int64_t iso_make_launcher(const uint8_t *image, uint64_t size)
{
	struct launcher *before = __atomic_load_n(&known, __ATOMIC_ACQUIRE);
	if (valid(before) >= 0)
		return before->fd;
	struct launcher *mine = malloc(sizeof *mine);
	if (!mine)
		return -ENOMEM;
	int64_t fd = make_launcher(image, size, mine);
	if (fd < 0) {
		free(mine);
		return fd;
	}
	/* The old one, if the program closed it, is not freed: another thread may be looking at it. */
	if (__atomic_compare_exchange_n(&known, &before, mine, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return fd;
	SYS1(close, fd); /* another thread was quicker */
	free(mine);
	return before->fd;
}

void iso_begin(struct iso_start *s)
{
	for (int i = 0; i < 3; i++)
		s->ours[i] = -1;
	s->control = s->later = s->payload = s->terminal = s->pid = s->pidfd = -1;
	s->direct = 0;
	s->sender = 0;
	s->began = s->rests[0] = s->rests[1] = 0;
	s->owner = iso_owner();
}

int64_t iso_start(struct iso_start *s, const uint8_t *tape, uint64_t tape_size, const uint8_t *run, uint64_t run_size,
		  const int32_t *slots, int32_t slot_count, int32_t in, int32_t out, int32_t err, int32_t nonblocking,
		  int32_t program, const char *path, int32_t direct, int32_t later)
{
	/* 0, 1, 2, control, tape, owner: what the launcher finds at these numbers. */
	int32_t table[ISO_MAX_SLOTS];
	table[0] = table[1] = table[2] = -1;
	int32_t opened[ISO_SLOT_FREE + 1] = {-1, -1, -1, -1, -1, -1, -1};
	int32_t pair[2];
	struct streams q = {{in, out, err}, nonblocking, -1};
	struct iso_run header;
	struct iovec pieces[3] = {{(void *)(uintptr_t)tape, tape_size}};
	int64_t r = 0;
	s->stage = ISO_START_STREAMS;
	if (slot_count < 0 || slot_count + ISO_SLOT_FREE >= ISO_MAX_SLOTS || in == ISO_STDOUT || out == ISO_STDOUT ||
	    run_size < sizeof header)
		return -EINVAL;
	s->began = monotonic();
	with_header(pieces + 1, &header, run, run_size, killable(), s->began);
	for (int i = 0; i < 3 && r >= 0; i++)
		r = connect_stream(s, &q, i, table, &opened[i]);
	if (r >= 0) {
		s->stage = ISO_START_CONTROL;
		r = SYS4(socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, PTR(pair));
	}
	if (r >= 0) {
		r = iso_lift(pair[0]);
		table[ISO_SLOT_CONTROL] = opened[ISO_SLOT_CONTROL] = pair[1];
	}
	if (r >= 0) {
		const int32_t on = 1;
		s->control = (int32_t)r;
		/* The kernel tells the sender's pid in our numbers: a payload in a pid namespace of its own does not know it. */
		r = SYS5(setsockopt, s->control, SOL_SOCKET, SO_PASSCRED, PTR(&on), sizeof on);
	}
	if (r >= 0 && later) {
		r = SYS4(socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, PTR(pair));
		if (r >= 0) {
			table[ISO_SLOT_FREE + slot_count] = opened[ISO_SLOT_FREE] = pair[1];
			r = iso_lift(pair[0]);
			s->later = r < 0 ? -1 : (int32_t)r;
		}
	}
	if (r >= 0) {
		s->stage = ISO_START_TAPE;
		r = carry(pieces, 3);
	}
	if (r >= 0)
		table[ISO_SLOT_TAPE] = opened[ISO_SLOT_TAPE] = (int32_t)r;
	if (r >= 0) {
		s->stage = ISO_START_OWNER;
		/* By this the launcher sees the end of this process, however it comes. */
		r = SYS2(pidfd_open, SYS0(getpid), 0);
	}
	if (r >= 0) {
		table[ISO_SLOT_OWNER] = opened[ISO_SLOT_OWNER] = (int32_t)r;
		for (int32_t i = 0; i < slot_count; i++)
			table[ISO_SLOT_FREE + i] = slots[i];
		struct iso_spawn request = {
			.program = program,
			.path = path,
			.fds = table,
			.fd_count = ISO_SLOT_FREE + slot_count + (later != 0),
			.direct = direct,
		};
		r = iso_spawn(&request);
		s->stage = request.stage;
		s->pid = request.pid;
		s->direct = request.direct;
		/* Should no number be left above the streams', it stays where it is. */
		s->pidfd = request.pidfd;
		if (request.pidfd >= 0 && request.pidfd < 3) {
			const int64_t higher = SYS3(fcntl, request.pidfd, F_DUPFD_CLOEXEC, 3);
			if (higher >= 0) {
				SYS1(close, request.pidfd);
				s->pidfd = (int32_t)higher;
			}
		}
	}
	for (int i = 0; i <= ISO_SLOT_FREE; i++)
		iso_close(&opened[i]);
	if (r < 0)
		iso_release(s);
	return r;
}

/* Whether init has not taken the message: it answers with a byte. It may die with the message read, or while it still sets
 * up; then another sandbox takes the run. Where set-up is not done, that is waited for; should it take longer than this,
 * what becomes of it shows as with any other start. */
static int was_lost(int32_t socket)
{
	struct pollfd fd = {.fd = socket, .events = POLLIN};
	struct timespec most = {1, 0};
	uint8_t byte;
	int64_t r;
	do
		r = SYS5(ppoll, PTR(&fd), 1, PTR(&most), 0, 0);
	while (r == -EINTR);
	if (r <= 0)
		return 0;
	/* Only the end without a byte says so; an error of our own leaves it to the launcher's record. */
	r = SYS6(recvfrom, socket, PTR(&byte), 1, MSG_DONTWAIT, 0, 0);
	return r == 0 || r == -ECONNRESET;
}

/* Send a run to who waits for one: the block, its streams, what is passed, and last a long block's descriptor, since a message
 * has to find room in the socket's buffer. `begins`: to a parked launcher, that begins with it, so the other end of a control
 * socket comes first; else to an init that waits, whose supervisor is told the limits of time. */
static int64_t send_run(struct iso_start *s, int32_t to, const struct iso_begin *begins, uint32_t flags, int32_t later,
			const uint8_t *run, uint64_t run_size, const int32_t *passed, int32_t count, const int32_t *wanted,
			int32_t nonblocking)
{
	const int32_t large = run_size > INLINE, on = 1;
	int32_t sent[ISO_MAX_PASSED + ISO_MAX_BESIDE], opened[ISO_MAX_BESIDE + 1] = {-1, -1, -1, -1, -1, -1}, pair[2];
	struct streams q = {{wanted[0], wanted[1], wanted[2]}, nonblocking, -1};
	union {
		struct cmsghdr header;
		uint8_t space[CMSG_SPACE(sizeof sent)];
	} control;
	struct iso_run header;
	struct iovec parts[3] = {{(void *)(uintptr_t)begins, sizeof *begins}}, pieces[2];
	struct msghdr message = {.msg_iov = parts + !begins, .msg_iovlen = 1 + !!begins + !large, .msg_control = &control};
	size_t n = begins ? 1 : 0;
	sent[0] = sent[1] = sent[2] = sent[3] = -1;
	int64_t r = 0;
	s->stage = ISO_START_STREAMS;
	if (count < 0 || count > ISO_MAX_PASSED - !!later || run_size < sizeof(struct iso_run) ||
	    wanted[0] == ISO_STDOUT || wanted[1] == ISO_STDOUT)
		return -EINVAL;
	s->began = monotonic();
	with_header(parts + 1, &header, run, run_size, flags, s->began);
	memcpy(pieces, parts + 1, sizeof pieces);
	/* Before anything else is opened: what the caller has closed is told by its number. */
	for (int i = 0; i < 3 && r >= 0; i++)
		r = connect_stream(s, &q, i, sent + n, &opened[i]);
	n += 3;
	if (r >= 0 && begins) {
		s->stage = ISO_START_CONTROL;
		r = SYS4(socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, PTR(pair));
		if (r >= 0) {
			sent[0] = opened[3] = pair[1];
			r = iso_lift(pair[0]);
		}
		if (r >= 0) {
			s->control = (int32_t)r;
			r = SYS5(setsockopt, s->control, SOL_SOCKET, SO_PASSCRED, PTR(&on), sizeof on);
		}
	}
	if (r >= 0) {
		memcpy(sent + n, passed, sizeof *passed * (size_t)count);
		n += (size_t)count;
	}
	if (r >= 0 && later) {
		r = SYS4(socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, PTR(pair));
		if (r >= 0) {
			sent[n++] = opened[5] = pair[1];
			r = iso_lift(pair[0]);
			s->later = r < 0 ? -1 : (int32_t)r;
		}
	}
	if (r >= 0 && large) {
		s->stage = ISO_START_TAPE;
		r = carry(pieces, 2);
		if (r >= 0)
			sent[n++] = opened[4] = (int32_t)r;
	}
	if (r >= 0) {
		const struct iso_limits limits = {header.timeout_ns, header.cpu_ns, s->began};
		memset(&control, 0, sizeof control.header);
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(sizeof *sent * n);
		memcpy(CMSG_DATA(&control.header), sent, sizeof *sent * n);
		message.msg_controllen = CMSG_SPACE(sizeof *sent * n);
		s->stage = ISO_START_CONTROL;
		/* First, so that they are in force when it runs. Where nobody is left to hold them, the next message says so. */
		if (!begins && (limits.timeout_ns || limits.cpu_ns))
			SYS6(sendto, s->control, PTR(&limits), sizeof limits, MSG_NOSIGNAL | MSG_DONTWAIT, 0, 0);
		do
			r = SYS3(sendmsg, to, PTR(&message), MSG_NOSIGNAL | MSG_DONTWAIT);
		while (r == -EINTR);
		if (begins && r < 0 && r != -EBADF)
			r = -ESTALE; /* it has gone; so many are waiting that it must be stopped; or a filter refuses the message */
	}
	for (int i = 0; i <= ISO_MAX_BESIDE; i++)
		iso_close(&opened[i]);
	return r;
}

int64_t iso_run_later(struct iso_start *s, const uint8_t *run, uint64_t run_size, const int32_t *passed, int32_t count,
		      int32_t in, int32_t out, int32_t err, int32_t nonblocking)
{
	const int32_t wanted[3] = {in, out, err};
	int64_t r = send_run(s, s->later, 0, 0, 0, run, run_size, passed, count, wanted, nonblocking);
	if (r >= 0 && was_lost(s->later))
		r = -ECONNRESET;
	for (int i = 0; i < 3 && r < 0; i++)
		iso_close(&s->ours[i]);
	/* One message is all there is: with its end closed init knows that nothing else comes. */
	if (r >= 0)
		iso_close(&s->later);
	return r < 0 ? r : 0;
}

/* The supervisor's first message: its pid, and its pidfd. The end of the socket instead: there is none. Init and the supervisor
 * go on side by side where the start was made ahead, so the program's pid (ISO_RECORD_PROGRAM) may come before: it is kept. A
 * launcher that does not answer is told to go on, and to tell its fork: a program with our uid may have stopped them. */
static int64_t take_launcher(struct iso_start *s, struct iso_start *parked)
{
	struct iso_record record;
	struct pollfd fd = {.fd = s->control, .events = POLLIN};
	int64_t r;
	s->sender = 0;
	do {
		r = 0;
		for (int seconds = 0; seconds < 10 && r == 0; seconds++) {
			struct timespec left = {1, 0};
			if (seconds) {
				iso_send(parked, 0, SIGCONT);
				SYS6(sendto, parked->control, PTR("1"), 1, MSG_NOSIGNAL | MSG_DONTWAIT, 0, 0);
			}
			do
				r = SYS5(ppoll, PTR(&fd), 1, PTR(&left), 0, 0); /* the kernel counts `left` down */
			while (r == -EINTR);
		}
		if (r <= 0)
			return r ? r : -ETIMEDOUT;
		const int32_t known = s->sender;
		r = iso_receive(s, (uint8_t *)&record, sizeof record);
		if (r == sizeof record.kind && known)
			return -EBADMSG; /* it is told once */
	} while (r == sizeof record.kind && record.kind == ISO_RECORD_PROGRAM);
	if (r == 0 || r == -ECONNRESET)
		return -ESTALE;
	if (r < 0)
		return r;
	if (r != sizeof record || record.kind != ISO_RECORD_LAUNCHER)
		return record.kind == ISO_RECORD_FAILED ? -ESTALE : -EBADMSG; /* it could not be one, and has run nothing */
	s->pid = record.status;
	s->pidfd = s->payload;
	s->payload = -1;
	return s->pidfd < 0 ? -EMFILE : 0;
}

int64_t iso_note(struct iso_compared *c)
{
	c->killable = killable(); /* as oom_score_adj is compared, it stays so */
	return iso_state(c->state, c->fresh, c->executes);
}

int64_t iso_start_parked(struct iso_start *s, struct iso_start *parked, int32_t starts, struct iso_compared *compared,
			 const uint8_t *run, uint64_t run_size, const int32_t *passed, int32_t count, int32_t in, int32_t out,
			 int32_t err, int32_t nonblocking, int32_t later)
{
	const struct iso_begin begin = {compared->watched ? (int32_t)SYS0(gettid) : 0, 0};
	const int32_t wanted[3] = {in, out, err};
	int64_t r = send_run(s, starts, &begin, compared->killable, later, run, run_size, passed, count, wanted, nonblocking);
	if (r >= 0) {
		/* On its way: meanwhile it is found out whether it is right. The launcher waits for the word (confirmed, parked.c). */
		uint8_t yes = 1;
		struct iovec word = {&yes, sizeof yes};
		const struct msghdr message = {.msg_iov = &word, .msg_iovlen = 1};
		r = iso_fits(compared) && SYS3(sendmsg, s->control, PTR(&message), MSG_NOSIGNAL | MSG_DONTWAIT) == 1 ? 0 : -ESTALE;
	}
	if (r >= 0)
		r = take_launcher(s, parked);
	if (r < 0)
		iso_release(s);
	return r < 0 ? r : 0;
}

void iso_mounts(struct iso_pinned *pinned, uint32_t count, const char *paths)
{
	for (uint32_t i = 0; i < count; i++) {
		struct statx found;
		memset(&found, 0, sizeof found);
		SYS5(statx, AT_FDCWD, PTR(paths + pinned[i].path), 0, STATX_INO | MOUNT_NUMBER, PTR(&found));
		pinned[i].mount = found.stx_mnt_id;
	}
}

static int same_files(const struct iso_pinned *pinned, uint32_t count, const char *paths)
{
	for (uint32_t i = 0; i < count; i++) {
		struct statx found;
		const int64_t r = SYS5(statx, AT_FDCWD, PTR(paths + pinned[i].path), 0, STATX_INO | MOUNT_NUMBER, PTR(&found));
		if (r < 0 || found.stx_ino != pinned[i].inode || found.stx_dev_major != pinned[i].major ||
		    found.stx_dev_minor != pinned[i].minor || found.stx_mnt_id != pinned[i].mount)
			return 0;
	}
	return 1;
}

int64_t iso_same(const struct iso_pinned *pinned, uint32_t count, const char *paths, int32_t mountinfo)
{
	struct pollfd fd = {.fd = mountinfo, .events = POLLPRI};
	struct timespec none = {0, 0};
	const int64_t r = SYS5(ppoll, PTR(&fd), 1, PTR(&none), 0, 0);
	return r < 0 ? r : r == 0 && same_files(pinned, count, paths);
}

/* Whether the mount table has changed, for every thread that asks. Who finds another one asking waits until it has noted what it
 * heard, asleep: it may have a higher priority, and the only processor. */
static int mounts_changed(struct iso_compared *c)
{
	const struct timespec pause = {0, 20000};
	while (__atomic_exchange_n(&c->looking, 1, __ATOMIC_ACQUIRE))
		SYS2(nanosleep, PTR(&pause), 0);
	if (!c->stale && iso_same(0, 0, 0, c->mountinfo) != 1)
		c->stale = 1;
	const int changed = c->stale;
	__atomic_store_n(&c->looking, 0, __ATOMIC_RELEASE);
	return changed;
}

int32_t iso_fits(struct iso_compared *c)
{
	return !mounts_changed(c) && same_files(c->pinned, c->count, c->paths) && (!c->watched || iso_sees(c->launcher) >= 0) &&
	       iso_in_state(c->state, c->fresh, c->executes);
}

int64_t iso_receive(struct iso_start *s, uint8_t *buffer, uint64_t size)
{
	union {
		struct cmsghdr header;
		uint8_t space[CMSG_SPACE(sizeof(int32_t)) + CMSG_SPACE(sizeof(struct ucred))];
	} control;
	struct iovec iov = {buffer, size};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	int64_t r;
	do
		r = SYS3(recvmsg, s->control, PTR(&message), MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (r == -EINTR);
	if (r < 0)
		return r;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
		struct ucred sender;
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS && r == sizeof(uint32_t)) {
			memcpy(&sender, CMSG_DATA(c), sizeof sender);
			s->sender = sender.pid;
		}
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		/* Room for one was given, and with its padding two may have come: none but the first is wanted. */
		for (size_t i = 0; CMSG_LEN((i + 1) * sizeof(int32_t)) <= c->cmsg_len; i++) {
			int32_t fd;
			memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
			uint32_t kind = 0;
			memcpy(&kind, buffer, r < (int64_t)sizeof kind ? 0 : sizeof kind);
			if (kind == ISO_RECORD_TERMINAL && s->terminal < 0)
				s->terminal = (int32_t)iso_lift(fd);
			else if (kind != ISO_RECORD_TERMINAL && s->payload < 0)
				s->payload = (int32_t)iso_lift(fd);
			else
				SYS1(close, fd);
		}
	}
	/* There was no descriptor left for it: whoever has no pidfd could not signal the program. */
	if (message.msg_flags & MSG_CTRUNC)
		return -EMFILE;
	/* Longer than any record can be: not from a launcher of ours. */
	return message.msg_flags & MSG_TRUNC ? -EMSGSIZE : r;
}
