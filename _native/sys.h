/* System calls without libc: the launcher has none, and after vfork libc's wrappers may not be used
 * (errno is thread-local storage that the child shares with its parent). */
#ifndef ISOLATE_SYS_H
#define ISOLATE_SYS_H

#include <stddef.h>
#include <stdint.h>
#include <asm/unistd.h>

#ifdef ISO_FREESTANDING
void *memset(void *to, int c, size_t n);
void *memcpy(void *restrict to, const void *restrict from, size_t n);
#else
#include <string.h>
#endif

/* Calls younger than the headers of the oldest supported build host; numbers from 424 on are the same everywhere. */
#ifndef __NR_pidfd_send_signal
#define __NR_pidfd_send_signal 424
#endif
#ifndef __NR_open_tree
#define __NR_open_tree 428
#endif
#ifndef __NR_pidfd_open
#define __NR_pidfd_open 434
#endif
#ifndef __NR_clone3
#define __NR_clone3 435
#endif
#ifndef __NR_close_range
#define __NR_close_range 436
#endif
#ifndef __NR_openat2
#define __NR_openat2 437
#endif

#if defined(__x86_64__)
static inline int64_t iso_syscall(int64_t nr, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f)
{
	int64_t result;
	register int64_t r10 __asm__("r10") = d;
	register int64_t r8 __asm__("r8") = e;
	register int64_t r9 __asm__("r9") = f;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

/* clone3 (or, with `legacy`, clone) whose child runs fn(arg) on the given stack and never returns. */
static __attribute__((noinline, unused)) int64_t iso_clone_call(int64_t nr, int64_t a, int64_t b, int64_t c,
							       void (*fn)(void *), void *arg)
{
	int64_t result;
	register int64_t r10 __asm__("r10") = 0;
	register int64_t r8 __asm__("r8") = 0;
	register void (*r12)(void *) __asm__("r12") = fn;
	register void *r13 __asm__("r13") = arg;
	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "mov %%r13, %%rdi\n\t"
			 "call *%%r12\n\t"
			 "hlt\n"
			 "1:"
			 : "=a"(result)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r12), "r"(r13)
			 : "rcx", "r11", "memory");
	return result;
}
#elif defined(__aarch64__)
static inline int64_t iso_syscall(int64_t nr, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f)
{
	register int64_t x8 __asm__("x8") = nr;
	register int64_t x0 __asm__("x0") = a;
	register int64_t x1 __asm__("x1") = b;
	register int64_t x2 __asm__("x2") = c;
	register int64_t x3 __asm__("x3") = d;
	register int64_t x4 __asm__("x4") = e;
	register int64_t x5 __asm__("x5") = f;
	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
}

static __attribute__((noinline, unused)) int64_t iso_clone_call(int64_t nr, int64_t a, int64_t b, int64_t c,
							       void (*fn)(void *), void *arg)
{
	register int64_t x8 __asm__("x8") = nr;
	register int64_t x0 __asm__("x0") = a;
	register int64_t x1 __asm__("x1") = b;
	register int64_t x2 __asm__("x2") = c;
	register int64_t x3 __asm__("x3") = 0;
	register int64_t x4 __asm__("x4") = 0;
	register void (*x9)(void *) __asm__("x9") = fn;
	register void *x10 __asm__("x10") = arg;
	__asm__ volatile("svc 0\n\t"
			 "cbnz x0, 1f\n\t"
			 "mov x29, xzr\n\t"
			 "mov x30, xzr\n\t"
			 "mov x0, x10\n\t"
			 "blr x9\n\t"
			 "brk #1\n"
			 "1:"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x9), "r"(x10)
			 : "memory");
	return x0;
}
#else
#error "isolate supports x86-64 and AArch64"
#endif

#define PTR(p) ((int64_t)(uintptr_t)(p))
#define SYS0(name) iso_syscall(__NR_##name, 0, 0, 0, 0, 0, 0)
#define SYS1(name, a) iso_syscall(__NR_##name, (int64_t)(a), 0, 0, 0, 0, 0)
#define SYS2(name, a, b) iso_syscall(__NR_##name, (int64_t)(a), (int64_t)(b), 0, 0, 0, 0)
#define SYS3(name, a, b, c) iso_syscall(__NR_##name, (int64_t)(a), (int64_t)(b), (int64_t)(c), 0, 0, 0)
#define SYS4(name, a, b, c, d) iso_syscall(__NR_##name, (int64_t)(a), (int64_t)(b), (int64_t)(c), (int64_t)(d), 0, 0)
#define SYS5(name, a, b, c, d, e) \
	iso_syscall(__NR_##name, (int64_t)(a), (int64_t)(b), (int64_t)(c), (int64_t)(d), (int64_t)(e), 0)
#define SYS6(name, a, b, c, d, e, f) \
	iso_syscall(__NR_##name, (int64_t)(a), (int64_t)(b), (int64_t)(c), (int64_t)(d), (int64_t)(e), (int64_t)(f))

#endif
