#include "libcore/merge/work.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "libcore/base/arena.h"
#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"

enum { MAX_JOURNAL_BYTES = 256 << 20 };

struct done {
    bool is_done;
    struct values_stats stats;
};

struct merge_work {
    struct arena arena;
    const char *output, *parent, *partial, *folder, *journal;
    const char *key;
    int fd; // of the journal, locked; -1
    size_t n_tensors;
    struct done *done;
    struct strbuf pending;
};

static int no_memory(const char *output, struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "%s: no memory", output);
}

// ---- the journal --------------------------------------------------------------------------------

/* A line that a crash cut short has no full stop, and nothing behind it counts. */
static bool read_line(struct merge_work *w, const char *line)
{
    unsigned long long idx, n_values, n_changed;
    struct values_stats s;
    char stop = 0;
    if (sscanf(line, "t %llu %llu %llu %la %la %la %c", &idx, &n_values, &n_changed, &s.base2,
               &s.delta2, &s.lost2, &stop) != 7 ||
        stop != '.' || idx >= w->n_tensors)
        return false;
    s.n_values = n_values;
    s.n_changed = n_changed;
    w->done[idx] = (struct done){true, s};
    return true;
}

/* Reads what is there; gives the length of the part that counts. 0: nothing, a fresh start. */
static int read_journal(struct merge_work *w, off_t *good, struct err *err)
{
    char *text, head[96];
    size_t n;
    *good = 0;
    int rc = file_read(w->journal, MAX_JOURNAL_BYTES, &text, &n, err);
    if (rc)
        return rc;
    snprintf(head, sizeof head, "lora-merge 1 %s\n", w->key);
    bool has_head = strlen(text) >= strlen(head);
    if (has_head && strncmp(text, head, strlen(head)) != 0)
        rc = err_set(err, ERR_REFUSED,
                     "%s: is of another merge; without --resume it is removed and all is done "
                     "again",
                     w->journal);
    char *at = text + (has_head ? strlen(head) : 0);
    for (char *end; !rc && has_head && (end = strchr(at, '\n')); at = end + 1) {
        *end = '\0';
        if (!read_line(w, at))
            break;
    }
    *good = has_head ? at - text : 0;
    sys_free(text);
    return rc;
}

static int start_journal(struct merge_work *w, off_t good, struct err *err)
{
    if (sys_ftruncate(w->fd, good) != 0)
        return err_set_errno(err, errno, "%s: cannot truncate", w->journal);
    if (lseek(w->fd, good, SEEK_SET) < 0)
        return err_set_errno(err, errno, "%s: cannot seek", w->journal);
    if (good)
        return 0;
    strbuf_addf(&w->pending, "lora-merge 1 %s\n", w->key);
    return merge_work_sync(w, err);
}

static int lock_journal(struct merge_work *w, struct err *err)
{
    w->fd = sys_open(w->journal, O_RDWR | O_CREAT, 0644);
    if (w->fd < 0)
        return err_set_errno(err, errno, "%s: cannot create", w->journal);
    if (sys_flock(w->fd, LOCK_EX | LOCK_NB) == 0)
        return 0;
    if (errno == EWOULDBLOCK)
        return err_set(err, ERR_LOCKED, "%s: another process is merging into it", w->partial);
    return err_set_errno(err, errno, "%s: cannot lock", w->journal);
}

// ---- opening ------------------------------------------------------------------------------------

static int set_paths(struct merge_work *w, const char *output, const char *key, struct err *err)
{
    size_t n = strlen(output);
    while (n > 1 && output[n - 1] == '/')
        n--;
    w->output = arena_strndup(&w->arena, output, n);
    char *parent = w->output ? file_dir_name(w->output) : NULL;
    if (!parent)
        return no_memory(output, err);
    w->parent = arena_strdup(&w->arena, parent);
    sys_free(parent);
    w->partial = arena_printf(&w->arena, "%s.partial", w->output);
    w->folder = w->partial ? arena_printf(&w->arena, "%s/model", w->partial) : NULL;
    w->journal = w->partial ? arena_printf(&w->arena, "%s/journal", w->partial) : NULL;
    w->key = arena_strdup(&w->arena, key);
    return w->parent && w->folder && w->journal && w->key ? 0 : no_memory(output, err);
}

/* What lies under the model folder goes; the journal stays, for its lock. */
static int clean(struct merge_work *w, struct err *err)
{
    memset(w->done, 0, w->n_tensors * sizeof *w->done);
    return file_remove_tree(w->folder, err);
}

static int open_work(struct merge_work *w, bool resume, bool force, struct err *err)
{
    if (!force && file_exists(w->output))
        return err_set(err, ERR_EXISTS, "%s: is there already", w->output);
    int rc = file_make_folders(w->partial, err);
    if (!rc)
        rc = lock_journal(w, err);
    off_t good = 0;
    if (!rc && resume)
        rc = read_journal(w, &good, err);
    if (!rc && !good)
        rc = clean(w, err);
    if (!rc)
        rc = start_journal(w, good, err);
    return rc ? rc : file_make_folders(w->folder, err);
}

int merge_work_open(struct merge_work **out, const char *output, const char *key, size_t n_tensors,
                    bool resume, bool force, struct err *err)
{
    *out = NULL;
    struct merge_work *w = sys_calloc(1, sizeof *w);
    if (!w)
        return no_memory(output, err);
    arena_init(&w->arena);
    strbuf_init(&w->pending);
    w->fd = -1;
    w->n_tensors = n_tensors;
    w->done = sys_calloc(n_tensors + 1, sizeof *w->done);
    int rc = w->done ? set_paths(w, output, key, err) : no_memory(output, err);
    if (!rc)
        rc = open_work(w, resume, force, err);
    if (rc) {
        bool ours = w->fd >= 0 && rc != ERR_LOCKED && rc != ERR_REFUSED;
        merge_work_close(w, !ours || resume);
        return rc;
    }
    *out = w;
    return 0;
}

const char *merge_work_folder(const struct merge_work *w)
{
    return w->folder;
}

bool merge_work_done(const struct merge_work *w, size_t idx, struct values_stats *stats)
{
    *stats = w->done[idx].stats;
    return w->done[idx].is_done;
}

void merge_work_note(struct merge_work *w, size_t idx, const struct values_stats *s)
{
    strbuf_addf(&w->pending, "t %zu %llu %llu %a %a %a .\n", idx, (unsigned long long)s->n_values,
                (unsigned long long)s->n_changed, s->base2, s->delta2, s->lost2);
}

int merge_work_sync(struct merge_work *w, struct err *err)
{
    if (w->pending.failed)
        return no_memory(w->output, err);
    int rc = w->pending.len
                 ? file_write_all(w->fd, w->pending.data, w->pending.len, w->journal, err)
                 : 0;
    strbuf_reset(&w->pending);
    if (!rc && sys_fdatasync(w->fd) != 0)
        rc = err_set_errno(err, errno, "%s: cannot sync", w->journal);
    return rc;
}

// ---- the end ------------------------------------------------------------------------------------

int merge_work_publish(struct merge_work *w, bool force, struct err *err)
{
    const char *old = arena_printf(&w->arena, "%s/old", w->partial);
    if (!old)
        return no_memory(w->output, err);
    int rc = file_sync_folder(w->folder, err);
    if (rc)
        return rc;
    bool moved = force && file_exists(w->output);
    if (moved) {
        rc = file_remove_tree(old, err);
        if (!rc && sys_rename(w->output, old) != 0)
            rc = err_set_errno(err, errno, "%s: cannot move away", w->output);
        if (rc)
            return rc;
    }
    if (sys_rename_noreplace(w->folder, w->output) != 0) {
        rc = err_set_errno(err, errno, "%s: cannot rename to it", w->output);
    } else {
        rc = file_sync_folder(w->parent, err);
        if (!rc)
            return 0;
        sys_rename(w->output, w->folder); // an error leaves no output, and --resume its work
    }
    if (moved)
        sys_rename(old, w->output);
    return rc;
}

void merge_work_close(struct merge_work *w, bool keep)
{
    if (!w)
        return;
    if (!keep && w->fd >= 0)
        file_remove_tree(w->partial, NULL);
    if (w->fd >= 0)
        sys_close(w->fd);
    strbuf_release(&w->pending);
    sys_free(w->done);
    arena_release(&w->arena);
    sys_free(w);
}
