#include "cmd/serve/output.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "cmd/serve/format.h"
#include "libcore/base/log.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"

enum { TICK_MS = 100 }; // how often time-outs are looked for

struct output {
    struct engine *engine;
    struct metrics *metrics;
    int wake_fd;
    pthread_t thread;
    bool started;
    pthread_mutex_t mutex; // everything below
    bool stop;
    struct generation **dirty; // each holds a reference
    size_t n_dirty, dirty_cap;
    struct generation *first; // in work; each holds a reference
    unsigned n_running;
};

// ---- what others call ---------------------------------------------------------------------------

void output_wake(void *user)
{
    struct output *o = user;
    uint64_t one = 1;
    ssize_t n;
    do
        n = write(o->wake_fd, &one, sizeof one);
    while (n < 0 && errno == EINTR);
}

void output_mark(struct output *o, struct generation *g)
{
    pthread_mutex_lock(&o->mutex);
    if (o->n_dirty == o->dirty_cap) {
        size_t cap = o->dirty_cap ? o->dirty_cap * 2 : 256;
        struct generation **dirty = sys_reallocarray(o->dirty, cap, sizeof *dirty);
        if (dirty) {
            o->dirty = dirty;
            o->dirty_cap = cap;
        }
    }
    bool kept = o->n_dirty < o->dirty_cap;
    if (kept)
        o->dirty[o->n_dirty++] = g;
    pthread_mutex_unlock(&o->mutex);
    if (kept)
        return;
    pthread_mutex_lock(&g->mutex); // no memory: the next event, or the tick, tries again
    g->dirty = false;
    pthread_mutex_unlock(&g->mutex);
    generation_release(g);
}

void output_add(struct output *o, struct generation *g)
{
    generation_hold(g);
    pthread_mutex_lock(&o->mutex);
    g->next = o->first;
    if (o->first)
        o->first->prev = g;
    o->first = g;
    o->n_running++;
    pthread_mutex_unlock(&o->mutex);
}

static void remove_running(struct output *o, struct generation *g)
{
    pthread_mutex_lock(&o->mutex);
    if (g->prev)
        g->prev->next = g->next;
    else
        o->first = g->next;
    if (g->next)
        g->next->prev = g->prev;
    g->next = g->prev = NULL;
    o->n_running--;
    pthread_mutex_unlock(&o->mutex);
    generation_release(g);
}

unsigned output_n_running(struct output *o)
{
    pthread_mutex_lock(&o->mutex);
    unsigned n = o->n_running;
    pthread_mutex_unlock(&o->mutex);
    return n;
}

void output_gone(struct output *o, struct generation *g)
{
    pthread_mutex_lock(&g->mutex);
    g->gone = true;
    bool ready = g->ready;
    pthread_mutex_unlock(&g->mutex);
    if (ready)
        generation_cancel(g, o->engine);
}

// ---- writing ------------------------------------------------------------------------------------

static void finish_answer(struct generation *g)
{
    g->answered = true;
    generation_detach(g);
}

static void answer_failure(struct generation *g, const struct err *err)
{
    answer_err(g->x, g->format->style, NULL, err);
    finish_answer(g);
}

static void mark_sent(struct generation *g)
{
    for (size_t i = 0; i < g->n_choices; i++) {
        struct gen_choice *c = &g->choices[i];
        if (c->n_tokens == 0 && c->end == CHOICE_RUNS)
            continue;
        c->started = true;
        c->n_sent = c->n_ready;
        c->n_tokens_sent = c->n_tokens;
        c->end_sent = c->end != CHOICE_RUNS;
    }
}

static void add_stream_end(struct generation *g, const struct err *err, struct strbuf *out)
{
    if (err) {
        strbuf_adds(out, "data: ");
        answer_error_object(out, g->format->style, (unsigned)err_http_status(err->code), NULL,
                            err->msg);
        strbuf_adds(out, "\n\n");
    }
    g->format->last(g, out);
    strbuf_adds(out, "data: [DONE]\n\n");
}

static void write_stream(struct output *o, struct generation *g)
{
    const struct err *err = generation_error(g);
    if (err && !g->stream_begun) {
        answer_failure(g, err);
        return;
    }
    struct strbuf out;
    strbuf_init(&out);
    for (size_t i = 0; i < g->n_choices; i++) {
        const struct gen_choice *c = &g->choices[i];
        bool news = c->n_tokens > c->n_tokens_sent || (c->end != CHOICE_RUNS && !c->end_sent);
        if (news && c->end != CHOICE_ERROR)
            g->format->chunk(g, c, &out);
    }
    mark_sent(g);
    bool over = generation_is_over(g);
    if (over)
        add_stream_end(g, err, &out);
    if (out.len > 0 && !g->stream_begun) {
        http_add_header(g->x, "Cache-Control", "no-cache");
        http_stream_begin(g->x, 200, "text/event-stream; charset=utf-8");
        g->stream_begun = true;
    }
    bool ok = !out.failed && (out.len == 0 || http_stream_write(g->x, out.data, out.len));
    strbuf_release(&out);
    if (over || !ok) {
        http_stream_end(g->x);
        if (!ok)
            generation_cancel(g, o->engine);
        finish_answer(g);
    } else {
        http_stream_flush(g->x);
    }
}

static void write_answer(struct generation *g)
{
    if (!generation_is_over(g))
        return;
    const struct err *err = generation_error(g);
    if (err) {
        answer_failure(g, err);
        return;
    }
    struct strbuf body;
    strbuf_init(&body);
    g->format->body(g, &body);
    http_answer(g->x, 200, "application/json", &body);
    finish_answer(g);
}

static bool engine_is_done(const struct generation *g)
{
    for (size_t i = 0; i < g->n_choices; i++) {
        if (!g->choices[i].engine_done)
            return false;
    }
    return true;
}

/* On the output thread, after g->dirty was cleared. */
static void process(struct output *o, struct generation *g)
{
    bool any = false, cancel = false;
    for (size_t i = 0; i < g->n_choices; i++)
        any |= generation_take_events(g, &g->choices[i], &cancel);
    if (cancel)
        generation_cancel(g, o->engine);
    if (!g->answered && any) {
        if (g->stream)
            write_stream(o, g);
        else
            write_answer(g);
    }
    if (!g->counted && engine_is_done(g)) {
        g->counted = true;
        metrics_count_generation(o->metrics, g);
        if (!g->answered)
            finish_answer(g);
        remove_running(o, g);
    }
}

// ---- the thread ---------------------------------------------------------------------------------

static void time_out(struct output *o, struct generation *g)
{
    char text[96];
    snprintf(text, sizeof text, "The request took longer than the server's --request-timeout.");
    generation_fail(g, ERR_TIMEOUT, text);
    generation_cancel(g, o->engine);
    if (g->answered)
        return;
    if (g->stream)
        write_stream(o, g);
    else
        write_answer(g);
}

/* Generations whose time is over, each with a reference; the caller frees the array. */
static struct generation **collect_late(struct output *o, size_t *n)
{
    uint64_t now = thread_now_ns();
    *n = 0;
    pthread_mutex_lock(&o->mutex);
    size_t n_late = 0;
    for (struct generation *g = o->first; g; g = g->next)
        n_late += g->deadline_ns && g->deadline_ns < now;
    struct generation **late = n_late ? sys_calloc(n_late, sizeof *late) : NULL;
    for (struct generation *g = o->first; late && g; g = g->next) {
        if (g->deadline_ns && g->deadline_ns < now)
            late[(*n)++] = generation_hold(g);
    }
    pthread_mutex_unlock(&o->mutex);
    return late;
}

static void end_late_ones(struct output *o)
{
    size_t n = 0;
    struct generation **late = collect_late(o, &n);
    for (size_t i = 0; i < n; i++) {
        if (!generation_is_over(late[i]))
            time_out(o, late[i]);
        generation_release(late[i]);
    }
    sys_free(late);
}

static bool take_dirty(struct output *o, struct generation ***dirty, size_t *n, size_t *cap)
{
    pthread_mutex_lock(&o->mutex);
    struct generation **mine = *dirty;
    size_t my_cap = *cap;
    *dirty = o->dirty;
    *n = o->n_dirty;
    *cap = o->dirty_cap;
    o->dirty = mine;
    o->dirty_cap = my_cap;
    o->n_dirty = 0;
    bool go_on = !o->stop;
    pthread_mutex_unlock(&o->mutex);
    return go_on;
}

static void *output_main(void *arg)
{
    struct output *o = arg;
    struct generation **dirty = NULL; // swapped with o->dirty at each turn
    size_t n = 0, cap = 0;
    uint64_t last_tick = thread_now_ns();
    struct pollfd fd = {.fd = o->wake_fd, .events = POLLIN};
    while (take_dirty(o, &dirty, &n, &cap)) {
        for (size_t i = 0; i < n; i++) {
            pthread_mutex_lock(&dirty[i]->mutex);
            dirty[i]->dirty = false;
            pthread_mutex_unlock(&dirty[i]->mutex);
            process(o, dirty[i]);
            generation_release(dirty[i]);
        }
        uint64_t now = thread_now_ns();
        if (now - last_tick > TICK_MS * 1000000ull) {
            last_tick = now;
            end_late_ones(o);
            metrics_tick(o->metrics);
        }
        if (n == 0 && poll(&fd, 1, TICK_MS) > 0) {
            uint64_t count;
            if (read(o->wake_fd, &count, sizeof count) < 0 && errno != EAGAIN)
                break;
        }
    }
    for (size_t i = 0; i < n; i++)
        generation_release(dirty[i]);
    sys_free(dirty);
    return NULL;
}

int output_open(struct output **out, struct metrics *metrics, struct err *err)
{
    *out = NULL;
    struct output *o = sys_calloc(1, sizeof *o);
    if (!o)
        return err_set(err, ERR_NO_MEMORY, "no memory for the output thread");
    o->metrics = metrics;
    pthread_mutex_init(&o->mutex, NULL);
    o->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int rc = o->wake_fd < 0 ? errno : pthread_create(&o->thread, NULL, output_main, o);
    if (rc != 0) {
        output_free(o);
        return err_set_errno(err, rc, "cannot start the output thread");
    }
    pthread_setname_np(o->thread, "output");
    o->started = true;
    *out = o;
    return 0;
}

void output_set_engine(struct output *o, struct engine *engine)
{
    o->engine = engine;
}

void output_free(struct output *o)
{
    if (!o)
        return;
    if (o->started) {
        pthread_mutex_lock(&o->mutex);
        o->stop = true;
        pthread_mutex_unlock(&o->mutex);
        output_wake(o);
        pthread_join(o->thread, NULL);
    }
    for (size_t i = 0; i < o->n_dirty; i++)
        generation_release(o->dirty[i]);
    while (o->first) {
        generation_detach(o->first);
        remove_running(o, o->first);
    }
    if (o->wake_fd >= 0)
        close(o->wake_fd);
    pthread_mutex_destroy(&o->mutex);
    sys_free(o->dirty);
    sys_free(o);
}
