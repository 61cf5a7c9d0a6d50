#include "libcore/merge/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "libcore/merge/stream_impl.h"

enum { SPARE_BUFFERS = 3, WAKE_MS = 100, MAX_WORKERS = 256 };

/* A finished block on its way to the file. */
struct pending {
    size_t block_idx;
    void *buffer;
    bool copied; // by the kernel: nothing to write
};

/* Bytes that the writer has written and not yet asked the system to put on disk. */
struct behind {
    uint32_t shard_idx;
    uint64_t begin, end, n_bytes; // n_bytes of [begin, end)
};

struct run {
    struct stream s;
    struct merge_work *w;
    struct values_stats *stats;
    unsigned n_workers;
    size_t buffer_bytes;
    uint32_t *units_left;  // of each tensor
    size_t *first_unit;    // of each tensor
    uint32_t *writes_left; // of each unit
    bool kernel_copies;    // until it says it cannot
    struct behind behind;  // the writer's own
    pthread_mutex_t lock;  // of all below
    pthread_cond_t buffer_free, block_ready, progress, ahead;
    void **buffers;
    size_t n_free;
    struct pending *queue; // as many as there are buffers, and one a worker
    size_t queue_cap, queue_head, queue_n;
    size_t next_block, n_written;
    uint64_t bytes_written, bytes_synced;
    uint32_t *finished; // tensors whose bytes are written, not synced
    size_t n_finished;
    bool stop, workers_done;
    int rc;
    struct err err;
};

static void fail(struct run *r, int rc, const struct err *e)
{
    pthread_mutex_lock(&r->lock);
    if (!r->rc) {
        r->rc = rc;
        r->err = *e;
    }
    r->stop = true;
    pthread_cond_broadcast(&r->buffer_free);
    pthread_cond_broadcast(&r->block_ready);
    pthread_cond_broadcast(&r->progress);
    pthread_cond_broadcast(&r->ahead);
    pthread_mutex_unlock(&r->lock);
}

// ---- workers ------------------------------------------------------------------------------------

/* The next block in order, and a buffer for it; false: nothing more to do. */
static bool take_block(struct run *r, size_t *block_idx, void **buffer)
{
    pthread_mutex_lock(&r->lock);
    while (!r->n_free && !r->stop && r->next_block < r->s.n_blocks)
        pthread_cond_wait(&r->buffer_free, &r->lock);
    bool have = !r->stop && r->next_block < r->s.n_blocks;
    if (have) {
        *block_idx = r->next_block++;
        *buffer = r->buffers[--r->n_free];
        pthread_cond_signal(&r->ahead);
        if (r->next_block == r->s.n_blocks) // nobody else need wait for a buffer
            pthread_cond_broadcast(&r->buffer_free);
    }
    pthread_mutex_unlock(&r->lock);
    return have;
}

static void give_back(struct run *r, void *buffer)
{
    pthread_mutex_lock(&r->lock);
    r->buffers[r->n_free++] = buffer;
    pthread_mutex_unlock(&r->lock);
}

static void hand_over(struct run *r, struct pending p)
{
    pthread_mutex_lock(&r->lock);
    r->queue[(r->queue_head + r->queue_n++) % r->queue_cap] = p;
    pthread_cond_signal(&r->block_ready);
    pthread_mutex_unlock(&r->lock);
}

/* Whether the kernel copied the block; else an ordinary read and write does it. */
static int copy_in_kernel(struct run *r, const struct stream_unit *u, const struct stream_block *b,
                          bool *copied, struct err *err)
{
    off_t in = (off_t)(u->in_offset + b->offset), out = (off_t)(u->out_offset + b->offset);
    uint64_t left = b->n_bytes;
    const char *name = r->s.p->shards[u->shard_idx].name;
    while (left && *copied) {
        ssize_t n = sys_copy_file_range(r->s.in_fds[u->shard_idx], &in, r->s.out_fds[u->shard_idx],
                                        &out, left);
        if (n < 0 && (errno == EXDEV || errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP))
            *copied = false;
        else if (n < 0)
            return err_set_errno(err, errno, "%s: cannot copy", name);
        else if (n == 0)
            return err_set(err, ERR_CORRUPT, "%s: the base's file ends early", name);
        left -= n > 0 ? (uint64_t)n : 0;
    }
    return 0;
}

static int do_block(struct run *r, struct stream_worker *w, size_t block_idx, void *buffer,
                    bool *copied)
{
    const struct stream_block *b = &r->s.blocks[block_idx];
    struct stream_unit *u = &r->s.units[b->unit_idx];
    *copied = u->copy && __atomic_load_n(&r->kernel_copies, __ATOMIC_RELAXED);
    if (*copied) {
        int rc = copy_in_kernel(r, u, b, copied, &w->err);
        if (rc || *copied)
            return rc;
        __atomic_store_n(&r->kernel_copies, false, __ATOMIC_RELAXED);
    }
    int rc = stream_compute(&r->s, w, block_idx, buffer, &w->err);
    pthread_mutex_lock(&u->lock);
    bool last = --u->n_blocks_left == 0;
    pthread_mutex_unlock(&u->lock);
    if (last)
        stream_unit_release(u);
    return rc;
}

static void *work(void *arg)
{
    struct run *r = arg;
    struct stream_worker w = {0};
    size_t block_idx;
    void *buffer;
    int rc = values_scratch_open(&w.scratch, &w.err);
    while (!rc && take_block(r, &block_idx, &buffer)) {
        struct pending p = {block_idx, buffer, false};
        rc = do_block(r, &w, block_idx, buffer, &p.copied);
        if (rc)
            give_back(r, buffer);
        else
            hand_over(r, p);
    }
    if (rc)
        fail(r, rc, &w.err);
    values_scratch_free(w.scratch);
    return NULL;
}

// ---- reading ahead, writing behind --------------------------------------------------------------

static void *read_ahead(void *arg)
{
    struct run *r = arg;
    uint64_t asked = 0, used = 0; // bytes of blocks [0, next) of each
    size_t next = 0, counted = 0;
    pthread_mutex_lock(&r->lock);
    while (!r->stop && next < r->s.n_blocks) {
        for (; counted < r->next_block; counted++)
            used += r->s.blocks[counted].n_bytes;
        if (asked > used + STREAM_AHEAD_BYTES) {
            pthread_cond_wait(&r->ahead, &r->lock);
            continue;
        }
        pthread_mutex_unlock(&r->lock);
        const struct stream_block *b = &r->s.blocks[next++];
        const struct stream_unit *u = &r->s.units[b->unit_idx];
        sys_will_need(r->s.in_fds[u->in_shard_idx], (off_t)(u->in_offset + b->offset),
                      (off_t)b->n_bytes);
        asked += b->n_bytes;
        pthread_mutex_lock(&r->lock);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

/* In pieces that a disk likes. Blocks come nearly in order, so one range at a time will do. */
static void start_writeback(struct run *r, uint32_t shard_idx, uint64_t at, uint64_t n)
{
    struct behind *b = &r->behind;
    if (b->n_bytes && (b->n_bytes >= STREAM_BEHIND_BYTES || b->shard_idx != shard_idx)) {
        sys_start_writeback(r->s.out_fds[b->shard_idx], (off_t)b->begin,
                            (off_t)(b->end - b->begin));
        b->n_bytes = 0;
    }
    if (!b->n_bytes)
        *b = (struct behind){shard_idx, at, at, 0};
    b->begin = at < b->begin ? at : b->begin;
    b->end = at + n > b->end ? at + n : b->end;
    b->n_bytes += n;
}

static int write_block(struct run *r, const struct pending *p, struct err *err)
{
    const struct stream_block *b = &r->s.blocks[p->block_idx];
    const struct stream_unit *u = &r->s.units[b->unit_idx];
    int fd = r->s.out_fds[u->shard_idx];
    off_t at = (off_t)(u->out_offset + b->offset);
    const char *from = p->buffer;
    for (uint64_t left = p->copied ? 0 : b->n_bytes; left;) {
        ssize_t n = sys_pwrite(fd, from, left, at + (from - (const char *)p->buffer));
        if (n <= 0)
            return err_set_errno(err, n ? errno : EIO, "%s/%s: cannot write",
                                 merge_work_folder(r->w), r->s.p->shards[u->shard_idx].name);
        from += n;
        left -= (uint64_t)n;
    }
    start_writeback(r, u->shard_idx, (uint64_t)at, b->n_bytes);
    return 0;
}

/* Statistics of a changed tensor's unit: its blocks in order. */
static void finish_unit(struct run *r, const struct stream_unit *u)
{
    for (uint32_t t = 0; t < u->n_tensors; t++) {
        uint32_t idx = u->tensor_idx + t;
        if (--r->units_left[idx] == 0)
            r->finished[r->n_finished++] = idx;
    }
}

static void account(struct run *r, const struct pending *p)
{
    const struct stream_block *b = &r->s.blocks[p->block_idx];
    pthread_mutex_lock(&r->lock);
    r->buffers[r->n_free++] = p->buffer;
    r->n_written++;
    r->bytes_written += b->n_bytes;
    if (--r->writes_left[b->unit_idx] == 0)
        finish_unit(r, &r->s.units[b->unit_idx]);
    pthread_cond_signal(&r->buffer_free);
    pthread_cond_signal(&r->progress);
    pthread_mutex_unlock(&r->lock);
}

static void *write_behind(void *arg)
{
    struct run *r = arg;
    struct err err = {0};
    for (;;) {
        pthread_mutex_lock(&r->lock);
        while (!r->queue_n && !r->stop && !r->workers_done)
            pthread_cond_wait(&r->block_ready, &r->lock);
        bool have = r->queue_n > 0 && !r->stop;
        struct pending p = {0};
        if (have) {
            p = r->queue[r->queue_head];
            r->queue_head = (r->queue_head + 1) % r->queue_cap;
            r->queue_n--;
        }
        pthread_mutex_unlock(&r->lock);
        if (!have)
            return NULL;
        int rc = write_block(r, &p, &err);
        if (rc) {
            give_back(r, p.buffer);
            fail(r, rc, &err);
            return NULL;
        }
        account(r, &p);
    }
}

// ---- the caller's thread: syncing, progress -----------------------------------------------------

/* A tensor's statistics, from its blocks in their order whoever computed them. */
static void sum_up(struct run *r, uint32_t idx)
{
    if (!r->s.p->tensors[idx].touched && !r->s.p->tensors[idx].converted)
        return;
    struct values_stats sum = {0};
    for (size_t i = r->first_unit[idx]; i < r->s.n_units; i++) {
        const struct stream_unit *u = &r->s.units[i];
        if (u->tensor_idx != idx) // a tensor's units are neighbours
            break;
        for (uint32_t b = 0; b < u->n_blocks; b++)
            values_stats_add(&sum, &r->s.block_stats[u->first_block + b]);
    }
    r->stats[idx] = sum;
}

static int sync_shards(struct run *r, struct err *err)
{
    for (size_t i = 0; i < r->s.p->n_shards; i++) {
        if (sys_fdatasync(r->s.out_fds[i]) != 0)
            return err_set_errno(err, errno, "%s/%s: cannot sync", merge_work_folder(r->w),
                                 r->s.p->shards[i].name);
    }
    return 0;
}

/* What was finished before the sync is on disk after it: into the journal. */
static int seal(struct run *r, struct err *err)
{
    pthread_mutex_lock(&r->lock);
    size_t n = r->n_finished;
    r->bytes_synced = r->bytes_written;
    pthread_mutex_unlock(&r->lock);
    int rc = sync_shards(r, err);
    for (size_t i = 0; !rc && i < n; i++) {
        uint32_t idx = r->finished[i];
        sum_up(r, idx);
        merge_work_note(r->w, idx, &r->stats[idx]);
    }
    if (!rc)
        rc = merge_work_sync(r->w, err);
    pthread_mutex_lock(&r->lock);
    r->n_finished -= n;
    memmove(r->finished, r->finished + n, r->n_finished * sizeof *r->finished);
    pthread_mutex_unlock(&r->lock);
    return rc;
}

static bool wait_progress(struct run *r, uint64_t *bytes, bool *due)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += WAKE_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&r->lock);
    bool more = !r->stop && r->n_written < r->s.n_blocks;
    *due = r->bytes_written - r->bytes_synced >= STREAM_SYNC_BYTES;
    if (more && !*due)
        pthread_cond_timedwait(&r->progress, &r->lock, &until);
    *bytes = r->bytes_written;
    pthread_mutex_unlock(&r->lock);
    return more;
}

static void attend(struct run *r, const struct merge_stream_options *opt)
{
    uint64_t told = 0, bytes;
    bool more = true, due;
    struct err err = {0};
    int rc = 0;
    while (more && !rc) {
        more = wait_progress(r, &bytes, &due);
        if (due)
            rc = seal(r, &err);
        if (!rc && opt->on_bytes && (bytes > told || more)) {
            rc = opt->on_bytes(opt->arg, bytes - told);
            if (rc)
                err_set(&err, rc, "interrupted");
        }
        told = bytes;
    }
    if (rc)
        fail(r, rc, &err);
}

// ---- files --------------------------------------------------------------------------------------

static int open_out(struct run *r, const struct merge_shard *shard, int *fd, struct err *err)
{
    char *path = file_join(merge_work_folder(r->w), shard->name);
    if (!path)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", shard->name);
    int rc = 0;
    *fd = sys_open(path, O_RDWR | O_CREAT, 0644);
    if (*fd < 0)
        rc = err_set_errno(err, errno, "%s: cannot create", path);
    else if (sys_ftruncate(*fd, (off_t)shard->file_bytes) != 0)
        rc = err_set_errno(err, errno, "%s: cannot make it %llu bytes long", path,
                           (unsigned long long)shard->file_bytes);
    const char *from = shard->header;
    for (uint64_t left = shard->header_bytes; !rc && left;) {
        ssize_t n = sys_pwrite(*fd, from, left, from - (const char *)shard->header);
        if (n <= 0)
            rc = err_set_errno(err, n ? errno : EIO, "%s: cannot write", path);
        from += n;
        left -= n > 0 ? (uint64_t)n : 0;
    }
    sys_free(path);
    return rc;
}

static int open_files(struct run *r, struct err *err)
{
    const struct merge_plan *p = r->s.p;
    r->s.in_fds = sys_malloc((p->n_shards + 1) * sizeof *r->s.in_fds);
    r->s.out_fds = sys_malloc((p->n_shards + 1) * sizeof *r->s.out_fds);
    if (!r->s.in_fds || !r->s.out_fds)
        return err_set(err, ERR_NO_MEMORY, "merge: no memory");
    for (size_t i = 0; i < p->n_shards; i++)
        r->s.in_fds[i] = r->s.out_fds[i] = -1;
    for (size_t i = 0; i < p->n_shards; i++) {
        const char *path = safetensors_path(p->shards[i].base);
        r->s.in_fds[i] = sys_open(path, O_RDONLY, 0);
        if (r->s.in_fds[i] < 0)
            return err_set_errno(err, errno, "%s: cannot open", path);
        int rc = open_out(r, &p->shards[i], &r->s.out_fds[i], err);
        if (rc)
            return rc;
    }
    return 0;
}

static void close_files(struct run *r)
{
    for (size_t i = 0; r->s.in_fds && r->s.out_fds && i < r->s.p->n_shards; i++) {
        if (r->s.in_fds[i] >= 0)
            sys_close(r->s.in_fds[i]);
        if (r->s.out_fds[i] >= 0)
            sys_close(r->s.out_fds[i]);
    }
    sys_free(r->s.in_fds);
    sys_free(r->s.out_fds);
}

// ---- the whole ----------------------------------------------------------------------------------

/* A device copies fastest from and to memory of its own making. */
static void *new_buffer(const struct run *r)
{
    struct backend *be = r->s.device;
    return be ? be->ops->host_alloc(be, r->buffer_bytes) : sys_aligned_alloc(4096, r->buffer_bytes);
}

static void free_buffer(const struct run *r, void *buffer)
{
    if (r->s.device)
        r->s.device->ops->host_free(r->s.device, buffer);
    else
        sys_free(buffer);
}

/* What scales are made from passes through the buffer too. */
static size_t buffer_for(const struct stream *s, const struct stream_block *b)
{
    const struct stream_unit *u = &s->units[b->unit_idx];
    size_t rows = u->block_rows < u->n_rows ? u->block_rows : u->n_rows;
    size_t n = u->is_scales ? rows * u->n_cols * u->in_size : 0;
    return n > b->n_bytes ? n : (size_t)b->n_bytes;
}

static int open_run(struct run *r, struct err *err)
{
    int rc = stream_list(&r->s, r->w, r->stats, err);
    if (rc)
        return rc;
    size_t n_buffers = r->n_workers + SPARE_BUFFERS;
    r->buffers = sys_calloc(n_buffers, sizeof *r->buffers);
    r->queue_cap = n_buffers;
    r->queue = sys_calloc(n_buffers, sizeof *r->queue);
    r->units_left = sys_calloc(r->s.p->n_tensors + 1, sizeof *r->units_left);
    r->first_unit = sys_calloc(r->s.p->n_tensors + 1, sizeof *r->first_unit);
    r->finished = sys_calloc(r->s.p->n_tensors + 1, sizeof *r->finished);
    r->writes_left = sys_calloc(r->s.n_units + 1, sizeof *r->writes_left);
    if (!r->buffers || !r->queue || !r->units_left || !r->first_unit || !r->finished ||
        !r->writes_left)
        return err_set(err, ERR_NO_MEMORY, "merge: no memory");
    for (size_t i = 0; i < r->s.n_units; i++) {
        const struct stream_unit *u = &r->s.units[i];
        r->writes_left[i] = u->n_blocks;
        for (uint32_t t = 0; t < u->n_tensors; t++) {
            if (r->units_left[u->tensor_idx + t]++ == 0)
                r->first_unit[u->tensor_idx + t] = i;
        }
    }
    for (size_t i = 0; i < r->s.n_blocks; i++) {
        size_t n = buffer_for(&r->s, &r->s.blocks[i]);
        r->buffer_bytes = n > r->buffer_bytes ? n : r->buffer_bytes;
    }
    for (; r->n_free < n_buffers; r->n_free++) {
        r->buffers[r->n_free] = new_buffer(r);
        if (!r->buffers[r->n_free])
            return err_set(err, ERR_NO_MEMORY, "merge: no memory for %zu buffers", n_buffers);
    }
    return open_files(r, err);
}

static void run_threads(struct run *r, const struct merge_stream_options *opt)
{
    pthread_t workers[MAX_WORKERS], reader, writer;
    struct err err = {0};
    unsigned n = 0;
    bool has_reader = pthread_create(&reader, NULL, read_ahead, r) == 0; // a hint only
    bool has_writer = pthread_create(&writer, NULL, write_behind, r) == 0;
    while (has_writer && n < r->n_workers && pthread_create(&workers[n], NULL, work, r) == 0)
        n++;
    if (n == 0) {
        err_set(&err, ERR_NO_MEMORY, "merge: no thread could be started");
        fail(r, ERR_NO_MEMORY, &err);
    } else {
        attend(r, opt);
    }
    for (unsigned i = 0; i < n; i++)
        pthread_join(workers[i], NULL);
    pthread_mutex_lock(&r->lock);
    r->workers_done = true;
    pthread_cond_broadcast(&r->block_ready);
    pthread_mutex_unlock(&r->lock);
    if (has_writer)
        pthread_join(writer, NULL);
    if (has_reader)
        pthread_join(reader, NULL);
}

static void close_run(struct run *r)
{
    for (size_t i = 0; r->buffers && i < r->n_free; i++)
        free_buffer(r, r->buffers[i]);
    for (; r->queue_n; r->queue_n--, r->queue_head++)
        free_buffer(r, r->queue[r->queue_head % r->queue_cap].buffer);
    close_files(r);
    stream_list_release(&r->s);
    sys_free(r->buffers);
    sys_free(r->queue);
    sys_free(r->units_left);
    sys_free(r->first_unit);
    sys_free(r->finished);
    sys_free(r->writes_left);
}

int merge_stream(const struct merge_plan *p, struct merge_work *w,
                 const struct merge_stream_options *opt, struct values_stats *stats,
                 struct err *err)
{
    unsigned n = opt->n_threads ? opt->n_threads : thread_n_processors();
    struct run r = {.s = {.p = p, .device = opt->device},
                    .w = w,
                    .stats = stats,
                    .n_workers = n < MAX_WORKERS ? n : MAX_WORKERS,
                    .kernel_copies = true,
                    .lock = PTHREAD_MUTEX_INITIALIZER,
                    .buffer_free = PTHREAD_COND_INITIALIZER,
                    .block_ready = PTHREAD_COND_INITIALIZER,
                    .progress = PTHREAD_COND_INITIALIZER,
                    .ahead = PTHREAD_COND_INITIALIZER};
    int rc = open_run(&r, err);
    if (!rc) {
        run_threads(&r, opt);
        rc = r.rc;
        if (rc && err)
            *err = r.err;
    }
    if (!rc)
        rc = seal(&r, err);
    close_run(&r);
    return rc;
}
