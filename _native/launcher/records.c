/* Records for the Python program, on the control socket. */
#include "launcher.h"

#include <linux/errno.h>
#include <linux/futex.h>

void fail(struct iso_shared *s, uint32_t stage, uint32_t op, int64_t error)
{
	if (s->failed)
		return;
	s->error = (int32_t)-error;
	s->op = op;
	s->stage = stage;
	s->failed = 1;
}

static void pause_1ms(void)
{
	struct __kernel_timespec t = {.tv_sec = 0, .tv_nsec = 1000000};
	SYS2(nanosleep, PTR(&t), 0);
}

static void send_parts(struct part *parts, uint64_t count, int32_t pass)
{
	struct {
		uint64_t length;
		int32_t level, type, fd, pad;
	} control = {20, SOL_SOCKET_, SCM_RIGHTS_, pass, 0};
	struct message message = {0, 0, parts, count, pass >= 0 ? &control : 0, pass >= 0 ? sizeof control : 0, 0};
	/* The kernel may be short of memory for a moment; and without the last record nobody knows how it ended. */
	for (int i = 0; i < 1000; i++) {
		int64_t r = SYS3(sendmsg, ISO_SLOT_CONTROL, PTR(&message), MSG_NOSIGNAL_);
		if (r >= 0 || r == -EPIPE || r == -ECONNRESET || r == -EBADF || r == -EMSGSIZE)
			return; /* told, or nobody listens any more */
		pause_1ms();
	}
}

void send_record(const void *record, size_t size, int32_t pass)
{
	struct part part = {(void *)(uintptr_t)record, size};
	send_parts(&part, 1, pass);
}

/* Nothing is sent from inside before the supervisor has said who it is, which it does while set-up goes on. */
void await_birth(struct iso_shared *s)
{
	while (__atomic_load_n(&s->untold, __ATOMIC_ACQUIRE))
		SYS6(futex, PTR(&s->untold), FUTEX_WAIT, 1, 0, 0, 0);
}

/* `pid`: the program's, where it is the same for the Python program; else 0. */
void send_started(int32_t pidfd, int64_t pid)
{
	struct iso_record record;
	memset(&record, 0, sizeof record);
	record.kind = ISO_RECORD_STARTED;
	record.status = (int32_t)pid;
	send_record(&record, sizeof record, pidfd);
}

/* Tell the program's pid to a caller that waits for "started". The kernel translates it, so nobody has to look into a /proc
 * that may be another's, or be late. Naming another process than oneself takes CAP_SYS_ADMIN over the pid namespace, which a
 * process that has made or joined one has. 0, or -errno. */
int64_t send_pid(int64_t pid)
{
	const uint32_t kind = ISO_RECORD_PROGRAM;
	struct {
		uint64_t length;
		int32_t level, type, pid;
		uint32_t uid, gid, pad;
	} control = {28, SOL_SOCKET_, 2 /* SCM_CREDENTIALS */, (int32_t)pid, 0, 0, 0};
	control.uid = (uint32_t)SYS0(getuid);
	control.gid = (uint32_t)SYS0(getgid);
	struct part iov = {(void *)(uintptr_t)&kind, sizeof kind};
	struct message message = {0, 0, &iov, 1, &control, sizeof control, 0};
	return SYS3(sendmsg, ISO_SLOT_CONTROL, PTR(&message), MSG_NOSIGNAL_);
}

void tell_end(struct supervisor *s)
{
	const struct iso_machine *m = &s->machine;
	struct iso_record *record = &s->record;
	struct iso_shared *shared = m->shared;
	const uint32_t skipped = m->header->steps;
	const uint32_t report = m->header->report_size;
	struct rusage below;
	memset(&below, 0, sizeof below);
	SYS2(getrusage, -1 /* RUSAGE_CHILDREN */, PTR(&below));
	record->kind = shared->failed ? ISO_RECORD_FAILED : ISO_RECORD_ENDED;
	record->error = shared->failed ? shared->error : (int32_t)-s->clean_error;
	record->op = shared->failed ? shared->op : s->clean_error ? s->clean_op : ISO_OP_NONE;
	record->stage = shared->stage;
	record->status = shared->status;
	record->init_status = (int32_t)s->init_status;
	record->complete = shared->complete | s->exceeded | s->filtered;
	record->user_ns = nanoseconds(&below.ru_utime);
	record->system_ns = nanoseconds(&below.ru_stime);
	record->user_ns -= shared->own_ns[0] < record->user_ns ? shared->own_ns[0] : record->user_ns;
	record->system_ns -= shared->own_ns[1] < record->system_ns ? shared->own_ns[1] : record->system_ns;
	/* If init was killed, the kernel has reaped the rest and accounted for nothing of it. It was seen before. */
	if (record->user_ns + record->system_ns < s->used_ns)
		record->user_ns = s->used_ns - record->system_ns;
	record->max_rss = (uint64_t)below.ru_maxrss * 1024;
	/* A limit counts from its coming on, and so does what is compared with it: init may take the run a while later. */
	const uint64_t taken = shared->began_ns ? shared->began_ns : s->started_ns;
	const uint64_t began = s->told_ns && s->told_ns < taken ? s->told_ns : taken;
	/* Init's clock is another one where it has joined a time namespace: a time that cannot be is not used. */
	const uint64_t ended = shared->ended_ns > began && shared->ended_ns < s->ended_ns ? shared->ended_ns : s->ended_ns;
	record->wall_ns = ended > began ? ended - began : 0;
	record->program_ns = shared->program_ns;
	record->skipped_size = skipped;
	record->report_size = report;
	if (shared->failed) {
		record->head_size = shared->head_size;
		memcpy(record->head, shared->head, ISO_HEAD);
	}
	if (shared->parked)
		record->kind = ISO_RECORD_PARKED;
	/* From where they lie: what a cgroup counts takes some ten thousand bytes. */
	struct part parts[3] = {
		{record, sizeof *record},
		{shared->skipped, skipped},
		{m->data + m->header->report_offset, report},
	};
	send_parts(parts, 3, -1);
}

/* What came of a clean-up whose end was told before. */
void tell_cleaned(const struct supervisor *s)
{
	struct iso_record record;
	memset(&record, 0, sizeof record);
	record.kind = ISO_RECORD_CLEANED;
	record.error = (int32_t)-s->clean_error;
	record.op = s->clean_error ? s->clean_op : ISO_OP_NONE;
	send_record(&record, sizeof record, -1);
}

void refuse(uint32_t stage, int64_t error)
{
	struct iso_record record;
	memset(&record, 0, sizeof record);
	record.kind = ISO_RECORD_FAILED;
	record.error = (int32_t)-error;
	record.stage = stage;
	record.op = ISO_OP_NONE;
	send_record(&record, sizeof record, -1);
	exit_now(1);
}
