#include "libcore/model/weight_file.h"

#include <errno.h>
#include <fcntl.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"

static int open_shard(int *fd, const struct safetensors *s, struct err *err)
{
    const char *path = safetensors_path(s);
    struct stat st;
    *fd = sys_open(path, O_RDONLY, 0);
    if (*fd < 0 || sys_fstat(*fd, &st) != 0)
        return err_set_errno(err, errno, "%s", path);
    if ((uint64_t)st.st_size == safetensors_file_bytes(s))
        return 0;
    return err_set(err, ERR_CORRUPT, "%s: has %llu bytes, had %llu when it was opened", path,
                   (unsigned long long)st.st_size, (unsigned long long)safetensors_file_bytes(s));
}

int weight_files_open(struct weight_files *f, const struct checkpoint *ckpt, struct err *err)
{
    size_t n = checkpoint_n_shards(ckpt);
    *f = (struct weight_files){.ckpt = ckpt, .fds = sys_calloc(n + 1, sizeof *f->fds)};
    if (!f->fds)
        return err_set(err, ERR_NO_MEMORY, "no memory for %zu files", n);
    int rc = 0;
    for (; rc == 0 && f->n < n; f->n++)
        rc = open_shard(&f->fds[f->n], checkpoint_shard(ckpt, f->n), err);
    return rc;
}

void weight_files_close(struct weight_files *f)
{
    for (size_t i = 0; i < f->n; i++) {
        if (f->fds[i] >= 0)
            sys_close(f->fds[i]);
    }
    sys_free(f->fds);
    *f = (struct weight_files){0};
}

int weight_stream_open(struct weight_stream *s, const struct weight_files *f,
                       const struct checkpoint_tensor *t, const struct digest *want,
                       struct err *err)
{
    const struct safetensors *shard = checkpoint_shard(f->ckpt, t->shard_idx);
    const struct safetensors_entry *e = safetensors_find(shard, t->name);
    *s = (struct weight_stream){
        .path = safetensors_path(shard), .fd = f->fds[t->shard_idx], .want = want};
    if (!e)
        return err_set(err, ERR_INTERNAL, "%s: lacks %s", s->path, t->name);
    s->at = safetensors_data_offset(shard) + e->begin;
    s->end = safetensors_data_offset(shard) + e->end;
    sys_will_need(s->fd, (off_t)s->at, (off_t)(s->end - s->at));
    return want ? digest_open(&s->hash, err) : 0;
}

int weight_stream_read(struct weight_stream *s, void *to, size_t n, struct err *err)
{
    if (n > s->end - s->at)
        return err_set(err, ERR_INTERNAL, "%s: %zu bytes asked, %llu are left", s->path, n,
                       (unsigned long long)(s->end - s->at));
    int rc = file_pread_all(s->fd, to, n, s->at, s->path, err);
    s->at += n;
    if (rc == 0 && s->hash)
        rc = digest_update(s->hash, to, n, err);
    return rc;
}

int weight_stream_check(struct weight_stream *s, struct err *err)
{
    struct digest got;
    if (s->at != s->end)
        return err_set(err, ERR_INTERNAL, "%s: %llu bytes were not read", s->path,
                       (unsigned long long)(s->end - s->at));
    if (!s->hash)
        return 0;
    int rc = digest_final(s->hash, &got, err);
    if (rc || digest_equal(&got, s->want))
        return rc;
    char want_hex[DIGEST_HEX_CHARS + 1], got_hex[DIGEST_HEX_CHARS + 1];
    digest_hex(s->want, want_hex);
    digest_hex(&got, got_hex);
    return err_set(err, ERR_CORRUPT, "digest %.12s, want %.12s as it was recorded", got_hex,
                   want_hex);
}

void weight_stream_close(struct weight_stream *s)
{
    digest_free(s->hash);
    s->hash = NULL;
}
