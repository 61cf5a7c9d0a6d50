#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/strbuf.h"
#include "libcore/base/thread.h"
#include "store/refs.h"

// ---- spelling ----------------------------------------------------------------------------------

static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";

/* Every part between slashes is a file name of its own somewhere, so none may be "", "." or "..".
 */
static int check_name(const char *text, const char *name, size_t n, struct err *err)
{
    if (n == 0 || n > LIMIT_NAME_BYTES)
        return err_set(err, ERR_USAGE, "'%.80s': a name has 1 to %d characters", text,
                       LIMIT_NAME_BYTES);
    if (name[0] == '-')
        return err_set(err, ERR_USAGE, "'%.80s': a name must not begin with '-'", text);
    size_t part = 0;
    for (size_t i = 0; i <= n; i++) {
        if (i < n && name[i] != '/') {
            if (!strchr(letters, name[i]) || !name[i])
                return err_set(err, ERR_USAGE,
                               "'%.80s': character %zu is not allowed in a name (A-Z a-z 0-9 . _ /"
                               " -)",
                               text, i + 1);
            continue;
        }
        size_t len = i - part;
        if (len == 0 || (len <= 2 && memcmp(name + part, "..", len) == 0))
            return err_set(err, ERR_USAGE,
                           "'%.80s': the parts of a name between slashes must not "
                           "be empty, '.' or '..'",
                           text);
        part = i + 1;
    }
    return 0;
}

int store_parse_name(const char *text, char *name, char *tag, struct err *err)
{
    size_t n = strcspn(text, ":");
    int rc = check_name(text, text, n, err);
    if (rc)
        return rc;
    snprintf(name, LIMIT_NAME_BYTES + 1, "%.*s", (int)n, text);
    if (!text[n]) {
        snprintf(tag, STORE_TAG_BYTES + 1, "latest");
        return 0;
    }
    const char *t = text + n + 1;
    size_t len = strlen(t);
    if (len == 0 || len > STORE_TAG_BYTES || strspn(t, letters) != len || t[0] == '.' ||
        t[0] == '-')
        return err_set(err, ERR_USAGE,
                       "'%.80s': a tag has 1 to %d of A-Z a-z 0-9 . _ - and begins "
                       "with a letter, a digit or _",
                       text, STORE_TAG_BYTES);
    snprintf(tag, STORE_TAG_BYTES + 1, "%s", t);
    return 0;
}

// ---- resolving ---------------------------------------------------------------------------------

struct candidates {
    struct store *s;
    size_t n;
    char id[STORE_ID_CHARS + 1];
    enum store_kind kind;
    struct strbuf text;
};

static int take_candidate(void *arg, const char *id, enum store_kind kind)
{
    struct candidates *c = arg;
    if (c->n++ == 0) {
        snprintf(c->id, sizeof c->id, "%s", id);
        c->kind = kind;
    }
    if (c->n <= 8)
        strbuf_addf(&c->text, "%s%.16s", c->n > 1 ? ", " : "", id);
    else if (c->n == 9)
        strbuf_adds(&c->text, ", …");
    return 0;
}

static bool lower_hex(const char *text, char out[STORE_ID_CHARS + 1])
{
    if (strncmp(text, "sha256:", 7) == 0)
        text += 7;
    size_t n = strlen(text);
    if (n < STORE_PREFIX_CHARS || n > STORE_ID_CHARS)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (!isxdigit((unsigned char)text[i]))
            return false;
        out[i] = (char)tolower((unsigned char)text[i]);
    }
    out[n] = '\0';
    return true;
}

/* 0 found, ERR_NOT_FOUND none (err untouched), else an error. */
static int resolve_prefix(struct store *s, const char *ref, unsigned kinds,
                          struct store_resolved *out, struct err *err)
{
    char prefix[STORE_ID_CHARS + 1];
    if (!lower_hex(ref, prefix))
        return ERR_NOT_FOUND;
    struct candidates c = {.s = s};
    int rc = index_find_prefix(s->index, prefix, kinds, take_candidate, &c, err);
    if (!rc && c.n > 1)
        rc = err_set(err, ERR_USAGE, "%s: ambiguous, it begins %zu ids or digests: %s", ref, c.n,
                     strbuf_text(&c.text));
    strbuf_release(&c.text);
    if (rc || c.n == 0)
        return rc ? rc : ERR_NOT_FOUND;
    out->kind = c.kind;
    memcpy(out->id, c.id, sizeof out->id);
    struct store_entry e;
    rc = store_get(s, c.id, &e, err);
    if (rc)
        return rc;
    snprintf(out->name, sizeof out->name, "%s", e.name);
    snprintf(out->tag, sizeof out->tag, "%.*s", (int)strcspn(e.tags, ","), e.tags);
    store_entry_release(&e);
    return 0;
}

static const char *kinds_text(unsigned kinds)
{
    return kinds == STORE_ADAPTER ? "adapter" : kinds == STORE_BASE ? "base" : "adapter or base";
}

static int resolve_name(struct store *s, const char *name, const char *tag, unsigned kinds,
                        struct store_resolved *out, struct err *err)
{
    int rc = index_get_ref(s->index, name, tag, out->id, err);
    if (rc)
        return rc;
    struct store_entry e;
    rc = store_get(s, out->id, &e, err);
    if (rc)
        return rc;
    out->kind = e.kind;
    store_entry_release(&e);
    if (!(out->kind & kinds))
        return err_set(err, ERR_NOT_FOUND, "%s:%s: is %s, wanted %s", name, tag,
                       out->kind == STORE_BASE ? "a base" : "an adapter",
                       kinds == STORE_BASE ? "a base" : "an adapter");
    snprintf(out->name, sizeof out->name, "%s", name);
    snprintf(out->tag, sizeof out->tag, "%s", tag);
    return 0;
}

static int add_tag(void *arg, const char *name, const char *tag, const char *id)
{
    (void)id;
    struct strbuf *sb = arg;
    if (sb->len < 200)
        strbuf_addf(sb, "%s%s:%s", sb->len ? ", " : "", name, tag);
    return 0;
}

/* Nothing was found: says what tags of that name there are, if any. */
static int not_found(struct store *s, const char *ref, const char *name, unsigned kinds,
                     struct err *err)
{
    struct strbuf sb;
    strbuf_init(&sb);
    if (name)
        index_tags_of(s->index, name, add_tag, &sb, NULL);
    int rc;
    if (sb.len)
        rc = err_set(err, ERR_NOT_FOUND, "%s: no such tag; there is %s", ref, strbuf_text(&sb));
    else
        rc = err_set(err, ERR_NOT_FOUND, "%s: no such %s in the store %s", ref, kinds_text(kinds),
                     s->path);
    strbuf_release(&sb);
    return rc;
}

int store_resolve(struct store *s, const char *ref, unsigned kinds, struct store_resolved *out,
                  struct err *err)
{
    memset(out, 0, sizeof *out);
    char name[LIMIT_NAME_BYTES + 1], tag[STORE_TAG_BYTES + 1];
    struct err bad_name = {0};
    bool is_name =
        strncmp(ref, "sha256:", 7) != 0 && store_parse_name(ref, name, tag, &bad_name) == 0;
    if (is_name) {
        int rc = resolve_name(s, name, tag, kinds, out, err);
        if (rc != ERR_NOT_FOUND || out->id[0])
            return rc;
    }
    err_clear(err);
    int rc = resolve_prefix(s, ref, kinds, out, err);
    if (rc != ERR_NOT_FOUND)
        return rc;
    if (!is_name && bad_name.code)
        return err_set(err, bad_name.code, "%s", bad_name.msg);
    return not_found(s, ref, is_name ? name : NULL, kinds, err);
}

// ---- changing ----------------------------------------------------------------------------------

/* The ref file first, then the index: the index decides, so a name that was never committed is
 * nobody's loss. Under the lock. */
static int point(struct store *s, const char *name, const char *tag, const char *id,
                 const char *action, struct err *err)
{
    int rc = index_begin(s->index, err);
    if (rc)
        return rc;
    rc = refs_write(s, name, tag, id, action, err);
    if (!rc && id)
        rc = index_put_ref(s->index, name, tag, id, thread_unix_ns() / 1000000000u, err);
    else if (!rc)
        rc = index_delete_ref(s->index, name, tag, err);
    if (rc) {
        index_rollback(s->index);
        return rc;
    }
    return index_commit(s->index, err);
}

static int tag_locked(struct store *s, const char *name, const char *tag, const char *id,
                      bool force, bool *same, struct err *err)
{
    struct store_entry e;
    int rc = store_get(s, id, &e, err);
    if (rc)
        return rc;
    store_entry_release(&e);
    char old[STORE_ID_CHARS + 1];
    rc = index_get_ref(s->index, name, tag, old, err);
    if (rc && rc != ERR_NOT_FOUND)
        return rc;
    err_clear(err);
    *same = strcmp(old, id) == 0;
    if (*same)
        return 0;
    if (old[0] && !force)
        return err_set(err, ERR_EXISTS, "%s:%s: is in use for %.12s, wanted to name %.12s", name,
                       tag, old, id);
    return point(s, name, tag, id, "tag", err);
}

int store_tag(struct store *s, const char *name, const char *tag, const char *id, bool force,
              bool *same, struct err *err)
{
    *same = false;
    int rc = store_lock(s, "tag", err);
    if (rc)
        return rc;
    rc = tag_locked(s, name, tag, id, force, same, err);
    store_unlock(s);
    return rc;
}

int store_untag(struct store *s, const char *name, const char *tag, char id[STORE_ID_CHARS + 1],
                struct err *err)
{
    int rc = store_lock(s, "rm", err);
    if (rc)
        return rc;
    rc = index_get_ref(s->index, name, tag, id, err);
    if (!rc)
        rc = point(s, name, tag, NULL, "rm", err);
    store_unlock(s);
    return rc;
}

/* The id that a ref had before its last change; "" when there was none. */
static int previous_id(struct store *s, const char *name, const char *tag, const char *now,
                       char id[STORE_ID_CHARS + 1], struct err *err)
{
    json_t *root;
    int rc = refs_read(s, name, tag, &root, err);
    if (rc)
        return rc == ERR_NOT_FOUND
                   ? err_set(err, rc, "%s:%s: no such name, now or before", name, tag)
                   : rc;
    size_t i;
    json_t *event;
    id[0] = '\0';
    json_array_foreach(json_object_get(root, "history"), i, event)
    {
        const char *was = json_string_value(json_object_get(event, "id"));
        if (was && strcmp(was, now) != 0 && !id[0])
            snprintf(id, STORE_ID_CHARS + 1, "%s", was);
    }
    json_decref(root);
    return id[0] ? 0
                 : err_set(err, ERR_NOT_FOUND, "%s:%s: has never been anything else", name, tag);
}

static int undo_locked(struct store *s, const char *name, const char *tag,
                       char id[STORE_ID_CHARS + 1], struct err *err)
{
    char now[STORE_ID_CHARS + 1];
    int rc = index_get_ref(s->index, name, tag, now, err);
    if (rc && rc != ERR_NOT_FOUND)
        return rc;
    err_clear(err);
    rc = previous_id(s, name, tag, now, id, err);
    if (rc)
        return rc;
    struct store_entry e;
    rc = store_get(s, id, &e, err);
    if (rc)
        return rc == ERR_NOT_FOUND
                   ? err_set(err, rc, "%s:%s: was %.12s, which gc has removed", name, tag, id)
                   : rc;
    store_entry_release(&e);
    return point(s, name, tag, id, "undo", err);
}

int store_tag_undo(struct store *s, const char *name, const char *tag, char id[STORE_ID_CHARS + 1],
                   struct err *err)
{
    int rc = store_lock(s, "tag", err);
    if (rc)
        return rc;
    rc = undo_locked(s, name, tag, id, err);
    store_unlock(s);
    return rc;
}

int store_tag_history(struct store *s, const char *name, const char *tag, json_t **out,
                      struct err *err)
{
    json_t *root;
    *out = NULL;
    int rc = refs_read(s, name, tag, &root, err);
    if (rc)
        return rc == ERR_NOT_FOUND
                   ? err_set(err, rc, "%s:%s: no such name, now or before", name, tag)
                   : rc;
    *out = json_incref(json_object_get(root, "history"));
    json_decref(root);
    return 0;
}

static int append_name(void *arg, const char *name, const char *tag, const char *id)
{
    (void)id;
    return json_array_append_new(arg, json_sprintf("%s:%s", name, tag)) == 0 ? 0 : ERR_NO_MEMORY;
}

int store_names(struct store *s, const char *id, json_t **out, struct err *err)
{
    *out = json_array();
    int rc = *out ? index_refs_of(s->index, id, append_name, *out, err) : ERR_NO_MEMORY;
    if (rc == ERR_NO_MEMORY)
        err_set(err, rc, "%s: no memory for its names", id);
    if (rc) {
        json_decref(*out);
        *out = NULL;
    }
    return rc;
}
