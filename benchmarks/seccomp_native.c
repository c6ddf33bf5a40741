/*
 * The C half of benchmarks/seccomp.py: libseccomp's build and load, and the cost of calls under a filter.
 *
 *   build <rules> <level> <times>     nanoseconds from seccomp_init to the end of seccomp_load, each in a child
 *   export <rules> <level>            the program that libseccomp makes, on standard output
 *   attach <program> <times>          nanoseconds of prctl(NO_NEW_PRIVS) and seccomp() with a ready program
 *   calls <times> <rounds> <count> <program|->... <nr,a,b,c>...
 *                                     nanoseconds a call: for each of the calls a line with the least of all rounds under
 *                                     each of the programs. A child for each program; they take turns, batch by batch, on
 *                                     one CPU, so that whatever else the machine does falls upon all alike
 *
 * Rules: "<default> <arch>..." and then "<action> <name> [<arg> <op> <a> <b>]..." lines, hex. Reading them is not timed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
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

static double batch(long times, const char *text)
{
	long v[4] = { 0 }, t;
	uint64_t start;

	sscanf(text, "%ld,%ld,%ld,%ld", &v[0], &v[1], &v[2], &v[3]);
	for (t = 0; t < times / 8; t++) /* warm */
		call(v[0], v[1], v[2], v[3]);
	start = now();
	for (t = 0; t < times; t++)
		call(v[0], v[1], v[2], v[3]);
	return (double)(now() - start) / times;
}

#define MOST 8

static int take_turns(long times, long rounds, long count, char **programs, long calls, char **texts)
{
	int to[MOST][2], from[MOST][2];
	cpu_set_t one;
	long p, c, r;

	if (count > MOST)
		return 1;
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	sched_setaffinity(0, sizeof one, &one);
	for (p = 0; p < count; p++) {
		if (pipe(to[p]) || pipe(from[p]))
			return 3;
		if (!fork()) {
			const char *text;

			close(to[p][1]);
			if (strcmp(programs[p], "-")) {
				ready = read_program(programs[p]);
				if (attach(&ready))
					_exit(4);
			}
			while (read(to[p][0], &text, sizeof text) == sizeof text) {
				double each = batch(times, text);

				if (write(from[p][1], &each, sizeof each) != sizeof each)
					_exit(5);
			}
			_exit(0);
		}
	}
	for (c = 0; c < calls; c++) {
		double best[MOST];

		for (p = 0; p < count; p++)
			best[p] = 1e18;
		for (r = 0; r < rounds; r++)
			for (p = 0; p < count; p++) {
				/* Another first each round. */
				long turn = (p + r) % count;
				double each;

				if (write(to[turn][1], &texts[c], sizeof texts[c]) != sizeof texts[c] ||
				    read(from[turn][0], &each, sizeof each) != sizeof each)
					return 6;
				best[turn] = each < best[turn] ? each : best[turn];
			}
		for (p = 0; p < count; p++)
			printf("%.2f\n", best[p]);
	}
	for (p = 0; p < count; p++)
		close(to[p][1]);
	for (p = 0; p < count; p++)
		wait(NULL);
	return 0;
}

int main(int argc, char **argv)
{
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
	} else if (argc > 5 && !strcmp(argv[1], "calls")) {
		long times = atol(argv[2]), rounds = atol(argv[3]), count = atol(argv[4]);

		return take_turns(times, rounds, count, argv + 5, argc - 5 - count, argv + 5 + count);
	} else {
		return 1;
	}
	return 0;
}
