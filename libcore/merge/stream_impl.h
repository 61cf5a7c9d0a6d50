/*
 * stream_impl: between the rooms of stream.
 *   stream.c    threads, writing, syncing     stream_list.c    the list of work
 *   stream_block.c    one block's numbers               stream_float8.c  8-bit floats, new scales
 */
#ifndef LIBCORE_MERGE_STREAM_IMPL_H
#define LIBCORE_MERGE_STREAM_IMPL_H

#include <pthread.h>

#include "libcore/merge/stream.h"

enum {
    STREAM_BLOCK_BYTES = 512 << 10, // stays in a core's cache from read to write
    STREAM_RUN_BYTES = 256 << 20,   // untouched neighbours that are one piece of work
    STREAM_AHEAD_BYTES = 64 << 20,  // asked for before their turn
    STREAM_BEHIND_BYTES = 32 << 20, // written before the system is asked to put it on disk
    STREAM_SYNC_BYTES = 1 << 30,    // written between two syncs
};

/* A matrix (of one expert), a vector, or a run of untouched tensors. Fixed once listed, but for
 * what the first block prepares. */
struct stream_unit {
    uint32_t tensor_idx; // of the first tensor
    uint32_t n_tensors;  // a run's; else 1
    uint32_t shard_idx, in_shard_idx;
    bool copy;
    uint64_t in_offset, out_offset, n_bytes; // in the files; n_bytes of the result
    size_t in_size, out_size;                // bytes of a value of either
    bool is_scales; // of 8-bit floats: the shape is the weight's, n_bytes the scales'
    // matrices and vectors
    size_t n_rows, n_cols, n_base_rows; // base rows beyond: none there (added tokens)
    size_t first_row;  // within the module's matrix (an expert's gate and up are one)
    size_t source_row; // of the first row within the tensor
    uint32_t expert;
    size_t block_rows;
    uint32_t first_block, n_blocks; // of all
    // shared by its blocks
    pthread_mutex_t lock;
    bool prepared;
    int prepare_rc;
    struct values_pair *pairs;
    struct values *values;
    double *column_gains;
    struct values_scales scales, new_scales; // of 8-bit floats, of the base and of the result
    uint32_t n_blocks_left;                  // to be computed
};

/* What new scales of an 8-bit weight are made from: its rows, a band at a time, each by whichever
 * thread comes to it first. Fixed once listed, but for what the lock guards. */
struct stream_peaks {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t band_rows, n_bands;
    uint8_t *bands; // of each: to do, in hand, done
    double *peaks;  // [scales] largest values so far
    double *scales; // [scales] the result's, once their bands are done
    uint8_t *ready; // [rows of scales]
    bool failed;    // another thread has said why
};

struct stream_block {
    uint32_t unit_idx;
    size_t row0, n_rows;      // matrices
    uint64_t offset, n_bytes; // within the unit's bytes
};

struct stream {
    const struct merge_plan *p;
    struct backend *device; // NULL: computed here
    int *in_fds, *out_fds;  // one a shard
    struct stream_unit *units;
    size_t n_units;
    struct stream_block *blocks;
    size_t n_blocks;
    struct values_stats *block_stats;
    struct stream_peaks **peaks; // [tensors], NULL: none
};

/* The weight that a unit is about: of scales, the one that they are of. */
static inline const struct merge_tensor *stream_weight(const struct stream *s,
                                                       const struct stream_unit *u)
{
    const struct merge_tensor *t = &s->p->tensors[u->tensor_idx];
    return t->scales_of ? t->scales_of : t;
}

/* What a thread computes with; buffers hold one block. */
struct stream_worker {
    struct values_scratch *scratch;
    struct err err;
};

/* Lists what is to be done; fills stats of what is not. stream_list_release() also after a failure.
 */
int stream_list(struct stream *s, const struct merge_work *w, struct values_stats *stats,
                struct err *err);
void stream_list_release(struct stream *s);
/* Rows of a matrix in a block: those of whole scales where scales may change. */
size_t stream_block_rows(const struct merge_tensor *t);
/* Reads block idx from the base and makes it what is to be written, in `buffer`. */
int stream_compute(struct stream *s, struct stream_worker *w, size_t block_idx, void *buffer,
                   struct err *err);
/* Prepares the unit's factors once; any of its threads. */
int stream_prepare(struct stream *s, struct stream_worker *w, struct stream_unit *u, void *buffer,
                   struct err *err);
/* Of 8-bit weights. open: for a tensor whose scales may change. */
int stream_peaks_open(struct stream *s, uint32_t tensor_idx, size_t band_rows, struct err *err);
void stream_peaks_free(struct stream_peaks *p);
int stream_compute_float8(struct stream *s, struct stream_worker *w, struct stream_unit *u,
                          const struct stream_block *b, char *buffer, struct values_stats *stats,
                          struct err *err);
/* Gives back what the unit's blocks shared; after its last block. */
void stream_unit_release(struct stream_unit *u);
int stream_read(const struct stream *s, const struct stream_unit *u, uint64_t offset, void *buffer,
                uint64_t n, struct err *err);

#endif
