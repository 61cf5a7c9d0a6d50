#include <stdio.h>
#include <string.h>

#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "store/index_impl.h"

static int failed(struct err *err)
{
    return err ? err->code : ERR_FAIL;
}

// ---- writing -----------------------------------------------------------------------------------

static int run_with_texts(struct index *x, enum index_statement which, const char *a, const char *b,
                          struct err *err)
{
    sqlite3_stmt *st = index_statement(x, which, err);
    if (!st)
        return failed(err);
    index_bind_text(st, 1, a);
    if (b)
        index_bind_text(st, 2, b);
    return index_run(x, st, err);
}

int index_put_object(struct index *x, const struct store_entry *e, struct err *err)
{
    sqlite3_stmt *st = index_statement(x, STATEMENT_PUT_OBJECT, err);
    if (!st)
        return failed(err);
    const char *texts[] = {e->id,   e->base_id, e->base_name, e->format,
                           e->arch, e->path,    e->dtype,     e->targets};
    const uint64_t numbers[] = {e->kinds,        e->min_rank,     e->max_rank,    e->n_layers,
                                e->n_modules,    e->n_parameters, e->disk_bytes,  e->host_bytes,
                                e->device_bytes, e->created,      e->n_signatures};
    int column = 1;
    sqlite3_bind_int(st, column++, (int)e->kind);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        index_bind_text(st, column++, texts[i]);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sqlite3_bind_int64(st, column++, (sqlite3_int64)numbers[i]);
    int rc = index_run(x, st, err);
    return rc ? rc : run_with_texts(x, STATEMENT_JOIN_REFS, e->id, NULL, err);
}

int index_put_file(struct index *x, const char *id, const char *path, const char *digest,
                   uint64_t size, struct err *err)
{
    sqlite3_stmt *st = index_statement(x, STATEMENT_PUT_FILE, err);
    if (!st)
        return failed(err);
    index_bind_text(st, 1, id);
    index_bind_text(st, 2, path);
    index_bind_text(st, 3, digest);
    sqlite3_bind_int64(st, 4, (sqlite3_int64)size);
    return index_run(x, st, err);
}

int index_put_base(struct index *x, const char *id, const char *base_id, struct err *err)
{
    return run_with_texts(x, STATEMENT_PUT_BASE, id, base_id, err);
}

int index_delete_object(struct index *x, const char *id, struct err *err)
{
    int rc = run_with_texts(x, STATEMENT_DELETE_FILES, id, NULL, err);
    if (!rc)
        rc = run_with_texts(x, STATEMENT_DELETE_BASES, id, NULL, err);
    return rc ? rc : run_with_texts(x, STATEMENT_DELETE_OBJECT, id, NULL, err);
}

int index_put_ref(struct index *x, const char *name, const char *tag, const char *id, uint64_t time,
                  struct err *err)
{
    sqlite3_stmt *st = index_statement(x, STATEMENT_PUT_REF, err);
    if (!st)
        return failed(err);
    index_bind_text(st, 1, name);
    index_bind_text(st, 2, tag);
    index_bind_text(st, 3, id);
    sqlite3_bind_int64(st, 4, (sqlite3_int64)time);
    return index_run(x, st, err);
}

int index_delete_ref(struct index *x, const char *name, const char *tag, struct err *err)
{
    return run_with_texts(x, STATEMENT_DELETE_REF, name, tag, err);
}

// ---- reading -----------------------------------------------------------------------------------

/* One row of a statement: 1 there is one, 0 there is none, negative an error. */
static int step(struct index *x, sqlite3_stmt *st, struct err *err)
{
    int rc = sqlite3_step(st);
    if (rc == SQLITE_ROW)
        return 1;
    if (rc == SQLITE_DONE)
        return 0;
    return index_error(x, rc, "reading", err);
}

int index_get_ref(struct index *x, const char *name, const char *tag, char id[STORE_ID_CHARS + 1],
                  struct err *err)
{
    id[0] = '\0';
    sqlite3_stmt *st = index_statement(x, STATEMENT_GET_REF, err);
    if (!st)
        return failed(err);
    index_bind_text(st, 1, name);
    index_bind_text(st, 2, tag);
    int rc = step(x, st, err);
    if (rc == 1)
        snprintf(id, STORE_ID_CHARS + 1, "%s", index_text(st, 0));
    sqlite3_reset(st);
    if (rc == 0)
        return err_set(err, ERR_NOT_FOUND, "%s:%s: no such name in the store", name, tag);
    return rc < 0 ? rc : 0;
}

int index_has_base(struct index *x, const char *id, const char *base_id, bool *has, struct err *err)
{
    *has = false;
    sqlite3_stmt *st = index_statement(x, STATEMENT_HAS_BASE, err);
    if (!st)
        return failed(err);
    index_bind_text(st, 1, id);
    index_bind_text(st, 2, base_id);
    int rc = step(x, st, err);
    *has = rc == 1;
    sqlite3_reset(st);
    return rc < 0 ? rc : 0;
}

int index_get_file(struct index *x, const char *id, const char *path,
                   char digest[STORE_ID_CHARS + 1], uint64_t *size, struct err *err)
{
    digest[0] = '\0';
    sqlite3_stmt *st = index_statement(x, STATEMENT_GET_FILE, err);
    if (!st)
        return failed(err);
    index_bind_text(st, 1, id);
    index_bind_text(st, 2, path);
    int rc = step(x, st, err);
    if (rc == 1) {
        snprintf(digest, STORE_ID_CHARS + 1, "%s", index_text(st, 0));
        *size = (uint64_t)sqlite3_column_int64(st, 1);
    }
    sqlite3_reset(st);
    if (rc == 0)
        return err_set(err, ERR_NOT_FOUND, "%.12s: has no file %s", id, path);
    return rc < 0 ? rc : 0;
}

void index_read_object(sqlite3_stmt *st, int column, struct store_entry *e)
{
    e->kind = (enum store_kind)sqlite3_column_int(st, column++);
    const char **texts[] = {&e->id,   &e->base_id, &e->base_name, &e->format,
                            &e->arch, &e->path,    &e->dtype,     &e->targets};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        *texts[i] = index_text(st, column++);
    e->kinds = (unsigned)sqlite3_column_int64(st, column++);
    uint32_t *small[] = {&e->min_rank, &e->max_rank, &e->n_layers, &e->n_modules};
    for (size_t i = 0; i < sizeof small / sizeof *small; i++)
        *small[i] = (uint32_t)sqlite3_column_int64(st, column++);
    uint64_t *big[] = {&e->n_parameters, &e->disk_bytes, &e->host_bytes, &e->device_bytes,
                       &e->created};
    for (size_t i = 0; i < sizeof big / sizeof *big; i++)
        *big[i] = (uint64_t)sqlite3_column_int64(st, column++);
    e->n_signatures = (uint32_t)sqlite3_column_int64(st, column++);
}

/* Copies the strings of an entry into one piece of memory. */
static int keep_strings(struct store_entry *e, struct err *err)
{
    const char **texts[] = {&e->id,     &e->name, &e->tags, &e->base_id, &e->base_name,
                            &e->format, &e->arch, &e->path, &e->dtype,   &e->targets};
    enum { N = sizeof texts / sizeof *texts };
    size_t total = 0;
    for (size_t i = 0; i < N; i++)
        total += strlen(*texts[i]) + 1;
    char *p = sys_malloc(total);
    if (!p)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", *texts[0]);
    e->memory = p;
    for (size_t i = 0; i < N; i++) {
        size_t n = strlen(*texts[i]) + 1;
        memcpy(p, *texts[i], n);
        *texts[i] = p;
        p += n;
    }
    return 0;
}

/* The first name of an object and its tags, into *names: "name\0tag,tag\0". */
static int first_name(struct index *x, const char *id, struct strbuf *name, struct strbuf *tags,
                      struct err *err)
{
    sqlite3_stmt *st = index_statement(x, STATEMENT_REFS_OF, err);
    if (!st)
        return failed(err);
    index_bind_text(st, 1, id);
    int rc;
    while ((rc = step(x, st, err)) == 1) {
        const char *n = index_text(st, 0);
        if (!name->len)
            strbuf_adds(name, n);
        else if (strcmp(strbuf_text(name), n) != 0)
            break;
        if (tags->len)
            strbuf_addc(tags, ',');
        strbuf_adds(tags, index_text(st, 1));
    }
    sqlite3_reset(st);
    if (rc >= 0 && (name->failed || tags->failed))
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", id);
    return rc < 0 ? rc : 0;
}

int index_get_object(struct index *x, const char *id, struct store_entry *e, struct err *err)
{
    memset(e, 0, sizeof *e);
    struct strbuf name, tags;
    strbuf_init(&name);
    strbuf_init(&tags);
    int rc = first_name(x, id, &name, &tags, err);
    sqlite3_stmt *st = rc ? NULL : index_statement(x, STATEMENT_GET_OBJECT, err);
    if (st) {
        index_bind_text(st, 1, id);
        rc = step(x, st, err);
        if (rc == 1) {
            index_read_object(st, 0, e);
            e->name = strbuf_text(&name);
            e->tags = strbuf_text(&tags);
            rc = keep_strings(e, err);
        } else if (rc == 0) {
            rc = err_set(err, ERR_NOT_FOUND, "%s: no such id in the store", id);
        }
        sqlite3_reset(st);
    } else if (!rc) {
        rc = failed(err);
    }
    strbuf_release(&name);
    strbuf_release(&tags);
    return rc;
}

typedef int ref_row(void *arg, const char *name, const char *tag, const char *id);

static int each_ref(struct index *x, sqlite3_stmt *st, ref_row *row, void *arg, struct err *err)
{
    int rc, result = 0;
    while (!result && (rc = step(x, st, err)) != 0)
        result = rc < 0 ? rc : row(arg, index_text(st, 0), index_text(st, 1), index_text(st, 2));
    sqlite3_reset(st);
    return result;
}

int index_each_ref(struct index *x, ref_row *row, void *arg, struct err *err)
{
    sqlite3_stmt *st = index_statement(x, STATEMENT_EACH_REF, err);
    return st ? each_ref(x, st, row, arg, err) : failed(err);
}

int index_refs_of(struct index *x, const char *id, ref_row *row, void *arg, struct err *err)
{
    sqlite3_stmt *st = index_statement(x, STATEMENT_REFS_OF, err);
    if (!st)
        return failed(err);
    index_bind_text(st, 1, id);
    return each_ref(x, st, row, arg, err);
}

int index_tags_of(struct index *x, const char *name, ref_row *row, void *arg, struct err *err)
{
    sqlite3_stmt *st = index_statement(x, STATEMENT_NAMED, err);
    if (!st)
        return failed(err);
    index_bind_text(st, 1, name);
    return each_ref(x, st, row, arg, err);
}

typedef int object_row(void *arg, const char *id, enum store_kind kind);

static int each_object(struct index *x, sqlite3_stmt *st, object_row *row, void *arg,
                       struct err *err)
{
    int rc, result = 0;
    while (!result && (rc = step(x, st, err)) != 0)
        result =
            rc < 0 ? rc : row(arg, index_text(st, 0), (enum store_kind)sqlite3_column_int(st, 1));
    sqlite3_reset(st);
    return result;
}

int index_each_object(struct index *x, object_row *row, void *arg, struct err *err)
{
    sqlite3_stmt *st = index_statement(x, STATEMENT_EACH_OBJECT, err);
    return st ? each_object(x, st, row, arg, err) : failed(err);
}

int index_find_prefix(struct index *x, const char *prefix, unsigned kinds, object_row *row,
                      void *arg, struct err *err)
{
    sqlite3_stmt *st = index_statement(x, STATEMENT_PREFIX, err);
    if (!st)
        return failed(err);
    // "g" sorts after every hex digit: the range [prefix, prefix + "g") is all that begin so.
    char end[STORE_ID_CHARS + 2];
    snprintf(end, sizeof end, "%.*sg", STORE_ID_CHARS, prefix);
    index_bind_text(st, 1, prefix);
    index_bind_text(st, 2, end);
    sqlite3_bind_int(st, 3, (int)kinds);
    return each_object(x, st, row, arg, err);
}

int index_each_file(struct index *x,
                    int (*row)(void *arg, const char *id, const char *path, const char *digest,
                               uint64_t size),
                    void *arg, struct err *err)
{
    sqlite3_stmt *st = index_statement(x, STATEMENT_EACH_FILE, err);
    if (!st)
        return failed(err);
    int rc, result = 0;
    while (!result && (rc = step(x, st, err)) != 0)
        result = rc < 0 ? rc
                        : row(arg, index_text(st, 0), index_text(st, 1), index_text(st, 2),
                              (uint64_t)sqlite3_column_int64(st, 3));
    sqlite3_reset(st);
    return result;
}

// ---- the listing -------------------------------------------------------------------------------

static void list_sql(struct strbuf *sb, const struct store_query *q)
{
    strbuf_adds(sb, "SELECT r.name, r.tag, " INDEX_OBJECT_COLUMNS
                    " FROM ref r JOIN object o ON o.no = r.object_no WHERE 1");
    if (q->kinds && q->kinds != STORE_ANY)
        strbuf_addf(sb, " AND o.kind = %u", q->kinds);
    if (q->base_id)
        strbuf_addf(sb, " AND (o.id IN (SELECT object FROM adapter_base WHERE base_id = ?1)%s)",
                    q->or_unknown_base ? " OR (o.kind = 1 AND o.base_id = '')" : "");
    if (q->tag)
        strbuf_adds(sb, " AND r.tag = ?2");
    // By name it is the primary key's own order: nothing is sorted.
    static const char *const orders[] = {
        [STORE_SORT_NAME] = "r.name, r.tag",
        [STORE_SORT_AGE] = "o.created DESC, r.name, r.tag",
        [STORE_SORT_BYTES] = "o.disk_bytes DESC, r.name, r.tag",
        [STORE_SORT_RANK] = "o.max_rank DESC, r.name, r.tag",
    };
    strbuf_addf(sb, " ORDER BY %s", orders[q->sort]);
}

/* Entries of one name that wait for more tags; mostly one. */
struct pending {
    struct waiting {
        struct store_entry entry; // strings in memory
        struct strbuf tags;
    } * items;
    size_t n, cap;
};

static int emit(struct pending *p, int (*row)(void *arg, const struct store_entry *e), void *arg,
                struct err *err)
{
    int rc = 0;
    for (size_t i = 0; i < p->n; i++) {
        struct waiting *w = &p->items[i];
        if (!rc && w->tags.failed)
            rc = err_set(err, ERR_NO_MEMORY, "no memory for a listing");
        w->entry.tags = strbuf_text(&w->tags);
        if (!rc)
            rc = row(arg, &w->entry);
        store_entry_release(&w->entry);
        strbuf_reset(&w->tags);
    }
    p->n = 0;
    return rc;
}

static void pending_release(struct pending *p)
{
    for (size_t i = 0; i < p->cap; i++) {
        if (i < p->n)
            store_entry_release(&p->items[i].entry);
        strbuf_release(&p->items[i].tags);
    }
    sys_free(p->items);
}

/* A free place behind those that wait; its strbuf keeps its memory from use to use. */
static struct waiting *next_place(struct pending *p)
{
    if (p->n == p->cap) {
        size_t cap = p->cap ? p->cap * 2 : 4;
        struct waiting *more = sys_reallocarray(p->items, cap, sizeof *more);
        if (!more)
            return NULL;
        memset(more + p->cap, 0, (cap - p->cap) * sizeof *more);
        p->items = more;
        p->cap = cap;
    }
    return &p->items[p->n];
}

/* Takes one row of the statement: one more tag of an entry that waits, or a new entry. */
static int take_row(struct pending *p, sqlite3_stmt *st,
                    int (*row)(void *arg, const struct store_entry *e), void *arg, struct err *err)
{
    const char *name = index_text(st, 0), *tag = index_text(st, 1), *id = index_text(st, 3);
    if (p->n && strcmp(p->items[0].entry.name, name) != 0) {
        int rc = emit(p, row, arg, err);
        if (rc)
            return rc;
    }
    for (size_t i = 0; i < p->n; i++) {
        if (strcmp(p->items[i].entry.id, id) == 0) {
            strbuf_addc(&p->items[i].tags, ',');
            strbuf_adds(&p->items[i].tags, tag);
            return 0;
        }
    }
    struct waiting *w = next_place(p);
    if (!w)
        return err_set(err, ERR_NO_MEMORY, "no memory for a listing");
    w->entry = (struct store_entry){.name = name, .tags = ""};
    index_read_object(st, 2, &w->entry);
    int rc = keep_strings(&w->entry, err);
    if (rc)
        return rc;
    strbuf_adds(&w->tags, tag);
    p->n++;
    return 0;
}

int index_list(struct index *x, const struct store_query *q,
               int (*row)(void *arg, const struct store_entry *e), void *arg, struct err *err)
{
    struct strbuf text;
    strbuf_init(&text);
    list_sql(&text, q);
    sqlite3_stmt *st = NULL;
    int status =
        text.failed ? SQLITE_NOMEM : sqlite3_prepare_v2(x->db, strbuf_text(&text), -1, &st, NULL);
    strbuf_release(&text);
    if (status != SQLITE_OK)
        return index_error(x, status, "listing", err);
    if (q->base_id)
        index_bind_text(st, 1, q->base_id);
    if (q->tag)
        index_bind_text(st, 2, q->tag);
    struct pending p = {0};
    int rc, result = 0;
    while (!result && (rc = step(x, st, err)) != 0)
        result = rc < 0 ? rc : take_row(&p, st, row, arg, err);
    if (!result)
        result = emit(&p, row, arg, err);
    pending_release(&p);
    sqlite3_finalize(st);
    return result;
}
