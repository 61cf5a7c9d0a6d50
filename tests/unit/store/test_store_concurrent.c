#include "tests/unit/store/fake.h"

#include <sys/wait.h>

#include "store/fsck.h"
#include "store/gc.h"

/* Many processes on one store. Each child says what went wrong on stderr and exits 1. */

enum { N_IMPORTERS = 10, N_EACH = 10 };

static int complain(const char *who, const struct err *err)
{
    fprintf(stderr, "# %s: %s\n", who, err->msg);
    return 1;
}

static void complain_finding(void *arg, enum fsck_severity severity, const char *text)
{
    (void)arg;
    if (severity == FSCK_PROBLEM)
        fprintf(stderr, "# fsck: %s\n", text);
}

static struct store *open_again(const char *path)
{
    struct store *s;
    struct err err = {0};
    struct store_options opt = {.create = true, .lock_timeout_ms = 120000};
    if (store_open(&s, path, &opt, &err) != 0) {
        complain("open", &err);
        return NULL;
    }
    return s;
}

/* Imports its own adapters; every second time a content that all importers share. */
static int importer(const char *path, int number)
{
    for (int i = 0; i < N_EACH; i++) {
        struct store *s = open_again(path); // as a process a time would
        struct err err = {0};
        enum publish_state state;
        char name[64], bytes[64];
        snprintf(name, sizeof name, "team-%d/adapter-%d", number, i);
        bool shared = i % 2;
        unsigned seed = shared ? 7000u + (unsigned)i : (unsigned)(number * 100 + i);
        snprintf(bytes, sizeof bytes, "content of %u", seed);
        if (!s)
            return 1;
        int rc = fake_publish(s, fake_id(seed), "", name, bytes, false, &state, &err);
        struct store_resolved r;
        if (!rc)
            rc = store_resolve(s, name, STORE_ADAPTER, &r, &err);
        if (!rc && strcmp(r.id, fake_id(seed)) != 0)
            rc = err_set(&err, ERR_INTERNAL, "%s names something else", name);
        store_close(s);
        if (rc)
            return complain(name, &err);
    }
    return 0;
}

static int look(void *arg, const struct store_entry *e)
{
    (void)arg;
    return strlen(e->id) == STORE_ID_CHARS && *e->name ? 0 : ERR_CORRUPT;
}

/* Lists until the file appears that says that the importers are done. */
static int lister(const char *path, const char *done)
{
    while (access(done, F_OK) != 0) {
        struct store *s = open_again(path);
        struct err err = {0};
        if (!s)
            return 1;
        int rc = store_list(s, &(struct store_query){0}, look, NULL, &err);
        store_close(s);
        if (rc)
            return complain("list", &err);
    }
    return 0;
}

/* fsck beside imports, removals and gc finds nothing wrong. */
static int checker(const char *path, const char *done)
{
    while (access(done, F_OK) != 0) {
        struct err err = {0};
        struct fsck_report report;
        const struct fsck_options opt = {0};
        int rc = store_fsck(path, &opt, &report, complain_finding, NULL, &err);
        if (rc && rc != ERR_NO_STORE)
            return complain("fsck", &err);
        if (!rc && report.n_problems)
            return 1;
    }
    return 0;
}

/* Takes names away again, of adapters of its own. */
static int remover(const char *path, const char *done)
{
    for (unsigned i = 0; access(done, F_OK) != 0; i++) {
        struct store *s = open_again(path);
        struct err err = {0};
        enum publish_state state;
        char id[STORE_ID_CHARS + 1], bytes[64];
        snprintf(bytes, sizeof bytes, "short-lived %u", i);
        int rc =
            s ? fake_publish(s, fake_id(20000 + i), "", "short-lived", bytes, false, &state, &err)
              : ERR_FAIL;
        if (!rc)
            rc = store_untag(s, "short-lived", "latest", id, &err);
        store_close(s);
        if (rc)
            return complain("rm", &err);
    }
    return 0;
}

static int collector(const char *path, const char *done)
{
    while (access(done, F_OK) != 0) {
        struct store *s = open_again(path);
        struct err err = {0};
        struct gc_report report;
        const struct gc_options opt = {.grace_s = 0};
        if (!s)
            return 1;
        int rc = store_gc(s, &opt, &report, NULL, NULL, &err);
        store_close(s);
        if (rc)
            return complain("gc", &err);
        usleep(1000);
    }
    return 0;
}

static int n_failed(pid_t *children, int n)
{
    int failed = 0;
    for (int i = 0; i < n; i++) {
        int status = 0;
        if (waitpid(children[i], &status, 0) < 0 || status != 0)
            failed++;
    }
    return failed;
}

static int count(void *arg, const struct store_entry *e)
{
    (void)e;
    ++*(int *)arg;
    return 0;
}

static void print_finding(void *arg, enum fsck_severity severity, const char *text)
{
    (void)arg;
    if (severity == FSCK_PROBLEM)
        printf("# %s\n", text);
}

TEST(a_hundred_imports_with_lists_and_gc_beside_them_lose_nothing)
{
    char path[4200], done[4300];
    snprintf(path, sizeof path, "%s", fake_store_path());
    snprintf(done, sizeof done, "%s.done", path);
    static int (*const roles[])(const char *path, const char *done) = {
        lister, lister, lister, collector, collector, checker, remover};
    enum { N_OTHERS = sizeof roles / sizeof *roles };
    pid_t importers[N_IMPORTERS], others[N_OTHERS];
    fflush(NULL);
    // The store does not exist yet: its creation is part of the race.
    for (int i = 0; i < N_IMPORTERS; i++) {
        importers[i] = fork();
        if (importers[i] == 0)
            _exit(importer(path, i));
    }
    for (int i = 0; i < N_OTHERS; i++) {
        others[i] = fork();
        if (others[i] == 0)
            _exit(roles[i](path, done));
    }
    EXPECT_INT(n_failed(importers, N_IMPORTERS), 0);
    int fd = open(done, O_CREAT | O_WRONLY, 0600);
    CHECK(fd >= 0);
    close(fd);
    EXPECT_INT(n_failed(others, N_OTHERS), 0);

    struct store *s = open_again(path);
    CHECK(s);
    struct err err = {0};
    int n = 0;
    CHECK_OK(store_list(s, &(struct store_query){0}, count, &n, &err), err);
    EXPECT_INT(n, N_IMPORTERS * N_EACH);
    store_close(s);
    s = open_again(path);
    struct gc_report collected;
    const struct gc_options all = {.grace_s = 0};
    CHECK_OK(store_gc(s, &all, &collected, NULL, NULL, &err), err);
    store_close(s);
    struct fsck_report report;
    const struct fsck_options opt = {0};
    CHECK_OK(store_fsck(path, &opt, &report, print_finding, NULL, &err), err);
    EXPECT_INT(report.n_problems, 0);
    EXPECT_INT(report.n_adapters, N_IMPORTERS * N_EACH / 2 + N_EACH / 2);
    EXPECT_INT(report.n_notes, 0);
}

TEST(one_name_is_given_once)
{
    char path[4200];
    snprintf(path, sizeof path, "%s", fake_store_path());
    store_close(fake_store(path));
    pid_t children[8];
    fflush(NULL);
    for (int i = 0; i < 8; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            struct store *s = open_again(path);
            struct err err = {0};
            enum publish_state state;
            char bytes[32];
            snprintf(bytes, sizeof bytes, "mine %d", i);
            int rc = s ? fake_publish(s, fake_id(50u + (unsigned)i), "", "wanted", bytes, false,
                                      &state, &err)
                       : ERR_FAIL;
            store_close(s);
            _exit(rc == 0 ? 0 : rc == ERR_EXISTS ? 4 : 9);
        }
    }
    int won = 0, refused = 0;
    for (int i = 0; i < 8; i++) {
        int status = 0;
        waitpid(children[i], &status, 0);
        won += WIFEXITED(status) && WEXITSTATUS(status) == 0;
        refused += WIFEXITED(status) && WEXITSTATUS(status) == 4;
    }
    EXPECT_INT(won, 1);
    EXPECT_INT(refused, 7);
}

TEST(a_lease_of_another_process_keeps_what_it_holds_and_dies_with_it)
{
    char path[4200];
    snprintf(path, sizeof path, "%s", fake_store_path());
    struct store *s = fake_store(path);
    CHECK(s);
    struct err err = {0};
    enum publish_state state;
    char id[STORE_ID_CHARS + 1];
    CHECK_OK(fake_publish(s, fake_id(1), "", "x", "held", false, &state, &err), err);
    int ready[2];
    CHECK(pipe(ready) == 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        struct store *own = open_again(path);
        struct lease *l = NULL;
        const char *held = fake_id(1);
        struct err child_err = {0};
        if (!own || lease_open(&l, own, "serve", &held, 1, &child_err) != 0)
            _exit(complain("lease", &child_err));
        char byte = 1;
        if (write(ready[1], &byte, 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    char byte;
    CHECK(read(ready[0], &byte, 1) == 1);
    CHECK_OK(store_untag(s, "x", "latest", id, &err), err);
    struct gc_report report;
    const struct gc_options opt = {.grace_s = 0};
    CHECK_OK(store_gc(s, &opt, &report, NULL, NULL, &err), err);
    EXPECT_INT(report.n_leased, 1);
    struct store_entry e;
    CHECK_OK(store_get(s, fake_id(1), &e, &err), err);
    store_entry_release(&e);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    CHECK_OK(store_gc(s, &opt, &report, NULL, NULL, &err), err);
    EXPECT_INT(report.n_objects, 1);
    CHECK_CODE(store_get(s, fake_id(1), &e, &err), ERR_NOT_FOUND, err);
    close(ready[0]);
    close(ready[1]);
    store_close(s);
}
