#include "interp.h"
#include "sys.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/openat2.h>
#include <linux/stat.h>
#include <linux/time_types.h>

#ifndef O_PATH
#define O_PATH 010000000
#endif

#define ARRAY(x) (sizeof(x) / sizeof((x)[0]))
#define RETRIES_EINTR 100
#define RETRIES_BUSY 2000
#define RETRIES_RACE 64
#define RETRIES_CLEAN 3
#define PATH_SIZE 4096

/* The compiler turns loops into these and expects them to exist where there is no libc. */
#ifdef ISO_FREESTANDING
void *memset(void *to, int c, size_t n)
{
	uint8_t *p = to;
	while (n--)
		*p++ = (uint8_t)c;
	return to;
}

void *memcpy(void *restrict to, const void *restrict from, size_t n)
{
	uint8_t *p = to;
	const uint8_t *q = from;
	while (n--)
		*p++ = *q++;
	return to;
}
#endif

uint64_t iso_tape_checksum(const uint8_t *base, uint32_t size)
{
	/* FNV-1a over words, then over the odd bytes: against damage, not against an author. In four lanes, since each step
	 * waits for the multiplication before it: a tape has some forty thousand bytes, and each start reads them all. */
	uint64_t lane[4] = {0xcbf29ce484222325ull, 0xcbf29ce484222326ull, 0xcbf29ce484222327ull, 0xcbf29ce484222328ull};
	uint32_t at = 16;
	for (; at + 32 <= size; at += 32) {
		const uint64_t *word = (const void *)(base + at);
		for (int i = 0; i < 4; i++) {
			lane[i] = (lane[i] ^ word[i]) * 0x100000001b3ull;
			lane[i] ^= lane[i] >> 29;
		}
	}
	uint64_t hash = 0xcbf29ce484222325ull;
	for (int i = 0; i < 4; i++) {
		hash = (hash ^ lane[i]) * 0x100000001b3ull;
		hash ^= hash >> 29;
	}
	for (; at < size; at++) {
		hash ^= base[at];
		hash *= 0x100000001b3ull;
	}
	return hash;
}

/* The largest value of an argument of each kind. A table, since each start asks it of some thousands. */
static void largest(const struct iso_header *h, uint64_t *most)
{
	most[ISO_IMM] = most[ISO_CWD] = most[ISO_COUNTER] = most[ISO_FLAGS] = UINT64_MAX;
	most[ISO_DATA] = h->data_size - 1;
	most[ISO_REG] = h->registers - 1;
	most[ISO_SLOT] = h->slots - 1;
	most[ISO_LOAD4] = h->data_size < 4 ? 0 : h->data_size - 4;
	most[ISO_LOAD8] = h->data_size < 8 ? 0 : h->data_size - 8;
}

static int op_fits(const struct iso_header *h, const uint64_t *most, const struct iso_op *op, uint32_t index, uint32_t end)
{
	if (op->code == 0 || op->code >= ISO_OP_MAX || op->step >= h->steps)
		return 0;
	if (op->out != ISO_NONE && op->out >= h->registers)
		return 0;
	if ((op->flags & (ISO_JUMP | ISO_OPTIONAL)) && (op->jump <= index || op->jump > end))
		return 0;
	for (size_t i = 0; i < ARRAY(op->kind); i++)
		if (op->kind[i] >= ISO_KINDS || (uint64_t)op->arg[i] > most[op->kind[i]])
			return 0;
	switch (op->code) {
	case ISO_OP_STORE: {
		int64_t width = op->arg[2] ? op->arg[2] : 21;
		return op->kind[0] == ISO_DATA && op->kind[2] == ISO_IMM &&
		       (op->arg[2] == 0 || op->arg[2] == 1 || op->arg[2] == 2 || op->arg[2] == 4 || op->arg[2] == 8) &&
		       op->arg[0] + width <= (int64_t)h->data_size;
	}
	case ISO_OP_TARGET:
	case ISO_OP_RMTREE:
	case ISO_OP_THAW:
		return op->kind[1] == ISO_DATA;
	case ISO_OP_LINE:
	case ISO_OP_MAP:
		return op->kind[0] == ISO_DATA && op->kind[1] == ISO_DATA;
	case ISO_OP_RUN:
		return op->kind[0] == ISO_DATA && op->kind[1] == ISO_DATA && op->arg[2] >= 1 && op->arg[2] <= 64 &&
		       op->kind[2] == ISO_IMM && op->arg[1] + op->arg[2] * 8 <= (int64_t)h->data_size;
	default:
		return 1;
	}
}

int64_t iso_tape_check(const uint8_t *base, uint64_t size)
{
	const struct iso_header *h = (const void *)base;
	if (size < sizeof *h || h->magic != ISO_TAPE_MAGIC || h->abi != ISO_TAPE_ABI)
		return -ENOEXEC;
	if (h->size > size || h->size < sizeof *h || h->size > ISO_MAX_TAPE || h->size % 8 ||
	    h->checksum != iso_tape_checksum(base, h->size))
		return -EBADMSG;
	if (h->ops_offset % 8 || h->data_offset % 8 || h->op_count > ISO_MAX_OPS || h->registers < ISO_REG_FREE ||
	    h->registers > ISO_MAX_REGISTERS || h->slots < ISO_SLOT_FREE || h->slots > ISO_MAX_SLOTS || h->steps > ISO_MAX_STEPS)
		return -EBADMSG;
	if ((uint64_t)h->ops_offset + (uint64_t)h->op_count * sizeof(struct iso_op) > h->size || h->ops_offset < sizeof *h)
		return -EBADMSG;
	if ((uint64_t)h->data_offset + h->data_size > h->size || h->data_offset < sizeof *h || h->data_size < 8)
		return -EBADMSG;
	/* Every string ends within the data, whatever its offset. */
	if (base[h->data_offset + h->data_size - 1] != 0)
		return -EBADMSG;
	if ((uint64_t)h->report_offset + h->report_size > h->data_size)
		return -EBADMSG;
	if (h->cgroup_register != ISO_NONE && h->cgroup_register >= h->registers)
		return -EBADMSG;
	const struct iso_op *ops = (const void *)(base + h->ops_offset);
	uint64_t most[ISO_KINDS];
	largest(h, most);
	for (int s = 0; s < ISO_SECTIONS; s++) {
		uint64_t end = (uint64_t)h->section[s].first + h->section[s].count;
		if (end > h->op_count)
			return -EBADMSG;
		for (uint32_t i = h->section[s].first; i < end; i++)
			if (!op_fits(h, most, &ops[i], i, (uint32_t)end))
				return -EBADMSG;
	}
	return 0;
}

static int string_fits(const uint8_t *base, uint32_t size, uint32_t at)
{
	return at >= sizeof(struct iso_run) && at < size && base[size - 1] == 0;
}

int64_t iso_run_check(const uint8_t *base, uint64_t size, uint32_t tape_slots)
{
	const struct iso_run *r = (const void *)base;
	if (size < sizeof *r || r->magic != ISO_RUN_MAGIC || r->size > size || r->size <= sizeof *r)
		return -EBADMSG;
	if (r->slots < tape_slots || r->slots > ISO_MAX_SLOTS || r->argc == 0 || r->argv % 8 || r->envp % 8 || r->fds % 4)
		return -EBADMSG;
	if (r->later && (r->later < ISO_SLOT_FREE || r->later >= r->slots))
		return -EBADMSG;
	/* The launcher turns both tables into tables of pointers in place: eight bytes an entry, and one for the NULL. */
	if (r->argv + ((uint64_t)r->argc + 1) * 8 > r->size || r->argv < sizeof *r)
		return -EBADMSG;
	if (r->envp + ((uint64_t)r->envc + 1) * 8 > r->size || r->envp < sizeof *r)
		return -EBADMSG;
	if (r->fds + (uint64_t)r->fdc * sizeof(struct iso_fd) > r->size || r->fds < sizeof *r)
		return -EBADMSG;
	if (!string_fits(base, r->size, r->program) || !string_fits(base, r->size, r->path) || !string_fits(base, r->size, r->cwd))
		return -EBADMSG;
	const uint64_t *strings = (const void *)(base + r->argv);
	for (uint32_t i = 0; i < r->argc; i++)
		if (strings[i] > UINT32_MAX || !string_fits(base, r->size, (uint32_t)strings[i]))
			return -EBADMSG;
	strings = (const void *)(base + r->envp);
	for (uint32_t i = 0; i < r->envc; i++)
		if (strings[i] > UINT32_MAX || !string_fits(base, r->size, (uint32_t)strings[i]))
			return -EBADMSG;
	const struct iso_fd *fds = (const void *)(base + r->fds);
	for (uint32_t i = 0; i < r->fdc; i++)
		if (fds[i].slot >= r->slots || (i && fds[i].target <= fds[i - 1].target) || fds[i].target > 0x7fffffff)
			return -EBADMSG;
	return 0;
}

void iso_machine_init(struct iso_machine *m, uint8_t *base, int64_t *registers, struct iso_shared *shared)
{
	m->header = (void *)base;
	m->ops = (void *)(base + m->header->ops_offset);
	m->data = base + m->header->data_offset;
	m->reg = registers;
	m->run = NULL;
	m->shared = shared;
	m->program = NULL;
	m->sync_fd = -1;
	m->patience.until = 0;
	m->exec_fd = -1;
	m->failed_op = ISO_OP_NONE;
	m->aside_op = ISO_OP_NONE;
}

static int64_t argument(const struct iso_machine *m, const struct iso_op *op, int i, uint32_t counter)
{
	int64_t value = op->arg[i];
	switch (op->kind[i]) {
	case ISO_DATA:
		return PTR(m->data + value);
	case ISO_REG:
		return m->reg[value];
	case ISO_CWD:
		return m->run ? PTR((const uint8_t *)m->run + m->run->cwd) : PTR("/");
	case ISO_COUNTER:
		return counter;
	case ISO_LOAD4:
		return *(const uint32_t *)(const void *)(m->data + value);
	case ISO_LOAD8:
		return *(const int64_t *)(const void *)(m->data + value);
	case ISO_FLAGS:
		return m->run ? m->run->flags : 0;
	default: /* IMM; and SLOT, as slot n is descriptor n */
		return value;
	}
}

static void store(struct iso_machine *m, const int64_t *arg)
{
	uint8_t *to = (uint8_t *)(uintptr_t)arg[0];
	uint64_t value = (uint64_t)arg[1];
	(void)m;
	if (arg[2]) {
		for (int64_t i = 0; i < arg[2]; i++)
			to[i] = (uint8_t)(value >> (8 * i));
		return;
	}
	uint8_t digits[20];
	int n = 0;
	do {
		digits[n++] = (uint8_t)('0' + value % 10);
		value /= 10;
	} while (value);
	while (n)
		*to++ = digits[--n];
	*to = 0;
}

static int64_t open2(int64_t dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
	struct open_how how = {.flags = flags | O_CLOEXEC, .mode = mode, .resolve = resolve};
	int64_t fd = -EAGAIN;
	/* EAGAIN: a rename elsewhere in the tree raced with "..": the kernel asks to try again (openat2(2)). */
	for (int i = 0; i < RETRIES_RACE && (fd == -EAGAIN || fd == -EINTR); i++)
		fd = SYS4(openat2, dir, PTR(path), PTR(&how), sizeof how);
	return fd;
}

/* Make one component below the descriptor `dir` and open it, the last one as it is wanted. Nothing that exists already is
 * accepted: the look-up said it is not there, so whatever is there now is a dangling link or somebody's race. */
static int64_t make(int64_t dir, const char *name, int directory, uint32_t mode, uint64_t wanted)
{
	int64_t r;
	if (directory) {
		r = SYS3(mkdirat, dir, PTR(name), mode);
	} else {
		r = SYS4(openat, dir, PTR(name), O_CREAT | O_EXCL | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK | O_WRONLY | O_CLOEXEC, mode);
		/* For writing this is the descriptor itself: the mode of the new file need not allow another one. */
		if (r >= 0 && (wanted & O_ACCMODE) == O_WRONLY)
			return r;
		if (r >= 0)
			SYS1(close, r);
	}
	if (r < 0)
		return r;
	return open2(dir, name, wanted | (uint64_t)(O_NOFOLLOW | (directory ? O_DIRECTORY : 0)), 0,
		     RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS);
}

static int64_t resolve(int64_t root, const char *path, uint32_t flags, uint32_t mode)
{
	const uint64_t how = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | (flags & ISO_TARGET_NO_SYMLINKS ? RESOLVE_NO_SYMLINKS : 0);
	char buffer[PATH_SIZE];
	size_t length = 0;
	/* Relative, without repeated and trailing slashes: components are then what stands between slashes. */
	for (const char *p = path; *p; p++) {
		if (*p == '/' && (length == 0 || buffer[length - 1] == '/'))
			continue;
		if (length + 2 > sizeof buffer)
			return -ENAMETOOLONG;
		buffer[length++] = *p;
	}
	while (length && buffer[length - 1] == '/')
		length--;
	buffer[length] = 0;
	if (length == 0)
		return flags & (ISO_TARGET_MUST_NEW | ISO_TARGET_PARENT) ? -EEXIST : open2(root, ".", O_PATH | O_DIRECTORY, 0, how);
	if (flags & ISO_TARGET_PARENT) {
		while (length && buffer[length - 1] != '/')
			length--;
		while (length && buffer[length - 1] == '/')
			length--;
		buffer[length] = 0;
		flags = (flags & ISO_TARGET_NO_SYMLINKS) | ISO_TARGET_DIR;
		if (length == 0)
			return open2(root, ".", O_PATH | O_DIRECTORY, 0, how);
	}
	uint64_t wanted = O_PATH;
	if (flags & ISO_TARGET_WRITE)
		wanted = O_WRONLY | O_NOCTTY | O_NONBLOCK;
	if (flags & ISO_TARGET_READ)
		wanted = O_RDONLY | O_NOCTTY | O_NONBLOCK;
	int64_t fd = open2(root, buffer, wanted, 0, how);
	if (fd >= 0 && (flags & ISO_TARGET_MUST_NEW)) {
		SYS1(close, fd);
		return -EEXIST;
	}
	if (fd != -ENOENT || !(flags & (ISO_TARGET_DIR | ISO_TARGET_FILE)))
		return fd;
	/* The longest prefix that exists, then the rest made one by one, each by the descriptor of the one before. */
	size_t end = length;
	do {
		while (end && buffer[end - 1] != '/')
			end--;
		if (end == 0) {
			fd = root;
			break;
		}
		buffer[--end] = 0;
		fd = open2(root, buffer, O_PATH | O_DIRECTORY, 0, how);
	} while (fd == -ENOENT);
	size_t at = end ? end + 1 : 0;
	while (fd >= 0 && at < length) {
		char *name = buffer + at;
		size_t n = 0;
		while (at + n < length && name[n] && name[n] != '/')
			n++;
		name[n] = 0;
		int last = at + n >= length;
		int64_t next;
		if (name[0] == '.' && (n == 1 || (n == 2 && name[1] == '.')))
			next = -EINVAL;
		else
			next = make(fd, name, !last || (flags & ISO_TARGET_DIR), last ? mode : 0755, last ? wanted : O_PATH);
		if (fd != root)
			SYS1(close, fd);
		fd = next;
		at += n + 1;
	}
	return fd;
}

struct iso_statfs {
	int64_t type;
	int64_t rest[31];
};

static int64_t target(const int64_t *arg)
{
	int64_t fd = resolve(arg[0], (const char *)(uintptr_t)arg[1], (uint32_t)arg[2], (uint32_t)arg[3]);
	if (fd < 0 || arg[4] == 0)
		return fd;
	/* A file that claims to be in procfs or sysfs must be there: a hostile root may hold look-alikes. */
	struct iso_statfs fs;
	int64_t r = SYS2(fstatfs, fd, PTR(&fs));
	if (r == 0 && fs.type != arg[4])
		r = -EXDEV;
	if (r < 0) {
		SYS1(close, fd);
		return r;
	}
	return fd;
}

static void pause_ms(void)
{
	struct __kernel_timespec t = {.tv_sec = 0, .tv_nsec = 1000000};
	SYS2(nanosleep, PTR(&t), 0);
}

static int64_t rmtree(struct iso_machine *m, const int64_t *arg)
{
	/* One deadline for all that this process removes: what is left of it after the first is for the next. */
	if (!m->patience.until)
		iso_be_patient(&m->patience, RETRIES_BUSY);
	return iso_remove_groups(arg[0], (const char *)(uintptr_t)arg[1], arg[2] != 0, &m->patience);
}

/* A file with a line for each device or interface: ours must be among them. Both texts end with a NUL. */
static int has_line(const char *text, const char *line)
{
	while (*text) {
		const char *p = text, *q = line;
		while (*q && *p == *q)
			p++, q++;
		while (!*q && *p == ' ')
			p++; /* rdma.max ends its lines with a blank */
		if (!*q && (!*p || *p == '\n'))
			return 1;
		while (*text && *text++ != '\n')
			;
	}
	return 0;
}

static int64_t execute(struct iso_machine *m, const struct iso_op *op, uint32_t counter)
{
	int64_t arg[6] = {0}; /* gcc -fanalyzer cannot see that the loop fills it */
	for (int i = 0; i < 6; i++)
		arg[i] = argument(m, op, i, counter);
	switch (op->code) {
	case ISO_OP_CALL:
		return iso_syscall(op->number, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
	case ISO_OP_STORE:
		store(m, arg);
		return 0;
	case ISO_OP_TARGET:
		return target(arg);
	case ISO_OP_RMTREE:
		return rmtree(m, arg);
	case ISO_OP_THAW:
		return iso_thaw_groups(arg[0], (const char *)(uintptr_t)arg[1]);
	case ISO_OP_LINE:
		return has_line((const char *)(uintptr_t)arg[0], (const char *)(uintptr_t)arg[1]) ? 0 : -(arg[2] ? arg[2] : EPROTO);
	case ISO_OP_TEST:
		return ((arg[0] & arg[1]) == arg[2]) == !(op->flags & ISO_NOT) ? 0 : -(arg[3] ? arg[3] : EPROTO);
	default:
		return iso_engine_op(m, op, arg);
	}
}

static int listed(const struct iso_op *op, int64_t error)
{
	for (size_t i = 0; i < ARRAY(op->errnos) && op->errnos[i]; i++)
		if (op->errnos[i] == error)
			return 1;
	return 0;
}

static int64_t attempt(struct iso_machine *m, const struct iso_op *op, uint32_t counter)
{
	for (int tries = 0;; tries++) {
		int64_t r = execute(m, op, counter);
		if (op->code == ISO_OP_CALL && (op->flags & ISO_EXACT) && (r >= 0 || r < -4095) && r != op->expect)
			return -EIO;
		if (op->code == ISO_OP_CALL && r == -EINTR && op->number != __NR_close && tries < RETRIES_EINTR)
			continue;
		if ((op->flags & ISO_RETRY) && r < 0 && r >= -4095 && listed(op, -r) && tries < RETRIES_BUSY) {
			pause_ms();
			continue;
		}
		return r;
	}
}

static void skip(struct iso_machine *m, const struct iso_op *op)
{
	m->shared->skipped[op->step] = 1;
}

static int64_t run_ops(struct iso_machine *m, uint32_t at, uint32_t end)
{
	while (at < end) {
		const struct iso_op *op = &m->ops[at];
		uint32_t next = at + 1;
		uint32_t count = op->count > 1 ? op->count : 1;
		for (uint32_t counter = 0; counter < count; counter++) {
			int64_t r = attempt(m, op, counter);
			if (op->out != ISO_NONE)
				m->reg[op->out] = r;
			if (r >= 0 || r < -4095)
				continue;
			/* A TEST has no list of errors: its one error is the mismatch. */
			int known = op->code == ISO_OP_TEST || listed(op, -r);
			if (known && (op->flags & ISO_TOLERATE))
				break; /* also of what is repeated: the kernel knows nothing beyond (capabilities) */
			if ((known && (op->flags & ISO_JUMP)) || (op->flags & ISO_OPTIONAL)) {
				if ((op->flags & ISO_OPTIONAL) || (op->flags & ISO_SKIPS))
					skip(m, op);
				next = op->jump;
				break;
			}
			m->failed_op = op->code == ISO_OP_MEET && m->aside_op != ISO_OP_NONE ? m->aside_op : at;
			return r;
		}
		at = next;
	}
	return 0;
}

int64_t iso_machine_run(struct iso_machine *m, int section)
{
	const uint32_t at = m->header->section[section].first;
	return run_ops(m, at, at + m->header->section[section].count);
}

int64_t iso_machine_clean(struct iso_machine *m, int section)
{
	const uint32_t end = m->header->section[section].first + m->header->section[section].count;
	int64_t first = 0;
	uint32_t failed = ISO_OP_NONE;
	for (uint32_t at = m->header->section[section].first, next; at < end; at = next) {
		for (next = at + 1; next < end && m->ops[next].step == m->ops[at].step;)
			next++;
		/* Want of memory or of a descriptor passes, and nobody comes after us. */
		int64_t r = run_ops(m, at, next);
		for (int tries = 0; r < 0 && r != -EBUSY && r != -ENOTEMPTY && tries < RETRIES_CLEAN; tries++) {
			pause_ms();
			r = run_ops(m, at, next);
		}
		if (r < 0 && first == 0) {
			first = r;
			failed = m->failed_op;
		}
	}
	m->failed_op = failed;
	return first;
}

/* Python packs these by format strings: a layout that moves must not compile. */
_Static_assert(sizeof(struct iso_op) == 88, "struct iso_op");
_Static_assert(sizeof(struct iso_header) == 168, "struct iso_header");
_Static_assert(sizeof(struct iso_run) == 88, "struct iso_run");
