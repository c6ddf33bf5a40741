/* The program: found in the sandbox, its descriptors, its session and its terminal, and executed. */
#include "launcher.h"

#include <linux/elf.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/signal.h>
#include <linux/stat.h>

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

static uint8_t start[4096] __attribute__((aligned(4096))); /* one page, not two */

/* Keep the start of the program, in case exec refuses it: an ELF header with the path of its loader behind it, or the first
 * bytes. It tells a foreign architecture from a missing interpreter. Read now, while no filter is in force. */
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
int64_t find_program(struct iso_machine *m)
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

int64_t place_descriptors(const struct iso_machine *m)
{
	const struct iso_run *run = m->run;
	struct iso_fd *fds = (void *)(uintptr_t)((const uint8_t *)run + run->fds); /* private memory: the copies are noted there */
	const uint32_t n = run->fdc;
	int64_t above = run->slots;
	int64_t r;
	if (n && (int64_t)fds[n - 1].target >= above)
		above = (int64_t)fds[n - 1].target + 1;
	/* The change of credentials undid the signal that we get when our parent dies, a step has renewed it; and between? */
	if (!(m->header->flags & ISO_TAPE_INIT) && (r = supervisor_lives(m)) < 0)
		return r;
	if (n > ISO_MAX_SLOTS)
		return -EMFILE;
	/* First lift every source above all targets, then put each down: no target overwrites a source still wanted. */
	for (uint32_t i = 0; i < n; i++) {
		if (fds[i].slot == fds[i].target)
			continue;
		r = SYS3(fcntl, fds[i].slot, F_DUPFD_CLOEXEC, above);
		if (r < 0)
			return r;
		fds[i].slot = (uint32_t)r;
	}
	r = SYS3(close_range, 0, ~0u, CLOSE_RANGE_CLOEXEC_);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < n; i++) {
		/* dup3 clears close-on-exec on the copy; where source and target are one, fcntl does. */
		if (fds[i].slot == fds[i].target)
			r = SYS3(fcntl, fds[i].slot, F_SETFD, 0);
		else
			r = SYS3(dup3, fds[i].slot, fds[i].target, 0);
		if (r < 0)
			return r;
	}
	return 0;
}

/* A terminal of the sandbox's own, so that it has a name inside, with the settings and the size of what stands for it.
 * Nothing where there is no devpts: the streams are a terminal already. Programs may run inside that have put something
 * else there: what it is, is asked of the descriptor. */
static void own_terminal(const struct iso_machine *m)
{
	int64_t fs[16] = {0}, settings[8] = {0};
	int32_t unlocked = 0;
	const uint32_t wanted = m->run->flags >> ISO_RUN_PTY_SHIFT & 7, kind = ISO_RECORD_TERMINAL;
	const int64_t ours = SYS4(openat, AT_FDCWD, PTR("/dev/pts/ptmx"), O_RDWR | O_NOCTTY | O_CLOEXEC | O_NOFOLLOW, 0);
	int64_t theirs = -1;
	if (ours < 0)
		return;
	if (SYS2(fstatfs, ours, PTR(fs)) == 0 && fs[0] == 0x1cd1 /* DEVPTS_SUPER_MAGIC */ &&
	    SYS3(ioctl, ours, 0x40045431 /* TIOCSPTLCK */, PTR(&unlocked)) == 0)
		theirs = SYS3(ioctl, ours, 0x5441 /* TIOCGPTPEER */, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (theirs >= 0) {
		const int from = wanted & 1 ? 0 : wanted & 2 ? 1 : 2;
		if (SYS3(ioctl, from, 0x5401 /* TCGETS */, PTR(settings)) == 0)
			SYS3(ioctl, theirs, 0x5402 /* TCSETS */, PTR(settings));
		if (SYS3(ioctl, from, 0x5413 /* TIOCGWINSZ */, PTR(settings)) == 0)
			SYS3(ioctl, theirs, 0x5414 /* TIOCSWINSZ */, PTR(settings));
		if (m->run->tty_uid != ISO_NONE)
			SYS3(fchown, theirs, m->run->tty_uid, -1);
		await_birth(m->shared);
		send_record(&kind, sizeof kind, (int32_t)ours);
		for (int i = 0; i < 3; i++)
			if (wanted >> i & 1)
				SYS3(dup3, theirs, i, O_CLOEXEC);
		SYS1(close, theirs);
	}
	SYS1(close, ours);
}

int64_t session(const struct iso_machine *m)
{
	int64_t r = SYS0(setsid);
	if (r < 0)
		return r;
	if (m->run->flags & ISO_RUN_PTY)
		own_terminal(m);
	if (m->run->flags & ISO_RUN_TTY)
		return SYS3(ioctl, 0, 0x540e /* TIOCSCTTY */, 0);
	return 0;
}

int64_t default_signals(void)
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

int64_t set_mask(uint64_t mask)
{
	return SYS4(rt_sigprocmask, SIG_SETMASK, PTR(&mask), 0, 8);
}

int64_t execute_program(struct iso_machine *m)
{
	const struct iso_run *run = m->run;
	char **argv = run_table(run, run->argv, run->argc);
	char **envp = run_table(run, run->envp, run->envc);
	m->shared->executing = 1;
	return SYS3(execve, PTR(m->program), PTR(argv), PTR(envp));
}
