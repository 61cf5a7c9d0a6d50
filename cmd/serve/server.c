#include "cmd/serve/server.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cmd/serve/router.h"
#include "libcore/base/log.h"
#include "libcore/base/sys.h"

// ---- the HTTP server's callbacks ----------------------------------------------------------------

static enum answer_style style_of(const struct http_exchange *x)
{
    const struct route *r = http_tag(x);
    return r ? r->style : ANSWER_OPENAI;
}

static void on_refuse(void *user, struct http_exchange *x, unsigned status, const char *message)
{
    (void)user;
    answer_error(x, style_of(x), status, NULL, message);
}

static void answer_no_route(struct http_exchange *x, const char *allow)
{
    if (allow)
        http_add_header(x, "Allow", allow);
    answer_json(x, allow ? 405 : 404,
                json_pack("{s:s}", "detail", allow ? "Method Not Allowed" : "Not Found"));
}

/* Headers are there: route, key, state. */
static void on_begin(void *user, struct http_exchange *x)
{
    struct server *s = user;
    const char *allow = NULL, *reason = NULL;
    const struct route *r = router_find(http_method(x), http_path(x), &allow);
    http_set_tag(x, r);
    if (!r) {
        answer_no_route(x, allow);
        return;
    }
    int status = auth_check(s->auth, r->access, http_header(x, "Authorization"),
                            http_peer_is_loopback(x), &reason);
    if (status != 0) {
        answer_error(x, r->style, (unsigned)status, NULL, reason);
        return;
    }
    const char *length = http_header(x, "Content-Length");
    unsigned long long n = length ? strtoull(length, NULL, 10) : 0;
    if (n > s->opt->max_body_bytes) {
        char text[96];
        snprintf(text, sizeof text, "The request body has %llu bytes, more than %llu.", n,
                 (unsigned long long)s->opt->max_body_bytes);
        answer_error(x, r->style, 413, NULL, text);
        return;
    }
    if (!r->always && atomic_load(&s->state) == SERVER_LOADING)
        answer_error(x, r->style, 503, NULL, "The model is being loaded.");
    else if (!r->always && atomic_load(&s->state) == SERVER_DRAINING)
        answer_error(x, r->style, 503, NULL, "The server is shutting down.");
}

struct job {
    struct server *s;
    struct http_exchange *x;
};

static void run_job(void *arg)
{
    struct job *j = arg;
    const struct route *r = http_tag(j->x);
    if (!http_is_gone(j->x))
        r->run(j->s, j->x);
    http_release(j->x);
    sys_free(j);
}

static void on_handle(void *user, struct http_exchange *x)
{
    struct server *s = user;
    const struct route *r = http_tag(x);
    if (r->always) {
        r->run(s, x);
        return;
    }
    struct job *j = sys_calloc(1, sizeof *j);
    if (!j) {
        answer_error(x, r->style, 500, NULL, "no memory for the request");
        return;
    }
    *j = (struct job){s, http_hold(x)};
    struct err err = {0};
    if (job_queue_add(s->workers, run_job, j, &err) == 0)
        return;
    answer_err(x, r->style, NULL, &err);
    http_release(x);
    sys_free(j);
}

static void on_gone(void *user, struct http_exchange *x)
{
    struct server *s = user;
    struct generation *g = http_user(x);
    if (g)
        output_gone(s->output, g);
}

static void on_done(void *user, struct http_exchange *x)
{
    struct server *s = user;
    unsigned status = http_is_gone(x) ? 499 : http_status(x);
    metrics_count_http(s->metrics, status);
    const struct route *r = http_tag(x);
    if (r && r->access == AUTH_OPEN)
        return; // probes and scrapes would drown the rest
    struct generation *g = http_user(x);
    const char *adapter =
        g && g->n_uses ? g->uses[0].served->label : NULL; // never the client's text
    log_info("access", "%s %s status=%u bytes=%llu ms=%.1f peer=%s%s%s", http_method(x),
             r ? r->path : "(no route)", status, (unsigned long long)http_bytes_sent(x),
             (double)(thread_now_ns() - http_started_ns(x)) * 1e-6, http_peer(x),
             adapter ? " adapter=" : "", adapter ? adapter : "");
}

// ---- opening ------------------------------------------------------------------------------------

static void raise_fd_limit(int64_t n_connections)
{
    struct rlimit limit;
    rlim_t wanted = (rlim_t)n_connections + 256;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted)
        return;
    limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur < wanted)
        log_warn("server", "the limit of open files allows fewer connections nofile=%llu",
                 (unsigned long long)limit.rlim_cur);
}

static int open_http(struct server *s, struct err *err)
{
    const struct serve_options *o = s->opt;
    struct http_options opt = {.host = o->host,
                               .port = (uint16_t)o->port,
                               .max_body_bytes = o->max_body_bytes,
                               .max_connections = (unsigned)o->max_connections,
                               .idle_timeout_s = (unsigned)o->idle_timeout_s,
                               .begin = on_begin,
                               .handle = on_handle,
                               .gone = on_gone,
                               .refuse = on_refuse,
                               .done = on_done,
                               .user = s};
    return http_open(&s->http, &opt, err);
}

int server_open_names(struct server *s, struct err *err)
{
    struct runtime *rt = s->rt;
    s->n_served_names = s->opt->served_names.n ? s->opt->served_names.n : 1;
    s->served_names = sys_calloc(s->n_served_names, sizeof *s->served_names);
    if (!s->served_names)
        return err_set(err, ERR_NO_MEMORY, "no memory for names");
    for (size_t i = 0; i < s->opt->served_names.n; i++)
        s->served_names[i] = s->opt->served_names.items[i];
    if (s->opt->served_names.n == 0)
        s->served_names[0] = rt->base.name ? rt->base.name : "dummy";
    const struct names_options opt = {
        .store_path = rt->store_path,
        .source = rt->source,
        .base_fingerprint = rt->base.id,
        .served_names = s->served_names,
        .n_served_names = s->n_served_names,
        .base_folder = rt->base.folder,
        .cache_folder = rt->cache_folder,
        .base_kit = rt->kit,
        .adapter_root = s->opt->adapter_root,
        .max_rank = (uint32_t)s->opt->max_lora_rank,
        // --check says of each what it thinks, and refuses none before that.
        .required = s->opt->check ? NULL : &s->opt->required,
    };
    return names_open(&s->names, &opt, err);
}

int server_offer(struct server *s, struct err *err)
{
    /* Beyond so many, adapters are bound when they are first asked for. */
    enum { READY_AT_START = 256 };
    names_set_engine(s->names, s->rt->engine);
    size_t count = 0;
    bool words = s->opt->lora_paths_given;
    int rc = words
                 ? names_offer_words(s->names, s->opt->lora_paths.items, s->opt->lora_paths.n, err)
                 : names_offer_store(s->names, &count, err);
    if (rc == 0 && (words || count <= READY_AT_START))
        rc = names_ready_all(s->names, !words, err);
    return rc;
}

static int open_parts(struct server *s, const char *store_path, struct err *err)
{
    const struct serve_options *o = s->opt;
    s->started_s = thread_unix_ns() / 1000000000u;
    uint64_t seed = (uint64_t)o->base.seed;
    uint32_t boot = 0;
    if (getrandom(&boot, sizeof boot, 0) != sizeof boot ||
        (seed == 0 && getrandom(&seed, sizeof seed, 0) != sizeof seed))
        return err_set(err, ERR_IO, "the system gives no random bytes");
    snprintf(s->boot, sizeof s->boot, "%08x", boot);
    atomic_init(&s->seed, seed);
    raise_fd_limit(o->max_connections);
    int rc = auth_open(&s->auth, o->api_keys.items, o->api_keys.n, o->api_key_file,
                       o->admin_api_key, err);
    if (rc == 0)
        rc = metrics_open(&s->metrics, err);
    if (rc == 0)
        rc = output_open(&s->output, s->metrics, err);
    if (rc == 0)
        rc = job_queue_open(&s->workers, (unsigned)o->n_workers, (size_t)o->max_connections,
                            "http-worker", err);
    if (rc == 0)
        rc = open_http(s, err);
    if (rc == 0)
        log_info("server", "listening host=%s port=%u", o->host, http_port(s->http));
    if (rc == 0)
        rc = runtime_open(&s->rt, &o->base, store_path, err);
    return rc;
}

static void log_plan(const struct server *s)
{
    const struct runtime *rt = s->rt;
    log_info("server", "device=\"%s\" note=\"%s\"", rt->info.device, rt->device_note);
    log_info("server",
             "memory weights_mb=%llu scratch_mb=%llu pool_mb=%llu host_cache_mb=%llu "
             "context=%u",
             (unsigned long long)(rt->plan.weights >> 20),
             (unsigned long long)(rt->plan.scratch >> 20),
             (unsigned long long)(rt->plan.pool >> 20),
             (unsigned long long)(rt->plan.host_cache >> 20), rt->context_length);
}

static void log_times(const struct server *s)
{
    const struct runtime_times *t = &s->rt->times;
    double gb = (double)t->weights.bytes * 1e-9;
    log_info("server", "weights gb=%.2f seconds=%.2f gb_per_s=%.2f threads=%u digests=%zu/%zu", gb,
             t->weights.seconds, t->weights.seconds > 0 ? gb / t->weights.seconds : 0.0,
             t->weights.n_threads, t->weights.n_checked, t->weights.n_tensors);
    log_info("server", "times read=%.2f device=%.2f memory=%.2f weights=%.2f engine=%.2f",
             t->read_s, t->device_s, t->model_s, t->weights.seconds, t->start_s);
}

static int load(struct server *s, struct err *err)
{
    log_plan(s);
    int rc = server_open_names(s, err);
    if (rc == 0)
        rc = runtime_load(s->rt, NULL, NULL, err);
    if (rc == 0)
        rc = runtime_start(s->rt, output_wake, s->output, err);
    if (rc != 0)
        return rc;
    output_set_engine(s->output, s->rt->engine);
    rc = server_offer(s, err);
    if (rc != 0)
        return rc;
    log_times(s);
    log_info("server", "ready model=%s adapters=%zu seconds=%.2f port=%u", names_base(s->names),
             names_count(s->names), (double)(thread_now_ns() - s->rt->times.begin_ns) * 1e-9,
             http_port(s->http));
    return 0;
}

// ---- running and closing ------------------------------------------------------------------------

/* One thread waits for signals; every other thread has them blocked. It lives as long as the
 * process.
 */
static atomic_bool got_stop, got_reload;
static int signal_fd = -1; // an eventfd: wakes the main thread

static void *signal_main(void *arg)
{
    const sigset_t *set = arg;
    for (;;) {
        int number = 0;
        if (sigwait(set, &number) != 0)
            continue;
        if (number == SIGHUP)
            atomic_store(&got_reload, true);
        else if (atomic_exchange(&got_stop, true))
            _exit(128 + number); // the second one ends at once
        uint64_t one = 1;
        ssize_t n = write(signal_fd, &one, sizeof one);
        (void)n;
    }
    return NULL;
}

static int watch_signals(struct err *err)
{
    static sigset_t set;
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaction(SIGPIPE, &ignore, NULL);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal_fd = eventfd(0, EFD_CLOEXEC);
    pthread_t thread;
    int rc = signal_fd < 0 ? errno : pthread_create(&thread, NULL, signal_main, &set);
    if (rc != 0)
        return err_set_errno(err, rc, "cannot watch signals");
    pthread_setname_np(thread, "signals");
    pthread_detach(thread);
    return 0;
}

static void wait_for_stop(struct server *s)
{
    while (!atomic_load(&got_stop)) {
        if (atomic_exchange(&got_reload, false)) {
            struct err err = {0};
            if (names_reload(s->names, &err) == 0)
                log_info("server", "names were read again adapters=%zu", names_count(s->names));
            else
                log_warn("server", "names could not be read again reason=\"%s\"", err.msg);
            continue;
        }
        uint64_t count;
        if (read(signal_fd, &count, sizeof count) < 0 && errno != EINTR)
            return;
    }
}

/* No new request; running ones get their time; then they are cut. */
static void drain(struct server *s)
{
    atomic_store(&s->state, SERVER_DRAINING);
    http_stop_listening(s->http);
    unsigned n = output_n_running(s->output);
    log_info("server", "draining running=%u deadline_s=%.0f", n, s->opt->drain_timeout_s);
    uint64_t deadline_ms = (uint64_t)(s->opt->drain_timeout_s * 1000);
    uint64_t end = thread_now_ns() + deadline_ms * 1000000u;
    while (thread_now_ns() < end && (output_n_running(s->output) || http_n_exchanges(s->http)))
        usleep(10000);
    struct err err = {0};
    if (engine_drain(s->rt->engine, 1, &err) != 0)
        log_warn("server", "running requests are cut reason=\"%s\"", err.msg);
}

static void close_parts(struct server *s)
{
    if (s->http)
        http_abort_all(s->http);
    job_queue_free(s->workers); // what is queued still runs
    if (s->names)
        names_set_engine(s->names, NULL);
    if (s->rt)
        runtime_stop(s->rt); // every request ends; the output thread sees them end
    for (int i = 0; s->output && output_n_running(s->output) && i < 500; i++)
        usleep(10000);
    http_free(s->http);
    output_free(s->output);
    names_free(s->names);
    runtime_close(s->rt);
    metrics_free(s->metrics);
    auth_free(s->auth);
    sys_free(s->served_names);
}

int server_run(const struct serve_options *opt, const char *store_path, struct err *err)
{
    struct server s = {.opt = opt};
    int rc = watch_signals(err);
    if (rc == 0)
        rc = open_parts(&s, store_path, err);
    if (rc == 0)
        rc = load(&s, err);
    if (rc == 0) {
        atomic_store(&s.state, SERVER_READY);
        wait_for_stop(&s);
        drain(&s);
    }
    close_parts(&s);
    if (rc == 0)
        log_info("server", "stopped");
    return rc;
}
