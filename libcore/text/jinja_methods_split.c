/* Methods of str that cut: split, rsplit, splitlines, partition. */
#include <string.h>

#include "libcore/text/jinja_impl.h"

#define METHOD(name)                                                                               \
    static int name(struct jinja_render *r, struct jinja_value self,                               \
                    const struct jinja_value *argv, const struct jinja_args *args,                 \
                    struct jinja_value *out)

static int add_piece(struct jinja_render *r, struct jinja_list *l, const char *data, size_t len)
{
    struct jinja_value piece;
    JINJA_TRY(jinja_borrow_str(r, data, len, &piece));
    return jinja_list_add(r, l, piece);
}

static void reverse(struct jinja_list *l)
{
    for (size_t i = 0, j = l->n; i + 1 < j; i++) {
        struct jinja_value swap = l->items[i];
        l->items[i] = l->items[--j];
        l->items[j] = swap;
    }
}

static size_t back_one(const char *s, size_t end)
{
    do
        end--;
    while (end > 0 && ((unsigned char)s[end] & 0xC0) == 0x80);
    return end;
}

/* ---- by white space ---- */
static size_t skip(const struct jinja_str *s, size_t i, bool space)
{
    uint32_t cp;
    while (i < s->len) {
        size_t n = jinja_decode(s->data + i, s->len - i, &cp);
        if (jinja_is_space(cp) != space)
            break;
        i += n;
    }
    return i;
}

static size_t skip_back(const struct jinja_str *s, size_t end, bool space)
{
    uint32_t cp;
    while (end > 0) {
        size_t p = back_one(s->data, end);
        jinja_decode(s->data + p, end - p, &cp);
        if (jinja_is_space(cp) != space)
            break;
        end = p;
    }
    return end;
}

static int split_words(struct jinja_render *r, const struct jinja_str *s, int64_t max,
                       struct jinja_list *out)
{
    for (size_t i = skip(s, 0, true); i < s->len; max--) {
        size_t end = max == 0 ? s->len : skip(s, i, false); // at last the rest as it stands
        JINJA_TRY(add_piece(r, out, s->data + i, end - i));
        i = skip(s, end, true);
    }
    return 0;
}

static int rsplit_words(struct jinja_render *r, const struct jinja_str *s, int64_t max,
                        struct jinja_list *out)
{
    for (size_t end = skip_back(s, s->len, true); end > 0; max--) {
        size_t begin = max == 0 ? 0 : skip_back(s, end, false);
        JINJA_TRY(add_piece(r, out, s->data + begin, end - begin));
        end = skip_back(s, begin, true);
    }
    reverse(out);
    return 0;
}

/* ---- by a separator ---- */
static int split_at(struct jinja_render *r, const struct jinja_str *s, const struct jinja_str *sep,
                    int64_t max, struct jinja_list *out)
{
    const char *at = s->data, *end = s->data + s->len;
    for (; max != 0; max--) {
        const char *hit = at < end ? memmem(at, (size_t)(end - at), sep->data, sep->len) : NULL;
        if (!hit)
            break;
        JINJA_TRY(add_piece(r, out, at, (size_t)(hit - at)));
        at = hit + sep->len;
    }
    return add_piece(r, out, at, (size_t)(end - at));
}

/* Start of the last match that ends at or before `end`, or SIZE_MAX. */
static int last_match(struct jinja_render *r, const struct jinja_str *s,
                      const struct jinja_str *sep, size_t end, size_t *out)
{
    *out = SIZE_MAX;
    if (end < sep->len)
        return 0;
    size_t i = end - sep->len + 1;
    while (i-- > 0)
        if (s->data[i] == sep->data[0] && memcmp(s->data + i, sep->data, sep->len) == 0) {
            *out = i;
            break;
        }
    size_t walked = end - (*out == SIZE_MAX ? 0 : *out);
    return jinja_steps(r, walked / 16 * (1 + sep->len / 64));
}

static int rsplit_at(struct jinja_render *r, const struct jinja_str *s, const struct jinja_str *sep,
                     int64_t max, struct jinja_list *out)
{
    size_t end = s->len, hit;
    for (; max != 0; max--) {
        JINJA_TRY(last_match(r, s, sep, end, &hit));
        if (hit == SIZE_MAX)
            break;
        JINJA_TRY(add_piece(r, out, s->data + hit + sep->len, end - hit - sep->len));
        end = hit;
    }
    JINJA_TRY(add_piece(r, out, s->data, end));
    reverse(out);
    return 0;
}

static int split_by(struct jinja_render *r, struct jinja_value self, const struct jinja_value *argv,
                    bool right, struct jinja_value *out)
{
    struct jinja_str *sep = NULL;
    int64_t max = -1;
    if (argv[0].type != JINJA_NONE)
        JINJA_TRY(jinja_arg_str(r, argv[0], "split", &sep));
    JINJA_TRY(jinja_arg_int(r, argv[1], "maxsplit", &max));
    if (max < 0)
        max = -1;
    if (sep && !sep->len)
        return jinja_fail(r, "empty separator");
    JINJA_TRY(jinja_steps(r, self.s->len / 16));
    JINJA_TRY(jinja_new_list(r, JINJA_LIST, 0, out));
    if (sep)
        return right ? rsplit_at(r, self.s, sep, max, out->list)
                     : split_at(r, self.s, sep, max, out->list);
    return right ? rsplit_words(r, self.s, max, out->list) : split_words(r, self.s, max, out->list);
}

METHOD(split)
{
    (void)args;
    return split_by(r, self, argv, false, out);
}

METHOD(rsplit)
{
    (void)args;
    return split_by(r, self, argv, true, out);
}

METHOD(splitlines)
{
    const struct jinja_str *s = self.s;
    bool keep = jinja_truth(argv[0]);
    uint32_t cp;
    size_t begin = 0, n;
    (void)args;
    JINJA_TRY(jinja_steps(r, s->len / 16));
    JINJA_TRY(jinja_new_list(r, JINJA_LIST, 0, out));
    for (size_t i = 0; i < s->len;) {
        n = jinja_decode(s->data + i, s->len - i, &cp);
        if (!jinja_is_line_break(cp)) {
            i += n;
            continue;
        }
        if (cp == '\r' && i + 1 < s->len && s->data[i + 1] == '\n')
            n = 2;
        JINJA_TRY(add_piece(r, out->list, s->data + begin, i - begin + (keep ? n : 0)));
        i += n;
        begin = i;
    }
    if (begin < s->len)
        return add_piece(r, out->list, s->data + begin, s->len - begin);
    return 0;
}

static int partition_at(struct jinja_render *r, struct jinja_value self, struct jinja_value by,
                        bool right, struct jinja_value *out)
{
    const struct jinja_str *s = self.s;
    struct jinja_str *sep = NULL;
    size_t hit = SIZE_MAX;
    JINJA_TRY(jinja_arg_str(r, by, "partition", &sep));
    if (!sep->len)
        return jinja_fail(r, "empty separator");
    JINJA_TRY(jinja_steps(r, s->len / 64));
    if (right) {
        JINJA_TRY(last_match(r, s, sep, s->len, &hit));
    } else if (s->len) {
        const char *at = memmem(s->data, s->len, sep->data, sep->len);
        hit = at ? (size_t)(at - s->data) : SIZE_MAX;
    }
    JINJA_TRY(jinja_new_list(r, JINJA_TUPLE, 3, out));
    size_t first = hit == SIZE_MAX ? (right ? 0 : s->len) : hit;
    size_t middle = hit == SIZE_MAX ? 0 : sep->len;
    JINJA_TRY(add_piece(r, out->list, s->data, first));
    JINJA_TRY(add_piece(r, out->list, s->data + first, middle));
    return add_piece(r, out->list, s->data + first + middle, s->len - first - middle);
}

METHOD(partition)
{
    (void)args;
    return partition_at(r, self, argv[0], false, out);
}

METHOD(rpartition)
{
    (void)args;
    return partition_at(r, self, argv[0], true, out);
}

const struct jinja_row jinja_str_methods_split[] = {
    {"split", split, "sep,maxsplit", 0},       {"rsplit", rsplit, "sep,maxsplit", 0},
    {"splitlines", splitlines, "keepends", 0}, {"partition", partition, "sep", 1},
    {"rpartition", rpartition, "sep", 1},      {NULL, NULL, NULL, 0},
};
