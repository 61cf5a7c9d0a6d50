#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/checkpoint.h"
#include "store/arrive.h"
#include "store/overlay.h"

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static uint64_t size_of(const json_t *object)
{
    return (uint64_t)json_integer_value(json_object_get(object, "size"));
}

/* A file as it is, by way of the hash. */
static int copy_whole(struct arriving *to, const char *from, struct err *err)
{
    int fd = sys_open(from, O_RDONLY, 0), rc = 0;
    if (fd < 0)
        return err_set_errno(err, errno, "%s: cannot open", from);
    for (ssize_t n = 1; !rc && n > 0;) {
        size_t room;
        void *slot = arriving_slot(to, &room);
        n = sys_read(fd, slot, room);
        if (n < 0)
            rc = err_set_errno(err, errno, "%s: cannot read", from);
        else if (n)
            rc = arriving_filled(to, (size_t)n, err);
    }
    sys_close(fd);
    return rc;
}

// ---- tensors -----------------------------------------------------------------------------------

static int compare_places(const void *a, const void *b)
{
    const struct safetensors_entry *x = *(const struct safetensors_entry *const *)a;
    const struct safetensors_entry *y = *(const struct safetensors_entry *const *)b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* The bytes of a tensor of the header: from the pack, else from the base. */
static int find_tensor(const struct overlay_target *t, const struct safetensors *changed,
                       const struct safetensors_entry *e, const struct tensor **out,
                       struct err *err)
{
    const struct safetensors_entry *own = changed ? safetensors_find(changed, e->name) : NULL;
    const struct checkpoint_tensor *base = own ? NULL : checkpoint_find(t->base, e->name);
    *out = own ? &own->value : base ? &base->value : NULL;
    if (*out && (*out)->dtype == e->value.dtype && tensor_same_shape(*out, &e->value))
        return 0;
    return err_set(err, ERR_REFUSED, "%s: %s", e->name,
                   *out ? "has another type or shape in the base than in the overlay"
                        : "is neither in the overlay nor in the base");
}

static int write_tensor(struct arriving *to, const struct tensor *t, struct err *err)
{
    enum { STEP_BYTES = 1 << 20 };
    const char *data = t->data;
    int rc = 0;
    for (uint64_t at = 0, n = tensor_n_bytes(t); !rc && at < n; at += STEP_BYTES) {
        size_t k = n - at < STEP_BYTES ? (size_t)(n - at) : STEP_BYTES;
        rc = arriving_write(to, data + at, k, err);
        sys_forget_pages(data + at, k); // mapped from a file, as all of these are
    }
    return rc;
}

static int write_tensors(const struct overlay_target *t, const struct safetensors *header,
                         const struct safetensors *changed, struct arriving *to, struct err *err)
{
    size_t n = safetensors_count(header);
    const struct safetensors_entry **order = sys_calloc(n + 1, sizeof *order);
    int rc = order ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for %zu tensors", n);
    for (size_t i = 0; !rc && i < n; i++)
        order[i] = safetensors_at(header, i);
    if (!rc)
        qsort(order, n, sizeof *order, compare_places);
    for (size_t i = 0; !rc && i < n; i++) {
        const struct tensor *from;
        rc = find_tensor(t, changed, order[i], &from, err);
        if (!rc)
            rc = write_tensor(to, from, err);
    }
    sys_free(order);
    return rc;
}

static int build_weights(const struct overlay_target *t, const json_t *file, struct arriving *to,
                         struct err *err)
{
    const json_t *parts = json_object_get(file, "parts"), *second = json_array_get(parts, 1);
    const char *path, *name = text_of(file, "path");
    char *text = NULL;
    size_t n = 0;
    struct safetensors *header = NULL, *changed = NULL;
    int rc = t->part(t->arg, json_array_get(parts, 0), &path, err);
    if (!rc)
        rc = file_read(path, LIMIT_SAFETENSORS_HEADER_BYTES + 8, &text, &n, err);
    if (!rc && n > size_of(file))
        rc = err_set(err, ERR_CORRUPT, "%s: its header is larger than it is", name);
    if (!rc)
        rc = safetensors_open_header(&header, text, n, size_of(file) - n, name, err);
    if (!rc && second)
        rc = t->part(t->arg, second, &path, err);
    if (!rc && second)
        rc = safetensors_open(&changed, path, 0, err);
    if (!rc)
        rc = arriving_write(to, text, n, err);
    if (!rc)
        rc = write_tensors(t, header, changed, to, err);
    safetensors_free(header);
    safetensors_free(changed);
    sys_free(text);
    return rc;
}

// ---- one file ----------------------------------------------------------------------------------

static int build(const struct overlay_target *t, const json_t *file, struct arriving *to,
                 struct err *err)
{
    const char *from = text_of(file, "from"), *name = text_of(file, "path"), *path;
    if (strcmp(from, "tensors") == 0)
        return build_weights(t, file, to, err);
    if (strcmp(from, "pack") == 0) {
        int rc = t->part(t->arg, json_array_get(json_object_get(file, "parts"), 0), &path, err);
        return rc ? rc : copy_whole(to, path, err);
    }
    if (strcmp(from, "base") != 0)
        return err_set(err, ERR_CORRUPT, "%s: comes from '%.20s', which is nowhere", name, from);
    char *own = file_join(checkpoint_folder(t->base), name);
    int rc = own ? copy_whole(to, own, err) : err_set(err, ERR_NO_MEMORY, "%s: no memory", name);
    sys_free(own);
    return rc;
}

int overlay_file(const struct overlay_target *t, const json_t *file, const char *to,
                 struct safetensors_stream **weights, struct err *err)
{
    struct arriving *a;
    struct digest d;
    char hex[DIGEST_HEX_CHARS + 1];
    *weights = NULL;
    int rc = arriving_open(&a, to, size_of(file), text_of(file, "path"), err);
    if (!rc)
        rc = build(t, file, a, err);
    if (!rc)
        rc = arriving_finish(a, &d, err);
    if (!rc) {
        digest_hex(&d, hex);
        if (strcmp(hex, text_of(file, "sha256")) != 0)
            rc = err_set(err, ERR_REFUSED,
                         "%s: becomes %.12s over this base, %.12s was packed: the base is not the "
                         "one it was made over",
                         text_of(file, "path"), hex, text_of(file, "sha256"));
    }
    if (!rc)
        *weights = arriving_take_weights(a);
    arriving_free(a);
    return rc;
}
