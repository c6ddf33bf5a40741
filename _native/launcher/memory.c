/* Where the launcher's memory lies, and how little of it stays while nothing happens.
 *
 * Three processes of a sandbox that waits would each hold a stack, a vdso and mappings at the other end of the address space, with
 * page tables of their own for it. So the launcher leaves the stack that the kernel made, and what it maps lies right behind its
 * own data: one page of each level of the tables serves all. That is also less for each fork to copy. */
#include "launcher.h"

#include <linux/auxvec.h>
#include <linux/errno.h>
#include <linux/prctl.h>

#if defined(__x86_64__)
#define PAGE 4096ull
#define TOP 0x7ffffffff000ull
#else
#define PAGE 65536ull /* the largest */
#endif

extern uint8_t _end[];

uint8_t main_stack[STACK_SIZE] __attribute__((aligned(65536)));
/* Both in the page that stays: see leave_stack and shed_data. */
#define NAME (main_stack + sizeof main_stack - 32)
#define place (*(uint64_t *)(void *)(main_stack + sizeof main_stack - 40))

static uint64_t up(uint64_t address)
{
	return (address + PAGE - 1) & ~(PAGE - 1);
}

/* mmap, behind all that there is. Where something is in the way the kernel takes another place. */
int64_t map_near(uint64_t size, int64_t protection, int64_t flags, int32_t fd)
{
	const uint64_t at = place ? place : up((uint64_t)PTR(_end));
	place = at + up(size);
	return SYS6(mmap, at, size, protection, flags, fd, 0);
}

/* The end of the stack that the kernel made: the path that was executed is the last on it, and eight bytes. */
static uint64_t end_of_stack(const uint64_t *old)
{
	const uint64_t *p = old + 1 + old[0] + 1;
	while (*p)
		p++;
	for (p++; *p != AT_NULL; p += 2)
		if (*p == AT_EXECFN)
			return up(p[1] + length((const char *)(uintptr_t)p[1]) + 9);
	return 0;
}

/* We are on a stack of our own: give the other one back, with the argument that ps(1) shows. */
void leave_stack(const uint64_t *old)
{
	static const char argument[] = "isolate-launcher";
	const uint64_t behind = up((uint64_t)PTR(_end)), end = end_of_stack(old);
	struct prctl_mm_map map;
	memcpy(NAME, argument, sizeof argument);
	memset(&map, 0, sizeof map);
	map.start_code = map.start_data = (uint64_t)PTR(leave_stack);
	map.end_code = map.end_data = map.start_code + 1;
	map.start_brk = map.brk = behind;
	map.start_stack = map.arg_start = (uint64_t)PTR(NAME);
	map.arg_end = map.env_start = map.env_end = map.arg_start + sizeof argument;
	map.exe_fd = ~0u;
	/* A kernel without CONFIG_CHECKPOINT_RESTORE: it stays, and what we are called with it. */
	if (SYS5(prctl, PR_SET_MM, PR_SET_MM_MAP, PTR(&map), sizeof map, 0) < 0)
		return;
#ifdef TOP
	if (SYS2(munmap, behind, TOP - behind) == 0)
		return; /* else the vdso is sealed (Linux 6.16): it was never touched, and has no page tables */
#endif
	if (end > behind)
		SYS2(munmap, behind, end - behind);
}

/* Nothing that stands in our data is needed any more, but what is on this stack above the caller's frame. */
void shed_data(void)
{
	extern uint8_t __bss_start[];
	const uint64_t first = up((uint64_t)PTR(__bss_start)), here = (uint64_t)PTR(__builtin_frame_address(0));
	const uint64_t dead = (here - 256) & ~(PAGE - 1), above = (uint64_t)PTR(main_stack + sizeof main_stack);
	if (here < (uint64_t)PTR(main_stack) || here >= above)
		return;
	SYS3(madvise, first, dead - first, MADV_DONTNEED);
	SYS3(madvise, above, up((uint64_t)PTR(_end)) - above, MADV_DONTNEED);
}

/* Nothing of what was mapped, but these bytes. */
void shed_maps(const void *kept, uint64_t size)
{
	const uint64_t from = up((uint64_t)PTR(_end)), begin = (uint64_t)PTR(kept), end = up(begin + size);
	if (begin < from || end > place)
		return;
	if (begin > from)
		SYS2(munmap, from, begin - from);
	if (place > end)
		SYS2(munmap, end, place - end);
}
