/* Shared by the parts of the launcher. Each part is one subject; main.c says which process runs which. */
#ifndef ISOLATE_LAUNCHER_H
#define ISOLATE_LAUNCHER_H

#include "../interp.h"
#include "../sys.h"

#include <linux/mman.h>
#include <linux/resource.h>
#include <linux/time_types.h>

#define SOL_SOCKET_ 1
#define SCM_RIGHTS_ 1
#define MSG_NOSIGNAL_ 0x4000
#define CLOSE_RANGE_CLOEXEC_ 4
#define SIGCHLD_ 17
#define SIGKILL_ 9
#define SIGSTOP_ 19
#define SIGCONT_ 18
#define SIGNALS 64
#define PROT_RW (PROT_READ | PROT_WRITE)
#define STACK_SIZE 65536
#define ALONE (-2) /* in place of a payload's pid: there is none, and init stays until it is killed */
#define LATER_SIZE 65536
#define QUIET 2000000u /* ns: who has not ended by then does not soon. There is time for what need not be done at once */

/* struct iovec and struct msghdr, as the kernel has them. */
struct part {
	void *base;
	uint64_t length;
};

struct message {
	void *name;
	uint64_t name_length;
	struct part *parts;
	uint64_t part_count;
	void *control;
	uint64_t control_length;
	uint64_t flags;
};

/* Descriptors of a launcher that is parked, and of each supervisor that is a fork of it until it has cloned: the mount
 * namespace with the finished tree, the user namespace that owns it (-1 where we may enter it without), the hidden directory
 * beneath the tree's root, our own mount namespace and root (-1 where there is no way back). Starts come from `starts`, and
 * `taken` tells the launcher that one was taken. */
struct template_tree {
	int32_t mounts, users, hidden, own, root, starts, taken;
};

struct supervisor {
	struct iso_machine machine;
	struct template_tree tree;
	uint64_t tape_size;  /* with a run block behind it, where that came along */
	struct iso_header header; /* of the tape, once that has been given back; and of the run block */
	struct iso_run run;
	uint64_t started_ns;
	int64_t child;
	int32_t child_fd;
	int32_t exec_fd; /* the other end of the machine's */
	int32_t sync_fd;
	int64_t init_status;
	struct iso_record record;  /* made before anything can be short of memory */
	int32_t let_go;            /* we killed it: the Python program ended or wanted it so */
	uint64_t asked_ns;         /* when init was asked to end it all */
	int32_t reported;          /* the section REPORT has been run */
	int64_t clean_error;       /* the first error of REPORT and CLEANUP, and its op */
	uint32_t clean_op;
	struct rusage usage;
	uint32_t shared_size;
	int32_t proc;        /* /proc of our own pid namespace, as it was before anything was joined; or -errno */
	int32_t mounted_proc; /* /proc as it is mounted, not verified; where a filter may kill the program, else -1 */
	int32_t filtered;    /* ISO_COMPLETE_FILTERED, or 0 */
	uint64_t told_ns;    /* when a run that came later was announced, with its limits of time; 0: it was not */
	uint64_t deadline;   /* CLOCK_MONOTONIC; 0: no limit */
	uint64_t cpu_ns;     /* the limit of CPU time; 0: none */
	uint64_t sample;     /* when to look at the CPU time again */
	uint64_t cpus;       /* as many seconds of it can be used in one */
	uint64_t used_ns;    /* what the tree had used when that was over the limit */
	int32_t exceeded;    /* ISO_COMPLETE_TIMEOUT, ISO_COMPLETE_CPU_TIME: why we killed it */
	uint64_t ended_ns;
	uint32_t capabilities[6]; /* of the launcher at its start, as capget gives them */
	int32_t root;          /* its effective uid is 0 */
	int32_t ahead;         /* the section AHEAD has been run before there was a start: it is to be taken back if none comes */
	int32_t within;        /* in a start that is made ahead: our end of the socket by which init gets its run; else -1 */
	int32_t above;         /* a fork that has made something ahead watches for the launcher's end by this pidfd; else -1 */
	int32_t unborn;        /* our own pidfd, which the Python program is still to be given; 0: it has it */
	/* Registers, where they fit: in a page that each process of a start writes to anyway. One of their own is made, and copied
	 * in each of them. Else `working_size` bytes are mapped. */
	uint64_t working_size;
	int64_t working[96];
};

static inline void exit_now(int64_t status) __attribute__((noreturn));
static inline void exit_now(int64_t status)
{
	for (;;)
		SYS1(exit_group, status);
}

static inline int mapped(int64_t address)
{
	return address < -4095 || address > 0;
}

static inline void close_fd(int64_t fd)
{
	if (fd >= 0)
		SYS1(close, fd);
}

static inline uint64_t now(void)
{
	struct __kernel_timespec t = {0, 0};
	SYS2(clock_gettime, 1 /* CLOCK_MONOTONIC */, PTR(&t));
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* When the caller asked for a start: its limits of time, which it holds as well, count from the same moment. If its clock
 * is another one (a time namespace for its children alone), from now. */
static inline uint64_t since(uint64_t told)
{
	const uint64_t t = now();
	return told <= t && t - told < 10000000000u ? told : t;
}

static inline uint64_t nanoseconds(const struct __kernel_old_timeval *t)
{
	return (uint64_t)t->tv_sec * 1000000000u + (uint64_t)t->tv_usec * 1000u;
}

/* Words and small files (text.c). */
size_t length(const char *s);
char *put_decimal(char *to, int64_t value);
char *put(char *to, const char *text);
int64_t write_at(int64_t dir, const char *name, const char *text);
int64_t read_file(int64_t directory, const char *path, char *buffer, size_t size);
const char *find(const char *text, const char *wanted);

/* Records for the Python program (records.c). */
void fail(struct iso_shared *s, uint32_t stage, uint32_t op, int64_t error);
void send_record(const void *record, size_t size, int32_t pass);
void send_started(int32_t pidfd, int64_t pid);
int64_t send_pid(int64_t pid);
void tell_cleaned(const struct supervisor *s);
void tell_end(struct supervisor *s);
void await_birth(struct iso_shared *s);
void refuse(uint32_t stage, int64_t error) __attribute__((noreturn));

/* The program (program.c). */
int64_t find_program(struct iso_machine *m);
int64_t place_descriptors(const struct iso_machine *m);
int64_t session(const struct iso_machine *m);
int64_t default_signals(void);
int64_t set_mask(uint64_t mask);
int64_t execute_program(struct iso_machine *m);

/* Processes beside init (helpers.c). */
int64_t clone_shared(uint8_t (*stack)[STACK_SIZE], uint64_t flags, uint64_t exit_signal, void (*fn)(void *), void *arg,
		     int32_t *pidfd, int32_t tid);
extern uint8_t child_stack[STACK_SIZE];

/* Init (init.c). */
int64_t supervisor_lives(const struct iso_machine *m);
void run_init(struct supervisor *s, int32_t group) __attribute__((noreturn));

/* The run that comes later (later.c). */
uint32_t received(const uint8_t *control, uint64_t length, int32_t *fds);
int64_t take_run(struct iso_machine *m);
extern uint8_t later_block[LATER_SIZE];

/* A start that is made before it is asked for (ahead.c). */
int can_bear_ahead(const struct iso_machine *m);
int64_t bear_ahead(struct supervisor *s, uint32_t flags);
void leave_ahead(struct supervisor *s);
void hand_on(struct supervisor *s, struct iso_run *run, uint64_t size, int32_t *fds, uint32_t count) __attribute__((noreturn));

/* Init's birth (birth.c). */
void leave_tree(struct template_tree *tree);
void leave_starts(struct template_tree *tree);
#define TAKEN_RUNS 1
#define TAKEN_ENDED 2
#define TAKEN_FAILED 8 /* nothing could be made ahead: the next fork does not try */
void tell_taken(struct template_tree *tree, uint64_t told);
void tell_birth(struct supervisor *s);
int64_t get_capabilities(uint32_t *sets);
int64_t begin_child(struct supervisor *s, int32_t group);
int died_at_birth(struct supervisor *s);
void bury(struct supervisor *s);

/* Descendants of the supervisor (descendants.c). */
extern int32_t at_home;
int64_t shown(int64_t pid, int32_t pidfd);
uint64_t cpu_clock(int64_t pid);
int64_t open_proc(void);
uint64_t tree_cpu(const struct supervisor *s);
int signal_children(const struct supervisor *s, int signal);
void kill_children(struct supervisor *s);
void drain(struct supervisor *s);
void look_at_suspect(struct supervisor *s);
void kill_tree(struct supervisor *s);
void end_tree(struct supervisor *s);

/* The supervisor (supervisor.c). */
int64_t go_ahead(struct supervisor *s);
int64_t bear(struct supervisor *s);
void take_back(struct supervisor *s);
void begin_supervisor(struct supervisor *s, int forked);
void to_the_end(struct supervisor *s) __attribute__((noreturn));

/* A launcher that is parked (parked.c). */
void park(struct supervisor *s) __attribute__((noreturn));
void decline(struct supervisor *s, uint32_t stage, int64_t error) __attribute__((noreturn));

/* Memory: where it lies, and what is given back (memory.c). */
extern uint8_t main_stack[STACK_SIZE];
int64_t map_near(uint64_t size, int64_t protection, int64_t flags, int32_t fd);
void leave_stack(const uint64_t *old);
void shed_data(void);
void shed_maps(const void *kept, uint64_t size);

/* The tape, as memory (main.c). */
int64_t map_block(int32_t fd, int64_t protection, uint8_t **block, uint64_t *size, uint32_t *stage);
uint8_t *map_tape(int32_t fd, uint64_t *size);
void equip(struct supervisor *s, uint8_t *tape);

#endif
