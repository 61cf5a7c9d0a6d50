#include <stdio.h>
#include <string.h>

#include "libcore/base/limits.h"
#include "libcore/base/sys.h"
#include "store/archive_impl.h"

const char *archive_shown(const char *name, char shown[128])
{
    size_t n = 0;
    for (const char *p = name; *p && n < 124; p++)
        shown[n++] = *p >= ' ' && *p < 127 ? *p : '?';
    if (name[n]) {
        memcpy(shown + n - 1, "...", 3);
        n += 2;
    }
    shown[n] = '\0';
    return shown;
}

static bool has_part(const char *name, const char *part)
{
    size_t n = strlen(part);
    for (const char *p = name;; p++) {
        size_t k = strcspn(p, "/");
        if (k == n && memcmp(p, part, n) == 0)
            return true;
        p += k;
        if (!*p)
            return false;
    }
}

static bool has_control(const char *name)
{
    for (const unsigned char *p = (const unsigned char *)name; *p; p++) {
        if (*p < ' ' || *p == 127)
            return true;
    }
    return false;
}

/* Why a name is refused; NULL: it is fine. */
static const char *problem_of(const char *name)
{
    if (!*name)
        return "has an empty name";
    if (strlen(name) > LIMIT_PACK_NAME_BYTES)
        return "has a name that is too long";
    if (has_control(name))
        return "has a control character in its name";
    if (*name == '/')
        return "has an absolute name";
    if (strchr(name, '\\'))
        return "has a backslash in its name";
    if (name[1] == ':')
        return "names a drive";
    if (has_part(name, ".."))
        return "leads outside with '..'";
    if (has_part(name, ".") || has_part(name, ""))
        return "has an empty part in its name";
    return NULL;
}

int archive_check_name(const char *archive, const char *name, const char **clean, struct err *err)
{
    char shown[128];
    const char *p = name;
    while (p[0] == '.' && p[1] == '/')
        p += 2;
    const char *problem = problem_of(p);
    *clean = p;
    return problem ? err_set(err, ERR_REFUSED, "%s:%s: %s", archive, archive_shown(name, shown),
                             problem)
                   : 0;
}

// ---- names that were seen ----------------------------------------------------------------------

struct name_set {
    char **slots;
    size_t n, cap; // cap is a power of two
};

int name_set_open(struct name_set **out, struct err *err)
{
    struct name_set *s = sys_calloc(1, sizeof *s);
    if (s) {
        s->cap = 256;
        s->slots = sys_calloc(s->cap, sizeof *s->slots);
    }
    if (!s || !s->slots) {
        sys_free(s);
        *out = NULL;
        return err_set(err, ERR_NO_MEMORY, "no memory for names");
    }
    *out = s;
    return 0;
}

void name_set_free(struct name_set *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->cap; i++)
        sys_free(s->slots[i]);
    sys_free(s->slots);
    sys_free(s);
}

/* Where the name is, or the empty slot where it belongs. */
static size_t slot_of(char *const *slots, size_t cap, const char *name)
{
    uint64_t h = 14695981039346656037u; // FNV-1a
    for (const unsigned char *p = (const unsigned char *)name; *p; p++)
        h = (h ^ *p) * 1099511628211u;
    size_t i = (size_t)(h ^ h >> 32) & (cap - 1);
    while (slots[i] && strcmp(slots[i], name) != 0)
        i = (i + 1) & (cap - 1);
    return i;
}

static int grow(struct name_set *s)
{
    size_t cap = s->cap * 2;
    char **slots = sys_calloc(cap, sizeof *slots);
    if (!slots)
        return ERR_NO_MEMORY;
    for (size_t i = 0; i < s->cap; i++) {
        if (s->slots[i])
            slots[slot_of(slots, cap, s->slots[i])] = s->slots[i];
    }
    sys_free(s->slots);
    s->slots = slots;
    s->cap = cap;
    return 0;
}

int name_set_add(struct name_set *s, const char *archive, const char *name, struct err *err)
{
    char shown[128];
    if (s->n * 2 >= s->cap && grow(s) != 0)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory for names", archive);
    size_t i = slot_of(s->slots, s->cap, name);
    if (s->slots[i])
        return err_set(err, ERR_CORRUPT, "%s:%s: is in it twice", archive,
                       archive_shown(name, shown));
    s->slots[i] = sys_strdup(name);
    s->n++;
    return s->slots[i] ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory for names", archive);
}
