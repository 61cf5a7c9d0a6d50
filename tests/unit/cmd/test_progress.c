#include "cmd/progress.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "tests/lib/test.h"

/* tiers: check asan tsan */

/* What `work` writes to stderr, which is a file; to free with sys_free. */
static char *captured(void (*work)(void))
{
    char path[600], *text = NULL;
    snprintf(path, sizeof path, "%s/stderr", test_tmp());
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600), keep = dup(2);
    dup2(fd, 2);
    work();
    fflush(stderr);
    dup2(keep, 2);
    close(keep);
    close(fd);
    file_read(path, 1 << 20, &text, NULL, NULL);
    return text;
}

static void plain(void)
{
    struct progress *p = progress_open("plain", "import", 4000000);
    progress_label(p, "a/b.safetensors");
    progress_add(p, 1000000);
    progress_add(p, 1000000);
    progress_free(p);
}

static void automatic(void)
{
    struct progress *p = progress_open("auto", "import", 10);
    progress_add(p, 10);
    progress_label(p, "x");
    progress_free(p);
}

static void none(void)
{
    struct progress *p = progress_open("none", "import", 10);
    EXPECT(p == NULL);
    progress_add(p, 10);
    progress_label(p, "x");
    progress_free(p);
}

TEST(plain_says_how_far_it_came)
{
    char *text = captured(plain);
    EXPECT_MSG(strncmp(text, "import: 2.0 MB of 4.0 MB, ", 26) == 0, "%s", text);
    EXPECT(strstr(text, "/s, 0:00 left, a/b.safetensors\n"));
    EXPECT(!strchr(text, '\r'));
    sys_free(text);
}

TEST(nothing_is_shown_where_nobody_looks)
{
    char *text = captured(automatic);
    EXPECT_STR(text, "");
    sys_free(text);
    text = captured(none);
    EXPECT_STR(text, "");
    sys_free(text);
}

static struct progress *shared;

static void *add(void *arg)
{
    for (int i = 0; i < 1000; i++)
        progress_add(shared, 1);
    progress_label(shared, arg);
    return NULL;
}

static void from_threads(void)
{
    pthread_t threads[4];
    shared = progress_open("plain", "load", 0);
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, add, "x");
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    progress_free(shared);
}

TEST(threads_may_report_together)
{
    char *text = captured(from_threads);
    EXPECT_MSG(strncmp(text, "load: 4.0 kB, ", 14) == 0, "%s", text);
    sys_free(text);
}
