#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "store/bundle.h"
#include "store/import_pack_impl.h"

/*
 * Every entry that may belong to an adapter goes into the work folder under its number, hashed on
 * the way; what the archive was is decided when it has ended: lora's own pack, an OCI layout, or
 * somebody's PEFT folders.
 */
#define BLOBS "blobs/sha256/"

static int no_memory(const struct landing *l, struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "%s: no memory", l->path);
}

// ---- entries -----------------------------------------------------------------------------------

static bool is_wanted(const char *name)
{
    struct digest d;
    if (strcmp(name, PACK_INDEX) == 0 || strcmp(name, "index.json") == 0 ||
        strcmp(name, "oci-layout") == 0)
        return true;
    if (strncmp(name, BLOBS, strlen(BLOBS)) == 0)
        return digest_parse(name + strlen(BLOBS), &d);
    if (landing_is_overlay_name(name))
        return true;
    const char *base = file_base_name(name);
    return peft_is_file_name(base) || strcmp(base, BUNDLE_FILE) == 0 ||
           strncmp(name, PACK_SIGNATURES, strlen(PACK_SIGNATURES)) == 0;
}

static int write_entry(void *arg, const void *data, size_t n, struct err *err)
{
    return arriving_write(arg, data, n, err);
}

int landing_take_entry(struct landing *l, struct archive_in *in, const struct archive_in_entry *e,
                       struct err *err)
{
    struct arrival *a;
    struct arriving *file = NULL;
    struct digest d;
    int rc = arrivals_add(&l->files, e->name, &a, err);
    if (!rc)
        rc = arriving_open(&file, a->path, e->size, a->name, err);
    if (!rc)
        rc = archive_in_data(in, write_entry, file, err);
    if (!rc)
        rc = arriving_finish(file, &d, err);
    if (!rc) {
        a->size = e->size;
        a->weights = arriving_take_weights(file);
        digest_hex(&d, a->digest);
        // A blob of a layout is called by its digest: told at once, before the rest is read.
        const char *name = a->name + strlen(BLOBS);
        if (strncmp(a->name, BLOBS, strlen(BLOBS)) == 0 && strcmp(name, a->digest) != 0)
            rc = err_set(err, ERR_CORRUPT, "%s:%s: its digest is %.12s", l->path, a->name,
                         a->digest);
    }
    arriving_free(file);
    return rc;
}

static int take_entries(struct landing *l, struct archive_in *in, size_t *left_out, struct err *err)
{
    struct archive_in_entry e;
    bool more;
    int rc;
    *left_out = 0;
    while ((rc = archive_in_next(in, &e, &more, err)) == 0 && more) {
        bool wanted = is_wanted(e.name);
        *left_out += !wanted;
        rc = wanted ? landing_take_entry(l, in, &e, err) : archive_in_data(in, NULL, NULL, err);
        if (rc)
            return rc;
    }
    return rc;
}

// ---- lora's own packs --------------------------------------------------------------------------

static int read_json(const struct landing *l, const struct arrival *a, json_t **out,
                     struct err *err)
{
    char *text = NULL;
    size_t n;
    json_error_t why;
    *out = NULL;
    int rc = file_read(a->path, LIMIT_CONFIG_BYTES, &text, &n, err);
    if (rc)
        return rc;
    *out = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    if (!*out)
        rc = err_set(err, ERR_CORRUPT, "%s:%s: %s", l->path, a->name, why.text);
    sys_free(text);
    return rc;
}

static int add_listed(struct landing *l, struct landed *a, const json_t *file, struct err *err)
{
    int rc = landing_check_file(l, file, a->where, err);
    if (rc)
        return rc;
    struct strbuf name;
    strbuf_init(&name);
    strbuf_addf(&name, "%s/%s", a->where, landing_text(file, "path"));
    const struct arrival *from = name.failed ? NULL : arrivals_find(&l->files, strbuf_text(&name));
    if (name.failed)
        rc = no_memory(l, err);
    else if (!from)
        rc = err_set(err, ERR_CORRUPT, "%s:%.300s: is missing", l->path, strbuf_text(&name));
    else
        rc = landing_check_arrival(l, file, from, err);
    strbuf_release(&name);
    return rc ? rc : landed_add(a, from, landing_text(file, "path"), err);
}

static int add_signature(struct landing *l, struct landed *a, const json_t *file, struct err *err)
{
    struct digest d;
    const char *path = landing_text(file, "path");
    const struct arrival *from = arrivals_find(&l->files, path);
    if (!digest_parse(landing_text(file, "sha256"), &d) ||
        !json_is_integer(json_object_get(file, "size")))
        return err_set(err, ERR_CORRUPT, "%s:%s: its list of signatures is off", l->path, a->where);
    if (!from)
        return err_set(err, ERR_CORRUPT, "%s:%.300s: is missing", l->path, path);
    int rc = landing_check_arrival(l, file, from, err);
    return rc ? rc : landed_sign(a, from, err);
}

/* All files of all adapters are looked at before the first adapter is published. */
static int each_record(struct landing *l, const json_t *records, bool publish, struct err *err)
{
    size_t i, k;
    json_t *record, *file;
    json_array_foreach(records, i, record)
    {
        char where[LIMIT_PACK_NAME_BYTES];
        const char *folder = landing_text(record, "folder"), *clean;
        int rc = archive_check_name(l->path, folder, &clean, err);
        snprintf(where, sizeof where, "adapters/%.900s", folder);
        struct landed a = {.where = where, .record = record, .number = i};
        json_array_foreach(json_object_get(record, "files"), k, file)
        {
            rc = rc ? rc : add_listed(l, &a, file, err);
        }
        json_array_foreach(json_object_get(record, "signatures"), k, file)
        {
            rc = rc ? rc : add_signature(l, &a, file, err);
        }
        if (!rc)
            rc = publish ? landing_adapter(l, &a, err) : landing_judge(l, &a, err);
        landed_release(&a);
        if (rc)
            return rc;
    }
    return 0;
}

static bool is_overlay(const json_t *base)
{
    return json_object_get(base, "overlay") != NULL;
}

static size_t count_overlays(const json_t *bases)
{
    size_t i, n = 0;
    json_t *base;
    json_array_foreach(bases, i, base)
    {
        n += is_overlay(base);
    }
    return n;
}

static int each_overlay(struct landing *l, const json_t *bases, bool publish, struct err *err)
{
    size_t i;
    json_t *base;
    int rc = 0;
    json_array_foreach(bases, i, base)
    {
        if (!rc && is_overlay(base))
            rc = landing_overlay(l, base, i, publish, err);
    }
    return rc;
}

/* A base that is no overlay is only told of: its weights are elsewhere. */
static int note_bases(struct landing *l, const json_t *bases, struct err *err)
{
    size_t i;
    json_t *base;
    json_array_foreach(bases, i, base)
    {
        struct store_entry e;
        const char *id = landing_text(base, "id");
        if (is_overlay(base))
            continue;
        if (l->s && store_get(l->s, id, &e, NULL) == 0) {
            store_entry_release(&e);
            continue;
        }
        int rc = landing_note(l, err,
                              "base %.100s (%.12s) travels without its weights: import its folder "
                              "too",
                              landing_text(base, "name"), id);
        if (rc)
            return rc;
    }
    return 0;
}

static int land_pack(struct landing *l, const struct arrival *index, struct err *err)
{
    json_t *root;
    int rc = read_json(l, index, &root, err);
    json_int_t schema = json_integer_value(json_object_get(root, "schema"));
    const json_t *adapters = json_object_get(root, "adapters");
    const json_t *bases = json_object_get(root, "bases");
    size_t n = json_array_size(adapters) + count_overlays(bases);
    if (!rc && (schema < PACK_SCHEMA || schema > PACK_SCHEMA_OVERLAY))
        rc = err_set(err, schema > PACK_SCHEMA ? ERR_REFUSED : ERR_CORRUPT,
                     "%s:%s: has schema %lld, this version reads %d", l->path, index->name,
                     (long long)schema, PACK_SCHEMA_OVERLAY);
    if (!rc && !json_is_array(adapters))
        rc = err_set(err, ERR_CORRUPT, "%s:%s: has no list of adapters", l->path, index->name);
    if (!rc && n > 1 && l->opt->name)
        rc = err_set(err, ERR_USAGE, "--name is for one of them, %s has %zu", l->path, n);
    if (!rc)
        rc = each_record(l, adapters, false, err);
    if (!rc)
        rc = each_overlay(l, bases, false, err);
    if (!rc)
        rc = note_bases(l, bases, err);
    if (!rc) // bases first: the adapters may be theirs
        rc = each_overlay(l, bases, true, err);
    if (!rc)
        rc = each_record(l, adapters, true, err);
    json_decref(root);
    return rc;
}

// ---- somebody else's ---------------------------------------------------------------------------

static bool is_in(const char *name, const char *folder, size_t n)
{
    if (n == 0)
        return !strchr(name, '/');
    return strncmp(name, folder, n) == 0 && name[n] == '/' && !strchr(name + n + 1, '/');
}

/* "/x/bot.tar.zst" and "final": the path "/x/bot/final", from which a name is made. */
static char *path_for_name(const struct landing *l, const char *folder, size_t n)
{
    struct strbuf sb;
    size_t stem = strlen(l->path) - strlen(archive_kind_ending(archive_kind_of(l->path)));
    strbuf_init(&sb);
    if (strcmp(l->path, "-") == 0)
        strbuf_adds(&sb, "pack");
    else
        strbuf_add(&sb, l->path, stem);
    strbuf_addf(&sb, "%s%.*s", n ? "/" : "", (int)n, folder);
    char *path = strbuf_take(&sb, NULL);
    strbuf_release(&sb);
    return path;
}

/* Which of two files of weights a folder's adapter is in: lower is better. */
static int rank_of_weights(const char *base)
{
    static const char *const usual[] = {LANDED_WEIGHTS, LANDED_MLX, LANDED_PICKLE};
    for (int i = 0; i < 3; i++) {
        if (strcmp(base, usual[i]) == 0)
            return i;
    }
    return 3;
}

/* The folder's files; beside a configuration one weights file of any name stands in for
 * adapter_model.safetensors. */
static int gather(struct landing *l, struct landed *a, const char *folder, size_t n, bool config,
                  struct err *err)
{
    const struct arrival *weights = NULL;
    int best = 4, rc = 0;
    size_t n_best = 0;
    for (size_t i = 0; !rc && i < l->files.n; i++) {
        const struct arrival *f = &l->files.items[i];
        const char *base = file_base_name(f->name);
        if (is_in(f->name, folder, n) && strcmp(base, BUNDLE_FILE) == 0)
            rc = landed_sign(a, f, err);
        if (rc || !is_in(f->name, folder, n) || !peft_is_file_name(base))
            continue;
        const char *reader = landing_reader_name(base);
        if (!reader || strcmp(reader, LANDED_CONFIG) == 0) {
            rc = landed_add(a, f, base, err);
            continue;
        }
        int rank = rank_of_weights(base);
        n_best = rank < best ? 1 : n_best + (rank == best);
        weights = rank < best ? f : weights;
        best = rank < best ? rank : best;
    }
    if (rc)
        return rc;
    if (!weights || n_best != 1)
        return err_set(err, ERR_NOT_FOUND, "%s:%.*s%s" LANDED_WEIGHTS ": not there", l->path,
                       (int)n, folder, n ? "/" : "");
    const char *base = file_base_name(weights->name);
    bool renamed = config && strcmp(landing_reader_name(base), "weights.safetensors") == 0;
    return landed_add(a, weights, renamed ? LANDED_WEIGHTS : base, err);
}

static size_t folder_chars(const char *name)
{
    const char *slash = strrchr(name, '/');
    return slash ? (size_t)(slash - name) : 0;
}

static int land_folder(struct landing *l, const struct arrival *config, size_t number, bool publish,
                       struct err *err)
{
    char where[LIMIT_PACK_NAME_BYTES + 1];
    size_t n = folder_chars(config->name);
    snprintf(where, sizeof where, "%.*s", (int)n, config->name);
    char *suggested = path_for_name(l, config->name, n);
    struct landed a = {.where = where, .suggested = suggested, .number = number};
    int rc = suggested ? gather(l, &a, config->name, n,
                                strcmp(file_base_name(config->name), LANDED_CONFIG) == 0, err)
                       : no_memory(l, err);
    if (!rc)
        rc = publish ? landing_adapter(l, &a, err) : landing_judge(l, &a, err);
    landed_release(&a);
    sys_free(suggested);
    return rc;
}

/* What an adapter is known by: a configuration, or where there is none the weights themselves. */
static bool is_mark(const struct arrival *f, bool any_config)
{
    const char *base = file_base_name(f->name), *reader = landing_reader_name(base);
    bool config = strcmp(base, LANDED_CONFIG) == 0;
    return any_config ? config : peft_is_file_name(base) && reader && !config;
}

static int land_folders(struct landing *l, struct err *err)
{
    bool any_config = false;
    int rc = 0;
    for (size_t i = 0; i < l->files.n; i++)
        any_config |= strcmp(file_base_name(l->files.items[i].name), LANDED_CONFIG) == 0;
    for (int publish = 0; !rc && publish < 2; publish++) {
        size_t n = 0;
        for (size_t i = 0; !rc && i < l->files.n; i++) {
            const struct arrival *f = &l->files.items[i];
            if (is_mark(f, any_config))
                rc = land_folder(l, f, n++, publish == 1, err);
        }
        if (!rc && n == 0)
            return err_set(err, ERR_NOT_FOUND,
                           "%s: no adapter in it (a folder with " LANDED_CONFIG ")", l->path);
        if (!rc && n > 1 && l->opt->name)
            return err_set(err, ERR_USAGE, "--name is for one adapter, %s has %zu", l->path, n);
    }
    return rc;
}

// ---- OCI layouts -------------------------------------------------------------------------------

static int blob_of_archive(void *arg, const char *digest, uint64_t size, const char *what,
                           const struct arrival **out, struct err *err)
{
    struct landing *l = arg;
    (void)size;
    *out = arrivals_find_digest(&l->files, digest);
    return *out ? 0
                : err_set(err, ERR_CORRUPT, "%s:" BLOBS "%.64s: is missing (%s)", l->path, digest,
                          what);
}

static int copy_blob(struct landing *l, int in, struct arriving *to, uint64_t size,
                     const char *from, struct err *err)
{
    int rc = 0;
    for (uint64_t at = 0; !rc && at < size;) {
        size_t room;
        void *slot = arriving_slot(to, &room);
        size_t n = size - at < room ? (size_t)(size - at) : room;
        rc = file_pread_all(in, slot, n, at, from, err);
        if (!rc)
            rc = arriving_filled(to, n, err);
        if (!rc && l->opt->on_bytes && (rc = l->opt->on_bytes(l->opt->on_bytes_arg, n)) != 0)
            err_set(err, rc, "%s: interrupted", from);
        at += n;
    }
    return rc;
}

/* A blob of a layout's folder, by its digest: no other file of it is opened. */
static int fetch_blob(struct landing *l, const char *from, const char *digest, uint64_t size,
                      struct err *err)
{
    struct arrival *a;
    struct arriving *to = NULL;
    struct digest d;
    struct stat st;
    // No link leads elsewhere, and nothing that is no file is waited for.
    int in = sys_open(from, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
    int rc = in < 0 ? err_set_errno(err, errno, "%s: cannot open", from) : 0;
    if (!rc && (sys_fstat(in, &st) != 0 || !S_ISREG(st.st_mode)))
        rc = err_set(err, ERR_REFUSED, "%s: is no regular file", from);
    if (!rc && (uint64_t)st.st_size != size)
        rc = err_set(err, ERR_CORRUPT, "%s: %llu bytes, wanted %llu", from,
                     (unsigned long long)st.st_size, (unsigned long long)size);
    if (!rc)
        rc = arrivals_add(&l->files, digest, &a, err);
    if (!rc)
        rc = arriving_open(&to, a->path, size, from, err);
    if (!rc)
        rc = copy_blob(l, in, to, size, from, err);
    if (!rc)
        rc = arriving_finish(to, &d, err);
    if (!rc) {
        a->size = size;
        a->weights = arriving_take_weights(to);
        digest_hex(&d, a->digest);
        if (strcmp(a->digest, digest) != 0)
            rc = err_set(err, ERR_CORRUPT, "%s: its digest is %.12s", from, a->digest);
    }
    arriving_free(to);
    if (in >= 0)
        sys_close(in);
    return rc;
}

static int blob_of_folder(void *arg, const char *digest, uint64_t size, const char *what,
                          const struct arrival **out, struct err *err)
{
    struct landing *l = arg;
    (void)what;
    *out = arrivals_find_digest(&l->files, digest);
    if (*out)
        return 0;
    char *folder = file_join(l->path, BLOBS), *from = folder ? file_join(folder, digest) : NULL;
    int rc = from ? fetch_blob(l, from, digest, size, err) : no_memory(l, err);
    sys_free(from);
    sys_free(folder);
    if (!rc)
        *out = arrivals_find_digest(&l->files, digest);
    return rc;
}

static int land_layout(struct landing *l, const char *index_path, bool folder, struct err *err)
{
    char *text = NULL;
    size_t n;
    const struct landing_blobs blobs = {folder ? blob_of_folder : blob_of_archive, l};
    int rc = file_read(index_path, LIMIT_OCI_MANIFEST_BYTES, &text, &n, err);
    if (!rc)
        rc = landing_image(l, text, n, "index.json", &blobs, err);
    sys_free(text);
    return rc;
}

// ---- all of it ---------------------------------------------------------------------------------

static int land_archive(struct landing *l, struct err *err)
{
    struct archive_in *in;
    size_t left_out;
    int rc = archive_in_open(&in, strcmp(l->path, "-") == 0 ? NULL : l->path, l->opt->on_bytes,
                             l->opt->on_bytes_arg, err);
    if (!rc)
        rc = take_entries(l, in, &left_out, err);
    archive_in_free(in);
    if (rc)
        return rc;
    const struct arrival *index = arrivals_find(&l->files, PACK_INDEX),
                         *layout = arrivals_find(&l->files, "index.json");
    if (index)
        rc = land_pack(l, index, err);
    else if (layout && arrivals_find(&l->files, "oci-layout"))
        rc = land_layout(l, layout->path, false, err);
    else
        rc = land_folders(l, err);
    if (!rc && left_out)
        rc = landing_note(l, err, "%zu files of it are no part of an adapter: left out", left_out);
    return rc;
}

static int land_folder_layout(struct landing *l, struct err *err)
{
    char *index = file_join(l->path, "index.json");
    int rc = index ? land_layout(l, index, true, err) : no_memory(l, err);
    sys_free(index);
    return rc;
}

int import_pack(struct store *s, const char *path, const struct import_options *opt,
                import_row_fn *row, void *arg, json_t **notes, struct err *err)
{
    struct landing l;
    *notes = NULL;
    int rc = landing_open(&l, s, path, opt, row, arg, err);
    if (rc)
        return rc;
    rc = file_is_folder(path) ? land_folder_layout(&l, err) : land_archive(&l, err);
    if (!rc)
        *notes = json_incref(l.notes);
    landing_close(&l);
    return rc;
}
