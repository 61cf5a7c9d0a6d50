#include "kernels/choices.h"

#include <stdio.h>
#include <string.h>

#include "libcore/base/digest.h"
#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"

static const char MAGIC[] = "lora choices 1\n";

/* <folder>/<name>-<first digits of the key's digest> */
static int make_path(struct choices *c, const char *folder, const char *name, struct err *err)
{
    struct digest d;
    char hex[DIGEST_HEX_CHARS + 1], file[128];
    int rc = digest_buffer(c->key, strlen(c->key), &d, err);
    if (rc)
        return rc;
    digest_hex(&d, hex);
    snprintf(file, sizeof file, "%.90s-%.16s", name, hex);
    c->path = file_join(folder, file);
    return c->path ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for a path");
}

/* Magic, key, newline, record size, records, digest of all before. */
static int write_text(const struct choices *c, struct strbuf *out, struct err *err)
{
    struct digest d;
    strbuf_adds(out, MAGIC);
    strbuf_adds(out, c->key);
    strbuf_addf(out, "\n%zu\n", c->record_bytes);
    strbuf_add(out, c->records, c->n * c->record_bytes);
    int rc = digest_buffer(out->data, out->len, &d, err);
    if (rc == 0)
        strbuf_add(out, d.bytes, sizeof d.bytes);
    return rc;
}

/* Where the records begin, or 0: not ours. */
static size_t check_text(const struct choices *c, const char *data, size_t size)
{
    char head[64];
    struct digest d;
    size_t n_key = strlen(c->key), n_magic = strlen(MAGIC);
    int n = snprintf(head, sizeof head, "\n%zu\n", c->record_bytes);
    size_t at = n_magic + n_key + (size_t)n;
    if (size < at + sizeof d.bytes || memcmp(data, MAGIC, n_magic) != 0 ||
        memcmp(data + n_magic, c->key, n_key) != 0 ||
        memcmp(data + n_magic + n_key, head, (size_t)n) != 0 ||
        digest_buffer(data, size - sizeof d.bytes, &d, NULL) != 0 ||
        memcmp(data + size - sizeof d.bytes, d.bytes, sizeof d.bytes) != 0)
        return 0;
    return at;
}

static void read_file(struct choices *c)
{
    char *data = NULL;
    size_t size, most = 4096 + strlen(c->key) + c->max * c->record_bytes;
    if (file_read(c->path, most, &data, &size, NULL) != 0)
        return;
    size_t at = check_text(c, data, size);
    size_t bytes = at ? size - at - DIGEST_BYTES : 0;
    if (bytes % c->record_bytes == 0 && bytes / c->record_bytes <= c->max) {
        c->n = bytes / c->record_bytes;
        memcpy(c->records, data + at, bytes);
    }
    sys_free(data);
}

int choices_open(struct choices *c, const char *folder, const char *name, const char *key,
                 size_t record_bytes, size_t max, struct err *err)
{
    *c = (struct choices){.record_bytes = record_bytes, .max = max};
    c->key = sys_strdup(key);
    c->records = sys_calloc(max, record_bytes);
    if (!c->key || !c->records)
        return err_set(err, ERR_NO_MEMORY, "no memory for %zu choices", max);
    int rc = folder ? make_path(c, folder, name, err) : 0;
    if (rc == 0 && c->path)
        read_file(c);
    return rc;
}

void choices_release(struct choices *c)
{
    sys_free(c->path);
    sys_free(c->key);
    sys_free(c->records);
    *c = (struct choices){0};
}

void *choices_at(const struct choices *c, size_t i)
{
    return c->records + i * c->record_bytes;
}

bool choices_add(struct choices *c, const void *record)
{
    if (c->n == c->max)
        return false;
    memcpy(choices_at(c, c->n++), record, c->record_bytes);
    c->changed = true;
    return true;
}

void choices_drop(struct choices *c, size_t i)
{
    memmove(choices_at(c, i), choices_at(c, c->n - 1), c->record_bytes);
    c->n--;
    c->changed = true;
}

int choices_save(struct choices *c, struct err *err)
{
    if (!c->changed || !c->path)
        return 0;
    struct strbuf text;
    strbuf_init(&text);
    char *folder = file_dir_name(c->path);
    int rc = folder ? file_make_folders(folder, err)
                    : err_set(err, ERR_NO_MEMORY, "no memory for a path");
    rc = rc ? rc : write_text(c, &text, err);
    if (rc == 0 && text.failed)
        rc = err_set(err, ERR_NO_MEMORY, "no memory for %zu choices", c->n);
    rc = rc ? rc : file_write_atomic(c->path, text.data, text.len, err);
    c->changed = rc != 0;
    sys_free(folder);
    strbuf_release(&text);
    return rc;
}
