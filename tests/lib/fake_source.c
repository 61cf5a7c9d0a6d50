#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libcore/base/sys.h"
#include "tests/lib/fake_impl.h"

static const char CONFIG[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":8,"
    "\"intermediate_size\":16,\"num_hidden_layers\":1,\"num_attention_heads\":2,"
    "\"num_key_value_heads\":1,\"head_dim\":4,\"vocab_size\":61,"
    "\"max_position_embeddings\":4096,\"rms_norm_eps\":1e-5,\"hidden_act\":\"silu\","
    "\"rope_theta\":10000.0,\"tie_word_embeddings\":false,\"torch_dtype\":\"float32\"}";
static const char MODULE[] = "model.layers.0.self_attn.q_proj"; // [8, 8]
enum { D_IN = 8, D_OUT = 8, MAX_RANK = 16, MAX_PACKS = 64 };

uint64_t fake_hash_text(const char *text)
{
    uint64_t h = 1469598103934665603u;
    for (; *text; text++)
        h = (h ^ (uint8_t)*text) * 1099511628211u;
    return h;
}

void fake_content_id(unsigned number, char id[DIGEST_HEX_CHARS + 1])
{
    snprintf(id, DIGEST_HEX_CHARS + 1, "%08x%056d", number, 0);
}

unsigned fake_rank(unsigned number)
{
    return 1 + number % 16;
}

// ---- adapters -----------------------------------------------------------------------------------

static struct tensor matrix(const void *data, uint64_t n_rows, uint64_t n_cols)
{
    return (struct tensor){
        .dtype = DTYPE_F32, .n_dims = n_cols ? 2 : 1, .shape = {n_rows, n_cols}, .data = data};
}

static bool fill_module(struct adapter *a, struct adapter_module *m, unsigned number)
{
    static const float values[MAX_RANK * 8] = {1};
    unsigned r = fake_rank(number);
    m->name = MODULE;
    m->parameter = "weight";
    if (number & FAKE_FULL) {
        uint64_t *full = arena_array(&a->arena, D_IN * D_OUT, sizeof(float));
        if (!full)
            return false;
        full[0] = fake_hash_text(a->content_id);
        m->full = matrix(full, D_OUT, D_IN);
        return true;
    }
    m->rank = r;
    m->alpha = r;
    m->scale = 1;
    m->a = matrix(values, r, D_IN);
    m->b = matrix(values, D_OUT, r);
    if (number & FAKE_DORA)
        m->magnitude = matrix(values, D_OUT, 0);
    return true;
}

struct adapter *fake_adapter(unsigned number)
{
    struct adapter *a;
    if (adapter_open(&a, NULL))
        return NULL;
    fake_content_id(number, a->content_id);
    a->name = "fake";
    a->format = "fake";
    a->modules = arena_array(&a->arena, 1, sizeof *a->modules);
    if (!a->modules || !fill_module(a, &a->modules[0], number)) {
        adapter_free(a);
        return NULL;
    }
    a->n_modules = 1;
    adapter_finish(a);
    return a;
}

// ---- the source ---------------------------------------------------------------------------------

struct pack {
    char id[DIGEST_HEX_CHARS + 1];
    void *data;
    uint64_t size;
};

struct fake_source {
    struct adapter_source base;
    pthread_mutex_t mutex;
    unsigned delay_us, failing, n_gets, n_pack_reads;
    int fail_code;
    struct pack packs[MAX_PACKS];
    unsigned n_packs;
};

static int source_get(struct adapter_source *s, const char *content_id, struct adapter **out,
                      struct err *err)
{
    struct fake_source *f = (struct fake_source *)s;
    unsigned number =
        (unsigned)strtoul((char[]){content_id[0], content_id[1], content_id[2], content_id[3],
                                   content_id[4], content_id[5], content_id[6], content_id[7], 0},
                          NULL, 16);
    pthread_mutex_lock(&f->mutex);
    unsigned delay_us = f->delay_us;
    int code = f->fail_code && f->failing == number ? f->fail_code : 0;
    f->n_gets++;
    pthread_mutex_unlock(&f->mutex);
    if (delay_us)
        usleep(delay_us);
    if (code)
        return err_set(err, code, "fake: adapter %u fails to load", number);
    *out = fake_adapter(number);
    return *out ? 0 : err_set(err, ERR_NO_MEMORY, "fake: no memory");
}

static struct pack *find_pack(struct fake_source *f, const char *content_id)
{
    for (unsigned i = 0; i < f->n_packs; i++) {
        if (strcmp(f->packs[i].id, content_id) == 0)
            return &f->packs[i];
    }
    return NULL;
}

static int source_pack_size(struct adapter_source *s, const char *content_id, const char *key,
                            uint64_t *size, struct err *err)
{
    struct fake_source *f = (struct fake_source *)s;
    (void)key;
    pthread_mutex_lock(&f->mutex);
    struct pack *p = find_pack(f, content_id);
    *size = p ? p->size : 0;
    pthread_mutex_unlock(&f->mutex);
    return p ? 0 : err_set(err, ERR_NOT_FOUND, "fake: no pack");
}

static int source_pack_read(struct adapter_source *s, const char *content_id, const char *key,
                            void *dst, uint64_t size, struct err *err)
{
    struct fake_source *f = (struct fake_source *)s;
    (void)key;
    pthread_mutex_lock(&f->mutex);
    struct pack *p = find_pack(f, content_id);
    if (p && p->size == size)
        memcpy(dst, p->data, size);
    f->n_pack_reads++;
    pthread_mutex_unlock(&f->mutex);
    return p && p->size == size ? 0 : err_set(err, ERR_CORRUPT, "fake: another size");
}

static int source_pack_write(struct adapter_source *s, const char *content_id, const char *key,
                             const void *data, uint64_t size, struct err *err)
{
    struct fake_source *f = (struct fake_source *)s;
    (void)key, (void)err;
    pthread_mutex_lock(&f->mutex);
    if (!find_pack(f, content_id) && f->n_packs < MAX_PACKS) {
        struct pack *p = &f->packs[f->n_packs++];
        memcpy(p->id, content_id, sizeof p->id);
        p->size = size;
        p->data = calloc(1, size ? size : 1);
        for (uint64_t at = 0; at < size; at += FAKE_BLOCK_BYTES) // the rest was never written
            memcpy((uint8_t *)p->data + at, (const uint8_t *)data + at, sizeof(uint64_t));
    }
    pthread_mutex_unlock(&f->mutex);
    return 0;
}

static const struct adapter_source_ops source_ops = {.get = source_get,
                                                     .pack_size = source_pack_size,
                                                     .pack_read = source_pack_read,
                                                     .pack_write = source_pack_write};

void fake_source_delay(struct fake_rig *rig, unsigned us)
{
    struct fake_source *f = (struct fake_source *)rig->source;
    pthread_mutex_lock(&f->mutex);
    f->delay_us = us;
    pthread_mutex_unlock(&f->mutex);
}

void fake_source_fail(struct fake_rig *rig, unsigned number, int code)
{
    struct fake_source *f = (struct fake_source *)rig->source;
    pthread_mutex_lock(&f->mutex);
    f->failing = number;
    f->fail_code = code;
    pthread_mutex_unlock(&f->mutex);
}

unsigned fake_source_gets(struct fake_rig *rig)
{
    struct fake_source *f = (struct fake_source *)rig->source;
    pthread_mutex_lock(&f->mutex);
    unsigned n = f->n_gets;
    pthread_mutex_unlock(&f->mutex);
    return n;
}

unsigned fake_source_pack_reads(struct fake_rig *rig)
{
    struct fake_source *f = (struct fake_source *)rig->source;
    pthread_mutex_lock(&f->mutex);
    unsigned n = f->n_pack_reads;
    pthread_mutex_unlock(&f->mutex);
    return n;
}

// ---- the rig ------------------------------------------------------------------------------------

int fake_open(struct fake_rig *rig, const struct fake_options *opt,
              const struct step_limits *limits, struct err *err)
{
    *rig = (struct fake_rig){0};
    json_t *json = json_loads(CONFIG, 0, NULL);
    int rc = config_from_json(&rig->config, json, "fake/config.json", err);
    json_decref(json);
    if (rc == 0)
        rc = modules_open(&rig->modules, &rig->config, err);
    if (rc)
        return rc;
    rig->be = (struct backend *)fake_new(opt, limits);
    struct fake_source *f = calloc(1, sizeof *f);
    if (!f)
        abort();
    f->base.ops = &source_ops;
    pthread_mutex_init(&f->mutex, NULL);
    rig->source = &f->base;
    return 0;
}

void fake_close(struct fake_rig *rig)
{
    struct fake_source *f = (struct fake_source *)rig->source;
    for (unsigned i = 0; f && i < f->n_packs; i++)
        free(f->packs[i].data);
    free(f);
    if (rig->be)
        fake_delete((struct fake *)rig->be);
    modules_free(rig->modules);
    config_release(&rig->config);
}

void fake_fail_submit(struct fake_rig *rig, unsigned n)
{
    atomic_store(&((struct fake *)rig->be)->fail_submit, n);
}

void fake_fail_result(struct fake_rig *rig, unsigned n)
{
    atomic_store(&((struct fake *)rig->be)->fail_result, n);
}

void fake_fail_upload(struct fake_rig *rig, unsigned n)
{
    atomic_store(&((struct fake *)rig->be)->fail_upload, n);
}

unsigned fake_n_weights(struct fake_rig *rig)
{
    return atomic_load(&((struct fake *)rig->be)->n_weights);
}

unsigned fake_n_images(struct fake_rig *rig)
{
    return atomic_load(&((struct fake *)rig->be)->n_images);
}

unsigned fake_n_slots(struct fake_rig *rig)
{
    struct fake *f = (struct fake *)rig->be;
    unsigned n = 0;
    for (uint32_t i = 0; i < f->limits.max_slots; i++)
        n += atomic_load(&f->slots[i].state) != ADAPTER_EMPTY;
    return n;
}
