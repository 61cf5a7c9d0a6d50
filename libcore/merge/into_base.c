#include "libcore/merge/into_base.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/merge/companions.h"
#include "libcore/merge/stream.h"

/* What the bytes depend on; a journal with another key is of another merge. */
static int key_of(const struct merge_plan *p, const struct merge_run *run,
                  char hex[DIGEST_HEX_CHARS + 1], struct err *err)
{
    struct strbuf sb;
    struct digest d;
    strbuf_init(&sb);
    strbuf_addf(&sb, "%s %s %d %u %d\n", run->origin->version, p->fingerprint, p->untied,
                p->n_vocab, p->to_bf16);
    for (size_t i = 0; i < p->n_adapters; i++)
        strbuf_addf(&sb, "%s %a\n", p->adapters[i].adapter->content_id, p->adapters[i].weight);
    for (size_t i = 0; i < checkpoint_n_files(p->base); i++) {
        const struct checkpoint_file *f = checkpoint_file_at(p->base, i);
        if (f->weights)
            strbuf_addf(&sb, "%s %llu %lld\n", f->name, (unsigned long long)f->size,
                        (long long)f->mtime_ns);
    }
    int rc = sb.failed ? err_set(err, ERR_NO_MEMORY, "merge: no memory")
                       : digest_buffer(sb.data, sb.len, &d, err);
    strbuf_release(&sb);
    if (!rc)
        digest_hex(&d, hex);
    return rc;
}

static int check_disk(const struct merge_plan *p, const char *folder, struct err *err)
{
    uint64_t free_bytes, there = 0, size;
    if (sys_disk_free(folder, &free_bytes) != 0)
        return 0;                              // not told; the writes will say
    for (size_t i = 0; i < p->n_shards; i++) { // of an earlier run
        char *path = file_join(folder, p->shards[i].name);
        struct stat st;
        if (path && sys_stat(path, &st) == 0)
            there += (uint64_t)st.st_blocks * 512;
        sys_free(path);
    }
    size = p->write_bytes > there ? p->write_bytes - there : 0;
    if (size <= free_bytes)
        return 0;
    return err_set(err, ERR_IO, "%s: %llu MB are to be written, %llu MB are free", folder,
                   (unsigned long long)(size / 1000000),
                   (unsigned long long)(free_bytes / 1000000));
}

// ---- verifying beside the merge -----------------------------------------------------------------

struct verifier {
    const struct merge_plan *p;
    const struct merge_run *run;
    atomic_bool stop;
    int rc;
    struct err err;
};

static void *verify(void *arg)
{
    struct verifier *v = arg;
    for (size_t i = 0; !v->rc && !atomic_load(&v->stop) && i < v->p->n_shards; i++)
        v->rc = v->run->verify(v->run->verify_arg, safetensors_path(v->p->shards[i].base), &v->err);
    return NULL;
}

/* Streams, and has the digests checked meanwhile; both must end well. */
static int stream_verified(const struct merge_plan *p, const struct merge_run *run,
                           struct merge_work *w, struct values_stats *stats, struct err *err)
{
    struct merge_stream_options opt = {run->n_threads, run->device, run->on_bytes, run->arg};
    struct verifier v = {.p = p, .run = run};
    pthread_t thread;
    bool beside = run->verify && pthread_create(&thread, NULL, verify, &v) == 0;
    int rc = merge_stream(p, w, &opt, stats, err);
    if (!run->verify)
        return rc;
    if (rc)
        atomic_store(&v.stop, true);
    if (beside)
        pthread_join(thread, NULL);
    else if (!rc)
        verify(&v);
    if (v.rc && !rc && err)
        *err = v.err;
    return rc ? rc : v.rc;
}

// ---- the whole ----------------------------------------------------------------------------------

static bool has_weight(const struct merge_plan *p)
{
    for (size_t i = 0; i < p->n_adapters; i++) {
        if (p->adapters[i].bound)
            return true;
    }
    return false;
}

static int check_changed(const struct merge_plan *p, const struct values_stats *stats,
                         struct err *err)
{
    struct values_stats total = {0};
    for (size_t i = 0; i < p->n_tensors; i++) {
        if (p->tensors[i].touched && !p->tensors[i].scales_of)
            values_stats_add(&total, &stats[i]);
    }
    if (total.n_changed || !has_weight(p))
        return 0;
    return err_set(err, ERR_REFUSED, "no weight of the base would change: %s",
                   total.delta2 > 0 ? "rounding to the base's type swallows all of it"
                                    : "what the adapters add is zero everywhere");
}

static int finish(const struct merge_plan *p, const struct merge_run *run, struct merge_work *w,
                  const struct values_stats *stats, json_t **recipe, struct err *err)
{
    const char *folder = merge_work_folder(w);
    int rc = check_changed(p, stats, err);
    if (rc)
        return rc;
    *recipe = recipe_of_plan(p, run->origin, false);
    if (!*recipe)
        return err_set(err, ERR_NO_MEMORY, "merge.json: no memory");
    rc = recipe_add_report(*recipe, p, stats, err);
    if (!rc)
        rc = companions_write(p, run, folder, err);
    if (!rc)
        rc = companions_write_json(folder, "merge.json", *recipe, err);
    return rc ? rc : merge_work_publish(w, run->force, err);
}

int merge_into_base(const struct merge_plan *p, const struct merge_run *run, json_t **recipe,
                    struct err *err)
{
    char key[DIGEST_HEX_CHARS + 1];
    struct merge_work *w = NULL;
    struct values_stats *stats = sys_calloc(p->n_tensors + 1, sizeof *stats);
    *recipe = NULL;
    int rc = stats ? key_of(p, run, key, err) : err_set(err, ERR_NO_MEMORY, "merge: no memory");
    if (!rc)
        rc = merge_work_open(&w, run->output, key, p->n_tensors, run->resume, run->force, err);
    if (!rc)
        rc = check_disk(p, merge_work_folder(w), err);
    if (!rc)
        rc = stream_verified(p, run, w, stats, err);
    if (!rc)
        rc = finish(p, run, w, stats, recipe, err);
    merge_work_close(w, rc && run->resume);
    sys_free(stats);
    if (rc) {
        json_decref(*recipe);
        *recipe = NULL;
    }
    return rc;
}
