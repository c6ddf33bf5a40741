/*
 * libseccomp as a server for the tests: reads policies as lines, answers each with a line of hex, the BPF program.
 *
 *   new <default action> <optimize level> <arch>...     numbers are hex, architectures SCMP_ARCH_* values; the first
 *                                                       is the only one unless more are given
 *   rule <action> <name> [<arg> <op> <a> <b>]...        op is enum scmp_compare
 *   export
 *   resolve <arch> <name>
 *
 * Answers "ok", "error <errno>" or, to export, the program, to resolve, the number (negative where there is none).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static scmp_filter_ctx ctx;

static int new_policy(char *rest)
{
	char *word = strtok(rest, " \n");
	uint32_t action = strtoul(word, NULL, 16);
	int level = atoi(strtok(NULL, " \n"));
	int error = 0;

	if (ctx)
		seccomp_release(ctx);
	ctx = seccomp_init(action);
	if (!ctx)
		return -EINVAL;
	error = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, level);
	if (!error)
		error = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	while (!error && (word = strtok(NULL, " \n"))) {
		error = seccomp_arch_add(ctx, strtoul(word, NULL, 16));
		if (error == -EEXIST)
			error = 0;
	}
	return error;
}

static int add_rule(char *rest)
{
	uint32_t action = strtoul(strtok(rest, " \n"), NULL, 16);
	char *name = strtok(NULL, " \n"), *word;
	struct scmp_arg_cmp args[6];
	unsigned int count = 0;
	int number = seccomp_syscall_resolve_name(name);

	if (number == __NR_SCMP_ERROR)
		return -ENOENT;
	while (count < 6 && (word = strtok(NULL, " \n"))) {
		args[count].arg = strtoul(word, NULL, 16);
		args[count].op = strtoul(strtok(NULL, " \n"), NULL, 16);
		args[count].datum_a = strtoull(strtok(NULL, " \n"), NULL, 16);
		args[count].datum_b = strtoull(strtok(NULL, " \n"), NULL, 16);
		count++;
	}
	return seccomp_rule_add_array(ctx, action, number, count, args);
}

static int resolve(char *rest)
{
	uint32_t arch = strtoul(strtok(rest, " \n"), NULL, 16);

	printf("%d\n", seccomp_syscall_resolve_name_arch(arch, strtok(NULL, " \n")));
	return 1;
}

static int export_policy(void)
{
	static unsigned char data[8 * 65536];
	int fd = memfd_create("filter", MFD_CLOEXEC);
	int error = seccomp_export_bpf(ctx, fd);
	ssize_t size = 0, i;

	if (!error)
		size = pread(fd, data, sizeof data, 0);
	close(fd);
	if (error)
		return error;
	for (i = 0; i < size; i++)
		printf("%02x", data[i]);
	printf("\n");
	return 1;
}

int main(void)
{
	static char line[65536];

	while (fgets(line, sizeof line, stdin)) {
		int result;

		if (!strncmp(line, "new ", 4))
			result = new_policy(line + 4);
		else if (!strncmp(line, "rule ", 5))
			result = add_rule(line + 5);
		else if (!strncmp(line, "resolve ", 8))
			result = resolve(line + 8);
		else
			result = export_policy();
		if (result <= 0)
			printf(result ? "error %d\n" : "ok\n", -result);
		fflush(stdout);
	}
	return 0;
}
