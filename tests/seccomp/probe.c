/*
 * Make system calls under a filter and write down what each returned.
 *
 *   probe <filter> <records>
 *
 * Both are files; records are of struct record and are filled in place, so that they survive a filter that kills.
 * The filter must let `exit_group` with MAGIC as its sixth argument pass: the caller puts that in front of it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAGIC 0x5eccu

struct record {
	uint32_t i386; /* by int 0x80 */
	uint32_t nr;
	uint64_t args[6];
	int64_t result;
};

static long call64(uint64_t nr, const uint64_t *a)
{
	long result;
#if defined(__x86_64__)
	register uint64_t r10 __asm__("r10") = a[3];
	register uint64_t r8 __asm__("r8") = a[4];
	register uint64_t r9 __asm__("r9") = a[5];

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(nr), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
#elif defined(__aarch64__)
	register uint64_t x8 __asm__("x8") = nr;
	register uint64_t x0 __asm__("x0") = a[0];
	register uint64_t x1 __asm__("x1") = a[1];
	register uint64_t x2 __asm__("x2") = a[2];
	register uint64_t x3 __asm__("x3") = a[3];
	register uint64_t x4 __asm__("x4") = a[4];
	register uint64_t x5 __asm__("x5") = a[5];

	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	result = x0;
#endif
	return result;
}

static long call32(uint64_t nr, const uint64_t *a)
{
#if defined(__x86_64__)
	long result;

	/* The sixth argument is in ebp, which the compiler may be using. r8 to r11 are not kept by every kernel. */
	__asm__ volatile("pushq %%rbp\n\tmovq %7, %%rbp\n\tint $0x80\n\tpopq %%rbp"
			 : "=a"(result)
			 : "a"(nr), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4]), "r"(a[5])
			 : "r8", "r9", "r10", "r11", "memory");
	return (int32_t)result;
#else
	(void)nr, (void)a;
	return -ENOSYS;
#endif
}

int main(int argc, char **argv)
{
	static struct sock_filter code[BPF_MAXINSNS];
	struct sock_fprog program = { .filter = code };
	struct record *records;
	struct stat info;
	uint64_t end[6] = { 0, 0, 0, 0, 0, MAGIC };
	int fd;
	size_t i;

	if (argc != 3 || (fd = open(argv[1], O_RDONLY)) < 0)
		return 101;
	program.len = read(fd, code, sizeof code) / sizeof code[0];
	fd = open(argv[2], O_RDWR);
	if (fd < 0 || fstat(fd, &info))
		return 102;
	records = mmap(NULL, info.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (records == MAP_FAILED)
		return 103;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) {
		fprintf(stderr, "filter of %u: errno %d\n", program.len, errno);
		return 104;
	}
	for (i = 0; i < info.st_size / sizeof *records; i++) {
		struct record *r = &records[i];

		r->result = r->i386 ? call32(r->nr, r->args) : call64(r->nr, r->args);
	}
	call64(SYS_exit_group, end);
	return 105;
}
