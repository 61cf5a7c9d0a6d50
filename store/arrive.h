/*
 * arrive: files whose bytes come from a stream (another file, an archive, a registry) into a work
 * folder, hashed on another thread while they are written: the file, and the tensors in it. Memory
 * is a few blocks a file, whatever its size. A file is called by its number; the name that it had
 * where it came from is only remembered.
 * Thread rule: one thread uses a struct arrivals; a struct arriving belongs to one thread, and
 * several may be in flight.
 */
#ifndef STORE_ARRIVE_H
#define STORE_ARRIVE_H

#include <stdbool.h>

#include "libcore/base/digest.h"
#include "libcore/base/err.h"
#include "libcore/format/safetensors_stream.h"

struct arriving;

/* The new file `path`, which will have exactly `size` bytes. `what` names it in messages and is
 * borrowed. ERR_LIMIT when the disk has not the room. Free with arriving_free(). */
int arriving_open(struct arriving **out, const char *path, uint64_t size, const char *what,
                  struct err *err);
/* The same for a file that an earlier try may have begun: what is there is hashed, and what comes
 * goes behind it (arriving_bytes() says where). ERR_LOCKED: another process is at it. */
int arriving_open_partial(struct arriving **out, const char *path, uint64_t size, const char *what,
                          struct err *err);
/* Before an arriving_free() without arriving_finish(): all that came shall be found by the next
 * try. */
int arriving_keep(struct arriving *a, struct err *err);
int arriving_write(struct arriving *a, const void *data, size_t n, struct err *err);
/* The same without a copy: where the next bytes go, `room` of them at most (never 0 before the
 * end); then how many were put there. */
void *arriving_slot(struct arriving *a, size_t *room);
int arriving_filled(struct arriving *a, size_t n, struct err *err);
/* Before the first byte: a base's values are its own business. */
void arriving_skip_values(struct arriving *a);
uint64_t arriving_bytes(const struct arriving *a); // that came so far
/* The file, borrowed: for who fills it in another way (a clone). Then what comes is hashed and not
 * written. */
int arriving_fd(const struct arriving *a);
void arriving_set_in_place(struct arriving *a);
/* Waits for the digest and syncs the file, which is read-only then. ERR_CORRUPT: bytes are missing.
 */
int arriving_finish(struct arriving *a, struct digest *digest, struct err *err);
/* After that: what was learnt of its tensors; the caller's. */
struct safetensors_stream *arriving_take_weights(struct arriving *a);
void arriving_free(struct arriving *a);

struct arrival {
    char *name; // where it came from: an entry's name, a layer's title
    char *path; // <work folder>/<number>
    uint64_t size;
    char digest[DIGEST_HEX_CHARS + 1];
    struct safetensors_stream *weights; // owned; NULL: not looked at
};

struct arrivals {
    struct arrival *items;
    size_t n, cap;
    const char *folder; // borrowed
};

/* Adds an item without bytes: name and path are set. */
int arrivals_add(struct arrivals *all, const char *name, struct arrival **out, struct err *err);
const struct arrival *arrivals_find(const struct arrivals *all, const char *name);
const struct arrival *arrivals_find_digest(const struct arrivals *all, const char *digest);
void arrivals_release(struct arrivals *all);

#endif
