#include "libcore/format/image.h"

#include <stdlib.h>
#include <string.h>

#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"

struct image_item {
    const char *name;
    struct image_view view;
    struct tensor value; // type and shape as the file will say
};

void image_init(struct image *img)
{
    memset(img, 0, sizeof *img);
    arena_init(&img->arena);
}

void image_release(struct image *img)
{
    sys_free(img->items);
    arena_release(&img->arena);
    memset(img, 0, sizeof *img);
}

struct image_view image_view_of(const struct tensor *t)
{
    struct image_view v = {.dtype = t->dtype, .n_dims = t->n_dims, .data = t->data};
    uint64_t stride = 1;
    for (uint32_t d = t->n_dims; d-- > 0;) {
        v.shape[d] = t->shape[d];
        v.stride[d] = stride;
        stride *= t->shape[d];
    }
    return v;
}

struct image_view image_view_transposed(const struct tensor *t)
{
    struct image_view v = image_view_of(t);
    uint32_t a = v.n_dims - 2, b = v.n_dims - 1;
    uint64_t shape = v.shape[a], stride = v.stride[a];
    v.shape[a] = v.shape[b];
    v.stride[a] = v.stride[b];
    v.shape[b] = shape;
    v.stride[b] = stride;
    return v;
}

static uint64_t count(uint32_t n_dims, const uint64_t *shape)
{
    uint64_t n = 1;
    for (uint32_t d = 0; d < n_dims; d++)
        n *= shape[d];
    return n;
}

int image_add(struct image *img, const char *name, const struct image_view *view, uint32_t n_dims,
              const uint64_t *shape, struct err *err)
{
    if (img->n == img->cap) {
        size_t cap = img->cap ? 2 * img->cap : 64;
        void *p = sys_reallocarray(img->items, cap, sizeof *img->items);
        if (!p)
            return err_set(err, ERR_NO_MEMORY, "%s: no memory", name);
        img->items = p;
        img->cap = cap;
    }
    struct image_item *item = &img->items[img->n];
    *item = (struct image_item){.view = *view};
    item->value.dtype = view->dtype;
    item->value.n_dims = n_dims ? n_dims : view->n_dims;
    memcpy(item->value.shape, n_dims ? shape : view->shape,
           item->value.n_dims * sizeof *item->value.shape);
    if (count(view->n_dims, view->shape) != tensor_n_values(&item->value))
        return err_set(err, ERR_INTERNAL, "%s: its view has another number of values", name);
    item->name = arena_strdup(&img->arena, name);
    if (!item->name)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", name);
    img->n++;
    return 0;
}

/* Wide types first: then every tensor is aligned to its type. */
static int by_width(const void *a, const void *b)
{
    const struct image_item *x = a, *y = b;
    int order = (int)dtype_bits(y->value.dtype) - (int)dtype_bits(x->value.dtype);
    return order ? order : strcmp(x->name, y->name);
}

/* The last two dimensions: rows of values that lie side by side, or one by one. */
static void copy_plane(const struct image_view *v, uint32_t d, size_t size, const char *from,
                       char **to)
{
    uint64_t n = v->shape[d];
    if (v->stride[d] == 1) {
        memcpy(*to, from, n * size);
        *to += n * size;
        return;
    }
    for (uint64_t i = 0; i < n; i++, *to += size)
        memcpy(*to, from + i * v->stride[d] * size, size);
}

static void copy_view(const struct image_view *v, char *to)
{
    size_t size = dtype_bits(v->dtype) / 8;
    uint64_t index[LIMIT_TENSOR_DIMS] = {0};
    if (count(v->n_dims, v->shape) == 0)
        return;
    if (v->n_dims == 0) {
        memcpy(to, v->data, size);
        return;
    }
    for (;;) {
        uint64_t at = 0;
        for (uint32_t d = 0; d + 1 < v->n_dims; d++)
            at += index[d] * v->stride[d];
        copy_plane(v, v->n_dims - 1, size, (const char *)v->data + at * size, &to);
        uint32_t d = v->n_dims - 1;
        while (d > 0 && ++index[d - 1] == v->shape[d - 1])
            index[--d] = 0;
        if (d == 0)
            return;
    }
}

static void add_entry(struct strbuf *sb, const struct image_item *item, uint64_t begin)
{
    strbuf_addc(sb, ',');
    strbuf_add_json(sb, item->name, strlen(item->name));
    strbuf_addf(sb, ":{\"dtype\":\"%s\",\"shape\":[", dtype_name(item->value.dtype));
    for (uint32_t d = 0; d < item->value.n_dims; d++)
        strbuf_addf(sb, d ? ",%llu" : "%llu", (unsigned long long)item->value.shape[d]);
    strbuf_addf(sb, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)begin,
                (unsigned long long)(begin + tensor_n_bytes(&item->value)));
}

int image_finish(struct image *img, char **bytes, size_t *n, struct err *err)
{
    struct strbuf sb;
    uint64_t total = 0;
    *bytes = NULL;
    if (img->n)
        qsort(img->items, img->n, sizeof *img->items, by_width);
    strbuf_init(&sb);
    strbuf_adds(&sb, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < img->n; i++) {
        add_entry(&sb, &img->items[i], total);
        total += tensor_n_bytes(&img->items[i].value);
    }
    strbuf_addc(&sb, '}');
    while (sb.len % 8 && !sb.failed)
        strbuf_addc(&sb, ' ');
    uint64_t header = sb.len;
    *bytes = sb.failed || total > SIZE_MAX - header - 8 ? NULL : sys_malloc(8 + header + total);
    if (!*bytes) {
        strbuf_release(&sb);
        return err_set(err, ERR_NO_MEMORY, "no memory for %llu bytes of tensors",
                       (unsigned long long)total);
    }
    for (int i = 0; i < 8; i++)
        (*bytes)[i] = (char)(header >> 8 * i);
    memcpy(*bytes + 8, sb.data, header);
    char *to = *bytes + 8 + header;
    for (size_t i = 0; i < img->n; i++) {
        copy_view(&img->items[i].view, to);
        to += tensor_n_bytes(&img->items[i].value);
    }
    *n = (size_t)(8 + header + total);
    strbuf_release(&sb);
    return 0;
}
