/* Loading a base into a back end: a fake one that notes what it is given. */
#include "libcore/model/load.h"

#include <jansson.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/safetensors_writer.h"
#include "tests/lib/test.h"

/* tiers: check asan tsan */

struct fake {
    struct backend base; // first
    atomic_uint n_loads, n_ready;
    _Atomic uint64_t n_values, sum; // order does not matter
    int fail_with;
};

static int fake_load(struct backend *be, struct device_model *m, const struct weight_place *place,
                     const struct tensor *src, struct err *err)
{
    struct fake *f = (struct fake *)be;
    (void)m;
    if (f->fail_with)
        return err_set(err, f->fail_with, "no such type");
    uint64_t sum = place->row0 * 31 + place->layer * 7 + (uint64_t)place->site;
    for (uint64_t i = 0; i < tensor_n_bytes(src); i++)
        sum = sum * 131 + ((const uint8_t *)src->data)[i];
    f->n_loads++;
    f->n_values += tensor_n_values(src);
    f->sum += sum;
    return 0;
}

static int fake_ready(struct backend *be, struct device_model *m, struct err *err)
{
    (void)m;
    (void)err;
    ((struct fake *)be)->n_ready++;
    return 0;
}

static const struct backend_ops fake_ops = {.weight_load = fake_load, .model_ready = fake_ready};

/* Takes the bytes in pieces of seven, then goes on as if it had been given a view. */
static int fake_read(struct backend *be, struct device_model *m, const struct weight_place *place,
                     const struct tensor *src, const struct weight_source *from, struct err *err)
{
    struct tensor whole = *src;
    size_t n = tensor_n_bytes(src);
    char *bytes = sys_malloc(n + 1);
    int rc = 0;
    EXPECT(src->data == NULL);
    for (size_t at = 0; rc == 0 && at < n; at += 7)
        rc = from->read(from->user, bytes + at, n - at < 7 ? n - at : 7, err);
    whole.data = bytes;
    rc = rc ? rc : fake_load(be, m, place, &whole, err);
    sys_free(bytes);
    return rc;
}

static const struct backend_ops reading_ops = {
    .weight_load = fake_load, .weight_read = fake_read, .model_ready = fake_ready};

struct model {
    struct model_config config;
    struct model_modules *modules;
};

static void open_model(struct model *m, const char *more)
{
    static const char base[] =
        "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":8,"
        "\"intermediate_size\":12,\"num_hidden_layers\":2,\"num_attention_heads\":2,"
        "\"num_key_value_heads\":1,\"head_dim\":4,\"vocab_size\":10,\"rms_norm_eps\":1e-5,"
        "\"max_position_embeddings\":64,\"rope_theta\":10000.0,\"hidden_act\":\"silu\","
        "\"tie_word_embeddings\":false,\"torch_dtype\":\"bfloat16\"}";
    struct err err = {0};
    json_t *json = json_loads(base, 0, NULL), *other = json_loads(more, 0, NULL);
    json_object_update(json, other);
    CHECK_OK(config_from_json(&m->config, json, "test", &err), err);
    CHECK_OK(modules_open(&m->modules, &m->config, &err), err);
    json_decref(json);
    json_decref(other);
}

static void close_model(struct model *m)
{
    modules_free(m->modules);
    config_release(&m->config);
}

/* One tensor of the written checkpoint: a name, and its shape where it differs from the module's.
 */
struct change {
    const char *name; // NULL: none
    bool leave_out, add;
    uint64_t rows;
};

static void put(struct safetensors_writer *w, const char *name, uint64_t rows, uint64_t cols,
                bool declare)
{
    uint64_t shape[2] = {rows, cols}, n = rows * (cols ? cols : 1);
    struct err err = {0};
    if (declare) {
        CHECK_OK(safetensors_writer_declare(w, name, DTYPE_BF16, cols ? 2 : 1, shape, &err), err);
        return;
    }
    uint16_t *values = sys_malloc(n * sizeof *values);
    for (uint64_t i = 0; i < n; i++)
        values[i] = (uint16_t)(0x3F00 + i % 77 + strlen(name));
    CHECK_OK(safetensors_writer_put(w, name, 0, values, n * sizeof *values, &err), err);
    sys_free(values);
}

/* Writes every module's weight into <folder>/model.safetensors, with one change. */
static void write_checkpoint(const struct model *m, const char *folder, struct change change)
{
    struct err err = {0};
    struct safetensors_writer *w;
    char path[4352], name[256];
    CHECK_OK(file_make_folders(folder, &err), err);
    snprintf(path, sizeof path, "%s/config.json", folder);
    CHECK_OK(file_write_atomic(path, "{}", 2, &err), err);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    CHECK_OK(safetensors_writer_open(&w, path, &err), err);
    for (int declare = 1; declare >= 0; declare--) {
        for (size_t i = 0; i < m->modules->n; i++) {
            const struct model_module *mod = &m->modules->items[i];
            snprintf(name, sizeof name, "%s.%s", mod->name, mod->parameter);
            bool changed = change.name && !change.add && strcmp(name, change.name) == 0;
            if (!(changed && change.leave_out))
                put(w, name, changed ? change.rows : mod->d_out, mod->d_in, declare);
        }
        if (change.add)
            put(w, change.name, change.rows, 8, declare);
        if (declare)
            CHECK_OK(safetensors_writer_begin(w, &err), err);
    }
    CHECK_OK(safetensors_writer_finish(w, &err), err);
    safetensors_writer_free(w);
}

struct seen {
    uint64_t done, total;
    unsigned calls;
};

static void note_progress(void *user, uint64_t done, uint64_t total)
{
    struct seen *s = user;
    s->calls++;
    s->done = done;
    s->total = total;
}

static int load(struct fake *f, const struct model *m, const char *folder, struct seen *seen,
                struct err *err)
{
    struct checkpoint *ckpt;
    *f = (struct fake){.base = {&fake_ops}, .fail_with = f->fail_with};
    struct model_load_options opt = {.n_threads = 3, .progress = note_progress, .user = seen};
    err_clear(err);
    int rc = checkpoint_open(&ckpt, folder, err);
    if (rc == 0)
        rc = model_load(&f->base, NULL, ckpt, &m->config, m->modules, &opt, err);
    checkpoint_free(ckpt);
    return rc;
}

static void folder_of(char *path, size_t n, const char *name)
{
    snprintf(path, n, "%s/%s", test_tmp(), name);
}

TEST(every_tensor_is_loaded_once_and_progress_ends_at_the_total)
{
    struct model m;
    struct fake f = {0};
    struct seen seen = {0};
    struct err err = {0};
    char folder[4096];
    folder_of(folder, sizeof folder, "sound");
    open_model(&m, "{}");
    write_checkpoint(&m, folder, (struct change){0});
    CHECK_OK(load(&f, &m, folder, &seen, &err), err);
    CHECK_INT(f.n_loads, m.modules->n);
    CHECK_INT(f.n_ready, 1);
    CHECK_INT(seen.calls, m.modules->n);
    CHECK(seen.total > 0 && seen.done == seen.total);
    close_model(&m);
}

TEST(a_tied_models_head_is_left_out)
{
    struct model m;
    struct fake f = {0};
    struct seen seen = {0};
    struct err err = {0};
    char folder[4096];
    folder_of(folder, sizeof folder, "tied");
    open_model(&m, "{\"tie_word_embeddings\":true}");
    write_checkpoint(&m, folder, (struct change){0}); // with an lm_head.weight
    CHECK_OK(load(&f, &m, folder, &seen, &err), err);
    CHECK_INT(f.n_loads, m.modules->n - 1);
    close_model(&m);
}

TEST(strangers_wrong_shapes_and_refused_types_are_named)
{
    struct model m;
    struct fake f = {0};
    struct seen seen = {0};
    struct err err = {0};
    char folder[4096];
    folder_of(folder, sizeof folder, "stranger");
    open_model(&m, "{}");
    write_checkpoint(&m, folder,
                     (struct change){"model.layers.0.self_attn.q_prj.weight", false, true, 8});
    CHECK_CODE(load(&f, &m, folder, &seen, &err), ERR_REFUSED, err);
    CHECK_MSG(strstr(err.msg, "stranger:model.layers.0.self_attn.q_prj.weight") &&
                  strstr(err.msg, "q_proj"),
              "%s", err.msg);
    CHECK_INT(f.n_ready, 0);
    folder_of(folder, sizeof folder, "shape");
    write_checkpoint(&m, folder,
                     (struct change){"model.layers.1.mlp.up_proj.weight", false, false, 13});
    CHECK_CODE(load(&f, &m, folder, &seen, &err), ERR_CORRUPT, err);
    CHECK_MSG(strstr(err.msg, "up_proj.weight: shape [13, 8], want [12, 8]"), "%s", err.msg);
    folder_of(folder, sizeof folder, "sound2");
    write_checkpoint(&m, folder, (struct change){0});
    f.fail_with = ERR_REFUSED;
    CHECK_CODE(load(&f, &m, folder, &seen, &err), ERR_REFUSED, err);
    CHECK_MSG(strstr(err.msg, "sound2:") && strstr(err.msg, "no such type"), "%s", err.msg);
    close_model(&m);
}

TEST(made_up_weights_are_whole_and_the_same_for_the_same_seed)
{
    static const char *const kinds[] = {
        "{}", "{\"architectures\":[\"Qwen2ForCausalLM\"],\"model_type\":\"qwen2\"}",
        "{\"architectures\":[\"MixtralForCausalLM\"],\"model_type\":\"mixtral\","
        "\"num_local_experts\":3,\"num_experts_per_tok\":2}"};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        struct model m;
        struct err err = {0};
        uint64_t want = 0, sums[3];
        open_model(&m, kinds[i]);
        for (size_t j = 0; j < m.modules->n; j++) {
            const struct model_module *mod = &m.modules->items[j];
            want += (uint64_t)mod->d_out * (mod->d_in ? mod->d_in : 1) *
                        (mod->n_experts ? mod->n_experts : 1) +
                    (mod->has_bias ? mod->d_out : 0);
        }
        for (uint64_t seed = 0; seed < 3; seed++) {
            struct fake f = {.base = {&fake_ops}};
            struct model_load_options opt = {.n_threads = (unsigned)seed + 1};
            CHECK_OK(model_load_dummy(&f.base, NULL, &m.config, m.modules, seed / 2, &opt, &err),
                     err);
            CHECK_INT(f.n_values, want);
            sums[seed] = f.sum;
        }
        CHECK(sums[0] == sums[1] && sums[0] != sums[2]);
        close_model(&m);
    }
}

// ---- bytes that the back end reads itself, and recorded digests

struct recorded {
    const struct checkpoint *ckpt;
    const char *spoiled; // its digest is another tensor's
};

static bool digest_of(void *arg, const char *name, struct digest *out)
{
    const struct recorded *r = arg;
    const struct checkpoint_tensor *t = checkpoint_find(r->ckpt, name);
    if (strcmp(name, "model.norm.weight") == 0)
        return false; // nothing was recorded for it
    EXPECT_INT(digest_buffer(t->value.data, tensor_n_bytes(&t->value), out, NULL), 0);
    if (r->spoiled && strcmp(r->spoiled, name) == 0)
        out->bytes[31] ^= 1;
    return true;
}

static int load_recorded(struct fake *f, const struct backend_ops *ops, const struct model *m,
                         const char *folder, const char *spoiled, struct model_load_stats *stats,
                         struct err *err)
{
    struct checkpoint *ckpt;
    *f = (struct fake){.base = {ops}};
    err_clear(err);
    int rc = checkpoint_open(&ckpt, folder, err);
    struct recorded r = {ckpt, spoiled};
    struct model_load_options opt = {
        .n_threads = 4, .digest_of = digest_of, .digests = &r, .stats = stats};
    if (rc == 0)
        rc = model_load(&f->base, NULL, ckpt, &m->config, m->modules, &opt, err);
    checkpoint_free(ckpt);
    return rc;
}

TEST(what_is_read_in_pieces_is_what_is_mapped_and_digests_are_compared_beside_it)
{
    struct model m;
    struct fake mapped, read;
    struct model_load_stats stats;
    struct err err = {0};
    char folder[4096];
    folder_of(folder, sizeof folder, "pieces");
    open_model(&m, "{}");
    write_checkpoint(&m, folder, (struct change){0});
    CHECK_OK(load_recorded(&mapped, &fake_ops, &m, folder, NULL, &stats, &err), err);
    CHECK_OK(load_recorded(&read, &reading_ops, &m, folder, NULL, &stats, &err), err);
    CHECK(read.sum == mapped.sum && read.n_values == mapped.n_values);
    CHECK_INT(stats.n_tensors, m.modules->n);
    CHECK_INT(stats.n_checked, m.modules->n - 1);
    CHECK_INT(stats.n_threads, 4);
    CHECK_INT(stats.bytes, read.n_values * 2);
    const struct backend_ops *const all[] = {&fake_ops, &reading_ops};
    for (int i = 0; i < 2; i++) {
        CHECK_CODE(load_recorded(&read, all[i], &m, folder, "model.layers.1.mlp.up_proj.weight",
                                 &stats, &err),
                   ERR_CORRUPT, err);
        CHECK_MSG(strstr(err.msg, "pieces:model.layers.1.mlp.up_proj.weight") &&
                      strstr(err.msg, "digest"),
                  "%s", err.msg);
        CHECK_INT(read.n_ready, 0);
    }
    close_model(&m);
}

TEST(a_shard_that_was_cut_after_it_was_opened_is_corrupt)
{
    struct model m;
    struct fake f = {.base = {&reading_ops}};
    struct err err = {0};
    struct checkpoint *ckpt;
    char folder[4096], path[4352];
    folder_of(folder, sizeof folder, "cut");
    open_model(&m, "{}");
    write_checkpoint(&m, folder, (struct change){0});
    CHECK_OK(checkpoint_open(&ckpt, folder, &err), err);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    CHECK_INT(truncate(path, 4096), 0);
    CHECK_CODE(model_load(&f.base, NULL, ckpt, &m.config, m.modules, NULL, &err), ERR_CORRUPT, err);
    CHECK_MSG(strstr(err.msg, "4096 bytes"), "%s", err.msg);
    checkpoint_free(ckpt);
    close_model(&m);
}
