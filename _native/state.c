/* What a process that a thread starts inherits of it, as bytes that are compared: a start that was made ahead for one state
 * is used in the same state only. Read by raw system calls, as cheaply as each part can be asked for. */
#define _GNU_SOURCE
#include "spawn.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

struct writer {
	uint8_t *at, *end;
};

static void note(struct writer *w, const void *data, size_t size)
{
	if ((size_t)(w->end - w->at) < size)
		size = (size_t)(w->end - w->at);
	memcpy(w->at, data, size);
	w->at += size;
}

static void note_result(struct writer *w, int64_t r)
{
	note(w, &r, sizeof r);
}

static int64_t note_file(struct writer *w, const char *path)
{
	uint8_t text[2048];
	int64_t n = 0, fd = SYS4(openat, AT_FDCWD, PTR(path), O_RDONLY | O_CLOEXEC, 0);
	if (fd >= 0) {
		n = SYS3(read, fd, PTR(text), sizeof text);
		SYS1(close, fd);
	}
	note_result(w, fd < 0 ? fd : n);
	if (n > 0)
		note(w, text, (size_t)n);
	return n == sizeof text ? -EOVERFLOW : fd < 0 ? fd : n;
}

/* The number behind a key in /proc/thread-self/status, or -errno. Behind the name, which has no newline in it. */
static int64_t status_number(const char *key)
{
	char text[4096];
	int64_t fd = SYS4(openat, AT_FDCWD, PTR("/proc/thread-self/status"), O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	const int64_t n = SYS3(read, fd, PTR(text), sizeof text - 1);
	SYS1(close, fd);
	if (n <= 0)
		return -EIO;
	text[n] = 0;
	const char *line = strstr(text, key);
	if (!line)
		return -EOPNOTSUPP;
	int64_t count = 0;
	for (const char *p = line + strlen(key); *p >= '0' && *p <= '9'; p++)
		count = count * 10 + (*p - '0');
	return count;
}

static int64_t filters(void)
{
	return status_number("\nSeccomp_filters:\t"); /* Linux 5.9 */
}

/* How many filters the process has had since it began: a thread with as many has those and no others, since filters are
 * inherited and never taken away. -1: some, and there were threads already when it was asked first. */
static int64_t first_filters;

void iso_ask_filters(void)
{
	if (SYS5(prctl, 21 /* PR_GET_SECCOMP */, 0, 0, 0, 0) != 0) {
		const int64_t count = filters();
		first_filters = status_number("\nThreads:\t") == 1 && count >= 0 ? count : -1;
	}
}

/* The number of filters; and whose they are where another thread may have as many others. */
static int64_t note_filters(struct writer *w)
{
	static uint64_t threads;
	static __thread uint64_t thread; /* a number that no other thread of this process has, or has had */
	const int64_t count = filters();
	if (count < 0)
		return count;
	note_result(w, count);
	if (count != first_filters) {
		if (!thread)
			thread = __atomic_add_fetch(&threads, 1, __ATOMIC_RELAXED);
		note(w, &thread, sizeof thread);
	}
	return 0;
}

/* A file that not every kernel has: whether there is none is asked once. */
static void note_rare(struct writer *w, const char *path, int32_t *absent)
{
	if (__atomic_load_n(absent, __ATOMIC_RELAXED))
		note_result(w, -ENOENT);
	else if (note_file(w, path) == -ENOENT)
		__atomic_store_n(absent, 1, __ATOMIC_RELAXED);
}

/* Where memory is to come from (set_mempolicy(2)). */
static void note_memory_policy(struct writer *w)
{
	uint64_t nodes[128];
	int32_t mode = 0;
	memset(nodes, 0, sizeof nodes);
	note_result(w, SYS5(get_mempolicy, PTR(&mode), PTR(nodes), sizeof nodes * 8, 0, 0));
	note(w, &mode, sizeof mode);
	for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++)
		if (nodes[i]) {
			note(w, &i, sizeof i);
			note(w, &nodes[i], sizeof nodes[i]);
		}
}

/* The bounding set, and the ambient one where there can be one. */
static void note_bounds(struct writer *w, int bounding, int ambient)
{
	for (int capability = 0; (bounding || ambient) && capability < 64; capability++) {
		if (bounding) {
			const int64_t held = SYS5(prctl, 23 /* PR_CAPBSET_READ */, capability, 0, 0, 0);
			if (held < 0)
				break;
			note(w, &held, 1);
		}
		if (ambient) {
			const int64_t held = SYS5(prctl, 47 /* PR_CAP_AMBIENT */, 1 /* IS_SET */, capability, 0, 0);
			if (held < 0)
				break;
			note(w, &held, 1);
		}
	}
}

int64_t iso_state(uint8_t *state, uint64_t fresh, int32_t executes)
{
	/* Nobody labels processes, and nobody will before the next boot: read(2) of the label is EINVAL then. */
	static int32_t unlabelled, unaudited, uncontrolled;
	struct writer w = {state, state + ISO_STATE};
	struct {
		uint32_t version;
		int32_t pid;
	} header = {0x20080522, 0};
	uint32_t sets[6] = {0}, ids[6] = {0}, groups[256];
	uint64_t affinity[128];
	int64_t r;
	memset(state, 0, ISO_STATE);
	memset(affinity, 0, sizeof affinity);
	SYS3(getresuid, PTR(&ids[0]), PTR(&ids[1]), PTR(&ids[2]));
	SYS3(getresgid, PTR(&ids[3]), PTR(&ids[4]), PTR(&ids[5]));
	note(&w, ids, sizeof ids);
	r = SYS2(getgroups, 256, PTR(groups));
	if (r < 0)
		return r;
	note_result(&w, r);
	note(&w, groups, sizeof *groups * (size_t)r);
	note_result(&w, SYS2(capget, PTR(&header), PTR(sets)));
	note(&w, sets, sizeof sets);
	for (int resource = 0; resource < 16; resource++) {
		uint64_t limit[2] = {0, 0};
		note_result(&w, SYS4(prlimit64, 0, resource, 0, PTR(limit)));
		note(&w, limit, sizeof limit);
	}
	/* PR_GET_NO_NEW_PRIVS, PR_GET_SECUREBITS, PR_GET_TIMERSLACK, PR_GET_THP_DISABLE, PR_MCE_KILL_GET, PR_GET_MDWE,
	 * PR_GET_MEMORY_MERGE, PR_GET_IO_FLUSHER */
	static const int asked[] = {39, 27, 30, 42, 34, 66, 68, 58};
	for (size_t i = 0; i < sizeof asked / sizeof *asked; i++)
		note_result(&w, SYS5(prctl, asked[i], 0, 0, 0, 0));
	for (int speculation = 0; speculation < 3; speculation++)
		note_result(&w, SYS5(prctl, 52 /* PR_GET_SPECULATION_CTRL */, speculation, 0, 0, 0));
	uint64_t cookie = 0;
	note_result(&w, SYS5(prctl, 62 /* PR_SCHED_CORE */, 0 /* GET */, 0, 0 /* of this thread */, PTR(&cookie)));
	note(&w, &cookie, sizeof cookie);
	int32_t stamps = 0;
	note_result(&w, SYS5(prctl, 25 /* PR_GET_TSC, of x86 */, PTR(&stamps), 0, 0, 0));
	note(&w, &stamps, sizeof stamps);
	/* These two hold for who executes a file, as a launcher is: root has what the bounding set leaves it, and everybody what is
	 * ambient. Nothing is ambient that is not inheritable. */
	note_bounds(&w, executes || ids[0] == 0 || ids[1] == 0, (sets[2] | sets[5]) != 0);
	const int64_t filtered = SYS5(prctl, 21 /* PR_GET_SECCOMP */, 0, 0, 0, 0);
	note_result(&w, filtered);
	if (filtered != 0 && (r = note_filters(&w)) < 0)
		return r;
	/* A filter may end who asks for these. Nearly always it forbids to change them, too. */
	if (filtered == 0) {
		note_result(&w, SYS2(keyctl, 14 /* KEYCTL_SET_REQKEY_KEYRING: where requested keys go */, -1 /* as it is */));
		note_memory_policy(&w);
	}
	note_result(&w, SYS1(personality, 0xffffffff));
	if (fresh & 0x4000000) { /* a new UTS namespace begins with these names, and may be made ahead */
		char names[6][65];
		memset(names, 0, sizeof names);
		note_result(&w, SYS1(uname, PTR(names)));
		note(&w, names[1], sizeof names[1]);
		note(&w, names[5], sizeof names[5]);
	}
	uint8_t scheduling[56];
	memset(scheduling, 0, sizeof scheduling);
	note_result(&w, SYS4(sched_getattr, 0, PTR(scheduling), sizeof scheduling, 0));
	note(&w, scheduling, sizeof scheduling);
	r = SYS3(sched_getaffinity, 0, sizeof affinity, PTR(affinity));
	note_result(&w, r);
	if (r > 0)
		note(&w, affinity, (size_t)r);
	note_result(&w, SYS2(ioprio_get, 1 /* IOPRIO_WHO_PROCESS */, 0));
	/* The root of this thread, with the mount that it is in: another in another mount namespace. */
	struct statx root;
	memset(&root, 0, sizeof root);
	r = SYS5(statx, AT_FDCWD, PTR("/"), 0, MOUNT_NUMBER | STATX_INO, PTR(&root));
	if (r < 0)
		return r;
	note(&w, &root.stx_ino, sizeof root.stx_ino);
	note(&w, &root.stx_dev_major, 8);
	note(&w, &root.stx_mnt_id, sizeof root.stx_mnt_id);
	/* Namespaces that are inherited: identities of their files. A new one of these has something of the old one: names of the
	 * host, settings of devices; but for a new ipc namespace. A number of a mount that is never used again says which mount
	 * namespace it is. */
	static const struct {
		const char *name;
		uint64_t flag;
	} kinds[] = {
		{"user", 0}, {"mnt", 0x20000}, {"net", 0}, {"ipc", 0x8000000}, {"uts", 0}, {"cgroup", 0},
		{"pid_for_children", 0}, {"time_for_children", 0},
	};
	fresh &= ~0x20000ull;
	if (root.stx_mask & 0x4000)
		fresh |= 0x20000;
	const int64_t directory = SYS4(openat, AT_FDCWD, PTR("/proc/thread-self/ns"), O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	if (directory < 0)
		return directory;
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds && r >= 0; i++) {
		if (kinds[i].flag & fresh)
			continue;
		struct statx kind;
		memset(&kind, 0, sizeof kind);
		r = SYS5(statx, directory, PTR(kinds[i].name), 0, STATX_INO, PTR(&kind));
		note_result(&w, r);
		note(&w, &kind.stx_ino, sizeof kind.stx_ino);
		if (r == -ENOENT)
			r = i < 6 ? r : 0; /* a kernel without time namespaces; a pid namespace that nobody is in is no state to start from */
		if (i == 6 && kind.stx_ino == 0)
			r = -ESTALE;
	}
	SYS1(close, directory);
	if (r < 0)
		return r;
	r = note_file(&w, "/proc/thread-self/cgroup");
	if (r < 0)
		return r;
	r = note_file(&w, "/proc/thread-self/oom_score_adj");
	if (r < 0)
		return r;
	note_file(&w, "/proc/self/coredump_filter"); /* a kernel may have none */
	note_rare(&w, "/proc/thread-self/sessionid", &unaudited); /* another with each login uid */
	note_rare(&w, "/proc/thread-self/cpu_resctrl_groups", &uncontrolled);
	if (__atomic_load_n(&unlabelled, __ATOMIC_RELAXED))
		note_result(&w, -EINVAL);
	else if (note_file(&w, "/proc/thread-self/attr/current") == -EINVAL)
		__atomic_store_n(&unlabelled, 1, __ATOMIC_RELAXED);
	else
		note_file(&w, "/proc/thread-self/attr/exec"); /* the label of what is executed next */
	return w.at == w.end ? -EOVERFLOW : 0;
}

int32_t iso_in_state(const uint8_t *state, uint64_t fresh, int32_t executes)
{
	uint8_t now[ISO_STATE];
	return iso_state(now, fresh, executes) == 0 && memcmp(now, state, sizeof now) == 0;
}

/* The domain that Landlock has put on a thread has no name. But who is in one has no access to a process outside of it by
 * ptrace(2), nor by what is refused alike; this is the cheapest that is. */
int64_t iso_sees(int32_t pid)
{
	uint64_t head = 0, size = 0;
	return SYS3(get_robust_list, pid, PTR(&head), PTR(&size));
}

int32_t iso_watches(int32_t pid)
{
	struct {
		uint32_t version;
		int32_t pid;
	} header = {0x20080522, 0};
	uint32_t sets[6] = {0};
	if (SYS3(landlock_create_ruleset, 0, 0, 1 /* LANDLOCK_CREATE_RULESET_VERSION */) <= 0)
		return 0;
	SYS2(capget, PTR(&header), PTR(sets));
	/* landlock_restrict_self(2) asks for either, and both are compared. */
	if (SYS5(prctl, 39 /* PR_GET_NO_NEW_PRIVS */, 0, 0, 0, 0) == 0 && !(sets[1] >> 21 & 1 /* CAP_SYS_ADMIN, permitted */))
		return 0;
	const int64_t dumpable = SYS5(prctl, 3 /* PR_GET_DUMPABLE */, 0, 0, 0, 0);
	return iso_sees(pid) == 0 && (dumpable == 1 || (sets[0] >> 19 & 1 /* CAP_SYS_PTRACE, effective */)) ? 1 : -1;
}
