#include "libcore/format/safetensors_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/digest_pair.h"
#include "libcore/base/sys.h"
#include "libcore/format/safetensors_impl.h"

enum { LENGTH_BYTES = 8, STEP_BYTES = 64 << 10, READ_BYTES = 1 << 20 };

enum state {
    IN_HEADER,  // its length, then its text, are gathered
    IN_PAYLOAD, // tensors one after the other
    IS_PLAIN,   // only the file's digest
    IS_FINISHED,
};

struct safetensors_stream {
    enum state state;
    uint64_t file_bytes, at; // bytes that come, and that came
    struct digest_pair *pair;
    char *text; // length and header as far as they are there
    size_t n_text, text_bytes;
    struct safetensors_header header;
    struct arena arena;
    struct safetensors_part *parts; // sorted by name
    size_t *order;                  // parts by where their bytes lie
    size_t next;                    // part in hand, of order
    uint64_t left;                  // bytes that it still lacks
    unsigned char split[8];         // a value that two blocks share
    size_t n_split;
    bool skip_values;
};

int safetensors_stream_open(struct safetensors_stream **out, uint64_t file_bytes, struct err *err)
{
    *out = NULL;
    struct safetensors_stream *s = sys_calloc(1, sizeof *s);
    if (!s)
        return err_set(err, ERR_NO_MEMORY, "no memory for a digest");
    arena_init(&s->arena);
    s->file_bytes = file_bytes;
    s->text_bytes = LENGTH_BYTES;
    s->text = sys_malloc(LENGTH_BYTES);
    int rc = s->text ? digest_pair_open(&s->pair, err)
                     : err_set(err, ERR_NO_MEMORY, "no memory for a digest");
    if (rc) {
        safetensors_stream_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

static void drop_tables(struct safetensors_stream *s)
{
    sys_free(s->text);
    sys_free(s->order);
    s->text = NULL;
    s->order = NULL;
}

void safetensors_stream_free(struct safetensors_stream *s)
{
    if (!s)
        return;
    drop_tables(s);
    sys_free(s->parts);
    sys_free(s->header.entries);
    sys_free(s->header.metadata);
    arena_release(&s->arena);
    digest_pair_free(s->pair);
    sys_free(s);
}

void safetensors_stream_skip_values(struct safetensors_stream *s)
{
    s->skip_values = true;
}

// ---- the header --------------------------------------------------------------------------------

static void become_plain(struct safetensors_stream *s)
{
    drop_tables(s);
    sys_free(s->parts);
    s->parts = NULL;
    s->state = IS_PLAIN;
}

/* Makes room for the header that the first eight bytes announce. */
static int begin_text(struct safetensors_stream *s, struct err *err)
{
    uint64_t n = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--)
        n = n << 8 | (unsigned char)s->text[i];
    if (n == 0 || n > SAFETENSORS_STREAM_HEADER_BYTES || s->file_bytes < LENGTH_BYTES + n) {
        become_plain(s);
        return 0;
    }
    char *more = sys_realloc(s->text, LENGTH_BYTES + (size_t)n);
    if (!more)
        return err_set(err, ERR_NO_MEMORY, "no memory for a header of %llu bytes",
                       (unsigned long long)n);
    s->text = more;
    s->text_bytes = LENGTH_BYTES + (size_t)n;
    return 0;
}

static int compare_places(const void *a, const void *b, void *arg)
{
    const struct safetensors_part *parts = arg;
    const struct safetensors_entry *x = parts[*(const size_t *)a].entry;
    const struct safetensors_entry *y = parts[*(const size_t *)b].entry;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end; // empty ones first
}

static void begin_part(struct safetensors_stream *s)
{
    if (s->next == s->header.n_entries)
        return;
    const struct safetensors_entry *e = s->parts[s->order[s->next]].entry;
    s->left = e->end - e->begin;
    s->n_split = 0;
}

static int end_parts(struct safetensors_stream *s, struct err *err);

static int take_header(struct safetensors_stream *s, struct err *err)
{
    struct err why = {0};
    s->header.arena = &s->arena;
    s->header.where = "header";
    int rc =
        safetensors_header_parse(&s->header, s->text + LENGTH_BYTES, s->text_bytes - LENGTH_BYTES,
                                 s->file_bytes - s->text_bytes, &why);
    if (rc == ERR_NO_MEMORY)
        return err_set(err, rc, "%s", why.msg);
    if (rc) {
        become_plain(s);
        return 0;
    }
    size_t n = s->header.n_entries;
    s->parts = sys_calloc(n + 1, sizeof *s->parts);
    s->order = sys_calloc(n + 1, sizeof *s->order);
    if (!s->parts || !s->order)
        return err_set(err, ERR_NO_MEMORY, "no memory for %zu tensors", n);
    for (size_t i = 0; i < n; i++) {
        s->parts[i] = (struct safetensors_part){.entry = &s->header.entries[i], .finite = true};
        s->order[i] = i;
    }
    qsort_r(s->order, n, sizeof *s->order, compare_places, s->parts);
    s->state = IN_PAYLOAD;
    begin_part(s);
    return end_parts(s, err);
}

/* Bytes of the length or the header; what is taken is hashed by the caller. */
static int take_text(struct safetensors_stream *s, const char *data, size_t n, size_t *taken,
                     struct err *err)
{
    *taken = n < s->text_bytes - s->n_text ? n : s->text_bytes - s->n_text;
    memcpy(s->text + s->n_text, data, *taken);
    s->n_text += *taken;
    if (s->n_text < s->text_bytes)
        return 0;
    return s->text_bytes == LENGTH_BYTES ? begin_text(s, err) : take_header(s, err);
}

// ---- the payload -------------------------------------------------------------------------------

/* Looks at whole values; those that a block's end cuts are put together. */
static bool all_finite(struct safetensors_stream *s, enum dtype t, const unsigned char *data,
                       size_t n)
{
    if (!dtype_is_float(t))
        return true;
    size_t size = dtype_bits(t) / 8;
    bool finite = true;
    if (s->n_split) {
        size_t k = size - s->n_split < n ? size - s->n_split : n;
        memcpy(s->split + s->n_split, data, k);
        s->n_split += k;
        data += k;
        n -= k;
        if (s->n_split < size)
            return true;
        finite = dtype_find_non_finite(t, s->split, 1) == 1;
    }
    s->n_split = n % size;
    memcpy(s->split, data + n - s->n_split, s->n_split);
    return dtype_find_non_finite(t, data, n / size) == n / size && finite;
}

/* Closes the part in hand when it is whole, and the empty ones behind it. */
static int end_parts(struct safetensors_stream *s, struct err *err)
{
    int rc = 0;
    while (!rc && s->next < s->header.n_entries && s->left == 0) {
        rc = digest_pair_end_part(s->pair, &s->parts[s->order[s->next]].payload, err);
        s->next++;
        begin_part(s);
    }
    return rc;
}

static int take_payload(struct safetensors_stream *s, const unsigned char *data, size_t n,
                        size_t *taken, struct err *err)
{
    if (s->next == s->header.n_entries) { // no rule of the format lets this be
        become_plain(s);
        return 0;
    }
    struct safetensors_part *p = &s->parts[s->order[s->next]];
    *taken = n < STEP_BYTES ? n : STEP_BYTES; // both looks find it in the cache
    if (*taken > s->left)
        *taken = (size_t)s->left;
    int rc = digest_pair_update(s->pair, data, *taken, true, err);
    if (p->finite && !s->skip_values)
        p->finite = all_finite(s, p->entry->value.dtype, data, *taken);
    s->left -= *taken;
    return rc ? rc : end_parts(s, err);
}

int safetensors_stream_update(struct safetensors_stream *s, const void *data, size_t n,
                              struct err *err)
{
    const char *at = data;
    int rc = 0;
    s->at += n;
    while (!rc && n) {
        size_t k = 0;
        if (s->state == IN_PAYLOAD) {
            rc = take_payload(s, (const unsigned char *)at, n, &k, err);
        } else {
            bool text = s->state == IN_HEADER;
            k = n;
            rc = text ? take_text(s, at, n, &k, err) : 0;
            if (!rc)
                rc = digest_pair_update(s->pair, at, k, false, err);
        }
        at += k;
        n -= k;
    }
    return rc;
}

int safetensors_stream_finish(struct safetensors_stream *s, struct digest *file, struct err *err)
{
    if (s->state != IN_PAYLOAD || s->at != s->file_bytes || s->next != s->header.n_entries)
        become_plain(s);
    drop_tables(s);
    s->state = IS_FINISHED;
    return digest_pair_final(s->pair, file, err);
}

// ---- what was learnt ---------------------------------------------------------------------------

const struct safetensors_part *safetensors_stream_parts(const struct safetensors_stream *s,
                                                        size_t *n)
{
    bool known = s && s->state == IS_FINISHED && s->parts;
    *n = known ? s->header.n_entries : 0;
    return known ? s->parts : NULL;
}

static int compare_name(const void *key, const void *part)
{
    return strcmp(key, ((const struct safetensors_part *)part)->entry->name);
}

const struct safetensors_part *safetensors_stream_find(const struct safetensors_stream *s,
                                                       const char *name)
{
    size_t n;
    const struct safetensors_part *parts = safetensors_stream_parts(s, &n);
    return n ? bsearch(name, parts, n, sizeof *parts, compare_name) : NULL;
}

static int read_fd(struct safetensors_stream *s, int fd, void *buf, const char *path,
                   struct err *err)
{
    int rc = 0;
    for (ssize_t n = 1; !rc && n > 0;) {
        n = sys_read(fd, buf, READ_BYTES);
        if (n < 0)
            rc = err_set_errno(err, errno, "%s: cannot read", path);
        else if (n)
            rc = safetensors_stream_update(s, buf, (size_t)n, err);
    }
    return rc;
}

int safetensors_stream_file(struct safetensors_stream **out, const char *path, bool skip_values,
                            struct digest *file, struct err *err)
{
    *out = NULL;
    struct safetensors_stream *s = NULL;
    struct stat st;
    int fd = sys_open(path, O_RDONLY, 0);
    void *buf = fd < 0 ? NULL : sys_malloc(READ_BYTES);
    int rc = 0;
    if (fd < 0)
        rc = err_set_errno(err, errno, "%s: cannot open", path);
    else if (!buf)
        rc = err_set(err, ERR_NO_MEMORY, "%s: no memory to read it", path);
    else if (sys_fstat(fd, &st) != 0)
        rc = err_set_errno(err, errno, "%s: cannot stat", path);
    if (!rc)
        rc = safetensors_stream_open(&s, (uint64_t)st.st_size, err);
    if (s)
        s->skip_values = skip_values;
    if (!rc)
        rc = read_fd(s, fd, buf, path, err);
    if (!rc)
        rc = safetensors_stream_finish(s, file, err);
    if (fd >= 0)
        sys_close(fd);
    sys_free(buf);
    if (rc) {
        safetensors_stream_free(s);
        return rc;
    }
    *out = s;
    return 0;
}
