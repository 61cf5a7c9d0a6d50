#include "cmd/progress.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cmd/table.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"

enum { BAR_EVERY_MS = 100, LINE_EVERY_MS = 3000, BAR_COLUMNS = 20 };

struct progress {
    pthread_mutex_t mutex;
    bool bar;
    char what[64];
    char label[128];
    uint64_t total, done;
    uint64_t start_ns, shown_ns;
};

struct progress *progress_open(const char *mode, const char *what, uint64_t total_bytes)
{
    bool plain = strcmp(mode, "plain") == 0;
    bool bar = strcmp(mode, "auto") == 0 && isatty(STDERR_FILENO);
    struct progress *p = plain || bar ? sys_calloc(1, sizeof *p) : NULL;
    if (!p)
        return NULL;
    pthread_mutex_init(&p->mutex, NULL);
    p->bar = bar;
    p->total = total_bytes;
    p->start_ns = p->shown_ns = thread_now_ns();
    snprintf(p->what, sizeof p->what, "%s", what);
    return p;
}

/* "3:07" */
static const char *duration(char *buf, size_t n, double seconds)
{
    unsigned long s = seconds < 359999 ? (unsigned long)(seconds + 0.5) : 359999;
    if (s >= 3600)
        snprintf(buf, n, "%lu:%02lu:%02lu", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(buf, n, "%lu:%02lu", s / 60, s % 60);
    return buf;
}

/* "1.2 GB of 4.0 GB, 310 MB/s, 0:09 left" */
static void numbers(const struct progress *p, uint64_t now_ns, char *buf, size_t n)
{
    char done[TABLE_CELL_BYTES], total[TABLE_CELL_BYTES], rate[TABLE_CELL_BYTES], left[32];
    double seconds = (double)(now_ns - p->start_ns) / 1e9;
    double bytes_per_s = seconds > 0 ? (double)p->done / seconds : 0;
    table_bytes(done, p->done);
    table_bytes(rate, (uint64_t)bytes_per_s);
    if (!p->total) {
        snprintf(buf, n, "%s, %s/s", done, rate);
        return;
    }
    table_bytes(total, p->total);
    double rest = p->total > p->done ? (double)(p->total - p->done) : 0;
    if (bytes_per_s > 0)
        snprintf(buf, n, "%s of %s, %s/s, %s left", done, total, rate,
                 duration(left, sizeof left, rest / bytes_per_s));
    else
        snprintf(buf, n, "%s of %s", done, total);
}

static void draw_bar(const struct progress *p, const char *text)
{
    char bar[BAR_COLUMNS + 8] = "";
    char line[512];
    if (p->total) {
        uint64_t done = p->done < p->total ? p->done : p->total;
        int full = (int)((double)done / (double)p->total * BAR_COLUMNS);
        bar[0] = '[';
        for (int i = 0; i < BAR_COLUMNS; i++)
            bar[1 + i] = i < full ? '#' : ' ';
        memcpy(bar + 1 + BAR_COLUMNS, "] ", 3);
    }
    int n = snprintf(line, sizeof line, "%s %s%s%s%s", p->what, bar, text, p->label[0] ? "  " : "",
                     p->label);
    struct winsize size;
    int width = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 80;
    if (n >= width) // one line, or the carriage return would not come back to its start
        n = width - 1;
    while (n > 0 && ((unsigned char)line[n] & 0xC0) == 0x80)
        n--;
    fprintf(stderr, "\r\033[K%.*s", n, line);
    fflush(stderr);
}

static void show(struct progress *p, bool at_end)
{
    uint64_t now = thread_now_ns();
    uint64_t every_ms = p->bar ? BAR_EVERY_MS : LINE_EVERY_MS;
    if (!at_end && now - p->shown_ns < every_ms * 1000000)
        return;
    p->shown_ns = now;
    char text[160];
    numbers(p, now, text, sizeof text);
    if (p->bar)
        draw_bar(p, text);
    else
        fprintf(stderr, "%s: %s%s%s\n", p->what, text, p->label[0] ? ", " : "", p->label);
}

void progress_add(struct progress *p, uint64_t bytes)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->mutex);
    p->done += bytes;
    show(p, false);
    pthread_mutex_unlock(&p->mutex);
}

void progress_label(struct progress *p, const char *text)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->mutex);
    snprintf(p->label, sizeof p->label, "%s", text);
    show(p, false);
    pthread_mutex_unlock(&p->mutex);
}

void progress_free(struct progress *p)
{
    if (!p)
        return;
    if (p->bar)
        fputs("\r\033[K", stderr);
    else
        show(p, true);
    fflush(stderr);
    pthread_mutex_destroy(&p->mutex);
    sys_free(p);
}
