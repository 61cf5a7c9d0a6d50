#include "cmd/progress.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <pty.h>
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

TEST(a_terminal_gets_a_bar_that_is_wiped_at_the_end)
{
    int master, slave;
    char text[2048] = "";
    size_t len = 0;
    struct winsize size = {.ws_row = 24, .ws_col = 60};
    if (openpty(&master, &slave, NULL, NULL, &size) != 0) {
        test_skip("this machine gives no pseudo terminal");
        return;
    }
    int keep = dup(2);
    dup2(slave, 2);
    struct progress *p = progress_open("auto", "import", 4000000);
    usleep(150000); // the bar is redrawn ten times a second
    progress_label(p, "a label that is much too long to fit into sixty columns, é€日");
    progress_add(p, 1000000);
    usleep(150000);
    progress_add(p, 1000000);
    progress_free(p);
    dup2(keep, 2);
    close(keep);
    struct pollfd poll_master = {.fd = master, .events = POLLIN};
    while (len < sizeof text - 1 && poll(&poll_master, 1, 200) > 0) {
        ssize_t n = read(master, text + len, sizeof text - 1 - len);
        if (n <= 0)
            break;
        len += (size_t)n;
    }
    close(slave);
    close(master);
    EXPECT_MSG(strstr(text, "\r\033[Kimport [##########          ] 2.0 MB of 4.0 MB, "), "%s",
               text);
    EXPECT(len > 4 && strcmp(text + len - 4, "\r\033[K") == 0);
    EXPECT(!strchr(text, '\n')); // a line that is too long would wrap
    char *save = NULL;
    for (char *line = strtok_r(text, "\r", &save); line; line = strtok_r(NULL, "\r", &save))
        EXPECT_MSG(strlen(line) <= 3 + 60, "%s", line);
}
