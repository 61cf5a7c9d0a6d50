/*
 * The directory at the end says where everything lies; its 64-bit form is read too, since PyTorch
 * always writes it. Layout: PKWARE's APPNOTE 4.3.
 */
#include "libcore/format/zip_stored.h"

#include <stdlib.h>
#include <string.h>

#include "libcore/base/arena.h"
#include "libcore/base/sys.h"

enum {
    LOCAL_BYTES = 30,
    ENTRY_BYTES = 46,
    END_BYTES = 22,
    LOCATOR_BYTES = 20,
    END64_BYTES = 56,
    MAX_COMMENT = 65535,
    MAX_ENTRIES = 1 << 20
};

struct entry {
    char *name;
    uint64_t offset, size; // of the local header; of the data
    uint32_t crc;
};

struct zip_stored {
    const uint8_t *data;
    size_t size;
    const char *where;
    struct entry *entries; // sorted by name
    size_t n;
    char *root;
    uint32_t crc_table[8][256];
    struct arena arena;
};

static uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)get16(p) | (uint32_t)get16(p + 2) << 16;
}

static uint64_t get64(const uint8_t *p)
{
    return get32(p) | (uint64_t)get32(p + 4) << 32;
}

static void make_crc_table(uint32_t table[8][256])
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? UINT32_C(0xEDB88320) ^ c >> 1 : c >> 1;
        table[0][i] = c;
    }
    for (uint32_t i = 0; i < 256; i++) {
        for (int k = 1; k < 8; k++)
            table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 255];
    }
}

static uint32_t crc32_of(const uint32_t t[8][256], const uint8_t *p, size_t n)
{
    uint32_t c = UINT32_MAX;
    for (; n >= 8; n -= 8, p += 8) { // eight bytes a step, a table each
        uint32_t lo = c ^ get32(p), hi = get32(p + 4);
        c = t[7][lo & 255] ^ t[6][lo >> 8 & 255] ^ t[5][lo >> 16 & 255] ^ t[4][lo >> 24] ^
            t[3][hi & 255] ^ t[2][hi >> 8 & 255] ^ t[1][hi >> 16 & 255] ^ t[0][hi >> 24];
    }
    for (; n; n--, p++)
        c = c >> 8 ^ t[0][(c ^ *p) & 255];
    return ~c;
}

bool zip_stored_is(const void *data, size_t size)
{
    return size >= 4 && memcmp(data, "PK\3\4", 4) == 0;
}

static int corrupt(const struct zip_stored *z, const char *what, struct err *err)
{
    return err_set(err, ERR_CORRUPT, "%s: %s", z->where, what);
}

/* ---- the directory ---- */

struct directory {
    uint64_t offset, size, n;
};

static int find_end(const struct zip_stored *z, struct directory *d, struct err *err)
{
    size_t at = z->size < END_BYTES ? 0 : z->size - END_BYTES + 1;
    size_t least = z->size > END_BYTES + MAX_COMMENT ? z->size - END_BYTES - MAX_COMMENT : 0;
    bool found = false;
    while (!found && at > least) {
        at--;
        found = memcmp(z->data + at, "PK\5\6", 4) == 0 &&
                at + END_BYTES + get16(z->data + at + 20) == z->size;
    }
    if (!found)
        return corrupt(z, "zip without its directory: cut off?", err);
    *d = (struct directory){.n = get16(z->data + at + 10),
                            .size = get32(z->data + at + 12),
                            .offset = get32(z->data + at + 16)};
    if (at < LOCATOR_BYTES || memcmp(z->data + at - LOCATOR_BYTES, "PK\6\7", 4) != 0)
        return 0;
    uint64_t end64 = get64(z->data + at - LOCATOR_BYTES + 8);
    if (z->size < END64_BYTES || end64 > z->size - END64_BYTES ||
        memcmp(z->data + end64, "PK\6\6", 4) != 0)
        return corrupt(z, "zip64 directory lies outside of the file", err);
    *d = (struct directory){.n = get64(z->data + end64 + 32),
                            .size = get64(z->data + end64 + 40),
                            .offset = get64(z->data + end64 + 48)};
    return 0;
}

/* Sizes and offset that did not fit 32 bits stand in the extra field 1, in this order. */
static bool read_extra(const uint8_t *p, size_t n, uint64_t *size, uint64_t *stored,
                       uint64_t *offset)
{
    uint64_t *wanted[3] = {size, stored, offset};
    while (n >= 4) {
        size_t length = get16(p + 2);
        if (length > n - 4)
            return false;
        const uint8_t *value = p + 4;
        for (size_t i = 0; get16(p) == 1 && i < 3; i++) {
            if (*wanted[i] != UINT32_MAX)
                continue;
            if (length < 8)
                return false;
            *wanted[i] = get64(value);
            value += 8;
            length -= 8;
        }
        n -= 4 + (size_t)get16(p + 2);
        p += 4 + get16(p + 2);
    }
    return true;
}

static int read_entry(struct zip_stored *z, const uint8_t **p, const uint8_t *end, struct err *err)
{
    const uint8_t *e = *p;
    if (end - e < ENTRY_BYTES || memcmp(e, "PK\1\2", 4) != 0)
        return corrupt(z, "zip directory is broken", err);
    size_t name = get16(e + 28), extra = get16(e + 30), comment = get16(e + 32);
    if ((size_t)(end - e) - ENTRY_BYTES < name + extra + comment)
        return corrupt(z, "zip directory is cut off", err);
    uint64_t stored = get32(e + 20), size = get32(e + 24), offset = get32(e + 42);
    const uint8_t *text = e + ENTRY_BYTES;
    if (memchr(text, 0, name) || !read_extra(text + name, extra, &size, &stored, &offset))
        return corrupt(z, "zip directory is broken", err);
    if (get16(e + 10) != 0 || stored != size || (get16(e + 8) & 1))
        return corrupt(z, "a compressed or encrypted zip entry, which PyTorch does not write", err);
    struct entry *out = &z->entries[z->n++];
    *out = (struct entry){.offset = offset, .size = size, .crc = get32(e + 16)};
    out->name = arena_strndup(&z->arena, (const char *)text, name);
    *p = text + name + extra + comment;
    return out->name ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", z->where);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

static int read_directory(struct zip_stored *z, struct err *err)
{
    struct directory d = {0};
    int rc = find_end(z, &d, err);
    if (rc)
        return rc;
    if (d.offset > z->size || d.size > z->size - d.offset || d.n > d.size / ENTRY_BYTES ||
        d.n > MAX_ENTRIES)
        return corrupt(z, "zip directory lies outside of the file", err);
    z->entries = sys_calloc((size_t)d.n + 1, sizeof *z->entries);
    if (!z->entries)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", z->where);
    const uint8_t *p = z->data + d.offset, *end = p + d.size;
    for (uint64_t i = 0; !rc && i < d.n; i++)
        rc = read_entry(z, &p, end, err);
    if (rc)
        return rc;
    qsort(z->entries, z->n, sizeof *z->entries, by_name);
    for (size_t i = 1; i < z->n; i++) {
        if (strcmp(z->entries[i - 1].name, z->entries[i].name) == 0)
            return corrupt(z, "two zip entries have one name", err);
    }
    return 0;
}

int zip_stored_open(struct zip_stored **out, const void *data, size_t size, const char *where,
                    struct err *err)
{
    *out = NULL;
    struct zip_stored *z = sys_calloc(1, sizeof *z);
    if (!z)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", where);
    z->data = data;
    z->size = size;
    z->where = where;
    arena_init(&z->arena);
    make_crc_table(z->crc_table);
    int rc = read_directory(z, err);
    if (rc) {
        zip_stored_free(z);
        return rc;
    }
    *out = z;
    return 0;
}

void zip_stored_free(struct zip_stored *z)
{
    if (!z)
        return;
    sys_free(z->entries);
    sys_free(z->root);
    arena_release(&z->arena);
    sys_free(z);
}

/* ---- entries ---- */

int zip_stored_root(struct zip_stored *z, const char **folder, struct err *err)
{
    static const char file[] = "data.pkl";
    const struct entry *found = NULL;
    for (size_t i = 0; i < z->n; i++) {
        const char *slash = strrchr(z->entries[i].name, '/');
        if (!slash || strcmp(slash + 1, file) != 0)
            continue;
        if (found)
            return corrupt(z, "two data.pkl in one zip", err);
        found = &z->entries[i];
    }
    if (!found)
        return corrupt(z, "a zip without data.pkl: no file of PyTorch's", err);
    if (!z->root)
        z->root = sys_strndup(found->name, strlen(found->name) - (sizeof file - 1));
    *folder = z->root;
    return z->root ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", z->where);
}

static const struct entry *find(const struct zip_stored *z, const char *folder, const char *name)
{
    size_t n = strlen(folder), low = 0, high = z->n;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        int order = strncmp(z->entries[mid].name, folder, n);
        if (!order)
            order = strcmp(z->entries[mid].name + n, name);
        if (!order)
            return &z->entries[mid];
        if (order < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return NULL;
}

int zip_stored_get(const struct zip_stored *z, const char *folder, const char *name,
                   const void **data, size_t *size, struct err *err)
{
    const struct entry *e = find(z, folder, name);
    if (!e)
        return err_set(err, ERR_NOT_FOUND, "%s: no %s%s in it", z->where, folder, name);
    uint64_t at = e->offset;
    if (z->size < LOCAL_BYTES || at > z->size - LOCAL_BYTES ||
        memcmp(z->data + at, "PK\3\4", 4) != 0)
        return err_set(err, ERR_CORRUPT, "%s:%s: not where the directory says", z->where, e->name);
    at += LOCAL_BYTES + (uint64_t)get16(z->data + at + 26) + get16(z->data + at + 28);
    if (at > z->size || e->size > z->size - at)
        return err_set(err, ERR_CORRUPT, "%s:%s: reaches beyond the file", z->where, e->name);
    uint32_t crc = crc32_of(z->crc_table, z->data + at, (size_t)e->size);
    if (crc != e->crc)
        return err_set(err, ERR_CORRUPT, "%s:%s: CRC %08x, wanted %08x", z->where, e->name, crc,
                       e->crc);
    *data = z->data + at;
    *size = (size_t)e->size;
    return 0;
}
