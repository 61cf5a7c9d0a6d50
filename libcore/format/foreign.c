#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/format/foreign_impl.h"
#include "libcore/format/peft_impl.h"

struct foreign_item {
    const char *key;
    enum foreign_part part;
    struct tensor value;
};

int foreign_init(struct foreign *f, const char *path, const char *format,
                 const struct peft_options *opt, struct err *err)
{
    *f = (struct foreign){.path = path, .format = format, .opt = opt, .err = err};
    image_init(&f->img);
    f->warnings = json_array();
    return f->warnings ? 0 : foreign_no_memory(f);
}

void foreign_release(struct foreign *f)
{
    sys_free(f->items);
    sys_free(f->modules);
    image_release(&f->img);
    json_decref(f->warnings);
}

int foreign_no_memory(struct foreign *f)
{
    return err_set(f->err, ERR_NO_MEMORY, "%s: no memory", f->path);
}

int foreign_refuse(struct foreign *f, const char *tensor, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    err_setv(f->err, ERR_REFUSED, fmt, args);
    va_end(args);
    err_prefix(f->err, "%s:%s", f->path, tensor);
    return ERR_REFUSED;
}

int foreign_warn(struct foreign *f, const char *text)
{
    return json_array_append_new(f->warnings, json_string(text)) ? foreign_no_memory(f) : 0;
}

int foreign_add(struct foreign *f, const char *key, size_t key_length, enum foreign_part part,
                const struct tensor *value)
{
    if (f->n_items == f->cap_items) {
        size_t cap = f->cap_items ? 2 * f->cap_items : 64;
        void *p = sys_reallocarray(f->items, cap, sizeof *f->items);
        if (!p)
            return foreign_no_memory(f);
        f->items = p;
        f->cap_items = cap;
    }
    struct foreign_item *item = &f->items[f->n_items];
    *item = (struct foreign_item){.part = part, .value = *value};
    item->key = arena_strndup(&f->img.arena, key, key_length);
    if (!item->key)
        return foreign_no_memory(f);
    f->n_items++;
    return 0;
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const struct foreign_item *)a)->key, ((const struct foreign_item *)b)->key);
}

int foreign_add_module(struct foreign *f, const struct foreign_module *m)
{
    if (f->n_modules == f->cap_modules) {
        size_t cap = f->cap_modules ? 2 * f->cap_modules : 64;
        void *p = sys_reallocarray(f->modules, cap, sizeof *f->modules);
        if (!p)
            return foreign_no_memory(f);
        f->modules = p;
        f->cap_modules = cap;
    }
    f->modules[f->n_modules++] = *m;
    return 0;
}

static int check_parts(struct foreign *f, const struct foreign_module *m)
{
    for (int part = FOREIGN_A; part <= FOREIGN_B; part++) {
        if (!tensor_present(&m->parts[part]))
            return foreign_refuse(f, m->key, "has no %s", part == FOREIGN_A ? "A" : "B");
        if (!dtype_is_float(m->parts[part].dtype))
            return foreign_refuse(f, m->key, "%s is no type of weights; save it as float",
                                  dtype_name(m->parts[part].dtype));
    }
    return 0;
}

int foreign_group(struct foreign *f)
{
    if (!f->n_items)
        return err_set(f->err, ERR_REFUSED, "%s: no tensor of an adapter in it", f->path);
    qsort(f->items, f->n_items, sizeof *f->items, by_key);
    for (size_t i = 0; i < f->n_items;) {
        struct foreign_module m = {.key = f->items[i].key};
        for (; i < f->n_items && strcmp(f->items[i].key, m.key) == 0; i++) {
            struct tensor *part = &m.parts[f->items[i].part];
            if (tensor_present(part))
                return foreign_refuse(f, m.key, "two tensors mean the same part of it");
            *part = f->items[i].value;
        }
        int rc = check_parts(f, &m);
        if (!rc)
            rc = foreign_add_module(f, &m);
        if (rc)
            return rc;
    }
    return 0;
}

int foreign_take_factors(struct foreign *f, struct foreign_module *m)
{
    const struct tensor *a = &m->parts[FOREIGN_A], *b = &m->parts[FOREIGN_B];
    char text[128];
    if (a->n_dims > 2 || b->n_dims > 2)
        return foreign_refuse(f, m->key, "%s: convolutions are not computed",
                              tensor_shape_text(a, text, sizeof text));
    if (a->n_dims != 2 || b->n_dims != 2 || a->shape[0] != b->shape[1] || a->shape[0] == 0)
        return foreign_refuse(f, m->key, "A is %s, so B cannot be of %llu columns",
                              tensor_shape_text(a, text, sizeof text),
                              (unsigned long long)(b->n_dims == 2 ? b->shape[1] : 0));
    m->rank = a->shape[0];
    m->a = image_view_of(a);
    m->b = image_view_of(b);
    return 0;
}

int foreign_scalar(struct foreign *f, const char *key, const struct tensor *t, double *out)
{
    if (tensor_n_values(t) != 1 || !dtype_to_f64(t->dtype, t->data, out, 1))
        return foreign_refuse(f, key, "alpha is not one number of a float type");
    if (!isfinite(*out))
        return err_set(f->err, ERR_CORRUPT, "%s:%s: alpha is NaN or Inf", f->path, key);
    return 0;
}

/* ---- what a PEFT file would have said ---- */

/* The alpha whose quotient by the rank is the scale, to the last bit where there is one. */
static double alpha_for(double scale, uint64_t rank)
{
    double r = (double)rank, alpha = scale * r;
    if (alpha / r == scale)
        return alpha;
    double up = nextafter(alpha, INFINITY), down = nextafter(alpha, -INFINITY);
    return up / r == scale ? up : down / r == scale ? down : alpha;
}

static int add_pattern(struct foreign *f, json_t *patterns, const char *name, json_t *value)
{
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_addc(&sb, '^');
    for (const char *p = name; *p; p++) {
        if (*p == '.')
            strbuf_addc(&sb, '\\');
        strbuf_addc(&sb, *p);
    }
    bool bad = sb.failed || !value || json_object_set(patterns, strbuf_text(&sb), value) != 0;
    strbuf_release(&sb);
    json_decref(value);
    return bad ? foreign_no_memory(f) : 0;
}

static int make_config(struct foreign *f, json_t **out)
{
    const struct foreign_module *first = &f->modules[0];
    double alpha = alpha_for(first->scale, first->rank);
    json_t *ranks = json_object(), *alphas = json_object();
    bool dora = false;
    int rc = 0;
    for (size_t i = 0; !rc && i < f->n_modules; i++) {
        const struct foreign_module *m = &f->modules[i];
        double own = alpha_for(m->scale, m->rank);
        dora |= tensor_present(&m->parts[FOREIGN_MAGNITUDE]);
        if (m->rank != first->rank)
            rc = add_pattern(f, ranks, m->name, json_integer((json_int_t)m->rank));
        if (!rc && own != alpha)
            rc = add_pattern(f, alphas, m->name, json_real(own));
    }
    if (!rc) {
        *out = json_pack("{s:s, s:I, s:f, s:O, s:O, s:b, s:n, s:s?}", "peft_type", "LORA", "r",
                         (json_int_t)first->rank, "lora_alpha", alpha, "rank_pattern", ranks,
                         "alpha_pattern", alphas, "use_dora", (int)dora, "target_modules",
                         "base_model_name_or_path", f->base_name);
        rc = *out ? 0 : foreign_no_memory(f);
    }
    json_decref(ranks);
    json_decref(alphas);
    return rc;
}

static int add_tensor(struct foreign *f, const struct foreign_module *m, const char *ending,
                      const struct image_view *v, uint32_t n_dims, const uint64_t *shape)
{
    char *name = arena_printf(&f->img.arena, "base_model.model.%s%s", m->name, ending);
    return name ? image_add(&f->img, name, v, n_dims, shape, f->err) : foreign_no_memory(f);
}

static uint64_t count(const struct image_view *v)
{
    uint64_t n = 1;
    for (uint32_t d = 0; d < v->n_dims; d++)
        n *= v->shape[d];
    return n;
}

static int add_module(struct foreign *f, const struct foreign_module *m)
{
    // Views of permuted rows have more dimensions than the matrix that they fill.
    uint64_t a_shape[2] = {m->rank, count(&m->a) / m->rank};
    uint64_t b_shape[2] = {count(&m->b) / m->rank, m->rank};
    int rc =
        add_tensor(f, m, m->embedding ? ".lora_embedding_A" : ".lora_A.weight", &m->a, 2, a_shape);
    if (!rc)
        rc = add_tensor(f, m, m->embedding ? ".lora_embedding_B" : ".lora_B.weight", &m->b, 2,
                        b_shape);
    if (rc || !tensor_present(&m->parts[FOREIGN_MAGNITUDE]))
        return rc;
    struct image_view v = image_view_of(&m->parts[FOREIGN_MAGNITUDE]);
    uint64_t n = count(&v); // [out], or kohya's [out, 1]
    return add_tensor(f, m, ".lora_magnitude_vector", &v, 1, &n);
}

static int check_names(struct foreign *f)
{
    for (size_t i = 0; i < f->n_modules; i++) {
        if (f->modules[i].rank > LIMIT_RANK)
            return foreign_refuse(f, f->modules[i].key, "rank %llu, at most %d is computed",
                                  (unsigned long long)f->modules[i].rank, LIMIT_RANK);
    }
    return 0;
}

int foreign_build(struct foreign *f, struct adapter **out, const char *path)
{
    json_t *config = NULL;
    char *bytes = NULL;
    size_t n = 0;
    *out = NULL;
    int rc = check_names(f);
    if (!rc)
        rc = make_config(f, &config);
    for (size_t i = 0; !rc && i < f->n_modules; i++)
        rc = add_module(f, &f->modules[i]);
    if (!rc)
        rc = image_finish(&f->img, &bytes, &n, f->err);
    if (rc) {
        json_decref(config);
        return rc;
    }
    struct peft_image image = {.weights = f->path,
                               .format = f->format,
                               .config = config,
                               .bytes = bytes,
                               .n = n,
                               .warnings = f->warnings};
    return peft_read_image(out, path, &image, f->opt, f->err);
}
