#include "tests/unit/store/fake.h"

#include <jansson.h>

#include "libcore/base/file.h"
#include "store/fsck.h"
#include "store/gc.h"
#include "store/signed.h"

/*
 * Every operation is made to fail at its first, second, … n-th call for memory or to the file
 * system (ours and SQLite's), until it gets through. After each failure: the error has words, what
 * was there before is there, fsck finds no problem, and the operation works when tried again.
 */

static const char *const hello = "hello";

static void prepare(const char *path)
{
    struct store *s = fake_store(path);
    struct err err = {0};
    enum publish_state state;
    if (!s)
        return;
    EXPECT(fake_publish(s, fake_id(1), "", "one", hello, false, &state, &err) == 0);
    EXPECT(fake_publish(s, fake_id(2), "", "two", "zwei", false, &state, &err) == 0);
    char id[STORE_ID_CHARS + 1];
    EXPECT(fake_publish(s, fake_id(3), "", "gone", "drei", false, &state, &err) == 0);
    EXPECT(store_untag(s, "gone", "latest", id, &err) == 0);
    store_close(s);
}

static int import_op(struct store *s, struct err *err)
{
    enum publish_state state;
    return fake_publish(s, fake_id(4), "", "new", "vier", false, &state, err);
}

static int record_base_op(struct store *s, struct err *err)
{
    enum publish_state state;
    return fake_publish(s, fake_id(1), fake_id(90), "one", hello, false, &state, err);
}

static int force_op(struct store *s, struct err *err)
{
    enum publish_state state;
    return fake_publish(s, fake_id(4), "", "two", "vier", true, &state, err);
}

static int tag_op(struct store *s, struct err *err)
{
    bool same;
    return store_tag(s, "more", "v1", fake_id(1), false, &same, err);
}

/* Signing reads a key: with libcrypto's own memory, which is not failed here. */
static int sign_op(struct store *s, struct err *err)
{
    char path[4300];
    bool same;
    struct sign_key *key;
    struct signed_report report;
    snprintf(path, sizeof path, "%s/tests/keys/team.pem", test_root());
    int rc = sign_key_read_private(&key, path, err);
    if (!rc)
        rc = signed_sign(s, fake_id(1), "one", key, false, &same, &report, err);
    sign_key_free(key);
    return rc;
}

static int rm_op(struct store *s, struct err *err)
{
    char id[STORE_ID_CHARS + 1];
    int rc = store_untag(s, "two", "latest", id, err);
    return rc == ERR_NOT_FOUND ? 0 : rc; // the failure may have come after the commit
}

static int gc_op(struct store *s, struct err *err)
{
    struct gc_report report;
    const struct gc_options opt = {.grace_s = 0};
    return store_gc(s, &opt, &report, NULL, NULL, err);
}

static int keep_row(void *arg, const struct store_entry *e)
{
    ++*(int *)arg;
    return *e->name ? 0 : ERR_FAIL;
}

static int list_op(struct store *s, struct err *err)
{
    int n = 0;
    int rc = store_list(s, &(struct store_query){0}, keep_row, &n, err);
    return rc ? rc : n >= 2 ? 0 : err_set(err, ERR_INTERNAL, "a listing of %d rows", n);
}

static int resolve_op(struct store *s, struct err *err)
{
    struct store_resolved r;
    struct store_entry e;
    json_t *names = NULL;
    int rc = store_resolve(s, "2cf24dba5f", STORE_ANY, &r, err);
    if (!rc)
        rc = store_get(s, r.id, &e, err);
    if (!rc) {
        store_entry_release(&e);
        rc = store_names(s, r.id, &names, err);
        json_decref(names);
    }
    return rc;
}

static int lease_op(struct store *s, struct err *err)
{
    struct lease *l;
    const char *id = fake_id(1);
    int rc = lease_open(&l, s, "serve", &id, 1, err);
    if (!rc)
        rc = lease_add(l, s, fake_id(2), err);
    if (!rc)
        lease_close(l);
    else if (l)
        lease_close(l);
    return rc;
}

static void print_finding(void *arg, enum fsck_severity severity, const char *text)
{
    if (severity == FSCK_PROBLEM)
        printf("# call %d: %s\n", *(int *)arg, text);
}

static bool is_whole(const char *path, int n)
{
    struct fsck_report report;
    const struct fsck_options opt = {0};
    struct err err = {0};
    int rc = store_fsck(path, &opt, &report, print_finding, &n, &err);
    if (rc)
        printf("# call %d: fsck: %s\n", n, err.msg);
    return rc == 0 && report.n_problems == 0;
}

static int run_once(const char *path, int (*op)(struct store *s, struct err *err), struct err *err)
{
    struct store *s;
    struct store_options opt = {.lock_timeout_ms = 2000};
    int rc = store_open(&s, path, &opt, err);
    if (!rc)
        rc = op(s, err);
    store_close(s);
    return rc;
}

static void *json_alloc(size_t n)
{
    return sys_malloc(n);
}

/* Every n-th call only: a sample in `make check`, all of them in tests/crash/test_faults_all.sh. */
static int step(void)
{
    const char *text = getenv("LORA_FAULT_STEP");
    return text && atoi(text) > 0 ? atoi(text) : 17;
}

static void sweep(const char *what, int (*op)(struct store *s, struct err *err), unsigned class_bit)
{
    char before[4200], victim[4200], command[13000];
    snprintf(before, sizeof before, "%s", fake_store_path());
    snprintf(victim, sizeof victim, "%s", fake_store_path());
    prepare(before);
    for (int n = 1; n < 4000; n += step()) {
        snprintf(command, sizeof command, "rm -rf '%s' && cp -a '%s' '%s'", victim, before, victim);
        CHECK(system(command) == 0);
        struct err err = {0};
        json_set_alloc_funcs(json_alloc, sys_free);
        sys_fault(SYS_FAULT_FAIL, class_bit, (uint64_t)n);
        int rc = run_once(victim, op, &err);
        bool hit = sys_fault_hit();
        sys_fault(SYS_FAULT_OFF, 0, 0);
        if (!hit) {
            CHECK_MSG(rc == 0, "%s: without a failure: %s", what, err.msg);
            CHECK_MSG(n > 1 || step() > 1, "%s: no call at all", what);
            return;
        }
        CHECK_MSG(rc == 0 || err.msg[0], "%s: call %d fails without words", what, n);
        CHECK_MSG(is_whole(victim, n), "%s: call %d leaves a broken store (%s)", what, n, err.msg);
        err_clear(&err);
        CHECK_MSG(run_once(victim, op, &err) == 0, "%s: after call %d: %s", what, n, err.msg);
        CHECK_MSG(is_whole(victim, n), "%s: after call %d, again: broken", what, n);
    }
    CHECK_MSG(false, "%s does not end", what);
}

#define SWEEP(name, op)                                                                            \
    TEST(name##_survives_every_failure_of_a_file_call)                                             \
    {                                                                                              \
        sweep(#name, op, SYS_FAULT_FILE);                                                          \
    }                                                                                              \
    TEST(name##_survives_a_full_disk)                                                              \
    {                                                                                              \
        sweep(#name, op, SYS_FAULT_CHANGE);                                                        \
    }                                                                                              \
    TEST(name##_survives_every_failure_of_memory)                                                  \
    {                                                                                              \
        sweep(#name, op, SYS_FAULT_MEM);                                                           \
    }

SWEEP(importing, import_op)
SWEEP(recording_a_base, record_base_op)
SWEEP(importing_with_force, force_op)
SWEEP(tagging, tag_op)
SWEEP(signing, sign_op)
SWEEP(removing, rm_op)
SWEEP(collecting, gc_op)
SWEEP(listing, list_op)
SWEEP(resolving, resolve_op)
SWEEP(leasing, lease_op)
