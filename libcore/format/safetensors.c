#include "libcore/format/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/format/safetensors_impl.h"

struct safetensors {
    const unsigned char *data;
    size_t size;
    bool mapped;
    const char *where;
    uint64_t data_offset;
    const char *warning;
    struct safetensors_header header;
    struct arena arena;
};

const char *safetensors_foreign_magic(const void *data, size_t size)
{
    static const struct {
        const char *bytes;
        size_t n;
        const char *name;
    } magics[] = {
        {"PK\003\004", 4, "a zip archive (PyTorch .bin, pickle inside)"},
        {"PK\005\006", 4, "an empty zip archive"},
        {"GGUF", 4, "GGUF"},
        {"\x89HDF", 4, "HDF5"},
        {"version https://git-lfs", 23, "a Git LFS pointer; fetch the file itself (git lfs pull)"},
        {"<!DOCTYPE", 9, "an HTML page"},
        {"<html", 5, "an HTML page"},
    };
    const unsigned char *b = data;
    // Any eight bytes may be a header's length; the brace that follows it settles the matter.
    if (size > 8 && b[8] == '{')
        return NULL;
    // A pickle of protocol 2…5: PROTO opcode, then an opcode and not the rest of a small u64.
    if (size >= 3 && b[0] == 0x80 && b[1] >= 2 && b[1] <= 5 && b[2] != 0)
        return "pickle (it runs code when read)";
    for (size_t i = 0; i < sizeof magics / sizeof *magics; i++) {
        if (size >= magics[i].n && memcmp(data, magics[i].bytes, magics[i].n) == 0)
            return magics[i].name;
    }
    return NULL;
}

static int check_magic(const struct safetensors *s, struct err *err)
{
    const char *magic = safetensors_foreign_magic(s->data, s->size);
    if (!magic)
        return 0;
    return err_set(err, ERR_CORRUPT, "%s: not safetensors but %s", s->where, magic);
}

static uint64_t read_u64_le(const unsigned char *b)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--)
        v = v << 8 | b[i];
    return v;
}

static int check_frame(struct safetensors *s, uint64_t max_header, uint64_t *n, struct err *err)
{
    int rc = check_magic(s, err);
    if (rc)
        return rc;
    if (s->size < 8)
        return err_set(err, ERR_CORRUPT, "%s: %zu bytes, a safetensors file has at least 8",
                       s->where, s->size);
    *n = read_u64_le(s->data);
    if (*n > LIMIT_SAFETENSORS_HEADER_BYTES)
        return err_set(err, ERR_CORRUPT, "%s: header of %llu bytes, the format allows %d", s->where,
                       (unsigned long long)*n, LIMIT_SAFETENSORS_HEADER_BYTES);
    if (*n > s->size - 8)
        return err_set(err, ERR_CORRUPT,
                       "%s: header of %llu bytes, but %zu bytes follow: truncated", s->where,
                       (unsigned long long)*n, s->size - 8);
    if (max_header && *n > max_header)
        return err_set(err, ERR_LIMIT, "%s: header of %llu bytes, the limit here is %llu", s->where,
                       (unsigned long long)*n, (unsigned long long)max_header);
    return 0;
}

/* Points the entries into the payload; notes what lies off its natural alignment. */
static void place_entries(struct safetensors *s)
{
    if (s->data_offset % 8)
        s->warning = "the payload does not begin at a multiple of 8 bytes; reads are slower";
    for (size_t i = 0; i < s->header.n_entries; i++) {
        struct safetensors_entry *e = &s->header.entries[i];
        e->value.data = s->data + s->data_offset + e->begin;
        unsigned bytes = dtype_bits(e->value.dtype) / 8;
        if (!s->warning && bytes > 1 && (s->data_offset + e->begin) % bytes)
            s->warning = "a tensor is not aligned to its type; reads are slower";
    }
}

static int parse(struct safetensors *s, uint64_t max_header, struct err *err)
{
    uint64_t n = 0;
    int rc = check_frame(s, max_header, &n, err);
    if (rc)
        return rc;
    s->data_offset = 8 + n;
    s->header.arena = &s->arena;
    s->header.where = s->where;
    rc = safetensors_header_parse(&s->header, (const char *)s->data + 8, (size_t)n,
                                  s->size - s->data_offset, err);
    if (!rc)
        place_entries(s);
    return rc;
}

static struct safetensors *new_handle(const char *where)
{
    struct safetensors *s = sys_calloc(1, sizeof *s);
    if (!s)
        return NULL;
    arena_init(&s->arena);
    s->where = arena_strdup(&s->arena, where);
    if (!s->where) {
        safetensors_free(s);
        return NULL;
    }
    return s;
}

int safetensors_open_memory(struct safetensors **out, const void *data, size_t size,
                            const char *where, uint64_t max_header_bytes, struct err *err)
{
    *out = NULL;
    struct safetensors *s = new_handle(where);
    if (!s)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", where);
    s->data = data;
    s->size = size;
    int rc = parse(s, max_header_bytes, err);
    if (rc) {
        safetensors_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

int safetensors_open_header(struct safetensors **out, const void *data, size_t size,
                            uint64_t payload_bytes, const char *where, struct err *err)
{
    uint64_t n = 0;
    *out = NULL;
    struct safetensors *s = new_handle(where);
    if (!s)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", where);
    s->data = data;
    s->size = size;
    int rc = check_frame(s, 0, &n, err);
    if (!rc && n != size - 8)
        rc = err_set(err, ERR_CORRUPT, "%s: %zu bytes, its header has %llu", where, size,
                     (unsigned long long)n + 8);
    s->data_offset = size;
    s->header.arena = &s->arena;
    s->header.where = s->where;
    if (!rc)
        rc = safetensors_header_parse(&s->header, (const char *)data + 8, (size_t)n, payload_bytes,
                                      err);
    if (rc) {
        safetensors_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

static int map_file(struct safetensors *s, struct err *err)
{
    // Not blocking: a FIFO must be refused, not waited for.
    int fd = sys_open(s->where, O_RDONLY | O_NONBLOCK, 0);
    if (fd < 0)
        return err_set_errno(err, errno, "%s: cannot open", s->where);
    struct stat st;
    int rc = 0;
    if (sys_fstat(fd, &st) != 0)
        rc = err_set_errno(err, errno, "%s: cannot stat", s->where);
    else if (!S_ISREG(st.st_mode))
        rc = err_set(err, ERR_NOT_FOUND, "%s: not a regular file", s->where);
    else if (st.st_size <
             8) // an empty file cannot be mapped; fewer bytes need no map to be refused
        rc = err_set(err, ERR_CORRUPT, "%s: %lld bytes, a safetensors file has at least 8",
                     s->where, (long long)st.st_size);
    else {
        void *map = sys_mmap_read(fd, (size_t)st.st_size);
        if (!map)
            rc = err_set_errno(err, errno, "%s: cannot map", s->where);
        s->data = map;
        s->size = (size_t)st.st_size;
        s->mapped = map != NULL;
    }
    sys_close(fd);
    return rc;
}

int safetensors_open(struct safetensors **out, const char *path, uint64_t max_header_bytes,
                     struct err *err)
{
    *out = NULL;
    struct safetensors *s = new_handle(path);
    if (!s)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    int rc = map_file(s, err);
    if (!rc)
        rc = parse(s, max_header_bytes, err);
    if (rc) {
        safetensors_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

void safetensors_free(struct safetensors *s)
{
    if (!s)
        return;
    if (s->mapped)
        sys_munmap((void *)s->data, s->size);
    sys_free(s->header.entries);
    sys_free(s->header.metadata);
    arena_release(&s->arena);
    sys_free(s);
}

size_t safetensors_count(const struct safetensors *s)
{
    return s->header.n_entries;
}

const struct safetensors_entry *safetensors_at(const struct safetensors *s, size_t i)
{
    return &s->header.entries[i];
}

static int compare_entry_name(const void *key, const void *entry)
{
    return strcmp(key, ((const struct safetensors_entry *)entry)->name);
}

const struct safetensors_entry *safetensors_find(const struct safetensors *s, const char *name)
{
    if (!s->header.n_entries)
        return NULL;
    return bsearch(name, s->header.entries, s->header.n_entries, sizeof *s->header.entries,
                   compare_entry_name);
}

size_t safetensors_n_metadata(const struct safetensors *s)
{
    return s->header.n_metadata;
}

const struct safetensors_metadata *safetensors_metadata_at(const struct safetensors *s, size_t i)
{
    return &s->header.metadata[i];
}

const char *safetensors_metadata(const struct safetensors *s, const char *key)
{
    for (size_t i = 0; i < s->header.n_metadata; i++) {
        if (strcmp(s->header.metadata[i].key, key) == 0)
            return s->header.metadata[i].value;
    }
    return NULL;
}

const char *safetensors_path(const struct safetensors *s)
{
    return s->where;
}

uint64_t safetensors_file_bytes(const struct safetensors *s)
{
    return s->size;
}

uint64_t safetensors_data_offset(const struct safetensors *s)
{
    return s->data_offset;
}

const char *safetensors_warning(const struct safetensors *s)
{
    return s->warning;
}
