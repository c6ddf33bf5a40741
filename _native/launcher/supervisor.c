/* The supervisor: outside the sandbox. Holds the limits of time, watches for the end of the Python program, takes the whole
 * tree down, cleans up. */
#include "launcher.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/futex.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/sched.h>

/* A section of the end; its first error is kept. */
static int64_t clean(struct supervisor *s, int section)
{
	const int64_t r = iso_machine_clean(&s->machine, section);
	if (r < 0 && s->clean_error == 0) {
		s->clean_error = r;
		s->clean_op = s->machine.failed_op;
	}
	return r;
}

static void report(struct supervisor *s)
{
	s->reported = 1;
	clean(s, ISO_REPORT);
}

static void limit(struct supervisor *s, uint64_t began, uint64_t timeout_ns, uint64_t cpu_ns)
{
	s->deadline = timeout_ns ? began + timeout_ns : 0;
	s->cpu_ns = cpu_ns;
	/* Without /proc of our own there is nothing to sample by: the caller has refused such a limit, or counts by a cgroup. */
	s->sample = cpu_ns && s->proc >= 0 ? began + 1 : 0;
	if (s->sample) {
		uint64_t mask[128];
		const int64_t size = SYS3(sched_getaffinity, 0, sizeof mask, PTR(mask));
		s->cpus = 0;
		for (int64_t i = 0; i < size / 8; i++)
			for (uint64_t bits = mask[i]; bits; bits &= bits - 1)
				s->cpus++;
		s->cpus = s->cpus ? s->cpus : 1;
	}
}

/* Read the control socket: the limits of a run that came later are taken, and the end of file (1) means that we are to let
 * go. Anything else has no meaning. */
static int wants_end(struct supervisor *s)
{
	for (;;) {
		struct iso_limits limits;
		const int64_t r = SYS6(recvfrom, ISO_SLOT_CONTROL, PTR(&limits), sizeof limits, 0x40 /* MSG_DONTWAIT */, 0, 0);
		if (r == -EAGAIN)
			return 0;
		if (r == sizeof limits)
			limit(s, s->told_ns = since(limits.began_ns), limits.timeout_ns, limits.cpu_ns);
		else if (r <= 0 && r != -EINTR)
			return 1;
	}
}

#define SAMPLE_SHORTEST 10000000u  /* the resolution of what /proc tells */
#define SAMPLE_LONGEST 1000000000u
#define AGAIN 100000000u           /* a kill is repeated: somebody may have frozen or stopped it again */
#define STOPPED 20000000u          /* how long set-up may take before we look whether somebody has stopped it */

static void exceed(struct supervisor *s, int32_t limit)
{
	if (!s->let_go)
		s->exceeded = limit;
	end_tree(s);
}

/* Hold the limits of time; when to be called again, 0 for never. */
static uint64_t tick(struct supervisor *s)
{
	const uint64_t t = now();
	if (s->let_go) {
		end_tree(s);
		return now() + AGAIN;
	}
	if (s->deadline && t >= s->deadline) {
		exceed(s, ISO_COMPLETE_TIMEOUT);
		return now() + AGAIN;
	}
	if (s->sample && t >= s->sample) {
		const uint64_t used = tree_cpu(s);
		if (used >= s->cpu_ns) {
			s->used_ns = used;
			exceed(s, ISO_COMPLETE_CPU_TIME);
			return now() + AGAIN;
		}
		uint64_t wait = (s->cpu_ns - used) / s->cpus;
		wait = wait < SAMPLE_SHORTEST ? SAMPLE_SHORTEST : wait > SAMPLE_LONGEST ? SAMPLE_LONGEST : wait;
		s->sample = t + wait;
	}
	uint64_t next = s->deadline;
	if (s->sample && (!next || s->sample < next))
		next = s->sample;
	/* Processes of our pid namespace, or of one that was joined, can have stopped the set-up. */
	if (!(s->machine.header->flags & ISO_TAPE_PIDNS) && !(s->machine.shared->complete & ISO_COMPLETE_STARTED)) {
		SYS4(pidfd_send_signal, s->child_fd, SIGCONT_, 0, 0);
		signal_children(s, SIGCONT_);
		if (!next || t + STOPPED < next)
			next = t + STOPPED;
	}
	return next;
}

/* Nothing happens for now: what a fork has left here, and what the end does not need, is given back. */
static void shed(struct supervisor *s)
{
	struct iso_machine *m = &s->machine;
	const struct iso_range *section = m->header->section;
	s->run = *m->run;
	m->run = &s->run;
	shed_data();
	/* A byte went through it, and its end is all that comes: room for one page in the place of sixteen. */
	SYS3(fcntl, s->sync_fd, 1031 /* F_SETPIPE_SZ */, 4096);
	if (section[ISO_REPORT].count || section[ISO_CLEANUP].count || section[ISO_THAW].count || m->header->report_size)
		return;
	s->header = *m->header;
	SYS2(munmap, PTR(m->header), s->tape_size);
	/* Nobody reads registers any more. */
	if (s->working_size)
		SYS3(madvise, PTR(m->reg), s->working_size, MADV_DONTNEED);
	m->header = &s->header;
}

static void supervise(struct supervisor *s)
{
	struct iso_machine *m = &s->machine;
	/* Nothing can be late yet: the first look at the clock comes when there is a reason to. */
	uint64_t t = now(), next = s->let_go ? t + AGAIN : s->deadline;
	if (s->sample || (!s->let_go && !(m->header->flags & ISO_TAPE_PIDNS)))
		next = !next || t + STOPPED < next ? t + STOPPED : next;
	/* The fork that waits for the next start is made when this start has ended, when the next one comes, or then. */
	uint64_t quiet = t + QUIET;
	next = !next || quiet < next ? quiet : next;
	const int filtered = (m->header->flags & (ISO_TAPE_FILTERED | ISO_TAPE_INIT)) == (ISO_TAPE_FILTERED | ISO_TAPE_INIT);
	struct pollfd fds[6] = {
		{.fd = s->child_fd, .events = POLLIN},
		{.fd = ISO_SLOT_CONTROL, .events = POLLIN},
		{.fd = ISO_SLOT_OWNER, .events = POLLIN},
		{.fd = s->exec_fd, .events = POLLIN},
		{.fd = s->tree.starts, .events = POLLIN},
		{.fd = filtered ? s->sync_fd : -1}, /* the end of its reader */
	};
	for (;;) {
		struct __kernel_timespec wait = {0, 0};
		if (next) {
			const uint64_t left = next > t ? next - t : 0;
			wait.tv_sec = (int64_t)(left / 1000000000u);
			wait.tv_nsec = (int64_t)(left % 1000000000u);
		}
		int64_t r = SYS5(ppoll, PTR(fds), 6, next ? PTR(&wait) : 0, 0, 0);
		if (r == -EINTR || r == -EAGAIN || r == -ENOMEM) {
			t = now();
			continue;
		}
		if (r < 0) {
			fail(m->shared, ISO_STAGE_POLL, ISO_OP_NONE, r);
			kill_tree(s);
			return;
		}
		if (fds[3].revents) {
			fds[3].fd = -1;
			if ((m->header->flags & (ISO_TAPE_PIDNS | ISO_TAPE_INIT)) == (ISO_TAPE_PIDNS | ISO_TAPE_INIT)) {
				/* The counters are read while the kernel takes the namespaces down. Init that was killed has reaped nobody. */
				if (m->shared->reaped)
					report(s);
			} else if (m->header->flags & ISO_TAPE_INIT) {
				drain(s); /* the program has ended: what it left behind goes too */
			} else if (!m->shared->failed && m->shared->executing) {
				m->shared->complete |= ISO_COMPLETE_STARTED;
				if (m->run->flags & ISO_RUN_STARTED)
					send_started(s->child_fd, s->child);
			}
		}
		if (fds[5].revents) {
			fds[5].fd = -1;
			look_at_suspect(s);
			__atomic_store_n(&m->shared->suspect, 0, __ATOMIC_RELEASE);
			SYS6(futex, PTR(&m->shared->suspect), FUTEX_WAKE, 1, 0, 0, 0);
		}
		if (fds[0].revents)
			return;
		t = next ? now() : 0;
		const int calm = quiet && t >= quiet;
		if (fds[4].revents || calm) {
			tell_taken(&s->tree, TAKEN_RUNS);
			fds[4].fd = -1;
		}
		if (calm) {
			shed(s);
			quiet = 0;
		}
		/* The Python program ended (its pidfd), or let go of the sandbox. */
		if (fds[2].revents || (fds[1].revents && wants_end(s))) {
			if (fds[2].revents)
				kill_tree(s);
			else
				end_tree(s);
			fds[1].fd = fds[2].fd = -1;
			t = now();
			next = t + AGAIN;
		} else if (fds[1].revents || (next && t >= next)) {
			next = tick(s);
			t = now();
			next = quiet && (!next || quiet < next) ? quiet : next;
		}
	}
}

/* Everything that only the child needs: with a copy here no pipe of the payload's would ever end. */
static void close_slots(const struct iso_machine *m)
{
	SYS3(close_range, 0, 2, 0);
	if (m->run->slots > ISO_SLOT_FREE)
		SYS3(close_range, ISO_SLOT_FREE, m->run->slots - 1, 0);
}

/* The section AHEAD. 0, or -errno with what was made taken back. */
int64_t go_ahead(struct supervisor *s)
{
	struct iso_machine *m = &s->machine;
	const int64_t self = m->reg[ISO_REG_SELF] = SYS0(getpid);
	m->reg[ISO_REG_LAUNCHER] = shown(self, -1); /* names of groups have the number that the Python program knows */
	const int64_t r = iso_machine_run(m, ISO_AHEAD);
	s->ahead = 1;
	if (r < 0) {
		const uint32_t op = m->failed_op;
		take_back(s);
		m->failed_op = op;
	}
	return r;
}

/* Nobody needs what the section AHEAD has made; the clean-up tolerates what was never made. The machine is as it was. */
void take_back(struct supervisor *s)
{
	struct iso_machine *m = &s->machine;
	if (!s->ahead)
		return;
	s->ahead = 0;
	iso_machine_clean(m, ISO_CLEANUP);
	m->patience.until = 0; /* what comes has a deadline of its own */
	memset(m->reg, 0, m->header->registers * sizeof *m->reg);
	memset(m->shared->skipped, 0, m->header->steps);
	m->reg[ISO_REG_SELF] = SYS0(getpid);
	m->reg[ISO_REG_LAUNCHER] = shown(m->reg[ISO_REG_SELF], -1); /* for a clean-up that has to come once more */
}

/* All that is done outside before there is a child. */
static int64_t run_outer(struct supervisor *s)
{
	struct iso_machine *m = &s->machine;
	if (s->ahead && iso_machine_run(m, ISO_STILL) < 0)
		take_back(s); /* somebody has removed it */
	const int64_t r = s->ahead ? 0 : go_ahead(s);
	return r < 0 ? r : iso_machine_run(m, ISO_OUTER);
}

/* Make the child, and do all that is done before it is watched. 0, or -errno with the failure recorded: with a child that is to
 * be killed, or with none. */
int64_t bear(struct supervisor *s)
{
	struct iso_machine *m = &s->machine;
	int64_t r;
	const uint32_t flags = m->header->flags;
	/* Before anything is joined: later /proc may be another's. Where init is PID 1 the kernel ends all with it, and it is
	 * needed for a limit of CPU time alone. */
	if (!(flags & ISO_TAPE_PIDNS) || m->run->cpu_ns || m->run->later) {
		s->proc = (int32_t)open_proc();
	} else if (flags & ISO_TAPE_FILTERED) {
		/* Rarely needed: it is verified then. */
		s->mounted_proc = (int32_t)SYS4(openat, AT_FDCWD, PTR("/proc"), O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	}
	r = run_outer(s);
	if (r < 0) {
		fail(m->shared, ISO_STAGE_OPS, m->failed_op, r);
		return r;
	}
	if (s->proc < 0 && !(flags & ISO_TAPE_PIDNS)) {
		fail(m->shared, ISO_STAGE_PROC, ISO_OP_NONE, s->proc);
		return s->proc;
	}
	int32_t group = -1;
	r = begin_child(s, group);
	/* Only where a child was made and is dead before its first instruction: once more, and it goes there by itself. */
	if (s->child > 0 && m->header->cgroup_register != ISO_NONE && died_at_birth(s)) {
		group = (int32_t)SYS4(openat, m->reg[m->header->cgroup_register], PTR("cgroup.procs"), O_WRONLY | O_CLOEXEC, 0);
		bury(s);
		if (group < 0) {
			s->child = -1;
			fail(m->shared, ISO_STAGE_CLONE_INIT, ISO_OP_NONE, group);
			return group;
		}
		m->shared->failed = 0;
		r = begin_child(s, group);
		close_fd(group);
	}
	return r;
}

static void run_supervisor(struct supervisor *s)
{
	struct iso_machine *m = &s->machine;
	const uint32_t flags = m->header->flags;
	int64_t r = s->child > 0 ? 0 : bear(s); /* it may have been made ahead */
	/* Whatever refuses the tree, a filter of the caller's on setns(2) or a limit, may allow a start without one, or that has
	 * the words for it. Nobody has been told of this one yet. */
	if (r < 0 && s->child <= 0 && s->unborn && m->shared->stage == ISO_STAGE_TEMPLATE)
		decline(s, ISO_STAGE_TEMPLATE, r);
	leave_tree(&s->tree);
	if (s->child <= 0)
		return;
	if (r < 0)
		kill_tree(s);
	close_slots(m);
	if (!m->run->later)
		limit(s, s->started_ns, m->run->timeout_ns, m->run->cpu_ns);
	supervise(s);
	int32_t status = 0;
	if (!(flags & ISO_TAPE_INIT)) {
		m->shared->program_ns = cpu_clock(s->child);
		if (flags & ISO_TAPE_FILTERED)
			look_at_suspect(s);
	}
	do
		r = SYS4(wait4, s->child, PTR(&status), 0x40000000 /* __WALL */, PTR(&s->usage));
	while (r == -EINTR);
	if (r < 0)
		fail(m->shared, ISO_STAGE_POLL, ISO_OP_NONE, r); /* how it has ended nobody can say */
	s->init_status = status;
	s->ended_ns = now();
	/* Init tells of a program that was killed on its way; if it was us who did that, nothing has failed. */
	if (s->let_go && m->shared->failed && m->shared->stage == ISO_STAGE_DEATH)
		m->shared->failed = 0;
	if (!s->let_go && !(m->shared->complete & ISO_COMPLETE_STARTED))
		fail(m->shared, ISO_STAGE_DEATH, ISO_OP_NONE, -ESRCH);
	if (!(flags & ISO_TAPE_PIDNS))
		kill_children(s);
	if (!(flags & ISO_TAPE_INIT) && !m->shared->failed) {
		m->shared->status = status;
		m->shared->complete |= ISO_COMPLETE_STATUS;
	}
}

/* The state of a supervisor that has run nothing yet. */
void begin_supervisor(struct supervisor *s, int forked)
{
	s->child_fd = -1;
	s->exec_fd = -1;
	s->sync_fd = -1;
	s->proc = -ENOENT;
	s->mounted_proc = -1;
	/* A session of our own: a SIGKILL to the Python program's process group must not keep us from cleaning up. A launcher
	 * that is parked has one, so for its forks it takes no more than a process group. */
	int64_t r = forked ? SYS2(setpgid, 0, 0) : SYS0(setsid);
	if (r >= 0)
		r = SYS2(prctl, PR_SET_CHILD_SUBREAPER, 1);
	if (r < 0)
		refuse(ISO_STAGE_OWNER, r);
	SYS1(umask, 0);
}

void to_the_end(struct supervisor *s)
{
	run_supervisor(s);
	tell_birth(s);
	/* The clean-up runs whatever failed before it; its ops tolerate what was never made. */
	if (!s->ended_ns)
		s->ended_ns = now();
	if (!s->reported)
		report(s);
	/* The Python program makes a result of it meanwhile. */
	const int early = (s->machine.run->flags & ISO_RUN_EARLY) && !s->machine.shared->failed;
	if (early) {
		tell_end(s);
		s->clean_error = 0;
	}
	clean(s, ISO_CLEANUP);
	if (early)
		tell_cleaned(s);
	else
		tell_end(s);
	tell_taken(&s->tree, TAKEN_ENDED);
	exit_now(0);
}
