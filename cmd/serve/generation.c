#include "cmd/serve/generation.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/serve/output.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"

// ---- life ---------------------------------------------------------------------------------------

struct generation *generation_open(struct output *output, struct http_exchange *x)
{
    struct generation *g = sys_calloc(1, sizeof *g);
    if (!g)
        return NULL;
    atomic_init(&g->refs, 1);
    pthread_mutex_init(&g->mutex, NULL);
    g->output = output;
    g->x = http_hold(x);
    g->started_ns = http_started_ns(x);
    g->created = thread_unix_ns() / 1000000000u;
    return g;
}

struct generation *generation_hold(struct generation *g)
{
    atomic_fetch_add_explicit(&g->refs, 1, memory_order_relaxed);
    return g;
}

static void choice_release(struct gen_choice *c)
{
    sys_free(c->events);
    sys_free(c->event_tops);
    token_stream_free(c->stream);
    strbuf_release(&c->text);
    sys_free(c->tokens);
    sys_free(c->prompt);
    sys_free(c->tops);
}

static void generation_free(struct generation *g)
{
    for (size_t i = 0; i < g->n_choices; i++)
        choice_release(&g->choices[i]);
    sys_free(g->choices);
    for (size_t i = 0; i < g->n_prompts; i++) {
        sys_free(g->prompts[i].ids);
        sys_free(g->prompts[i].text);
        if (g->prompt_uses)
            served_release(g->prompt_uses[i].served);
    }
    sys_free(g->prompts);
    sys_free(g->prompt_uses);
    for (size_t i = 0; i < g->n_uses; i++)
        served_release(g->uses[i].served);
    text_kit_release(g->kit);
    params_release(&g->params);
    sys_free(g->stop_ids);
    sys_free(g->model);
    http_release(g->x);
    pthread_mutex_destroy(&g->mutex);
    sys_free(g);
}

void generation_release(void *p)
{
    struct generation *g = p;
    if (g && atomic_fetch_sub_explicit(&g->refs, 1, memory_order_acq_rel) == 1)
        generation_free(g);
}

void generation_detach(struct generation *g)
{
    http_release(g->x);
    g->x = NULL;
}

static bool choice_open(struct generation *g, size_t i)
{
    struct gen_choice *c = &g->choices[i];
    c->g = g;
    c->index = (uint32_t)i;
    c->prompt_idx = (uint32_t)(i / g->params.n);
    c->stop_id = -1;
    strbuf_init(&c->text);
    if (g->prompt_logprobs) {
        c->prompt = sys_calloc(g->prompts[c->prompt_idx].n + 1, sizeof *c->prompt);
        if (!c->prompt)
            return false;
    }
    if (!g->kit || !g->kit->tokenizer)
        return true;
    unsigned flags = g->params.skip_special ? TOKENIZER_SKIP_SPECIAL : 0;
    return token_stream_open(&c->stream, g->kit->tokenizer, flags, NULL) == 0;
}

/* The end of the prompt goes through the stream first, so that the answer's text is what follows it
 * (a leading space of sentencepiece, bytes that complete a character). */
static bool choice_prime(struct gen_choice *c)
{
    enum { PRIME_TOKENS = 8 };
    const struct gen_prompt *p = &c->g->prompts[c->prompt_idx];
    struct strbuf dropped;
    strbuf_init(&dropped);
    int rc = 0;
    for (size_t i = p->n > PRIME_TOKENS ? p->n - PRIME_TOKENS : 0; c->stream && i < p->n; i++)
        rc |= token_stream_feed(c->stream, (uint32_t)p->ids[i], &dropped, NULL);
    strbuf_release(&dropped);
    return rc == 0;
}

int generation_layout(struct generation *g, struct request_error *e)
{
    size_t n = g->n_prompts * g->params.n;
    if (n == 0 || n > LIMIT_CHOICES)
        return request_fail(e, 400, "n",
                            "%zu prompts with n=%u make %zu answers; at most %d are "
                            "allowed.",
                            g->n_prompts, g->params.n, n, LIMIT_CHOICES);
    g->choices = sys_calloc(n, sizeof *g->choices);
    if (!g->choices)
        return request_fail(e, 500, NULL, "no memory for %zu answers", n);
    g->n_choices = n;
    for (size_t i = 0; i < n; i++) {
        if (!choice_open(g, i) || !choice_prime(&g->choices[i]))
            return request_fail(e, 500, NULL, "no memory for %zu answers", n);
    }
    return 0;
}

const struct served_use *generation_uses(const struct generation *g, size_t prompt_idx, size_t *n)
{
    if (!g->prompt_uses) {
        *n = g->n_uses;
        return g->uses;
    }
    *n = g->prompt_uses[prompt_idx].served ? 1 : 0;
    return &g->prompt_uses[prompt_idx];
}

// ---- to the engine ------------------------------------------------------------------------------

static bool grow(void **items, uint32_t *cap, uint32_t wanted, size_t size)
{
    if (wanted <= *cap)
        return true;
    uint32_t bigger = *cap ? *cap * 2 : 16;
    while (bigger < wanted)
        bigger *= 2;
    void *p = sys_reallocarray(*items, bigger, size);
    if (!p)
        return false;
    *items = p;
    *cap = bigger;
    return true;
}

static void copy_finish(struct gen_event *to, const struct engine_event *ev)
{
    to->finish = ev->finish;
    to->stop_id = ev->stop_id;
    to->n_cached = ev->n_cached;
    to->n_preempted = ev->n_preempted;
    to->queued_ns = ev->queued_ns;
    to->admitted_ns = ev->admitted_ns;
    to->first_token_ns = ev->first_token_ns;
    to->finished_ns = ev->finished_ns;
    to->adapter_wait_ns = ev->adapter_wait_ns;
    if (ev->finish != ENGINE_FINISH_ERROR)
        return;
    to->error_code = ev->error ? ev->error->code : ERR_INTERNAL;
    snprintf(to->error, sizeof to->error, "%.190s",
             ev->error ? ev->error->msg : "the engine failed");
}

/* Under g->mutex. Without memory the choice ends in an error: FINISHED has its slot always. */
static void copy_event(struct gen_choice *c, const struct engine_event *ev)
{
    uint32_t reserve = ev->type == ENGINE_EVENT_FINISHED ? 1 : 2; // one is kept for FINISHED
    bool tops = grow((void **)&c->event_tops, &c->event_tops_cap, c->n_event_tops + ev->n_top,
                     sizeof *c->event_tops);
    if (!grow((void **)&c->events, &c->events_cap, c->n_events + reserve, sizeof *c->events) &&
        ev->type != ENGINE_EVENT_FINISHED)
        return;
    struct gen_event *to = &c->events[c->n_events++];
    *to = (struct gen_event){.type = ev->type,
                             .token = ev->token,
                             .position = ev->position,
                             .logprob = ev->logprob,
                             .rank = ev->rank,
                             .top0 = c->n_event_tops,
                             .n_top = tops ? ev->n_top : 0};
    for (uint32_t i = 0; i < to->n_top; i++)
        c->event_tops[c->n_event_tops++] = (struct gen_top){ev->top_ids[i], ev->top_logprobs[i]};
    if (ev->type == ENGINE_EVENT_FINISHED)
        copy_finish(to, ev);
}

/* On the engine's thread: copies, marks, returns. */
static void on_event(void *user, const struct engine_event *ev)
{
    struct gen_choice *c = user;
    struct generation *g = c->g;
    pthread_mutex_lock(&g->mutex);
    copy_event(c, ev);
    bool mark = g->ready && !g->dirty;
    g->dirty = g->dirty || mark;
    pthread_mutex_unlock(&g->mutex);
    if (mark)
        output_mark(g->output, generation_hold(g));
    if (ev->type == ENGINE_EVENT_FINISHED)
        generation_release(g);
}

static int submit_choice(struct generation *g, struct gen_choice *c, struct engine *engine,
                         struct request_error *e)
{
    const struct gen_prompt *prompt = &g->prompts[c->prompt_idx];
    size_t n_uses = 0;
    const struct served_use *uses = generation_uses(g, c->prompt_idx, &n_uses);
    struct engine_adapter_use adapters[LIMIT_ADAPTERS_PER_REQUEST];
    for (size_t i = 0; i < n_uses; i++)
        adapters[i] = (struct engine_adapter_use){uses[i].served->content_id, uses[i].scale};
    struct engine_request request = {
        .prompt = prompt->ids,
        .n_prompt = prompt->n,
        .adapters = adapters,
        .n_adapters = n_uses,
        .max_new_tokens = g->params.max_new_tokens,
        .min_new_tokens = g->params.min_new_tokens,
        .stop_ids = g->stop_ids,
        .n_stop_ids = g->n_stop_ids,
        .include_stop_token = true,
        .prompt_logprobs = g->prompt_logprobs,
        .sampling = g->params.sampling,
        .on_event = on_event,
        .user = c,
    };
    request.sampling.seed += c->index % g->params.n;
    request.sampling.n_top = g->n_top;
    if (!grow((void **)&c->events, &c->events_cap, 2, sizeof *c->events))
        return request_fail(e, 500, NULL, "no memory for an answer");
    struct err err = {0};
    uint64_t id = 0;
    generation_hold(g);
    if (engine_submit(engine, &request, &id, &err) != 0) {
        generation_release(g);
        return request_fail_err(e, err.code == ERR_LIMIT ? "prompt" : NULL, &err);
    }
    pthread_mutex_lock(&g->mutex);
    c->engine_id = id;
    pthread_mutex_unlock(&g->mutex);
    return 0;
}

int generation_submit(struct generation *g, struct engine *engine, struct request_error *e)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < g->n_choices; i++)
        rc = submit_choice(g, &g->choices[i], engine, e);
    if (rc != 0) {
        generation_cancel(g, engine);
        return rc;
    }
    output_add(g->output, g);
    pthread_mutex_lock(&g->mutex);
    g->ready = true;
    bool gone = g->gone;
    bool mark = !g->dirty;
    g->dirty = true;
    pthread_mutex_unlock(&g->mutex);
    if (mark)
        output_mark(g->output, generation_hold(g));
    if (gone)
        generation_cancel(g, engine);
    output_wake(g->output);
    return 0;
}

void generation_cancel(struct generation *g, struct engine *engine)
{
    for (size_t i = 0; i < g->n_choices; i++) {
        pthread_mutex_lock(&g->mutex);
        uint64_t id = g->choices[i].engine_id;
        pthread_mutex_unlock(&g->mutex);
        if (id)
            engine_cancel(engine, id);
    }
}

// ---- from the engine ----------------------------------------------------------------------------

size_t generation_held_back(const struct params *p, const char *text, size_t n)
{
    size_t held = 0;
    for (size_t i = 0; i < p->n_stops; i++) {
        size_t longest = p->stops[i].n - 1 < n ? p->stops[i].n - 1 : n;
        for (size_t k = longest; k > held; k--) {
            if (memcmp(text + n - k, p->stops[i].text, k) == 0) {
                held = k;
                break;
            }
        }
    }
    return held;
}

/* Looks for the first stop string that ends behind `before`; cuts the text there. */
static bool find_stop_string(struct gen_choice *c, size_t before)
{
    const struct params *p = &c->g->params;
    const struct stop_text *found = NULL;
    size_t at = c->text.len;
    for (size_t i = 0; i < p->n_stops; i++) {
        const struct stop_text *s = &p->stops[i];
        size_t from = before >= s->n ? before - s->n + 1 : 0;
        if (c->text.len < from + s->n)
            continue;
        const char *hit = memmem(c->text.data + from, c->text.len - from, s->text, s->n);
        if (hit && (size_t)(hit - c->text.data) < at) {
            at = (size_t)(hit - c->text.data);
            found = s;
        }
    }
    if (!found)
        return false;
    strbuf_truncate(&c->text, p->include_stop ? at + found->n : at);
    c->stop_string = found->text;
    c->end = CHOICE_STOP;
    return true;
}

static bool is_end_id(const struct generation *g, int32_t id)
{
    for (size_t i = 0; i < g->n_stop_ids; i++) {
        if (g->stop_ids[i] == id)
            return true;
    }
    return false;
}

static bool keep_tops(struct gen_choice *c, struct gen_token *t, const struct gen_event *ev,
                      const struct gen_top *tops)
{
    if (!grow((void **)&c->tops, &c->tops_cap, c->n_tops + ev->n_top, sizeof *c->tops))
        return false;
    t->top0 = c->n_tops;
    t->n_top = ev->n_top;
    if (ev->n_top)
        memcpy(c->tops + c->n_tops, tops + ev->top0, ev->n_top * sizeof *tops);
    c->n_tops += ev->n_top;
    return true;
}

static void choice_no_memory(struct gen_choice *c)
{
    c->end = CHOICE_ERROR;
    err_set(&c->error, ERR_NO_MEMORY, "no memory for the answer");
}

static void take_token(struct gen_choice *c, const struct gen_event *ev, const struct gen_top *tops)
{
    struct generation *g = c->g;
    if (!grow((void **)&c->tokens, &c->tokens_cap, c->n_tokens + 1, sizeof *c->tokens)) {
        choice_no_memory(c);
        return;
    }
    struct gen_token *t = &c->tokens[c->n_tokens++];
    *t = (struct gen_token){.id = ev->token,
                            .logprob = ev->logprob,
                            .rank = ev->rank,
                            .text_offset = (uint32_t)c->text.len,
                            .has_logprob = true};
    if (!keep_tops(c, t, ev, tops)) {
        choice_no_memory(c);
        return;
    }
    c->last_token_ns = thread_now_ns();
    if (c->n_tokens == 1)
        c->first_token_ns = c->last_token_ns;
    c->ended_by_token = c->n_tokens > g->params.min_new_tokens && is_end_id(g, ev->token);
    if (!c->stream || (c->ended_by_token && !g->params.include_stop))
        return;
    size_t before = c->text.len;
    if (token_stream_feed(c->stream, (uint32_t)ev->token, &c->text, NULL) != 0 || c->text.failed)
        choice_no_memory(c);
    else if (g->params.n_stops && c->n_tokens > g->params.min_new_tokens)
        find_stop_string(c, before);
}

static void take_prompt(struct gen_choice *c, const struct gen_event *ev,
                        const struct gen_top *tops)
{
    if (!c->prompt || ev->position >= c->g->prompts[c->prompt_idx].n)
        return;
    struct gen_token *t = &c->prompt[ev->position];
    *t = (struct gen_token){
        .id = ev->token, .logprob = ev->logprob, .rank = ev->rank, .has_logprob = true};
    if (!keep_tops(c, t, ev, tops))
        choice_no_memory(c);
    c->n_prompt_seen++;
}

static void take_finish(struct gen_choice *c, const struct gen_event *ev)
{
    c->engine_done = true;
    c->n_cached = ev->n_cached;
    c->n_preempted = ev->n_preempted;
    c->queued_ns = ev->queued_ns;
    c->admitted_ns = ev->admitted_ns;
    c->adapter_wait_ns = ev->adapter_wait_ns;
    if (c->end != CHOICE_RUNS)
        return; // a stop string or a time-out was faster
    size_t before = c->text.len;
    if (c->stream && token_stream_finish(c->stream, &c->text, NULL) == 0 && c->text.len > before &&
        find_stop_string(c, before))
        return;
    switch (ev->finish) {
    case ENGINE_FINISH_STOP:
        c->end = CHOICE_STOP;
        c->stop_id = ev->stop_id;
        break;
    case ENGINE_FINISH_LENGTH:
        c->end = CHOICE_LENGTH;
        break;
    case ENGINE_FINISH_CANCELLED:
        c->end = CHOICE_ABORT;
        break;
    case ENGINE_FINISH_ERROR:
        c->end = CHOICE_ERROR;
        err_set(&c->error, ev->error_code, "%s", ev->error);
        break;
    }
}

bool generation_take_events(struct generation *g, struct gen_choice *c, bool *wants_cancel)
{
    pthread_mutex_lock(&g->mutex);
    struct gen_event *events = c->events;
    struct gen_top *tops = c->event_tops;
    uint32_t n = c->n_events;
    /* The arrays are taken whole; FINISHED needs a slot that is there already. */
    struct gen_event *fresh = n ? sys_calloc(4, sizeof *fresh) : NULL;
    if (fresh) {
        c->events = fresh;
        c->events_cap = 4;
        c->n_events = 0;
        c->event_tops = NULL;
        c->n_event_tops = c->event_tops_cap = 0;
    }
    pthread_mutex_unlock(&g->mutex);
    if (!fresh)
        return false; // nothing, or no memory: they stay for the next time
    for (uint32_t i = 0; i < n; i++) {
        if (events[i].type == ENGINE_EVENT_FINISHED)
            take_finish(c, &events[i]);
        else if (c->end != CHOICE_RUNS)
            continue;
        else if (events[i].type == ENGINE_EVENT_TOKEN)
            take_token(c, &events[i], tops);
        else
            take_prompt(c, &events[i], tops);
    }
    sys_free(events);
    sys_free(tops);
    c->n_ready = c->text.len;
    if (c->end == CHOICE_RUNS && g->params.n_stops)
        c->n_ready -= generation_held_back(&g->params, strbuf_text(&c->text), c->text.len);
    if (c->end != CHOICE_RUNS && !c->engine_done)
        *wants_cancel = true;
    return true;
}

void generation_fail(struct generation *g, int code, const char *message)
{
    for (size_t i = 0; i < g->n_choices; i++) {
        if (g->choices[i].end != CHOICE_RUNS)
            continue;
        g->choices[i].end = CHOICE_ERROR;
        err_set(&g->choices[i].error, code, "%s", message);
    }
}

bool generation_is_over(const struct generation *g)
{
    for (size_t i = 0; i < g->n_choices; i++) {
        if (g->choices[i].end == CHOICE_RUNS)
            return false;
    }
    return true;
}

const struct err *generation_error(const struct generation *g)
{
    for (size_t i = 0; i < g->n_choices; i++) {
        if (g->choices[i].end == CHOICE_ERROR)
            return &g->choices[i].error;
    }
    return NULL;
}
