/*
 * The last moves of a merge: at whichever of their calls the disk fails, the old output is there
 * bit for bit, or the new one is; nothing lies beside it but what a resume goes on with.
 */
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/merge/work.h"
#include "tests/lib/fault.h"

static const char key[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
static const char old_bytes[] = "the old output\0with a zero", new_bytes[] = "the new one";

/* A folder of its own with out/; paths in it. */
struct place {
    char root[512], out[600], partial[640], path[900];
};

static const char *in(struct place *p, const char *folder, const char *name)
{
    snprintf(p->path, sizeof p->path, "%s/%s", folder, name);
    return p->path;
}

static void put(struct place *p, const char *folder, const char *name, const char *data, size_t n)
{
    struct err err = {0};
    CHECK_OK(file_make_folders(folder, &err), err);
    CHECK_OK(file_write_atomic(in(p, folder, name), data, n, &err), err);
}

static struct place make_place(bool with_old)
{
    struct place p;
    snprintf(p.root, sizeof p.root, "%s/publish", test_tmp());
    snprintf(p.out, sizeof p.out, "%s/out", p.root);
    snprintf(p.partial, sizeof p.partial, "%s.partial", p.out);
    file_remove_tree(p.root, NULL);
    file_make_folders(p.root, NULL);
    if (with_old) {
        put(&p, p.out, "weights", old_bytes, sizeof old_bytes);
        put(&p, p.out, "only-old", "x", 1);
    }
    return p;
}

static size_t count(const char *folder)
{
    char **names = NULL;
    size_t n = 0;
    if (file_list(folder, &names, &n, NULL) == 0)
        file_free_names(names, n);
    return n;
}

static bool holds(struct place *p, const char *folder, const char *want, size_t size,
                  size_t n_files)
{
    char *data = NULL;
    size_t n = 0;
    bool same = file_read(in(p, folder, "weights"), 1 << 20, &data, &n, NULL) == 0 && n == size &&
                memcmp(data, want, n) == 0 && count(folder) == n_files;
    sys_free(data);
    return same;
}

/* A whole merge whose publishing fails at its n-th call; *hit: there was such a call. */
static int merge_once(struct place *p, bool force, bool keep, uint64_t n, bool *hit,
                      struct err *err)
{
    struct merge_work *w;
    int rc = merge_work_open(&w, p->out, key, 1, keep, force, err);
    *hit = false;
    if (rc)
        return rc;
    put(p, merge_work_folder(w), "weights", new_bytes, sizeof new_bytes);
    merge_work_note(w, 0, &(struct values_stats){0});
    rc = merge_work_sync(w, err);
    sys_fault(n ? SYS_FAULT_FAIL : SYS_FAULT_OFF, SYS_FAULT_FILE, n);
    rc = rc ? rc : merge_work_publish(w, force, err);
    *hit = sys_fault_hit();
    sys_fault(SYS_FAULT_OFF, 0, 0);
    merge_work_close(w, keep && rc);
    return rc;
}

/* Every call of publishing in turn; gives how many there were. */
static uint64_t fail_each(bool with_old, bool keep)
{
    bool hit = true;
    uint64_t n = 0;
    while (hit) {
        struct err err = {0};
        struct place p = make_place(with_old);
        int rc = merge_once(&p, with_old, keep, ++n, &hit, &err);
        EXPECT_MSG((rc != 0) == hit, "call %llu: code %d, %s", (unsigned long long)n, rc, err.msg);
        if (!rc) {
            EXPECT_MSG(holds(&p, p.out, new_bytes, sizeof new_bytes, 1), "the new output");
            EXPECT_MSG(count(p.root) == 1, "nothing beside it");
            continue;
        }
        if (with_old)
            EXPECT_MSG(holds(&p, p.out, old_bytes, sizeof old_bytes, 2),
                       "call %llu fails (%s): the old output is another", (unsigned long long)n,
                       err.msg);
        else
            EXPECT_MSG(!file_exists(p.out), "call %llu fails (%s): an output",
                       (unsigned long long)n, err.msg);
        EXPECT_MSG(count(p.root) == (size_t)with_old + keep, "call %llu fails: %zu things there",
                   (unsigned long long)n, count(p.root));
        if (!keep)
            continue;
        EXPECT_INT(count(p.partial), 2); // model and journal
        char model[700];
        snprintf(model, sizeof model, "%s/model", p.partial);
        EXPECT_MSG(holds(&p, model, new_bytes, sizeof new_bytes, 1), "call %llu: work is lost",
                   (unsigned long long)n);
        EXPECT_INT(merge_once(&p, with_old, true, 0, &(bool){false}, &err), 0);
        EXPECT_MSG(holds(&p, p.out, new_bytes, sizeof new_bytes, 1), "then it goes on");
        EXPECT_INT(count(p.root), 1);
    }
    return n - 1;
}

TEST(a_disk_that_fails_while_a_merge_is_published)
{
    for (int keep = 0; keep < 2; keep++) {
        // Sync of the work (open, fsync), rename, sync of the parent.
        uint64_t fresh = fail_each(false, keep), forced = fail_each(true, keep);
        EXPECT_MSG(fresh >= 5, "%llu calls", (unsigned long long)fresh);
        EXPECT_MSG(forced > fresh, "%llu calls with an old output", (unsigned long long)forced);
    }
}
