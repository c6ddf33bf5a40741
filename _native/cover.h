/* The files that limit what is inside, read-only inside. */
#ifndef ISOLATE_COVER_H
#define ISOLATE_COVER_H

#include <stdint.h>

/* Make every cgroup file system read-only that this process's mount namespace shows. `proc` is a descriptor of the
 * caller's /proc, `outer` one of the supervisor's mount namespace. Where this process is still in that one, or `apart` says
 * that its namespace is another's, a copy is made before anything is changed: a mount of the host is never touched. */
int64_t iso_cover(int64_t proc, int64_t outer, int64_t apart);

#endif
