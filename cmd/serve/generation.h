/*
 * generation: one request in work: its prompts, its choices (n for each prompt), what the engine
 * has said of them, and the text made of it.
 *
 * The engine's events are copied into the choice (generation_on_event, on the engine's thread) and
 * turned into text on the output thread (generation_take_events). A format (format.h) writes the
 * peer's bodies and chunks from the choices.
 * Reference-counted: the exchange, the worker that makes it, the output's list and every request
 * in the engine hold one.
 */
#ifndef CMD_SERVE_GENERATION_H
#define CMD_SERVE_GENERATION_H

#include <pthread.h>
#include <stdatomic.h>

#include "cmd/serve/answer.h"
#include "cmd/serve/names.h"
#include "cmd/serve/params.h"
#include "cmd/serve/text_kit.h"
#include "libcore/engine/engine.h"

struct output;
struct generation;
struct format;

struct gen_top {
    int32_t id;
    float logprob;
};

/* One token of an answer, or (in gen_choice.prompt) one position of a prompt. */
struct gen_token {
    int32_t id;
    float logprob;
    int32_t rank;
    uint32_t top0, n_top; // gen_choice.tops[top0 …]
    uint32_t text_offset; // bytes of answer text before it
    bool has_logprob;     // the first prompt position has none
};

struct gen_event {
    enum engine_event_type type;
    int32_t token;
    uint32_t position;
    float logprob;
    int32_t rank;
    uint32_t top0, n_top;
    // FINISHED
    enum engine_finish finish;
    int32_t stop_id;
    int error_code;
    char error[192];
    uint32_t n_cached, n_preempted;
    uint64_t queued_ns, admitted_ns, first_token_ns, finished_ns, adapter_wait_ns;
};

enum choice_end { CHOICE_RUNS, CHOICE_STOP, CHOICE_LENGTH, CHOICE_ABORT, CHOICE_ERROR };

struct gen_choice {
    struct generation *g; // back pointer for the engine's events
    uint32_t index, prompt_idx;
    uint64_t engine_id; // 0: not submitted
    bool engine_done;   // FINISHED came: the engine will say no more

    // under g->mutex: what the engine said and the output thread has not taken
    struct gen_event *events;
    uint32_t n_events, events_cap;
    struct gen_top *event_tops;
    uint32_t n_event_tops, event_tops_cap;

    // the output thread's
    struct token_stream *stream; // NULL without a tokenizer
    struct strbuf text;          // of the whole answer so far
    size_t n_ready;              // bytes of text that can no longer change
    size_t n_sent;               // bytes and tokens that a stream was given already
    uint32_t n_tokens_sent;
    struct gen_token *tokens; // of the answer, an end token included
    uint32_t n_tokens, tokens_cap;
    struct gen_token *prompt; // log-probabilities of the prompt, [n_prompt], when asked for
    uint32_t n_prompt_seen;
    struct gen_top *tops;
    uint32_t n_tops, tops_cap;
    enum choice_end end;
    bool started, end_sent;
    bool ended_by_token;     // the last token is an end or stop id
    int32_t stop_id;         // that id, or -1
    const char *stop_string; // borrowed from the params, or NULL
    struct err error;
    uint32_t n_cached, n_preempted;
    uint64_t queued_ns, admitted_ns, first_token_ns, last_token_ns, adapter_wait_ns;
};

struct gen_prompt {
    int32_t *ids;
    size_t n;
    char *text; // as sent, for echo; NULL when it came as ids
};

struct generation {
    atomic_uint refs;
    pthread_mutex_t mutex;
    struct output *output;
    struct http_exchange *x;     // held until answered
    const struct format *format; // static
    struct params params;
    struct text_kit *kit;                               // held
    struct served_use uses[LIMIT_ADAPTERS_PER_REQUEST]; // all prompts, unless prompt_uses
    size_t n_uses;
    struct served_use *prompt_uses; // NULL, or one adapter (or none) a prompt
    struct gen_prompt *prompts;
    size_t n_prompts;
    struct gen_choice *choices; // prompt-major: prompt_idx * n + k
    size_t n_choices;
    int32_t *stop_ids; // end ids and the request's own
    size_t n_stop_ids;

    char id[48];      // "chatcmpl-…"
    char *model;      // as the client named it
    uint64_t created; // unix seconds
    bool stream, echo, include_usage, continuous_usage, one_prompt, ids_as_text, return_ids;
    bool logprobs;         // the client wants them
    int n_top;             // how many beside the chosen one
    bool prompt_logprobs;  // echo with logprobs, or SGLang's logprob_start_len
    int64_t logprob_start; // SGLang
    bool text_in_logprobs; // SGLang
    uint64_t started_ns;
    uint64_t deadline_ns; // 0: none

    // under mutex
    bool gone;         // the client left
    bool dirty, ready; // in the output's list; everything was submitted

    // output thread's
    bool answered, stream_begun, counted;
    struct generation *next, *prev; // output's list of what runs
};

/* n_choices = n_prompts * params.n is laid out by generation_layout. NULL: memory is out. The
 * exchange is held, the reference is the caller's. */
struct generation *generation_open(struct output *output, struct http_exchange *x);
struct generation *generation_hold(struct generation *g);
void generation_release(void *g); // NULL is fine
/* Whoever answered lets go of the exchange (the two hold each other until then). */
void generation_detach(struct generation *g);
/* After prompts, params and kit are set. */
int generation_layout(struct generation *g, struct request_error *e);
/* The adapters of a prompt. */
const struct served_use *generation_uses(const struct generation *g, size_t prompt_idx, size_t *n);

/* Queues every choice; when one is refused, cancels those before and returns -1 (nothing was
 * answered). Takes the generation's life into the output's hands. */
int generation_submit(struct generation *g, struct engine *engine, struct request_error *e);
/* Asks the engine to end what still runs. Any thread. */
void generation_cancel(struct generation *g, struct engine *engine);

/* Turns what the engine said into tokens and text. Returns whether there was anything; sets
 * *wants_cancel when a stop string ended a choice that the engine still works on. */
bool generation_take_events(struct generation *g, struct gen_choice *c, bool *wants_cancel);
/* Ends what runs, for a time-out. */
void generation_fail(struct generation *g, int code, const char *message);
bool generation_is_over(const struct generation *g);
/* The error of the first choice that failed, or NULL. */
const struct err *generation_error(const struct generation *g);

/* Bytes of c->text that a stream may have now: all but the beginning of a stop string. */
size_t generation_held_back(const struct params *p, const char *text, size_t n);

#endif
