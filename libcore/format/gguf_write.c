/*
 * A GGUF LoRA file as convert_lora_to_gguf.py writes it: version 3, data aligned to 32 bytes, rows
 * of q and k in ggml's rotary order for the architectures that have them so. gguf_lora.c reads it.
 */
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/format/foreign_write_impl.h"
#include "libcore/format/gguf.h"
#include "libcore/format/gguf_names.h"

enum { VERSION = 3, ALIGNMENT = 32, TYPE_F32 = 6, TYPE_TEXT = 8 };

struct out_tensor {
    const char *name;
    struct tensor value;
};

struct writer {
    const struct adapter *a;
    const struct gguf_target *target;
    struct arena arena;
    struct out_tensor *items;
    size_t n;
    float alpha;
    struct err *err;
};

static int no_memory(struct writer *w)
{
    return err_set(w->err, ERR_NO_MEMORY, "no memory for a GGUF file");
}

static bool ends_with(const char *s, const char *ending)
{
    size_t n = strlen(s), k = strlen(ending);
    return n > k && strcmp(s + n - k, ending) == 0;
}

/* ---- names ---- */

/* llama.cpp's name of a module, or NULL. */
static const char *ggml_name(struct writer *w, const char *module)
{
    size_t n;
    const struct gguf_module_name *names = gguf_module_names(&n);
    for (size_t i = 0; i < n; i++) {
        const char *hash = strchr(names[i].module, '#'), *ggml_hash = strchr(names[i].ggml, '#');
        if (names[i].expert ||
            (names[i].only && strcmp(names[i].only, w->target->architecture) != 0))
            continue;
        if (!hash && strcmp(names[i].module, module) == 0)
            return names[i].ggml;
        size_t before = hash ? (size_t)(hash - names[i].module) : 0;
        if (!hash || strncmp(module, names[i].module, before) != 0)
            continue;
        const char *digits = module + before;
        int n_digits = (int)strspn(digits, "0123456789");
        if (n_digits && strcmp(digits + n_digits, hash + 1) == 0)
            return arena_printf(&w->arena, "%.*s%.*s%s", (int)(ggml_hash - names[i].ggml),
                                names[i].ggml, n_digits, digits, ggml_hash + 1);
    }
    return NULL;
}

/* ---- tensors ---- */

static int type_of(enum dtype t)
{
    return t == DTYPE_F32    ? GGUF_TYPE_F32
           : t == DTYPE_F16  ? GGUF_TYPE_F16
           : t == DTYPE_BF16 ? GGUF_TYPE_BF16
                             : -1;
}

/* Row (h, half, i) of B becomes row (h, i, half). */
static int permuted(struct writer *w, struct tensor *t, uint32_t heads, const char *module)
{
    uint64_t rows = t->shape[0];
    size_t row = (size_t)t->shape[1] * (dtype_bits(t->dtype) / 8);
    if (!heads || rows % (2 * (uint64_t)heads))
        return err_set(w->err, ERR_REFUSED, "%s: %llu rows are not %u heads of the base", module,
                       (unsigned long long)rows, heads);
    char *to = arena_array(&w->arena, (size_t)rows, row);
    if (!to)
        return no_memory(w);
    uint64_t half = rows / heads / 2;
    for (uint64_t i = 0; i < rows; i++) {
        uint64_t head = i / (2 * half), side = i / half % 2, k = i % half;
        memcpy(to + (head * 2 * half + 2 * k + side) * row, tensor_row(t, i), row);
    }
    t->data = to;
    return 0;
}

static int add(struct writer *w, const char *module, const char *ending, const struct tensor *t)
{
    struct out_tensor *item = &w->items[w->n++];
    item->name = arena_printf(&w->arena, "%s.weight%s", module, ending);
    item->value = *t;
    return item->name && t->data ? 0 : no_memory(w);
}

static int add_module(struct writer *w, const struct adapter_module *m)
{
    const char *name = ggml_name(w, m->name);
    if (!name)
        return err_set(w->err, ERR_REFUSED, "%s: has no name in llama.cpp's %s", m->name,
                       w->target->architecture);
    if (w->target->tied && strcmp(name, "output") == 0)
        return err_set(w->err, ERR_REFUSED,
                       "%s: the base's embeddings are tied, llama.cpp has no tensor for it",
                       m->name);
    if (type_of(m->a.dtype) < 0 || type_of(m->b.dtype) < 0)
        return err_set(w->err, ERR_REFUSED, "%s: %s has no form in GGUF", m->name,
                       dtype_name(type_of(m->a.dtype) < 0 ? m->a.dtype : m->b.dtype));
    struct tensor a = m->embedding ? foreign_write_transposed(&w->arena, &m->a) : m->a, b = m->b;
    bool q = ends_with(m->name, ".q_proj"), k = ends_with(m->name, ".k_proj");
    int rc = 0;
    if ((q || k) && gguf_rows_are_permuted(w->target->architecture))
        rc = permuted(w, &b, q ? w->target->n_heads : w->target->n_kv_heads, m->name);
    if (!rc)
        rc = add(w, name, ".lora_a", &a);
    return rc ? rc : add(w, name, ".lora_b", &b);
}

/* One alpha for all: of adapters whose scale is alpha / rank it is, whatever the ranks. */
static int find_alpha(struct writer *w)
{
    for (size_t i = 0; i < w->a->n_modules; i++) {
        const struct adapter_module *m = &w->a->modules[i];
        float alpha;
        int rc = foreign_write_alpha(m, "GGUF", &alpha, w->err);
        if (rc)
            return rc;
        if (i && alpha != w->alpha)
            return err_set(w->err, ERR_REFUSED,
                           "%s: alpha %g, but %s has %g, and GGUF has one for all; --bake-scale "
                           "makes them one",
                           m->name, (double)alpha, w->a->modules[0].name, (double)w->alpha);
        w->alpha = alpha;
    }
    return 0;
}

/* ---- bytes ---- */

static void put_number(struct strbuf *sb, uint64_t v, int n)
{
    for (int i = 0; i < n; i++)
        strbuf_addc(sb, (char)(v >> 8 * i));
}

static void put_text(struct strbuf *sb, const char *text)
{
    put_number(sb, strlen(text), 8);
    strbuf_adds(sb, text);
}

static void put_pair(struct strbuf *sb, const char *key, const char *value)
{
    put_text(sb, key);
    put_number(sb, TYPE_TEXT, 4);
    put_text(sb, value);
}

static void pad(struct strbuf *sb)
{
    while (sb->len % ALIGNMENT && !sb->failed)
        strbuf_addc(sb, '\0');
}

static void put_header(struct writer *w, struct strbuf *sb)
{
    uint32_t bits;
    memcpy(&bits, &w->alpha, sizeof bits);
    strbuf_adds(sb, "GGUF");
    put_number(sb, VERSION, 4);
    put_number(sb, w->n, 8);
    put_number(sb, w->a->name ? 5 : 4, 8);
    put_pair(sb, "general.architecture", w->target->architecture);
    put_pair(sb, "general.type", "adapter");
    if (w->a->name)
        put_pair(sb, "general.name", w->a->name);
    put_pair(sb, "adapter.type", "lora");
    put_text(sb, "adapter.lora.alpha");
    put_number(sb, TYPE_F32, 4);
    put_number(sb, bits, 4);
    uint64_t offset = 0;
    for (size_t i = 0; i < w->n; i++) {
        const struct tensor *t = &w->items[i].value;
        put_text(sb, w->items[i].name);
        put_number(sb, t->n_dims, 4);
        for (uint32_t d = t->n_dims; d-- > 0;)
            put_number(sb, t->shape[d], 8);
        put_number(sb, (uint64_t)type_of(t->dtype), 4);
        put_number(sb, offset, 8);
        offset += (tensor_n_bytes(t) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    pad(sb);
}

static int write_file(struct writer *w, const char *folder)
{
    struct strbuf sb;
    strbuf_init(&sb);
    put_header(w, &sb);
    for (size_t i = 0; i < w->n && !sb.failed; i++) {
        strbuf_add(&sb, w->items[i].value.data, (size_t)tensor_n_bytes(&w->items[i].value));
        pad(&sb);
    }
    char *path = file_join(folder, "adapter.gguf");
    int rc = path && !sb.failed ? file_write_atomic(path, sb.data, sb.len, w->err) : no_memory(w);
    sys_free(path);
    strbuf_release(&sb);
    return rc;
}

int gguf_lora_write(const struct adapter *a, const char *folder, const struct gguf_target *target,
                    struct err *err)
{
    struct writer w = {.a = a, .target = target, .err = err};
    int rc = foreign_write_check(a, "GGUF", ADAPTER_LORA | ADAPTER_HEAD | ADAPTER_EMBED, err);
    if (rc)
        return rc;
    arena_init(&w.arena);
    w.items = arena_array(&w.arena, 2 * a->n_modules, sizeof *w.items);
    rc = w.items ? find_alpha(&w) : no_memory(&w);
    for (size_t i = 0; !rc && i < a->n_modules; i++)
        rc = add_module(&w, &a->modules[i]);
    if (!rc)
        rc = write_file(&w, folder);
    arena_release(&w.arena);
    return rc;
}
