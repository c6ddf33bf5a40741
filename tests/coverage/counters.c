/* Counters of branches that are kept in a file: of a program without libc, of one that is killed, of processes that
 * share no memory. Linked into the launcher and the extension in place of gcov's own start and end (see measure.py).
 *
 * The counters lie in pages of their own; when the program starts, a file is mapped over them, shared. Every process
 * that comes of it by clone counts in the same pages, until it executes another program. Where the file cannot be
 * opened nothing is counted and all else is as it was.
 */
#include "sys.h"

#include <gcov.h>
#include <linux/fcntl.h>
#include <linux/mman.h>

extern char counters_begin[], counters_end[];
extern const struct gcov_info *const __start_gcov_info[], *const __stop_gcov_info[];

static void map_counters(void)
{
	int64_t fd = SYS4(openat, AT_FDCWD, PTR(COUNTERS), O_RDWR | O_CLOEXEC, 0);
	if (fd < 0)
		return;
	SYS6(mmap, counters_begin, counters_end - counters_begin, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	SYS1(close, fd);
}

/* What adds up the files of several runs: the counters do so themselves. */
void __gcov_merge_add(int64_t *counters, unsigned number);
void __gcov_merge_add(int64_t *counters, unsigned number)
{
	(void)counters, (void)number;
}

/* ---- the counters as gcov reads them: for each source its name, a NUL, the size in eight bytes, the data ---- */

static char data[1 << 20];
static uint64_t used;

static void put(const void *from, unsigned size, void *arg)
{
	(void)arg;
	if (used + size <= sizeof data)
		memcpy(data + used, from, size);
	used += size;
}

static void put_name(const char *name, void *arg)
{
	(void)arg;
	uint64_t length = 0;
	while (name[length])
		length++;
	SYS3(write, 1, PTR(name), length + 1);
}

static void *allocate(unsigned size, void *arg)
{
	static char memory[1 << 16] __attribute__((aligned(16)));
	static unsigned at;
	(void)arg;
	at += (size + 15) & ~15u;
	return memory + at - ((size + 15) & ~15u);
}

void iso_tell_counters(void)
{
	for (const struct gcov_info *const *info = __start_gcov_info; info < __stop_gcov_info; info++) {
		used = 0;
		__gcov_info_to_gcda(*info, put_name, put, allocate, 0);
		SYS3(write, 1, PTR(&used), sizeof used);
		SYS3(write, 1, PTR(data), used);
	}
}

#ifdef ISO_FREESTANDING
/* What libgcov refers to and does not need for this. */
void abort(void);
void abort(void)
{
	SYS2(kill, 0, 6);
}
void *mmap(void *at, size_t size, int protection, int flags, int fd, long offset);
void *mmap(void *at, size_t size, int protection, int flags, int fd, long offset)
{
	return (void *)SYS6(mmap, at, size, protection, flags, fd, offset);
}

__attribute__((used)) void iso_count(const int64_t *stack);
void iso_count(const int64_t *stack)
{
	map_counters();
	if (stack[0] != 2) /* argc: the launcher has no arguments */
		return;
	iso_tell_counters();
	SYS1(exit_group, 0);
}
__asm__(".globl iso_counted_start\niso_counted_start:\n\tmov %rsp, %rdi\n\tmov %rsp, %rbx\n\tand $-16, %rsp\n\t"
	"call iso_count\n\tmov %rbx, %rsp\n\tjmp _start\n");
#else
__attribute__((constructor)) static void begin(void)
{
	map_counters();
}
#endif
