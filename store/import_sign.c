#include <stdio.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "store/arrive.h"
#include "store/import_impl.h"
#include "store/signed.h"

int import_signatures_add(struct import_signatures *all, const char *path, const char *where,
                          struct err *err)
{
    if (all->n >= LIMIT_SIGNATURES)
        return err_set(err, ERR_LIMIT, "%s: more than %d signatures", where, LIMIT_SIGNATURES);
    struct import_signature *more = sys_reallocarray(all->items, all->n + 1, sizeof *more);
    if (!more)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", where);
    all->items = more;
    struct import_signature *s = &all->items[all->n++];
    *s = (struct import_signature){.where = sys_strdup(where)};
    if (!s->where)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", where);
    int rc = file_read(path, LIMIT_SIGNATURE_BYTES, &s->text, &s->n, &s->why);
    if (rc == ERR_LIMIT) { // something else of that name: no reason to refuse the adapter
        err_set(&s->why, rc, "%s: is larger than any signature", where);
        return 0;
    }
    return rc ? err_set(err, rc, "%s", s->why.msg) : 0;
}

void import_signatures_release(struct import_signatures *all)
{
    for (size_t i = 0; i < all->n; i++) {
        sys_free(all->items[i].text);
        sys_free(all->items[i].where);
        sys_free(all->items[i].published.tmp);
    }
    sys_free(all->items);
    *all = (struct import_signatures){0};
}

static int warn(json_t *warnings, const struct err *why, struct err *err)
{
    char text[ERR_MSG_BYTES + 80];
    snprintf(text, sizeof text, "a signature was not kept: %s", why->msg);
    return json_array_append_new(warnings, json_string(text)) == 0
               ? 0
               : err_set(err, ERR_NO_MEMORY, "no memory for a warning");
}

/* Whether it is of these files, and *trusted when one of the keys signed it. */
static int judge(struct import_signature *s, const struct signed_file *files, size_t n_files,
                 const struct sign_keys *keys, bool *trusted, struct err *err)
{
    struct bundle b;
    if (s->why.code)
        return err_set(err, s->why.code, "%s", s->why.msg);
    int rc = bundle_parse(&b, s->text, s->n, s->where, err);
    if (!rc)
        rc = signed_compare(&b, files, n_files, SIGNED_ADAPTER, s->where, err);
    if (!rc) {
        s->kept = true;
        memcpy(s->key, b.hint, sizeof s->key);
    }
    if (!rc && keys && bundle_signer(&b, keys, s->where, err))
        *trusted = true;
    else if (!rc && keys)
        rc = err && err->code ? err->code : ERR_REFUSED;
    bundle_release(&b);
    return rc;
}

int import_signatures_judge(struct import_signatures *all, const struct signed_file *files,
                            size_t n_files, const struct import_options *opt, const char *where,
                            json_t *warnings, struct err *err)
{
    const struct sign_keys *keys = opt->required && opt->required->n ? opt->required : NULL;
    bool trusted = false;
    struct err first = {0};
    for (size_t i = 0; i < all->n; i++) {
        struct err why = {0};
        int rc = judge(&all->items[i], files, n_files, keys, &trusted, &why);
        if (rc == ERR_NO_MEMORY || rc == ERR_IO)
            return err_set(err, rc, "%s", why.msg);
        if (rc && (!first.code || (rc == ERR_CORRUPT && first.code == ERR_REFUSED)))
            first = why;
        // A pack's own list vouches for its signatures: one that is not of its files is damage.
        if (rc && all->strict && !all->items[i].kept)
            return err_set(err, rc, "%s", why.msg);
        if (rc && !all->items[i].kept && (rc = warn(warnings, &why, err)) != 0)
            return rc;
    }
    if (!keys || trusted)
        return 0;
    if (first.code)
        return err_set(err, first.code, "%s", first.msg);
    return err_set(err, ERR_REFUSED, "%s: is not signed, and unsigned adapters are refused here",
                   where);
}

uint32_t import_signatures_n(const struct import_signatures *all)
{
    uint32_t n = 0;
    for (size_t i = 0; i < all->n; i++)
        n += all->items[i].kept;
    return n;
}

static int keep_one(struct import_signature *s, const char *folder, size_t number, json_t *manifest,
                    struct err *err)
{
    char name[32];
    struct arriving *to = NULL;
    struct digest d;
    bool added = false;
    snprintf(name, sizeof name, "signature-%zu", number);
    s->published.tmp = file_join(folder, name);
    s->published.signature = true;
    int rc = s->published.tmp ? arriving_open(&to, s->published.tmp, s->n, s->where, err)
                              : err_set(err, ERR_NO_MEMORY, "%s: no memory", s->where);
    if (!rc)
        rc = arriving_write(to, s->text, s->n, err);
    if (!rc)
        rc = arriving_finish(to, &d, err);
    arriving_free(to);
    if (!rc) {
        digest_hex(&d, s->published.digest);
        rc = manifest_add_signature(manifest, s->published.digest, s->n, s->key, &added, err);
    }
    s->kept = !rc && added; // the same one twice
    return rc;
}

int import_signatures_keep(struct import_signatures *all, const char *folder, json_t *manifest,
                           struct err *err)
{
    int rc = 0;
    for (size_t i = 0; !rc && i < all->n; i++) {
        if (all->items[i].kept)
            rc = keep_one(&all->items[i], folder, i, manifest, err);
    }
    return rc;
}

int import_signatures_list(const struct import_signatures *all, const struct import_files *f,
                           struct publish_file **out, size_t *n, struct err *err)
{
    *out = sys_calloc(f->n + all->n + 1, sizeof **out);
    if (!*out)
        return err_set(err, ERR_NO_MEMORY, "no memory for a list of files");
    memcpy(*out, f->published, f->n * sizeof **out);
    *n = f->n;
    for (size_t i = 0; i < all->n; i++) {
        if (all->items[i].kept)
            (*out)[(*n)++] = all->items[i].published;
    }
    return 0;
}
