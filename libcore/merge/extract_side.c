#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/merge/extract_impl.h"

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "extracting: no memory");
}

static int add_piece(struct extract_weight *w, const struct extract_piece *piece, struct err *err)
{
    if (w->n_pieces == w->cap) {
        size_t cap = w->cap ? 2 * w->cap : 1;
        void *p = sys_reallocarray(w->pieces, cap, sizeof *w->pieces);
        if (!p)
            return no_memory(err);
        w->pieces = p;
        w->cap = cap;
    }
    w->pieces[w->n_pieces++] = *piece;
    return 0;
}

static int place(struct extract_side *s, const struct checkpoint_tensor *t, struct err *err)
{
    const char *folder = checkpoint_folder(s->checkpoint);
    const struct model_module *m;
    struct weight_place at;
    uint32_t n_rows, n_cols;
    if (modules_tensor_is_inert(t->name))
        return 0;
    int rc = modules_place_tensor(s->modules, t->name, &m, &at, &n_rows, &n_cols, err);
    if (rc)
        return err_set(err, ERR_REFUSED, "%s:%s: no weight of this architecture", folder, t->name);
    if (!dtype_is_float(t->value.dtype))
        return err_set(err, ERR_REFUSED, "%s:%s: %s is no type of weights", folder, t->name,
                       dtype_name(t->value.dtype));
    struct extract_weight *w = &s->weights[m - s->modules->items];
    if (at.kind == WEIGHT_BIAS) {
        w->bias = t;
        return 0;
    }
    struct extract_piece piece = {t, at.expert, at.row0 - m->place.row0, n_rows};
    if (at.expert < 0)
        piece.row0 = 0;
    return add_piece(w, &piece, err);
}

int extract_side_open(struct extract_side *s, const char *folder, struct err *err)
{
    *s = (struct extract_side){0};
    int rc = config_read(&s->config, folder, err);
    if (!rc)
        rc = modules_open(&s->modules, &s->config, err);
    if (!rc)
        rc = checkpoint_open(&s->checkpoint, folder, err);
    if (!rc && !(s->weights = sys_calloc(s->modules->n + 1, sizeof *s->weights)))
        rc = no_memory(err);
    for (size_t i = 0; !rc && i < s->modules->n; i++)
        s->weights[i].module = &s->modules->items[i];
    for (size_t i = 0; !rc && i < checkpoint_count(s->checkpoint); i++)
        rc = place(s, checkpoint_at(s->checkpoint, i), err);
    return rc;
}

void extract_side_release(struct extract_side *s)
{
    for (size_t i = 0; s->weights && i < s->modules->n; i++)
        sys_free(s->weights[i].pieces);
    sys_free(s->weights);
    modules_free(s->modules);
    checkpoint_free(s->checkpoint);
    config_release(&s->config);
    *s = (struct extract_side){0};
}

const struct extract_weight *extract_side_find(const struct extract_side *s,
                                               const struct model_module *like)
{
    const struct model_module *m = modules_find(s->modules, like->name, like->parameter);
    return m ? &s->weights[m - s->modules->items] : NULL;
}

/* Which piece has this row of this expert, and where in it. */
static const struct extract_piece *piece_at(const struct extract_weight *w, uint32_t expert,
                                            size_t row, size_t *tensor_row, size_t *n_left)
{
    for (size_t i = 0; i < w->n_pieces; i++) {
        const struct extract_piece *p = &w->pieces[i];
        if (p->expert >= 0 && (uint32_t)p->expert != expert)
            continue;
        if (row < p->row0 || row - p->row0 >= p->n_rows)
            continue;
        *tensor_row = row - p->row0;
        *n_left = p->n_rows - *tensor_row;
        if (p->expert < 0)
            *tensor_row += (size_t)expert * w->module->d_out;
        return p;
    }
    return NULL;
}

int extract_rows(const struct extract_weight *w, uint32_t expert, size_t row0, size_t n,
                 double *out, struct err *err)
{
    size_t cols = w->module->d_in ? w->module->d_in : 1;
    while (n) {
        size_t row, left;
        const struct extract_piece *p = piece_at(w, expert, row0, &row, &left);
        if (!p)
            return err_set(err, ERR_REFUSED, "%s: row %zu of it is not in the checkpoint",
                           w->module->name, row0);
        size_t count = left < n ? left : n, size = dtype_bits(p->tensor->value.dtype) / 8;
        dtype_to_f64(p->tensor->value.dtype,
                     (const char *)p->tensor->value.data + row * cols * size, out, count * cols);
        out += count * cols;
        row0 += count;
        n -= count;
    }
    return 0;
}
