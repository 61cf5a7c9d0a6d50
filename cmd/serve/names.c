#include "cmd/serve/names_impl.h"

#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/log.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "store/object.h"

// ---- served adapters ----------------------------------------------------------------------------

static bool same_path(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

struct served *names_served(struct names *n, const char *content_id, const char *label,
                            const char *path, bool fresh)
{
    for (struct served *s = n->first; s && !fresh; s = s->next) {
        if (strcmp(s->content_id, content_id) == 0 && same_path(s->path, path)) {
            s->refs++;
            return s;
        }
    }
    struct served *s = sys_calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->names = n;
    s->refs = 1;
    memcpy(s->content_id, content_id, strnlen(content_id, DIGEST_HEX_CHARS));
    pthread_mutex_init(&s->mutex, NULL);
    s->label = sys_strdup(label);
    s->path = path ? sys_strdup(path) : NULL;
    if (!s->label || (path && !s->path)) {
        sys_free(s->label);
        sys_free(s->path);
        sys_free(s);
        return NULL;
    }
    s->next = n->first;
    n->first = s;
    return s;
}

struct served *served_hold(struct served *s)
{
    pthread_mutex_lock(&s->names->mutex);
    s->refs++;
    pthread_mutex_unlock(&s->names->mutex);
    return s;
}

void served_release(struct served *s)
{
    if (!s)
        return;
    struct names *n = s->names;
    pthread_mutex_lock(&n->mutex);
    bool last = --s->refs == 0;
    if (last) {
        struct served **link = &n->first;
        while (*link != s)
            link = &(*link)->next;
        *link = s->next;
        /* Inside the mutex: a new request for the same content comes before or after, not between.
         */
        bool others = false;
        for (const struct served *o = n->first; o; o = o->next)
            others |= strcmp(o->content_id, s->content_id) == 0;
        if (s->ready && !others && n->engine)
            engine_adapter_forget(n->engine, s->content_id);
    }
    pthread_mutex_unlock(&n->mutex);
    if (!last)
        return;
    text_kit_release(s->kit);
    pthread_mutex_destroy(&s->mutex);
    sys_free(s->label);
    sys_free(s->path);
    sys_free(s);
}

/* The adapter's own tokenizer and template, or the base's. */
static int open_kit(struct served *s, const char *folder, struct err *err)
{
    const struct names_options *opt = &s->names->opt;
    if (!opt->base_kit || !folder) {
        s->kit = opt->base_kit ? text_kit_hold(opt->base_kit) : NULL;
        return 0;
    }
    return text_kit_open_over(&s->kit, opt->base_kit, opt->base_folder, folder, opt->cache_folder,
                              err);
}

/* The store links an adapter's files together in its cache. */
static int open_store_kit(struct served *s, struct err *err)
{
    struct store *store = NULL;
    json_t *manifest = NULL;
    char *folder = NULL;
    if (!s->names->opt.base_kit)
        return open_kit(s, NULL, err);
    int rc = store_open(&store, s->names->opt.store_path, NULL, err);
    if (rc == 0)
        rc = store_manifest(store, s->content_id, &manifest, err);
    if (rc == 0)
        rc = object_link_folder(store, manifest, &folder, err);
    if (rc == 0)
        rc = open_kit(s, folder, err);
    sys_free(folder);
    json_decref(manifest);
    store_close(store);
    return rc;
}

static int ready_locked(struct served *s, struct err *err)
{
    struct names *n = s->names;
    struct adapter *a = NULL;
    int rc = n->opt.source->ops->get(n->opt.source, s->content_id, &a, err);
    if (rc != 0)
        return rc;
    s->kinds = a->kinds;
    s->max_rank = a->max_rank;
    if (n->opt.max_rank && a->max_rank > n->opt.max_rank)
        rc = err_set(err, ERR_REFUSED, "rank %u is larger than --max-lora-rank %u", a->max_rank,
                     n->opt.max_rank);
    if (rc == 0)
        rc = engine_adapter_check(n->engine, a, err);
    if (rc == 0)
        rc = engine_adapter_register(n->engine, a, err);
    adapter_free(a);
    if (rc == 0)
        rc = s->path ? open_kit(s, s->path, err) : open_store_kit(s, err);
    return rc;
}

int served_ready(struct served *s, struct err *err)
{
    pthread_mutex_lock(&s->mutex);
    int rc = 0;
    if (s->refused) {
        rc = err_set(err, s->why.code, "%s", s->why.msg);
    } else if (!s->ready) {
        struct err why = {0};
        rc = ready_locked(s, &why);
        s->ready = rc == 0;
        s->refused = rc == ERR_REFUSED || rc == ERR_CORRUPT;
        if (rc != 0) {
            err_prefix(&why, "%s", s->label);
            s->why = why;
            err_set(err, rc, "%s", why.msg);
        }
    }
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

// ---- entries ------------------------------------------------------------------------------------

void names_entry_release(struct name_entry *e)
{
    sys_free(e->name);
    sys_free(e->root);
    sys_free(e->ref);
    *e = (struct name_entry){0};
}

struct name_entry *names_entry(struct names *n, const char *name, size_t len)
{
    for (size_t i = 0; i < n->n_entries; i++) {
        if (strncmp(n->entries[i].name, name, len) == 0 && n->entries[i].name[len] == '\0')
            return &n->entries[i];
    }
    return NULL;
}

static struct name_entry *add_entry(struct names *n)
{
    if (n->n_entries == n->cap) {
        size_t cap = n->cap ? n->cap * 2 : 64;
        struct name_entry *entries = sys_reallocarray(n->entries, cap, sizeof *entries);
        if (!entries)
            return NULL;
        n->entries = entries;
        n->cap = cap;
    }
    n->entries[n->n_entries] = (struct name_entry){0};
    return &n->entries[n->n_entries++];
}

int names_set(struct names *n, const struct name_entry *entry, struct served **old, struct err *err)
{
    struct name_entry copy = *entry;
    copy.name = sys_strdup(entry->name);
    copy.root = sys_strdup(entry->root);
    copy.ref = sys_strdup(entry->ref);
    struct name_entry *e = names_entry(n, entry->name, strlen(entry->name));
    *old = e ? e->served : NULL;
    if (!e && copy.name && copy.root && copy.ref)
        e = add_entry(n);
    if (!e || !copy.name || !copy.root || !copy.ref) {
        names_entry_release(&copy);
        *old = entry->served;
        return err_set(err, ERR_NO_MEMORY, "no memory for the name %s", entry->name);
    }
    copy.seen = true;
    names_entry_release(e);
    *e = copy;
    return 0;
}

// ---- finding ------------------------------------------------------------------------------------

bool names_is_base(const struct names *n, const char *name, size_t len)
{
    for (size_t i = 0; i < n->opt.n_served_names; i++) {
        const char *base = n->opt.served_names[i];
        if (strncmp(base, name, len) == 0 && base[len] == '\0')
            return true;
    }
    return false;
}

const char *names_base(const struct names *n)
{
    return n->opt.served_names[0];
}

size_t names_n_base(const struct names *n)
{
    return n->opt.n_served_names;
}

const char *names_base_at(const struct names *n, size_t i)
{
    return n->opt.served_names[i];
}

/* Under mutex: an offered name, or name:latest where name is offered. */
static struct served *find_offered(struct names *n, const char *name)
{
    size_t len = strlen(name);
    struct name_entry *e = names_entry(n, name, len);
    static const char LATEST[] = ":latest";
    size_t tail = sizeof LATEST - 1;
    if (!e && len > tail && strcmp(name + len - tail, LATEST) == 0)
        e = names_entry(n, name, len - tail);
    if (!e)
        return NULL;
    e->served->refs++;
    return e->served;
}

int names_find_adapter(struct names *n, const char *name, struct served **served, struct err *err)
{
    pthread_mutex_lock(&n->mutex);
    *served = find_offered(n, name);
    pthread_mutex_unlock(&n->mutex);
    return *served ? 0 : err_set(err, ERR_NOT_FOUND, "The model `%s` does not exist.", name);
}

int names_find_model(struct names *n, const char *model, struct served **served, struct err *err)
{
    *served = NULL;
    if (!model || !*model)
        return 0;
    pthread_mutex_lock(&n->mutex);
    *served = find_offered(n, model);
    bool found = *served || names_is_base(n, model, strlen(model));
    const char *colon = strchr(model, ':');
    if (!found && colon && names_is_base(n, model, (size_t)(colon - model))) {
        found = colon[1] == '\0';
        *served = found ? NULL : find_offered(n, colon + 1);
        found = found || *served;
    }
    pthread_mutex_unlock(&n->mutex);
    return found ? 0 : err_set(err, ERR_NOT_FOUND, "The model `%s` does not exist.", model);
}

int names_find_index(struct names *n, size_t index, struct served **served, struct err *err)
{
    pthread_mutex_lock(&n->mutex);
    *served = index < n->n_entries ? n->entries[index].served : NULL;
    if (*served)
        (*served)->refs++;
    size_t count = n->n_entries;
    pthread_mutex_unlock(&n->mutex);
    return *served ? 0
                   : err_set(err, ERR_NOT_FOUND,
                             "There is no adapter with id %zu; %zu are offered.", index, count);
}

// ---- listing ------------------------------------------------------------------------------------

void names_each(struct names *n, void (*row)(void *arg, const struct offered *o), void *arg)
{
    pthread_mutex_lock(&n->mutex);
    for (size_t i = 0; i < n->n_entries; i++) {
        const struct name_entry *e = &n->entries[i];
        const struct offered o = {e->name, e->root, e->served, e->created, e->pinned};
        row(arg, &o);
    }
    pthread_mutex_unlock(&n->mutex);
}

size_t names_count(struct names *n)
{
    pthread_mutex_lock(&n->mutex);
    size_t count = n->n_entries;
    pthread_mutex_unlock(&n->mutex);
    return count;
}

// ---- life ---------------------------------------------------------------------------------------

int names_open(struct names **out, const struct names_options *opt, struct err *err)
{
    *out = NULL;
    struct names *n = sys_calloc(1, sizeof *n);
    if (!n)
        return err_set(err, ERR_NO_MEMORY, "no memory for names");
    n->opt = *opt;
    pthread_mutex_init(&n->mutex, NULL);
    pthread_mutex_init(&n->load_mutex, NULL);
    *out = n;
    return 0;
}

void names_set_engine(struct names *n, struct engine *engine)
{
    pthread_mutex_lock(&n->mutex);
    n->engine = engine;
    pthread_mutex_unlock(&n->mutex);
}

void names_free(struct names *n)
{
    if (!n)
        return;
    for (size_t i = 0; i < n->n_entries; i++) {
        served_release(n->entries[i].served);
        names_entry_release(&n->entries[i]);
    }
    lease_close(n->lease);
    pthread_mutex_destroy(&n->mutex);
    pthread_mutex_destroy(&n->load_mutex);
    sys_free(n->entries);
    sys_free(n);
}
