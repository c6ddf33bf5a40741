/*
 * The C half of benchmarks/seccomp.py: libseccomp's build and load, and the cost of calls under a filter.
 *
 *   build <rules> <level> <times>     nanoseconds from seccomp_init to the end of seccomp_load, each in a child
 *   export <rules> <level>            the program that libseccomp makes, on standard output
 *   attach <program> <times>          nanoseconds of prctl(NO_NEW_PRIVS) and seccomp() with a ready program
 *   calls <program|-> <times> <nr,a,b,c>...    nanoseconds a call, the least of three rounds
 *
 * Rules: "<default> <arch>..." and then "<action> <name> [<arg> <op> <a> <b>]..." lines, hex. Reading them is not timed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct rule {
	uint32_t action;
	int number;
	unsigned int count;
	struct scmp_arg_cmp args[6];
};

static struct rule rules[8192];
static int rule_count, arch_count;
static uint32_t default_action, archs[8];

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void read_rules(const char *path)
{
	static char line[4096];
	FILE *file = fopen(path, "r");
	char *word;

	if (!file || !fgets(line, sizeof line, file))
		exit(2);
	default_action = strtoul(strtok(line, " \n"), NULL, 16);
	while ((word = strtok(NULL, " \n")))
		archs[arch_count++] = strtoul(word, NULL, 16);
	while (fgets(line, sizeof line, file)) {
		struct rule *r = &rules[rule_count++];

		r->action = strtoul(strtok(line, " \n"), NULL, 16);
		r->number = seccomp_syscall_resolve_name(strtok(NULL, " \n"));
		while ((word = strtok(NULL, " \n"))) {
			struct scmp_arg_cmp *a = &r->args[r->count++];

			a->arg = strtoul(word, NULL, 16);
			a->op = strtoul(strtok(NULL, " \n"), NULL, 16);
			a->datum_a = strtoull(strtok(NULL, " \n"), NULL, 16);
			a->datum_b = strtoull(strtok(NULL, " \n"), NULL, 16);
		}
		if (r->number == __NR_SCMP_ERROR)
			rule_count--;
	}
	fclose(file);
}

static scmp_filter_ctx make(int level)
{
	scmp_filter_ctx ctx = seccomp_init(default_action);
	int i;

	seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, level);
	seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	for (i = 0; i < arch_count; i++)
		seccomp_arch_add(ctx, archs[i]);
	for (i = 0; i < rule_count; i++)
		if (seccomp_rule_add_array(ctx, rules[i].action, rules[i].number, rules[i].count, rules[i].args) &&
		    rules[i].action != default_action)
			fprintf(stderr, "libseccomp does not take the rule about %d\n", rules[i].number);
	return ctx;
}

static struct sock_fprog read_program(const char *path)
{
	static struct sock_filter code[BPF_MAXINSNS];
	struct sock_fprog program = { .filter = code };
	int fd = open(path, O_RDONLY);

	program.len = read(fd, code, sizeof code) / sizeof code[0];
	close(fd);
	return program;
}

static int attach(struct sock_fprog *program)
{
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, program);
}

/* Run `once` in a child and print what it measured: a filter cannot be taken off. */
static void in_child(int times, uint64_t (*once)(void))
{
	int i;

	for (i = 0; i < times; i++) {
		uint64_t taken;
		int fds[2];

		if (pipe(fds))
			exit(3);
		if (!fork()) {
			taken = once();
			if (write(fds[1], &taken, sizeof taken) != sizeof taken)
				_exit(1);
			_exit(0);
		}
		if (read(fds[0], &taken, sizeof taken) == sizeof taken)
			printf("%llu\n", (unsigned long long)taken);
		close(fds[0]);
		close(fds[1]);
		wait(NULL);
	}
}

static int level;
static struct sock_fprog ready;

static uint64_t build_once(void)
{
	uint64_t start = now();

	if (seccomp_load(make(level)))
		_exit(1);
	return now() - start;
}

static uint64_t attach_once(void)
{
	uint64_t start = now();

	if (attach(&ready))
		_exit(1);
	return now() - start;
}

static long call(long nr, long a, long b, long c)
{
#if defined(__x86_64__)
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
#else
	return syscall(nr, a, b, c);
#endif
}

int main(int argc, char **argv)
{
	int i;

	if (argc > 4 && !strcmp(argv[1], "build")) {
		read_rules(argv[2]);
		level = atoi(argv[3]);
		in_child(atoi(argv[4]), build_once);
	} else if (argc > 3 && !strcmp(argv[1], "export")) {
		read_rules(argv[2]);
		return seccomp_export_bpf(make(atoi(argv[3])), 1) != 0;
	} else if (argc > 3 && !strcmp(argv[1], "attach")) {
		ready = read_program(argv[2]);
		in_child(atoi(argv[3]), attach_once);
	} else if (argc > 4 && !strcmp(argv[1], "calls")) {
		long times = atol(argv[3]), t;

		if (strcmp(argv[2], "-")) {
			ready = read_program(argv[2]);
			if (attach(&ready))
				return 4;
		}
		for (i = 4; i < argc; i++) {
			long v[4] = { 0 };
			double best = 1e18;
			int round;

			sscanf(argv[i], "%ld,%ld,%ld,%ld", &v[0], &v[1], &v[2], &v[3]);
			for (round = 0; round < 3; round++) {
				uint64_t start = now();
				double each;

				for (t = 0; t < times; t++)
					call(v[0], v[1], v[2], v[3]);
				each = (double)(now() - start) / times;
				best = each < best ? each : best;
			}
			printf("%.2f\n", best);
		}
	} else {
		return 1;
	}
	return 0;
}
