/* The files that limit what is inside, read-only inside. */
#ifndef ISOLATE_COVER_H
#define ISOLATE_COVER_H

#include <stdint.h>

/* Make every cgroup file system read-only that this process's mount namespace shows. `proc` is a descriptor of the
 * caller's /proc. With `apart` the mount namespace is another's: a copy of it is made first, where anything is to change. */
int64_t iso_cover(int64_t proc, int64_t apart);

#endif
