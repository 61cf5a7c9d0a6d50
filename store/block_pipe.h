/*
 * block_pipe: bytes from the thread that has them to a thread that works on them (hashes them), in
 * order and through a few slots: while one block is read or written the one before it is worked on,
 * each is still in the cache, and memory does not grow with the file.
 * Small totals are worked on by the giving thread, as all are where no thread can be had.
 * Thread rule: one thread gives; the work runs on one other thread, or on the giving one.
 */
#ifndef STORE_BLOCK_PIPE_H
#define STORE_BLOCK_PIPE_H

#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"

/* As much as fits into a core's second cache, with the tables of what works on it. */
enum { BLOCK_PIPE_SLOT_BYTES = 256 << 10, BLOCK_PIPE_SLOTS = 8, BLOCK_PIPE_BESIDE_BYTES = 1 << 20 };

struct block_pipe;

/* total: bytes that will come. *out is the caller's; arg is borrowed until it is freed. */
int block_pipe_open(struct block_pipe **out, uint64_t total,
                    int (*work)(void *arg, const void *data, size_t n, struct err *err), void *arg,
                    struct err *err);
/* The slot in hand, to be filled from its start; waits until one is free. */
void *block_pipe_slot(struct block_pipe *p, size_t *room);
/* Hands the first n bytes of that slot over. The error is the work's, perhaps of an earlier block.
 */
int block_pipe_give(struct block_pipe *p, size_t n, struct err *err);
/* Waits until all of it is worked on. */
int block_pipe_finish(struct block_pipe *p, struct err *err);
void block_pipe_free(struct block_pipe *p); // blocks that wait are dropped

#endif
