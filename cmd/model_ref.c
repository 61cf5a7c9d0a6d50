#include "cmd/model_ref.h"

#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/checkpoint.h"
#include "libcore/format/hub.h"
#include "libcore/format/adapter_file.h"

int64_t cmd_lock_timeout_s = 30;

int cmd_store_open(struct cmd_context *ctx, bool create, struct store **out, struct err *err)
{
    struct store_options opt = {
        .create = create,
        .lock_timeout_ms = cmd_lock_timeout_s ? (uint32_t)cmd_lock_timeout_s * 1000 : 1,
    };
    int rc = store_open(out, ctx->store_path, &opt, err);
    if (rc == ERR_NO_STORE)
        cmd_hint("`lora import PATH` makes the store; --store DIR names another");
    else if (rc == ERR_CORRUPT)
        cmd_hint("`lora fsck --repair` rebuilds the index from what is in the store");
    return rc;
}

int cmd_store_open_if_there(struct cmd_context *ctx, struct store **out, struct err *err)
{
    int rc = store_open(out, ctx->store_path, NULL, err);
    if (rc != ERR_NO_STORE)
        return rc;
    err_clear(err);
    return 0;
}

static bool is_explicit_path(const char *ref)
{
    return ref[0] == '/' || strncmp(ref, "./", 2) == 0 || strncmp(ref, "../", 3) == 0 ||
           strcmp(ref, ".") == 0 || strcmp(ref, "..") == 0;
}

/* A path outside the store, of a kind that was asked for. */
static int use_path(struct model_ref *out, const char *path, unsigned kinds, struct err *err)
{
    bool base = (kinds & STORE_BASE) && checkpoint_looks_like(path);
    bool adapter = (kinds & STORE_ADAPTER) && adapter_file_looks_like(path);
    if (!base && !adapter)
        return err_set(err, ERR_NOT_FOUND, "%s: %s", path,
                       !file_exists(path)       ? "no such file or folder"
                       : kinds == STORE_BASE    ? "no base checkpoint (config.json and weights)"
                       : kinds == STORE_ADAPTER ? "no adapter (adapter_config.json and weights)"
                                                : "neither an adapter nor a base checkpoint");
    out->kind = adapter ? STORE_ADAPTER : STORE_BASE;
    out->path = sys_strdup(path);
    return out->path ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
}

static int use_store(struct model_ref *out, struct store *s, const char *ref, unsigned kinds,
                     struct err *err)
{
    struct store_resolved r;
    int rc = store_resolve(s, ref, kinds, &r, err);
    if (rc)
        return rc;
    out->in_store = true;
    out->kind = r.kind;
    memcpy(out->id, r.id, sizeof out->id);
    memcpy(out->name, r.name, sizeof out->name);
    memcpy(out->tag, r.tag, sizeof out->tag);
    return 0;
}

int model_ref_resolve(struct model_ref *out, struct store *s, const char *ref, unsigned kinds,
                      struct err *err)
{
    memset(out, 0, sizeof *out);
    if (is_explicit_path(ref))
        return use_path(out, ref, kinds, err);
    int rc = s ? use_store(out, s, ref, kinds, err) : ERR_NOT_FOUND;
    // A word that no name can be (org/name@main) may be a path or a hub id.
    if (rc != ERR_NOT_FOUND && rc != ERR_USAGE)
        return rc;
    struct err path_err = {0};
    if (use_path(out, ref, kinds, &path_err) == 0) {
        err_clear(err);
        return 0;
    }
    if ((kinds & STORE_BASE) && hub_is_id(ref)) {
        char *folder;
        struct err hub_err = {0};
        if (hub_find(&folder, ref, &hub_err) == 0) {
            err_clear(err);
            rc = use_path(out, folder, STORE_BASE, err);
            sys_free(folder);
            return rc;
        }
        if (!s)
            return err_set(err, hub_err.code, "%s", hub_err.msg);
    }
    if (!s)
        return err_set(err, path_err.code, "%s", path_err.msg);
    return rc;
}

static bool has_text_files(const char *folder)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json",
                                        "chat_template.jinja", "chat_template.json"};
    bool found = false;
    for (size_t i = 0; !found && i < sizeof names / sizeof *names; i++) {
        char *path = file_join(folder, names[i]);
        found = path && file_exists(path);
        sys_free(path);
    }
    return found;
}

static int folder_of_ref(struct cmd_context *ctx, const char *ref, char **folder, struct err *err)
{
    struct store *s = NULL;
    struct model_ref r = {0};
    int rc = cmd_store_open_if_there(ctx, &s, err);
    if (!rc)
        rc = model_ref_resolve(&r, s, ref, STORE_BASE, err);
    if (!rc && r.in_store) {
        rc = store_base_folder(s, r.id, folder, err);
    } else if (!rc) {
        *folder = r.path;
        r.path = NULL;
    }
    model_ref_release(&r);
    store_close(s);
    return rc;
}

int cmd_model_folder(struct cmd_context *ctx, const char *ref, char **folder, struct err *err)
{
    bool text_files = has_text_files(ref);
    *folder = NULL;
    int rc =
        is_explicit_path(ref) && text_files ? ERR_NOT_FOUND : folder_of_ref(ctx, ref, folder, err);
    if (rc == ERR_NOT_FOUND && text_files) {
        err_clear(err);
        *folder = sys_strdup(ref);
        rc = *folder ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", ref);
    }
    return rc;
}

char *cmd_tokenizer_cache(const struct cmd_context *ctx)
{
    char *marker = file_join(ctx->store_path, "lora-store.json"), *cache = NULL;
    if (marker && file_exists(marker))
        cache = file_join(ctx->store_path, "cache/tokenizer");
    sys_free(marker);
    return cache;
}

void model_ref_release(struct model_ref *r)
{
    sys_free(r->path);
    r->path = NULL;
}
