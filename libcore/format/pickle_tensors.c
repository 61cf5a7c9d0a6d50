#include "libcore/format/pickle_tensors.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/format/image.h"
#include "libcore/format/pickle.h"
#include "libcore/format/zip_stored.h"

/* Tensors may share a storage (tied weights); a file whose tensors add up to more than this many
 * times its size only wants our memory. */
enum { MAX_SHARING = 4 };
/* The older form: its storages are looked up one by one among the tensors. */
enum { MAX_RAW_STORAGES = 1 << 14, MAX_RAW_ITEMS = 1 << 16 };

struct raw_storage { // of the older form: behind the pickles, in this order
    const char *key;
    const void *data;
    uint64_t bytes;
    uint64_t n_values; // as the file says
};

struct reader {
    const char *where;
    const uint8_t *data;
    size_t size;
    struct zip_stored *zip; // NULL: the older form
    const char *folder;
    struct raw_storage *raw; // sorted by key
    size_t n_raw;
    struct arena arena;
    struct err *err;
};

bool pickle_tensors_name(const char *path)
{
    static const char *const ends[] = {".bin", ".pt", ".pth"};
    size_t n = strlen(path);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        size_t k = strlen(ends[i]);
        if (n > k && strcmp(path + n - k, ends[i]) == 0)
            return true;
    }
    return false;
}

static int corrupt(struct reader *r, const char *what)
{
    return err_set(r->err, ERR_CORRUPT, "%s: %s", r->where, what);
}

/* ---- storages ---- */

static int by_key(const void *a, const void *b)
{
    return strcmp(((const struct raw_storage *)a)->key, ((const struct raw_storage *)b)->key);
}

static int storage_bytes(struct reader *r, const char *key, const void **data, size_t *size)
{
    if (!r->zip) {
        struct raw_storage wanted = {.key = key};
        const struct raw_storage *found =
            r->n_raw ? bsearch(&wanted, r->raw, r->n_raw, sizeof wanted, by_key) : NULL;
        if (!found)
            return corrupt(r, "a storage that the file does not hold");
        *data = found->data;
        *size = (size_t)found->bytes;
        return 0;
    }
    char name[80];
    if (strlen(key) > 60 || strchr(key, '/'))
        return corrupt(r, "a storage with an impossible name");
    strcpy(name, "data/");
    strcat(name, key);
    int rc = zip_stored_get(r->zip, r->folder, name, data, size, r->err);
    return rc == ERR_NOT_FOUND ? corrupt(r, "a storage that the file does not hold") : rc;
}

/* ---- the state dict ---- */

static int add_tensor(struct reader *r, struct image *img, const char *name,
                      const struct pickle_tensor *t, uint64_t *total)
{
    const void *data;
    size_t size;
    int rc = storage_bytes(r, t->storage->key, &data, &size);
    if (rc)
        return rc;
    size_t width = dtype_bits(t->storage->dtype) / 8;
    if (t->storage->n_values > size / width)
        return err_set(r->err, ERR_CORRUPT, "%s:%s: its storage has %zu bytes, wanted %llu values",
                       r->where, name, size, (unsigned long long)t->storage->n_values);
    struct image_view v = {.dtype = t->storage->dtype, .n_dims = t->n_dims};
    v.data = (const char *)data + t->offset * width;
    uint64_t n = width;
    for (uint32_t d = 0; d < t->n_dims; d++) {
        v.shape[d] = t->shape[d];
        v.stride[d] = t->stride[d];
        n *= t->shape[d];
    }
    *total += n; // n ≤ the storage's bytes
    if (*total / MAX_SHARING > r->size)
        return corrupt(r, "its tensors are many times the file");
    return image_add(img, name, &v, 0, NULL, r->err);
}

static int add_state_dict(struct reader *r, struct image *img, const struct pickle_value *dict)
{
    if (dict->kind != PICKLE_DICT)
        return err_set(r->err, ERR_REFUSED, "%s: holds no dictionary of tensors", r->where);
    uint64_t total = 0;
    int rc = 0;
    for (size_t i = 0; !rc && i + 1 < dict->n; i += 2) {
        const struct pickle_value *key = dict->items[i], *value = dict->items[i + 1];
        if (key->kind != PICKLE_TEXT)
            return err_set(r->err, ERR_REFUSED, "%s: a key that is no text", r->where);
        if (value->kind != PICKLE_TENSOR)
            return err_set(r->err, ERR_REFUSED,
                           "%s:%.100s: is no tensor; save the adapter's tensors alone", r->where,
                           key->text);
        rc = add_tensor(r, img, key->text, value->tensor, &total);
    }
    return rc;
}

/* ---- the zip container ---- */

static int run_zip(struct reader *r, struct pickle_value **dict)
{
    const void *data;
    size_t size, at = 0;
    int rc = zip_stored_open(&r->zip, r->data, r->size, r->where, r->err);
    if (!rc)
        rc = zip_stored_root(r->zip, &r->folder, r->err);
    if (!rc && zip_stored_get(r->zip, r->folder, "byteorder", &data, &size, NULL) == 0 &&
        (size != 6 || memcmp(data, "little", 6) != 0))
        return err_set(r->err, ERR_REFUSED, "%s: big-endian", r->where);
    if (!rc)
        rc = zip_stored_get(r->zip, r->folder, "data.pkl", &data, &size, r->err);
    return rc ? rc : pickle_run(dict, data, size, &at, &r->arena, r->where, r->err);
}

/* ---- before PyTorch 1.6 ---- */

static const char MAGIC[] = "\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

static int check_system(struct reader *r, const struct pickle_value *info)
{
    for (size_t i = 0; info->kind == PICKLE_DICT && i + 1 < info->n; i += 2) {
        if (info->items[i]->kind == PICKLE_TEXT &&
            strcmp(info->items[i]->text, "little_endian") == 0 &&
            info->items[i + 1]->kind == PICKLE_BOOL && info->items[i + 1]->integer)
            return 0;
    }
    return err_set(r->err, ERR_REFUSED, "%s: big-endian, or no file of PyTorch's", r->where);
}

static int add_raw(struct reader *r, const struct pickle_value *dict, size_t at)
{
    for (size_t i = 0; i < r->n_raw; i++) {
        struct raw_storage *s = &r->raw[i];
        enum dtype dtype = DTYPE_NONE; // the file gives values, the state dict their type
        for (size_t k = 1; k < dict->n && !dtype; k += 2) {
            const struct pickle_value *v = dict->items[k];
            if (v->kind == PICKLE_TENSOR && strcmp(v->tensor->storage->key, s->key) == 0)
                dtype = v->tensor->storage->dtype;
        }
        if (!dtype)
            return corrupt(r, "a storage that no tensor uses");
        if (r->size - at < 8)
            return corrupt(r, "cut off");
        for (int b = 0; b < 8; b++)
            s->n_values |= (uint64_t)r->data[at + (size_t)b] << 8 * b;
        at += 8;
        if (s->n_values > (r->size - at) / (dtype_bits(dtype) / 8))
            return corrupt(r, "cut off");
        s->data = r->data + at;
        s->bytes = s->n_values * (dtype_bits(dtype) / 8);
        at += (size_t)s->bytes;
    }
    if (at != r->size)
        return corrupt(r, "bytes behind its last storage");
    if (r->n_raw)
        qsort(r->raw, r->n_raw, sizeof *r->raw, by_key);
    return 0;
}

static int list_raw(struct reader *r, const struct pickle_value *keys)
{
    if (keys->kind != PICKLE_LIST || keys->n > MAX_RAW_STORAGES)
        return corrupt(r, "no list of its storages");
    r->raw = sys_calloc(keys->n + 1, sizeof *r->raw);
    if (!r->raw)
        return err_set(r->err, ERR_NO_MEMORY, "%s: no memory", r->where);
    for (size_t i = 0; i < keys->n; i++) {
        if (keys->items[i]->kind != PICKLE_TEXT)
            return corrupt(r, "a storage whose key is no text");
        r->raw[r->n_raw++].key = keys->items[i]->text;
    }
    return 0;
}

static int run_old(struct reader *r, struct pickle_value **dict)
{
    struct pickle_value *parts[5]; // magic, version, system, state dict, keys of storages
    size_t at = 0;
    for (int i = 0; i < 5; i++) {
        int rc = pickle_run(&parts[i], r->data, r->size, &at, &r->arena, r->where, r->err);
        // A pickle of anything at all begins here: what it would do is said, then what it is not.
        if (!rc && i == 0 &&
            (parts[0]->kind != PICKLE_BIG || parts[0]->n != 10 ||
             memcmp(parts[0]->text, MAGIC, 10) != 0))
            rc = corrupt(r, "a bare pickle, no file of torch.save");
        if (!rc && i == 2)
            rc = check_system(r, parts[2]);
        if (rc)
            return rc;
    }
    *dict = parts[3];
    if (parts[3]->kind != PICKLE_DICT || parts[3]->n > MAX_RAW_ITEMS)
        return err_set(r->err, ERR_REFUSED, "%s: holds no dictionary of tensors", r->where);
    int rc = list_raw(r, parts[4]);
    return rc ? rc : add_raw(r, parts[3], at);
}

int pickle_tensors_read(char **out, size_t *out_size, const void *data, size_t size,
                        const char *where, struct err *err)
{
    struct reader r = {.where = where, .data = data, .size = size, .err = err};
    struct pickle_value *dict = NULL;
    struct image img;
    *out = NULL;
    arena_init(&r.arena);
    image_init(&img);
    int rc = zip_stored_is(data, size) ? run_zip(&r, &dict) : run_old(&r, &dict);
    if (!rc)
        rc = add_state_dict(&r, &img, dict);
    if (!rc)
        rc = image_finish(&img, out, out_size, err);
    image_release(&img);
    zip_stored_free(r.zip);
    sys_free(r.raw);
    arena_release(&r.arena);
    return rc;
}
