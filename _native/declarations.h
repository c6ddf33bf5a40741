/* Read by cffi: the extension's face. Layouts and values come from the C headers; a change there needs none here. */
struct iso_start {
	int32_t ours[3];
	int32_t control;
	int32_t later;
	int32_t payload;
	int32_t terminal;
	int32_t sender;
	int32_t pid;
	int32_t pidfd;
	int32_t stage;
	int32_t direct;
	uint64_t owner;
	uint64_t began;
	uint64_t rests[2];
};
void iso_rest(struct iso_start *start);
int64_t iso_pidfd(struct iso_start *start, int32_t payload);
int64_t iso_send(struct iso_start *start, int32_t payload, int32_t signal);
int64_t iso_reap(struct iso_start *start);
uint64_t iso_owner(void);
int64_t iso_launcher_fd(void);
int64_t iso_make_launcher(const uint8_t *image, uint64_t size);
void iso_let_go(struct iso_start *start);
void iso_begin(struct iso_start *start);
int64_t iso_start(struct iso_start *start, const uint8_t *tape, uint64_t tape_size, const uint8_t *run, uint64_t run_size,
		  const int32_t *slots, int32_t slot_count, int32_t in, int32_t out, int32_t err, int32_t nonblocking,
		  int32_t program, const char *path, int32_t direct, int32_t later);
int64_t iso_run_later(struct iso_start *start, const uint8_t *run, uint64_t run_size, const int32_t *passed, int32_t count,
		      int32_t in, int32_t out, int32_t err, int32_t nonblocking);
struct iso_pinned {
	uint32_t path;
	uint32_t major, minor;
	uint64_t inode, mount;
};
struct iso_compared {
	uint64_t fresh;
	int32_t executes;
	int32_t watched;
	int32_t launcher;
	int32_t mountinfo;
	const struct iso_pinned *pinned;
	const char *paths;
	uint32_t count;
	...;
};
int64_t iso_start_parked(struct iso_start *start, struct iso_start *parked, int32_t starts, struct iso_compared *compared,
			 const uint8_t *run, uint64_t run_size, const int32_t *passed, int32_t count, int32_t in, int32_t out,
			 int32_t err, int32_t nonblocking, int32_t later);
int64_t iso_note(struct iso_compared *compared);
int32_t iso_fits(struct iso_compared *compared);
void iso_mounts(struct iso_pinned *pinned, uint32_t count, const char *paths);
void iso_ask_filters(void);
int64_t iso_state(uint8_t *state, uint64_t fresh, int32_t executes);
int32_t iso_in_state(const uint8_t *state, uint64_t fresh, int32_t executes);
int64_t iso_sees(int32_t pid);
int32_t iso_watches(int32_t pid);
int64_t iso_same(const struct iso_pinned *pinned, uint32_t count, const char *paths, int32_t mountinfo);
int64_t iso_receive(struct iso_start *start, uint8_t *buffer, uint64_t size);
void iso_release(struct iso_start *start);
int64_t iso_wait(struct iso_start *start, int32_t records, int64_t milliseconds);
int64_t iso_gone(struct iso_start *start, int64_t milliseconds);
int64_t iso_device(const char *path);
void iso_close(int32_t *fd);
int64_t iso_open_pty(int32_t *ends, int64_t uid);
void iso_close_pty(int32_t *ends);
int32_t iso_take_terminal(struct iso_start *start, int32_t *ends);
int64_t iso_call(int64_t number, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f);
int64_t iso_run_check(const uint8_t *run, uint64_t size, uint32_t tape_slots);
int64_t iso_check(const uint8_t *tape, uint64_t size);
uint64_t iso_tape_checksum(const uint8_t *tape, uint32_t size);
int64_t iso_run_here(uint8_t *tape, uint64_t size, int section, int64_t *registers, uint32_t *failed_op, uint8_t *skipped);
const char *iso_version(void);
int64_t iso_group_remove(const char *path, int32_t milliseconds);
int64_t iso_group_kill(const char *path);
int64_t iso_group_thaw(const char *path);
struct iso_answers {
	uint64_t size;
	uint8_t data[];
};
int64_t iso_netlink_prepare(int32_t fd, int32_t route);
int64_t iso_netlink(int32_t fd, const uint8_t *requests, uint64_t size, uint32_t first, int32_t framed);
int64_t iso_netlink_settle(int32_t fd, const char *name);
int32_t iso_netlink_attach(int32_t route, int32_t filters, int32_t inside, uint32_t first_route, uint32_t first_filters,
			   uint32_t first_inside, const uint8_t *form, uint64_t size, const uint8_t *values, uint64_t room);
void iso_netlink_free(struct iso_answers *answers);
struct iso_counter {
	uint32_t at, size;
	uint32_t key, key_size;
	uint32_t scale, zero, value;
};
void iso_counters(const struct iso_counter *wanted, uint32_t count, const char *keys, const uint8_t *data, uint64_t size,
		  int64_t *values, uint32_t value_count);
