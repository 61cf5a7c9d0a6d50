/*
 * How names come to be offered: words of the command line, the store, requests, SIGHUP.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cmd/serve/names_impl.h"
#include "libcore/base/file.h"
#include "libcore/base/log.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "store/signed.h"

// ---- what a reference means ---------------------------------------------------------------------

struct resolved {
    char content_id[DIGEST_HEX_CHARS + 1];
    char *path; // outside the store; NULL: the store has it
};

/* *store NULL and 0 when there is none. */
static int open_store(const struct names *n, struct store **store, struct err *err)
{
    *store = NULL;
    if (!n->opt.store_path)
        return 0;
    struct store_options opt = {0};
    int rc = store_open(store, n->opt.store_path, &opt, err);
    if (rc == ERR_NO_STORE)
        err_clear(err);
    return rc == ERR_NO_STORE ? 0 : rc;
}

/* Makes sure that a gc leaves them alone while they are served. */
static int keep(struct names *n, struct store *store, const char *const *ids, size_t n_ids,
                struct err *err)
{
    if (n->lease)
        return lease_add_many(n->lease, store, ids, n_ids, err);
    return lease_open(&n->lease, store, "serve", ids, n_ids, err);
}

static int resolve_in_store(struct names *n, const char *ref, struct resolved *r, struct err *err)
{
    struct store *store = NULL;
    struct store_resolved found;
    int rc = open_store(n, &store, err);
    if (rc == 0 && !store)
        rc = err_set(err, ERR_NOT_FOUND, "there is no store at %s",
                     n->opt.store_path ? n->opt.store_path : "(none)");
    if (rc == 0)
        rc = store_resolve(store, ref, STORE_ADAPTER, &found, err);
    if (rc == 0) {
        const char *id = found.id;
        memcpy(r->content_id, found.id, sizeof r->content_id);
        if (n->opt.base_fingerprint && *n->opt.base_fingerprint)
            rc = store_check_base(store, id, n->opt.base_fingerprint, err);
        if (rc == 0)
            rc = keep(n, store, &id, 1, err);
    }
    store_close(store);
    return rc;
}

/* `path` below --adapter-root, whatever links are on the way, as a real path. */
static int below_root(const struct names *n, const char *path, char **real, struct err *err)
{
    const char *root = n->opt.adapter_root;
    char *real_root = file_real_path(root, err);
    if (!real_root)
        return err ? err->code : ERR_IO;
    size_t len = strlen(real_root);
    if (path[0] == '/' && strncmp(path, real_root, len) == 0 && path[len] == '/')
        path += len + 1;
    int rc = 0, root_fd = sys_open(real_root, O_PATH | O_DIRECTORY, 0), fd = -1;
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_BENEATH};
    if (root_fd >= 0)
        fd = (int)syscall(SYS_openat2, root_fd, path, &how, sizeof how);
    if (fd < 0 && (errno == EXDEV || errno == ELOOP))
        rc = err_set(err, ERR_DENIED, "%s lies outside --adapter-root", path);
    else if (fd < 0)
        rc = err_set_errno(err, errno, "%s", path);
    if (rc == 0) {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        *real = file_real_path(link, err);
        rc = *real ? 0 : ERR_IO;
    }
    if (fd >= 0)
        sys_close(fd);
    if (root_fd >= 0)
        sys_close(root_fd);
    sys_free(real_root);
    return rc;
}

static int resolve_path(struct names *n, const char *path, bool from_request, struct resolved *r,
                        struct err *err)
{
    int rc = 0;
    if (!from_request) {
        r->path = file_real_path(path, err);
        rc = r->path ? 0 : err ? err->code : ERR_IO;
    } else if (n->opt.adapter_root) {
        rc = below_root(n, path, &r->path, err);
    } else {
        rc = err_set(err, ERR_DENIED,
                     "%s is no name of the store, and paths are loaded only with "
                     "--adapter-root",
                     path);
    }
    if (rc == 0)
        rc = store_source_add_path(n->opt.source, r->path, r->content_id, err);
    return rc;
}

/* A name, name:tag or prefix in the store; then a path. */
static int resolve(struct names *n, const char *ref, bool from_request, struct resolved *r,
                   struct err *err)
{
    *r = (struct resolved){0};
    struct err in_store = {0};
    int rc = resolve_in_store(n, ref, r, &in_store);
    bool is_path = strchr(ref, '/') || ref[0] == '.' || file_exists(ref);
    if (rc == 0)
        return 0;
    if (rc != ERR_NOT_FOUND && !(rc == ERR_USAGE && is_path))
        return err_set(err, rc, "%s", in_store.msg);
    if (!is_path && !n->opt.adapter_root)
        return err_set(err, ERR_NOT_FOUND, "%s: neither a name in the store nor a path", ref);
    rc = resolve_path(n, ref, from_request, r, err);
    if (rc != 0)
        sys_free(r->path);
    return rc;
}

int names_check_signature(struct store *store, const char *store_path, const char *content_id,
                          const char *path, const char *label, const struct sign_keys *keys,
                          struct err *err)
{
    struct store *own = NULL;
    struct signed_report ignored;
    int rc = 0;
    if (path) {
        rc = signed_check_adapter_path(path, keys, &ignored, err);
        if (rc)
            err_prefix(err, "%s", label);
        return rc;
    }
    if (!store)
        rc = store_open(&own, store_path, NULL, err);
    if (!rc)
        rc = signed_check(store ? store : own, content_id, label, keys, SIGNED_RECORDED, &ignored,
                          err);
    store_close(own);
    return rc;
}

// ---- offering -----------------------------------------------------------------------------------

/* Makes `name` point at what was resolved, and readies it when the engine is there. */
static int offer(struct names *n, const char *name, const char *ref, const struct resolved *r,
                 enum name_origin origin, bool pinned, struct err *err)
{
    if (n->opt.required && n->opt.required->n) {
        int refused = names_check_signature(n->checking, n->opt.store_path, r->content_id, r->path,
                                            name, n->opt.required, err);
        if (refused)
            return refused;
    }
    pthread_mutex_lock(&n->mutex);
    struct served *s = names_served(n, r->content_id, name, r->path, origin == NAME_FROM_REQUEST);
    pthread_mutex_unlock(&n->mutex);
    if (!s)
        return err_set(err, ERR_NO_MEMORY, "no memory for the name %s", name);
    int rc = n->engine && origin == NAME_FROM_REQUEST ? served_ready(s, err) : 0;
    if (rc == 0 && n->engine && pinned)
        rc = engine_adapter_prefetch(n->engine, s->content_id, true, err);
    if (rc != 0) {
        served_release(s);
        return rc;
    }
    struct name_entry entry = {.name = (char *)name,
                               .root = r->path ? r->path : (char *)ref,
                               .ref = (char *)ref,
                               .served = s,
                               .created = thread_unix_ns() / 1000000000u,
                               .pinned = pinned,
                               .origin = origin};
    struct served *old = NULL;
    pthread_mutex_lock(&n->mutex);
    rc = names_set(n, &entry, &old, err);
    pthread_mutex_unlock(&n->mutex);
    served_release(old);
    return rc;
}

static int check_name(const struct names *n, const char *name, struct err *err)
{
    char base[LIMIT_NAME_BYTES + 1], tag[STORE_TAG_BYTES + 1];
    int rc = store_parse_name(name, base, tag, err);
    if (rc == 0 && names_is_base(n, name, strlen(name)))
        rc = err_set(err, ERR_EXISTS, "'%s' is the name of the base model", name);
    return rc;
}

static int offer_ref(struct names *n, const char *name, const char *ref, bool pinned,
                     struct err *err)
{
    struct resolved r;
    int rc = check_name(n, name, err);
    if (rc == 0)
        rc = resolve(n, ref, false, &r, err);
    if (rc != 0)
        return rc;
    rc = offer(n, name, ref, &r, NAME_FROM_WORDS, pinned, err);
    sys_free(r.path);
    return rc;
}

static int offer_json(struct names *n, const char *word, struct err *err)
{
    json_error_t why;
    json_t *item = json_loads(word, JSON_REJECT_DUPLICATES, &why);
    if (!item)
        return err_set(err, ERR_USAGE, "--lora-paths %s: %s", word, why.text);
    const char *name = json_string_value(json_object_get(item, "lora_name"));
    const char *ref = json_string_value(json_object_get(item, "lora_path"));
    if (!name)
        name = json_string_value(json_object_get(item, "name")); // vLLM's modules
    if (!ref)
        ref = json_string_value(json_object_get(item, "path"));
    int rc;
    if (!name || !ref)
        rc = err_set(err, ERR_USAGE, "--lora-paths %s: wanted lora_name and lora_path", word);
    else
        rc = offer_ref(n, name, ref, json_is_true(json_object_get(item, "pinned")), err);
    json_decref(item);
    return rc;
}

static int offer_word(struct names *n, const char *word, struct err *err)
{
    if (word[0] == '{')
        return offer_json(n, word, err);
    const char *equals = strchr(word, '=');
    if (!equals) {
        /* A reference alone: a path is called by its last part, a name by itself. */
        const char *slash = file_is_folder(word) ? strrchr(word, '/') : NULL;
        return offer_ref(n, slash && slash[1] ? slash + 1 : word, word, false, err);
    }
    char *name = sys_strndup(word, (size_t)(equals - word));
    if (!name)
        return err_set(err, ERR_NO_MEMORY, "no memory for names");
    int rc = offer_ref(n, name, equals + 1, false, err);
    sys_free(name);
    return rc;
}

int names_offer_words(struct names *n, const char *const *words, size_t n_words, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < n_words; i++)
        rc = offer_word(n, words[i], err);
    return rc;
}

// ---- all of the store ---------------------------------------------------------------------------

struct store_rows {
    struct names *n;
    struct row {
        char *name;
        char id[STORE_ID_CHARS + 1];
    } * rows;
    size_t count, cap;
};

static int add_row(struct store_rows *all, const char *name, const char *tag, size_t tag_len,
                   const char *id)
{
    if (all->count == all->cap) {
        size_t cap = all->cap ? all->cap * 2 : 64;
        struct row *rows = sys_reallocarray(all->rows, cap, sizeof *rows);
        if (!rows)
            return ERR_NO_MEMORY;
        all->rows = rows;
        all->cap = cap;
    }
    struct row *r = &all->rows[all->count];
    size_t len = strlen(name) + tag_len + 2;
    r->name = sys_malloc(len);
    if (!r->name)
        return ERR_NO_MEMORY;
    bool latest = tag_len == 6 && memcmp(tag, "latest", 6) == 0;
    if (latest)
        snprintf(r->name, len, "%s", name);
    else
        snprintf(r->name, len, "%s:%.*s", name, (int)tag_len, tag);
    snprintf(r->id, sizeof r->id, "%s", id);
    all->count++;
    return 0;
}

static int collect_row(void *arg, const struct store_entry *e)
{
    int rc = 0;
    for (const char *tag = e->tags; rc == 0 && *e->name && *tag;) {
        size_t len = strcspn(tag, ",");
        rc = add_row(arg, e->name, tag, len, e->id);
        tag += len + (tag[len] == ',');
    }
    return rc;
}

static int keep_rows(struct names *n, struct store *store, const struct store_rows *all,
                     struct err *err)
{
    if (all->count == 0)
        return 0;
    const char **ids = sys_calloc(all->count, sizeof *ids);
    if (!ids)
        return err_set(err, ERR_NO_MEMORY, "no memory for %zu adapters", all->count);
    for (size_t i = 0; i < all->count; i++)
        ids[i] = all->rows[i].id;
    int rc = keep(n, store, ids, all->count, err);
    sys_free(ids);
    return rc;
}

static int collect_store(struct names *n, struct store_rows *all, struct err *err)
{
    struct store *store = NULL;
    int rc = open_store(n, &store, err);
    if (rc != 0 || !store)
        return rc;
    bool known = n->opt.base_fingerprint && *n->opt.base_fingerprint;
    struct store_query q = {.kinds = STORE_ADAPTER,
                            .base_id = known ? n->opt.base_fingerprint : NULL,
                            .or_unknown_base = true};
    rc = store_list(store, &q, collect_row, all, err);
    if (rc == 0)
        rc = keep_rows(n, store, all, err);
    store_close(store);
    return rc;
}

static bool points_at(struct names *n, const char *name, const char *id)
{
    pthread_mutex_lock(&n->mutex);
    struct name_entry *e = names_entry(n, name, strlen(name));
    bool same = e && strcmp(e->served->content_id, id) == 0;
    if (same)
        e->seen = true;
    pthread_mutex_unlock(&n->mutex);
    return same;
}

static bool offered_otherwise(struct names *n, const char *name)
{
    pthread_mutex_lock(&n->mutex);
    struct name_entry *e = names_entry(n, name, strlen(name));
    bool other = e && e->origin != NAME_FROM_STORE;
    pthread_mutex_unlock(&n->mutex);
    return other;
}

/* One that is not signed as wanted is left out; what its name offered so far stays. */
static int offer_stored(struct names *n, const char *name, const struct resolved *r,
                        struct err *err)
{
    struct err why = {0};
    bool wanted = n->opt.required && n->opt.required->n;
    int rc = offer(n, name, name, r, NAME_FROM_STORE, false, &why);
    if (!wanted || (rc != ERR_REFUSED && rc != ERR_CORRUPT))
        return rc ? err_set(err, rc, "%s", why.msg) : 0;
    log_warn("names", "not offered name=%s reason=\"%s\"", name, why.msg);
    pthread_mutex_lock(&n->mutex);
    struct name_entry *e = names_entry(n, name, strlen(name));
    if (e)
        e->seen = true;
    pthread_mutex_unlock(&n->mutex);
    return 0;
}

int names_offer_store(struct names *n, size_t *count, struct err *err)
{
    n->from_store = true;
    struct store_rows all = {.n = n};
    int rc = collect_store(n, &all, err);
    *count = 0;
    // One for all of them: opening it costs more than looking at a signature.
    if (rc == 0 && n->opt.required && n->opt.required->n)
        rc = open_store(n, &n->checking, err);
    for (size_t i = 0; i < all.count; i++) {
        struct row *r = &all.rows[i];
        if (rc == 0 && !points_at(n, r->name, r->id) && !offered_otherwise(n, r->name) &&
            !names_is_base(n, r->name, strlen(r->name))) {
            struct resolved resolved = {0};
            memcpy(resolved.content_id, r->id, sizeof resolved.content_id);
            rc = offer_stored(n, r->name, &resolved, err);
        }
        *count += rc == 0;
        sys_free(r->name);
    }
    sys_free(all.rows);
    store_close(n->checking);
    n->checking = NULL;
    return rc;
}

// ---- again --------------------------------------------------------------------------------------

/* Takes entry i out; the caller releases *old. */
static void remove_entry(struct names *n, struct name_entry *e, struct served **old)
{
    size_t i = (size_t)(e - n->entries);
    *old = e->served;
    names_entry_release(e);
    memmove(&n->entries[i], &n->entries[i + 1], (n->n_entries - i - 1) * sizeof *n->entries);
    n->n_entries--;
}

static int reload_store(struct names *n, struct err *err)
{
    pthread_mutex_lock(&n->mutex);
    for (size_t i = 0; i < n->n_entries; i++)
        n->entries[i].seen = n->entries[i].origin != NAME_FROM_STORE;
    pthread_mutex_unlock(&n->mutex);
    size_t count = 0;
    int rc = names_offer_store(n, &count, err);
    for (bool again = rc == 0; again;) {
        struct served *old = NULL;
        pthread_mutex_lock(&n->mutex);
        for (size_t i = 0; i < n->n_entries && !old; i++) {
            if (!n->entries[i].seen)
                remove_entry(n, &n->entries[i], &old);
        }
        pthread_mutex_unlock(&n->mutex);
        again = old != NULL;
        served_release(old);
    }
    return rc;
}

/* The words' references may point elsewhere now; what fails stays as it was. */
static void reload_words(struct names *n)
{
    for (size_t i = 0;; i++) {
        pthread_mutex_lock(&n->mutex);
        bool there = i < n->n_entries;
        struct name_entry *e = there ? &n->entries[i] : NULL;
        bool skip = there && e->origin != NAME_FROM_WORDS;
        char *name = there ? sys_strdup(e->name) : NULL, *ref = there ? sys_strdup(e->ref) : NULL;
        bool pinned = there && e->pinned;
        pthread_mutex_unlock(&n->mutex);
        struct err err = {0};
        struct resolved r = {0};
        if (there && !skip && name && ref) {
            int rc = resolve(n, ref, false, &r, &err);
            if (rc == 0 && !points_at(n, name, r.content_id))
                rc = offer(n, name, ref, &r, NAME_FROM_WORDS, pinned, &err);
            if (rc != 0)
                log_warn("names", "the old adapter stays name=%s reason=\"%s\"", name, err.msg);
            else
                sys_free(r.path);
        }
        sys_free(name);
        sys_free(ref);
        if (!there)
            return;
    }
}

int names_reload(struct names *n, struct err *err)
{
    pthread_mutex_lock(&n->load_mutex);
    reload_words(n);
    int rc = n->from_store ? reload_store(n, err) : 0;
    pthread_mutex_unlock(&n->load_mutex);
    return rc;
}

int names_load(struct names *n, const char *name, const char *ref, bool replace, bool pinned,
               struct err *err)
{
    struct resolved r = {0};
    pthread_mutex_lock(&n->load_mutex);
    pthread_mutex_lock(&n->mutex);
    bool exists = names_entry(n, name, strlen(name)) != NULL;
    pthread_mutex_unlock(&n->mutex);
    int rc = check_name(n, name, err);
    if (rc == 0 && exists && !replace)
        rc = err_set(err, ERR_EXISTS, "The lora adapter '%s' has already been loaded.", name);
    if (rc == 0)
        rc = resolve(n, ref, true, &r, err);
    if (rc == 0) {
        rc = offer(n, name, ref, &r, NAME_FROM_REQUEST, pinned, err);
        sys_free(r.path);
    }
    pthread_mutex_unlock(&n->load_mutex);
    return rc;
}

int names_unload(struct names *n, const char *name, struct err *err)
{
    struct served *old = NULL;
    pthread_mutex_lock(&n->load_mutex);
    pthread_mutex_lock(&n->mutex);
    struct name_entry *e = names_entry(n, name, strlen(name));
    bool pinned = e && e->pinned;
    if (e)
        remove_entry(n, e, &old);
    pthread_mutex_unlock(&n->mutex);
    if (old && pinned && n->engine)
        engine_adapter_unpin(n->engine, old->content_id);
    served_release(old);
    pthread_mutex_unlock(&n->load_mutex);
    return old ? 0 : err_set(err, ERR_NOT_FOUND, "The lora adapter '%s' cannot be found.", name);
}

/* The i-th entry's served adapter, held; NULL at the end. */
static struct served *entry_at(struct names *n, size_t i, bool *pinned)
{
    pthread_mutex_lock(&n->mutex);
    struct served *s = i < n->n_entries ? n->entries[i].served : NULL;
    *pinned = s && n->entries[i].pinned;
    if (s)
        s->refs++;
    pthread_mutex_unlock(&n->mutex);
    return s;
}

int names_ready_all(struct names *n, bool drop, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0;) {
        bool pinned = false;
        struct served *s = entry_at(n, i, &pinned), *old = NULL;
        if (!s)
            break;
        struct err why = {0};
        rc = served_ready(s, &why);
        if (rc == 0 && pinned)
            rc = engine_adapter_prefetch(n->engine, s->content_id, true, &why);
        if (rc != 0 && drop) {
            log_warn("names", "not offered name=%s reason=\"%s\"", s->label, why.msg);
            pthread_mutex_lock(&n->mutex);
            remove_entry(n, &n->entries[i], &old);
            pthread_mutex_unlock(&n->mutex);
            rc = 0;
        } else if (rc != 0) {
            err_set(err, rc, "%s", why.msg);
        } else {
            i++;
        }
        served_release(old);
        served_release(s);
    }
    return rc;
}
