/*
 * Clients that stream from mixed adapters for a while: every answer must be whole and golden; the
 * server's memory must not grow after the first tenth of the time.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libcore/base/thread.h"
#include "tests/lib/http_load.h"

struct soak {
    const struct load_options *o;
    struct http_client *client;
    const json_t *golden;
    uint64_t begin_ns, end_ns;
    unsigned long n_asked, n_good, n_bad, n_left, n_tokens;
    long rss_tenth, rss_end; // kB
    unsigned seed;
};

struct caller {
    struct soak *s;
    struct http_call call;
    const json_t *row;
    char *body;
};

static long rss_kb(long pid)
{
    char path[64], line[256];
    long kb = 0;
    snprintf(path, sizeof path, "/proc/%ld/status", pid);
    FILE *f = pid ? fopen(path, "r") : NULL;
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "VmRSS: %ld", &kb) == 1)
            break;
    }
    if (f)
        fclose(f);
    return kb;
}

static void watch_memory(struct soak *s)
{
    uint64_t now = thread_now_ns();
    if (!s->rss_tenth && now > s->begin_ns + (s->end_ns - s->begin_ns) / 10)
        s->rss_tenth = rss_kb(s->o->pid);
    if (now < s->end_ns)
        s->rss_end = rss_kb(s->o->pid);
}

/* Puts the deltas of a stream together; false without [DONE]. */
static bool read_stream(const char *text, struct strbuf *out, unsigned long *n_tokens)
{
    bool done = false;
    for (const char *p = text; p && *p;) {
        const char *end = strchr(p, '\n');
        if (!end)
            break;
        if (strncmp(p, "data: [DONE]", 12) == 0)
            done = true;
        json_t *event = strncmp(p, "data: {", 7) == 0
                            ? json_loadb(p + 6, (size_t)(end - p - 6), 0, NULL)
                            : NULL;
        const json_t *choice = json_array_get(json_object_get(event, "choices"), 0);
        const json_t *content = json_object_get(json_object_get(choice, "delta"), "content");
        if (json_string_length(content)) {
            strbuf_add(out, json_string_value(content), json_string_length(content));
            ++*n_tokens;
        }
        json_decref(event);
        p = end + 1;
    }
    return done;
}

static void judge(struct caller *k)
{
    struct soak *s = k->s;
    if (k->call.leave_early) {
        s->n_left++;
        return;
    }
    struct strbuf text;
    strbuf_init(&text);
    const char *want = json_string_value(json_object_get(k->row, "text"));
    bool good = !k->call.failed && k->call.status == 200 &&
                read_stream(strbuf_text(&k->call.text), &text, &s->n_tokens) &&
                strcmp(strbuf_text(&text), want) == 0;
    if (!good && s->n_bad++ < 5)
        printf("# status %d%s: got '%s', want '%s' %.300s\n", k->call.status,
               k->call.failed ? " (broken)" : "", strbuf_text(&text), want,
               k->call.status == 200 ? "" : strbuf_text(&k->call.text));
    s->n_good += good;
    strbuf_release(&text);
}

static void ask_next(struct caller *k);

static void on_data(struct http_call *call, bool over)
{
    struct caller *k = call->user;
    if (!over)
        return;
    judge(k);
    watch_memory(k->s);
    if (thread_now_ns() < k->s->end_ns)
        ask_next(k);
}

static void ask_next(struct caller *k)
{
    struct soak *s = k->s;
    size_t pick = (size_t)rand_r(&s->seed) % json_object_size(s->golden);
    void *it = json_object_iter((json_t *)s->golden);
    while (pick-- > 0)
        it = json_object_iter_next((json_t *)s->golden, it);
    const char *name = json_object_iter_key(it);
    const json_t *rows = json_object_iter_value(it);
    k->row = json_array_get(rows, (size_t)rand_r(&s->seed) % json_array_size(rows));
    json_t *body = json_pack("{s:s, s:[{s:s, s:O}], s:i, s:i, s:b}", "model",
                             strcmp(name, "base") == 0 ? s->o->base : name, "messages", "role",
                             "user", "content", json_object_get(k->row, "prompt"), "temperature", 0,
                             "max_tokens", 64, "stream", 1);
    free(k->body);
    k->body = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    http_call_release(&k->call);
    k->call = (struct http_call){.method = "POST",
                                 .path = "/v1/chat/completions",
                                 .key = s->o->key,
                                 .body = k->body,
                                 .n_body = strlen(k->body),
                                 .leave_early = s->o->leave && rand_r(&s->seed) % 8 == 0,
                                 .on_data = on_data,
                                 .user = k};
    s->n_asked++;
    http_client_add(s->client, &k->call);
}

static int report(const struct soak *s)
{
    double seconds = (double)(thread_now_ns() - s->begin_ns) * 1e-9;
    double growth =
        s->rss_tenth ? 100.0 * (double)(s->rss_end - s->rss_tenth) / (double)s->rss_tenth : 0;
    printf("%lu requests in %.1f s, %lu golden, %lu bad, %lu left early, %lu pieces of text, "
           "%.0f requests/s\n",
           s->n_asked, seconds, s->n_good, s->n_bad, s->n_left, s->n_tokens,
           (double)s->n_asked / seconds);
    if (s->o->pid)
        printf("resident memory: %ld kB after the first tenth, %ld kB at the end, %+.2f %%\n",
               s->rss_tenth, s->rss_end, growth);
    bool steady = !s->o->pid || (s->rss_tenth > 0 && growth <= 2);
    return s->n_good > 0 && s->n_bad == 0 && s->n_good + s->n_left == s->n_asked && steady ? 0 : 1;
}

int load_soak(const struct load_options *o)
{
    json_t *golden = load_json_file(o->golden);
    struct caller *callers = calloc(o->clients, sizeof *callers);
    struct soak s = {.o = o, .golden = golden, .seed = 7, .begin_ns = thread_now_ns()};
    s.end_ns = s.begin_ns + (uint64_t)(o->seconds * 1e9);
    s.client = http_client_open(o->host, o->port, o->clients);
    if (!golden || !callers || !s.client)
        return 1;
    for (unsigned i = 0; i < o->clients; i++) {
        callers[i].s = &s;
        ask_next(&callers[i]);
    }
    http_client_run(s.client, 0);
    int rc = report(&s);
    for (unsigned i = 0; i < o->clients; i++) {
        free(callers[i].body);
        http_call_release(&callers[i].call);
    }
    free(callers);
    http_client_free(s.client);
    json_decref(golden);
    return rc;
}
