/* The descendants of the supervisor, by /proc: seen, counted, killed. */
#include "launcher.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/poll.h>

int32_t at_home = 1; /* that we are in the pid namespace of who has started us is known; not among what shed_data() gives back */

/* The number of a process, by its pidfd, or of ourselves (-1) in the /proc that is mounted: the pid namespace is that of the
 * Python program, which may have given its children another one. -ESRCH: it is not to be seen there. */
int64_t shown(int64_t pid, int32_t pidfd)
{
	char path[64], text[512];
	if (at_home)
		return pid;
	if (pidfd < 0)
		put(path, "/proc/self/stat");
	else
		put_decimal(put(path, "/proc/self/fdinfo/"), pidfd)[0] = 0;
	const int64_t n = read_file(AT_FDCWD, path, text, sizeof text);
	const char *p = pidfd < 0 ? text : find(text, "\nPid:\t");
	if (n <= 0 || !p)
		return pid; /* none, or none that shows us: by no path of it anybody is reached */
	int64_t found = 0;
	for (; *p >= '0' && *p <= '9' && found < 1 << 30; p++)
		found = found * 10 + (*p - '0');
	return found > 0 ? found : -ESRCH;
}

/* CPU time of a process alone, without its children; also of one that has ended and was not reaped. */
uint64_t cpu_clock(int64_t pid)
{
	struct __kernel_timespec t = {0, 0};
	/* MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_PROF): the one that RLIMIT_CPU is compared with. It counts in ticks, and can be
	 * ahead of the scheduler's. */
	if (SYS2(clock_gettime, (int64_t)(int32_t)(~(uint32_t)pid << 3), PTR(&t)) < 0)
		return 0;
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
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
int64_t open_proc(void)
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

/* Found by a walk over the tree. It is bounded: processes that do not fit are not seen this time. */
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
uint64_t tree_cpu(const struct supervisor *s)
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
int signal_children(const struct supervisor *s, int signal)
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

/* Without a pid namespace: kill children until none is left; orphans come to us, a subreaper. */
void kill_children(struct supervisor *s)
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

/* A number, as the last word of a line of /proc/pid/status. */
static int64_t last_number(const char *p)
{
	int64_t value = -1;
	for (; *p && *p != '\n'; p++)
		value = *p < '0' || *p > '9' ? 0 : value < 0 ? *p - '0' : value * 10 + (*p - '0');
	return value;
}

/* Whether the kernel has marked the dead program: its mode of seccomp is then neither none, strict nor filter (Linux 5.17).
 * Init has not reaped it; where there is no init, neither have we. */
void look_at_suspect(struct supervisor *s)
{
	char path[64], children[4096], text[4096];
	const uint32_t suspect = s->machine.shared->suspect;
	const int64_t proc = s->proc >= 0 ? s->proc : s->mounted_proc;
	const int init = (s->machine.header->flags & ISO_TAPE_INIT) != 0;
	int64_t n = 0, pid = 0;
	if (proc < 0 || (init && !suspect) || !is_ours(proc))
		return;
	if (init) {
		put(put_decimal(put(put_decimal(path, s->child), "/task/"), s->child), "/children");
		n = read_file(proc, path, children, sizeof children);
	} else {
		n = put(put_decimal(children, s->child), " ") - children;
	}
	for (int64_t i = 0; i < n; i++) {
		if (children[i] >= '0' && children[i] <= '9') {
			pid = pid * 10 + (children[i] - '0');
			continue;
		}
		put(put_decimal(path, pid), "/status");
		pid = 0;
		if (read_file(proc, path, text, sizeof text) <= 0)
			continue;
		const char *number = find(text, "\nNSpid:\t"), *mode = find(text, "\nSeccomp:\t");
		if (mode && last_number(mode) == 3 && (!init || (number && last_number(number) == suspect)))
			s->filtered = ISO_COMPLETE_FILTERED;
	}
}

/* Without a pid namespace of its own init is a subreaper: every descendant is its child in the end, and while it lives
 * nobody else inherits them (in a pid namespace that was joined, another's PID 1 would). So they go first. */
void drain(struct supervisor *s)
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

void kill_tree(struct supervisor *s)
{
	s->let_go = 1;
	s->asked_ns = 1; /* long ago: there is nothing more to ask init for */
	/* Frozen by a v1 freezer nothing dies, whatever signal it has. */
	iso_machine_clean(&s->machine, ISO_THAW);
	if ((s->machine.header->flags & (ISO_TAPE_PIDNS | ISO_TAPE_INIT)) == ISO_TAPE_INIT)
		drain(s);
	/* Not reaped yet, so its pid is still its own. */
	if (SYS4(pidfd_send_signal, s->child_fd, SIGKILL_, 0, 0) < 0)
		SYS2(kill, s->child, SIGKILL_);
}

#define ANSWER 200000000u /* how long init may take to answer: it may be stopped, or frozen */
#define REAPED 500000000u /* and to reap all that it has killed */

/* Ask init to kill and reap everything, and to end. Whether it has been asked and has time left for that. */
static int asked(struct supervisor *s)
{
	struct iso_shared *shared = s->machine.shared;
	const uint32_t both = ISO_TAPE_PIDNS | ISO_TAPE_INIT;
	if ((s->machine.header->flags & both) != both || (s->machine.run->flags & ISO_RUN_ALONE) ||
	    !(shared->complete & ISO_COMPLETE_STARTED))
		return 0;
	if (!s->asked_ns) {
		s->asked_ns = now();
		__atomic_store_n(&shared->ending, 1, __ATOMIC_RELEASE);
		/* It waits for signals, and looks when it has one. */
		return SYS4(pidfd_send_signal, s->child_fd, SIGCHLD_, 0, 0) == 0;
	}
	return now() - s->asked_ns < (__atomic_load_n(&shared->ending, __ATOMIC_ACQUIRE) == 2 ? REAPED : ANSWER);
}

/* Take the tree down so that its usage is known. When PID 1 is killed the kernel reaps what runs below it and accounts for
 * nothing of that, so init reaps it first. To be called again, as long as init has not ended. */
void end_tree(struct supervisor *s)
{
	s->let_go = 1;
	iso_machine_clean(&s->machine, ISO_THAW);
	if (!asked(s))
		kill_tree(s);
}
