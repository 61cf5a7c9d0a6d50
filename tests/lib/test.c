#include "tests/lib/test.h"

#include <libgen.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static struct test_case *first, **last = &first;
static int failures; // of the test that runs
static bool skipped;
static char skip_reason[256];
static char tmp_path[PATH_MAX];
static pid_t tmp_owner;

void test_register(struct test_case *t)
{
    *last = t;
    last = &t->next;
}

void test_fail(const char *file, int line, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    printf("# %s:%d: ", file, line);
    vprintf(fmt, args);
    printf("\n");
    va_end(args);
    failures++;
}

void test_skip(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(skip_reason, sizeof skip_reason, fmt, args);
    va_end(args);
    skipped = true;
}

bool test_str_equal(const char *file, int line, const char *expr, const char *got, const char *want)
{
    if (got && want && strcmp(got, want) == 0)
        return true;
    test_fail(file, line, "%s = \"%s\", want \"%s\"", expr, got ? got : "(null)",
              want ? want : "(null)");
    return false;
}

const char *test_root(void)
{
    static char root[PATH_MAX];
    if (root[0])
        return root;
    const char *given = getenv("LORA_ROOT");
    if (given) {
        snprintf(root, sizeof root, "%s", given);
        return root;
    }
    if (!getcwd(root, sizeof root))
        abort();
    while (strlen(root) > 1) {
        char probe[PATH_MAX + 32];
        snprintf(probe, sizeof probe, "%s/libcore/backend.h", root);
        if (access(probe, R_OK) == 0)
            return root;
        *strrchr(root, '/') = '\0';
    }
    return root;
}

const char *test_fixtures(void)
{
    static char path[PATH_MAX + 64];
    const char *given = getenv("LORA_FIXTURES");
    if (given)
        snprintf(path, sizeof path, "%s", given);
    else
        snprintf(path, sizeof path, "%s/../shared/fixtures", test_root());
    return access(path, R_OK) == 0 ? path : NULL;
}

const char *test_tinytalk(void)
{
    static char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/examples/tinytalk", test_root());
    return path;
}

static void remove_tmp(void)
{
    if (getpid() != tmp_owner)
        return; // a forked child that calls exit()
    char command[2 * PATH_MAX + 64];
    snprintf(command, sizeof command, "chmod -R u+w '%s' 2>/dev/null; rm -rf '%s'", tmp_path,
             tmp_path);
    if (tmp_path[0] && system(command) != 0)
        fprintf(stderr, "# could not remove %s\n", tmp_path);
}

const char *test_tmp(void)
{
    if (tmp_path[0])
        return tmp_path;
    const char *base = getenv("LORA_TEST_TMP");
    snprintf(tmp_path, sizeof tmp_path, "%s/lora-test.XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(tmp_path))
        abort();
    tmp_owner = getpid();
    atexit(remove_tmp);
    return tmp_path;
}

static bool wanted(const char *name, int argc, char **argv)
{
    if (argc < 2)
        return true;
    for (int i = 1; i < argc; i++) {
        if (strstr(name, argv[i]))
            return true;
    }
    return false;
}

static bool run_one(struct test_case *t, int number)
{
    failures = 0;
    skipped = false;
    t->run();
    bool passed = failures == 0;
    printf("%sok %d - %s", passed ? "" : "not ", number, t->name);
    if (passed && skipped)
        printf(" # SKIP %s", skip_reason);
    printf("\n");
    fflush(stdout);
    return passed;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 2 && strcmp(argv[1], "-l") == 0) {
        for (struct test_case *t = first; t; t = t->next)
            puts(t->name);
        return 0;
    }
    int number = 0, failed = 0;
    for (struct test_case *t = first; t; t = t->next) {
        if (wanted(t->name, argc, argv) && !run_one(t, ++number))
            failed++;
    }
    printf("1..%d\n", number);
    return failed || number == 0;
}
