/* What cffi reads: the extension's face. Layouts and values come from the C headers; a change there needs none here. */
struct iso_spawn {
	int32_t program;
	const char *path;
	const int32_t *fds;
	int32_t fd_count;
	int32_t direct;
	int32_t pid;
	int32_t pidfd;
	int32_t stage;
};
int64_t iso_spawn(struct iso_spawn *request);
int64_t iso_call(int64_t number, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f);
int64_t iso_check(const uint8_t *tape, uint64_t size);
uint64_t iso_tape_checksum(const uint8_t *tape, uint32_t size);
int64_t iso_run_here(uint8_t *tape, uint64_t size, int section, int64_t *registers, uint32_t *failed_op, uint8_t *skipped);
const char *iso_version(void);
