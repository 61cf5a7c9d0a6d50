/* The variable `loop` of a for statement. It reads one item ahead only when asked for what follows.
 */
#include <string.h>

#include "libcore/text/jinja_impl.h"

static int peek(struct jinja_render *r, struct jinja_loop *l)
{
    if (l->after.type != JINJA_MISSING)
        return 0;
    return jinja_iter_next(r, l->iter, &l->after);
}

int jinja_loop_next(struct jinja_render *r, struct jinja_loop *l, struct jinja_value *out)
{
    JINJA_TRY(peek(r, l));
    *out = l->after;
    l->after = (struct jinja_value){.type = JINJA_MISSING};
    if (out->type == JINJA_MISSING)
        return 0;
    l->index0++;
    l->previous = l->current;
    l->current = *out;
    return 0;
}

/* Of a sequence without length, the rest is read and kept. */
int jinja_loop_length(struct jinja_render *r, struct jinja_loop *l, int64_t *out)
{
    struct jinja_value rest;
    if (l->length < 0 && l->iter->kind == JINJA_ITER_PLAIN && l->source.type != JINJA_ITER) {
        JINJA_TRY(jinja_length(r, l->source, &l->length));
    } else if (l->length < 0) {
        JINJA_TRY(jinja_to_list(r, jinja_of_iter(l->iter), &rest));
        l->length = (int64_t)rest.list->n + l->index0 + 1 + (l->after.type != JINJA_MISSING);
        JINJA_TRY(jinja_new_iter(r, JINJA_ITER_PLAIN, rest, &l->iter));
    }
    *out = l->length;
    return 0;
}

static int cycle(struct jinja_render *r, struct jinja_value self, const struct jinja_value *argv,
                 const struct jinja_args *args, struct jinja_value *out)
{
    (void)argv;
    if (!args->n)
        return jinja_fail(r, "no items for cycling given");
    *out = args->pos[self.loop->index0 % (int64_t)args->n];
    return 0;
}

static int changed(struct jinja_render *r, struct jinja_value self, const struct jinja_value *argv,
                   const struct jinja_args *args, struct jinja_value *out)
{
    struct jinja_loop *l = self.loop;
    struct jinja_value now;
    bool same = false;
    (void)argv;
    JINJA_TRY(jinja_new_list(r, JINJA_TUPLE, args->n, &now));
    if (args->n)
        memcpy(now.list->items, args->pos, args->n * sizeof *args->pos);
    now.list->n = args->n;
    if (l->changed.type != JINJA_MISSING)
        JINJA_TRY(jinja_equal(r, l->changed, now, &same));
    if (!same)
        l->changed = now;
    *out = jinja_bool(!same);
    return 0;
}

static int bound(struct jinja_render *r, const struct jinja_row *row, struct jinja_value self,
                 struct jinja_value *out)
{
    struct jinja_func *f = jinja_alloc(r, sizeof *f);
    if (!f)
        return r->err->code;
    *f = (struct jinja_func){.row = row, .self = self};
    *out = (struct jinja_value){.type = JINJA_FUNC, .func = f};
    return 0;
}

static bool is(const char *name, size_t len, const char *word)
{
    return strlen(word) == len && memcmp(name, word, len) == 0;
}

static int neighbour(struct jinja_render *r, struct jinja_loop *l, bool next,
                     struct jinja_value *out)
{
    if (next)
        JINJA_TRY(peek(r, l));
    *out = next ? l->after : l->previous;
    if (out->type == JINJA_MISSING)
        return jinja_new_undefined(r, out, "there is no %s item", next ? "next" : "previous");
    return 0;
}

/* What needs the length. */
static int from_end(struct jinja_render *r, struct jinja_loop *l, int64_t minus,
                    struct jinja_value *out)
{
    int64_t length;
    JINJA_TRY(jinja_loop_length(r, l, &length));
    *out = jinja_int(length - minus);
    return 0;
}

int jinja_loop_attr(struct jinja_render *r, struct jinja_value loop, const char *name, size_t len,
                    struct jinja_value *out)
{
    static const struct jinja_row cycle_row = {"cycle", cycle, "*", 0};
    static const struct jinja_row changed_row = {"changed", changed, "*", 0};
    struct jinja_loop *l = loop.loop;
    *out = (struct jinja_value){.type = JINJA_MISSING};
    if (is(name, len, "index"))
        *out = jinja_int(l->index0 + 1);
    else if (is(name, len, "index0"))
        *out = jinja_int(l->index0);
    else if (is(name, len, "first"))
        *out = jinja_bool(l->index0 == 0);
    else if (is(name, len, "depth"))
        *out = jinja_int(l->depth0 + 1);
    else if (is(name, len, "depth0"))
        *out = jinja_int(l->depth0);
    else if (is(name, len, "length"))
        return from_end(r, l, 0, out);
    else if (is(name, len, "revindex"))
        return from_end(r, l, l->index0, out);
    else if (is(name, len, "revindex0"))
        return from_end(r, l, l->index0 + 1, out);
    else if (is(name, len, "previtem"))
        return neighbour(r, l, false, out);
    else if (is(name, len, "nextitem"))
        return neighbour(r, l, true, out);
    else if (is(name, len, "cycle"))
        return bound(r, &cycle_row, loop, out);
    else if (is(name, len, "changed"))
        return bound(r, &changed_row, loop, out);
    else if (is(name, len, "last")) {
        JINJA_TRY(peek(r, l));
        *out = jinja_bool(l->after.type == JINJA_MISSING);
    }
    return 0;
}
