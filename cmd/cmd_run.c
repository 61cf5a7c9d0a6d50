/*
 * lora run: one answer without a server, streamed; or, with --input-ids, logits and ids for checks.
 */
#include <stdio.h>
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/run_answer.h"
#include "cmd/run_logits.h"
#include "cmd/run_prompt.h"
#include "cmd/serve/names.h"
#include "cmd/serve/runtime.h"
#include "libcore/base/limits.h"
#include "libcore/base/log.h"
#include "libcore/base/sys.h"

enum { CHECK_TOKENS = 16, MAX_PROMPTS = 1024 };

static struct {
    struct model_options base;
    struct string_list adapters, stops;
    const char *system, *input_ids, *logits;
    int64_t max_tokens, top_k, seed;
    double temperature, top_p, min_p, repetition_penalty;
    bool raw, ignore_eos, ignore_eos_given, temperature_given, top_p_given, top_k_given;
    bool min_p_given, repetition_given, max_tokens_given;
} o = {.base = {.device = "auto",
                .dtype = "auto",
                .load_format = "auto",
                .lora_dtype = "auto",
                .memory_utilization = 0.9,
                .max_step_tokens = 2048,
                .max_running = 16,
                .max_queued = MAX_PROMPTS,
                .eviction = "lru"},
       .top_p = 1,
       .repetition_penalty = 1};

static const struct option table[] = {
    {.long_name = "adapter",
     .short_name = 'a',
     .type = OPTION_LIST,
     .value = &o.adapters,
     .value_name = "REF[=scale]",
     .help = "An adapter; repeated, their sum."},
    {.long_name = "raw",
     .type = OPTION_FLAG,
     .value = &o.raw,
     .help = "The prompt as it is, without the chat template."},
    {.long_name = "system",
     .type = OPTION_STRING,
     .value = &o.system,
     .value_name = "TEXT",
     .help = "A system message before the prompt."},
    {.long_name = "max-tokens",
     .short_name = 'n',
     .type = OPTION_INT,
     .value = &o.max_tokens,
     .min = 1,
     .max = INT32_MAX,
     .value_name = "N",
     .given = &o.max_tokens_given,
     .help = "The answer's length at most; by default what the context leaves (with --input-ids "
             "16)."},
    {.type = OPTION_HEADING, .help = "Sampling (greedy unless told otherwise)"},
    {.long_name = "temperature",
     .short_name = 't',
     .type = OPTION_DOUBLE,
     .value = &o.temperature,
     .value_name = "T",
     .given = &o.temperature_given,
     .help = "0 is greedy."},
    {.long_name = "top-p",
     .type = OPTION_DOUBLE,
     .value = &o.top_p,
     .value_name = "P",
     .given = &o.top_p_given,
     .help = "Of the most probable, those that make up P."},
    {.long_name = "top-k",
     .type = OPTION_INT,
     .value = &o.top_k,
     .value_name = "K",
     .given = &o.top_k_given,
     .min = 0,
     .max = INT32_MAX,
     .help = "The K most probable; 0: all."},
    {.long_name = "min-p",
     .type = OPTION_DOUBLE,
     .value = &o.min_p,
     .value_name = "P",
     .given = &o.min_p_given,
     .help = "At least P times as probable as the first."},
    {.long_name = "repetition-penalty",
     .type = OPTION_DOUBLE,
     .value = &o.repetition_penalty,
     .value_name = "X",
     .given = &o.repetition_given,
     .help = "1 is none."},
    {.long_name = "seed",
     .type = OPTION_INT,
     .value = &o.seed,
     .value_name = "N",
     .help = "The same seed gives the same answer."},
    {.long_name = "stop",
     .type = OPTION_LIST,
     .value = &o.stops,
     .value_name = "TEXT",
     .help = "Ends the answer before this text."},
    {.long_name = "ignore-eos",
     .type = OPTION_FLAG,
     .value = &o.ignore_eos,
     .given = &o.ignore_eos_given,
     .help = "End tokens do not end the answer; the default with --input-ids."},
    {.type = OPTION_HEADING, .help = "Checks"},
    {.long_name = "input-ids",
     .type = OPTION_STRING,
     .value = &o.input_ids,
     .value_name = "FILE",
     .help = "Prompts as a JSON list of ids, or a list of such lists; with --json the greedy ids "
             "are printed."},
    {.long_name = "logits",
     .type = OPTION_STRING,
     .value = &o.logits,
     .value_name = "OUT.npy",
     .help = "With --input-ids: the logits of each prompt's last position, float32 [n, vocab]."},
    {.type = OPTION_HEADING, .help = "Model"},
    {.long_name = "device",
     .type = OPTION_STRING,
     .value = &o.base.device,
     .value_name = "auto|cpu|cuda:N",
     .env = "LORA_DEVICE",
     .help = "Where it computes."},
    {.long_name = "threads",
     .type = OPTION_INT,
     .value = &o.base.n_threads,
     .value_name = "N",
     .min = 0,
     .max = 1024,
     .env = "LORA_THREADS",
     .help = "Threads of the CPU; 0 takes all."},
    {.long_name = "context-length",
     .type = OPTION_INT,
     .value = &o.base.context_length,
     .min = 1,
     .max = 1 << 24,
     .value_name = "N",
     .help = "Prompt and answer together, in tokens."},
    {.long_name = "max-num-batched-tokens",
     .type = OPTION_INT,
     .min = 1,
     .max = LIMIT_STEP_TOKENS,
     .value = &o.base.max_step_tokens,
     .value_name = "N",
     .help = "Tokens in one step."},
    {.long_name = "chat-template",
     .type = OPTION_STRING,
     .value = &o.base.chat_template,
     .value_name = "FILE",
     .help = "A Jinja template instead of the model's own."},
    {.long_name = "trace",
     .type = OPTION_STRING,
     .value = &o.base.trace,
     .value_name = "FILE",
     .help = "One JSON line for each step."},
    {0},
};

// ---- what is asked ------------------------------------------------------------------------------

struct job {
    struct cmd_context *ctx;
    struct runtime *rt;
    struct names *names;
    struct served *served[LIMIT_ADAPTERS_PER_REQUEST]; // held
    struct run_adapter adapters[LIMIT_ADAPTERS_PER_REQUEST];
    size_t n_adapters;
    struct run_prompt *prompts;
    size_t n_prompts;
    int32_t *stop_ids;
    size_t n_stop_ids;
};

static const char *const served_names[] = {"base"};

static int open_adapters(struct job *j, struct err *err)
{
    const struct runtime *rt = j->rt;
    const struct names_options opt = {.store_path = rt->store_path,
                                      .source = rt->source,
                                      .base_fingerprint = rt->base.id,
                                      .served_names = served_names,
                                      .n_served_names = 1,
                                      .base_folder = rt->base.folder,
                                      .cache_folder = rt->cache_folder,
                                      .base_kit = rt->kit};
    int rc = names_open(&j->names, &opt, err);
    if (o.adapters.n > LIMIT_ADAPTERS_PER_REQUEST)
        return err_set(err, ERR_USAGE, "at most %d adapters at once", LIMIT_ADAPTERS_PER_REQUEST);
    for (size_t i = 0; rc == 0 && i < o.adapters.n; i++) {
        struct run_adapter *a = &j->adapters[i];
        char word[4096], name[32];
        size_t len = run_adapter_parse(o.adapters.items[i], &a->scale);
        snprintf(name, sizeof name, "adapter-%zu", i);
        snprintf(word, sizeof word, "%s=%.*s", name, (int)len, o.adapters.items[i]);
        const char *words[] = {word};
        rc = names_offer_words(j->names, words, 1, err);
        if (rc == 0)
            rc = names_find_adapter(j->names, name, &j->served[i], err);
        if (rc != 0)
            return rc;
        j->n_adapters = i + 1;
        memcpy(a->content_id, j->served[i]->content_id, sizeof a->content_id);
    }
    return rc;
}

static struct text_kit *kit_of(const struct job *j)
{
    for (size_t i = 0; i < j->n_adapters; i++) {
        if (j->served[i]->kit && j->served[i]->kit != j->rt->kit)
            return j->served[i]->kit;
    }
    return j->rt->kit;
}

static json_t *chat_context(const char *prompt)
{
    json_t *messages = json_array();
    if (o.system)
        json_array_append_new(messages,
                              json_pack("{s:s, s:s}", "role", "system", "content", o.system));
    json_array_append_new(messages, json_pack("{s:s, s:s}", "role", "user", "content", prompt));
    return json_pack("{s:o, s:b}", "messages", messages, "add_generation_prompt", 1);
}

static int tokenise_prompt(struct job *j, const char *prompt, struct err *err)
{
    const struct text_kit *kit = kit_of(j);
    if (!kit || !kit->tokenizer)
        return err_set(err, ERR_NOT_FOUND, "%s has no tokenizer.json: use --input-ids",
                       j->rt->base.name);
    struct strbuf text;
    struct token_ids ids;
    strbuf_init(&text);
    token_ids_init(&ids);
    bool chat = kit->chat && !o.raw;
    int rc = 0;
    if (chat) {
        json_t *context = chat_context(prompt);
        rc = context ? text_kit_render(kit, context, NULL, &text, err)
                     : err_set(err, ERR_USAGE, "the prompt is not UTF-8");
        json_decref(context);
    } else {
        strbuf_adds(&text, prompt);
    }
    if (rc == 0)
        rc = tokenizer_encode(kit->tokenizer, strbuf_text(&text), text.len,
                              chat ? 0 : TOKENIZER_ADD_SPECIAL, &ids, err);
    j->prompts = sys_calloc(1, sizeof *j->prompts);
    j->n_prompts = 1;
    if (rc == 0 && j->prompts)
        j->prompts->ids = sys_reallocarray(NULL, ids.n + 1, sizeof *j->prompts->ids);
    if (rc == 0 && (!j->prompts || !j->prompts->ids))
        rc = err_set(err, ERR_NO_MEMORY, "no memory for the prompt");
    for (size_t i = 0; rc == 0 && i < ids.n; i++)
        j->prompts->ids[j->prompts->n++] = (int32_t)ids.data[i];
    token_ids_release(&ids);
    strbuf_release(&text);
    return rc;
}

static int collect_stop_ids(struct job *j, struct err *err)
{
    const struct runtime *rt = j->rt;
    bool ignore = o.ignore_eos_given ? o.ignore_eos : o.input_ids != NULL;
    if (ignore)
        return 0;
    bool own = rt->generation.n_eos > 0;
    size_t n = own ? rt->generation.n_eos : rt->config.n_eos;
    const int32_t *eos = own ? rt->generation.eos_ids : rt->config.eos_ids;
    j->stop_ids = sys_reallocarray(NULL, n + 1, sizeof *j->stop_ids);
    if (!j->stop_ids)
        return err_set(err, ERR_NO_MEMORY, "no memory for end ids");
    for (size_t i = 0; i < n; i++)
        j->stop_ids[j->n_stop_ids++] = eos[i];
    const struct text_kit *kit = kit_of(j);
    int64_t role = kit && kit->tokenizer ? tokenizer_role_id(kit->tokenizer, TOKENIZER_EOS) : -1;
    if (role >= 0 && role < (int64_t)rt->config.vocab_size)
        j->stop_ids[j->n_stop_ids++] = (int32_t)role;
    return 0;
}

// ---- answers ------------------------------------------------------------------------------------

/* A flag, else the model's own default, else greedy. */
static struct sample_params sampling(const struct runtime *rt)
{
    const struct generation_config *g = &rt->generation;
    struct sample_params s = {.temperature = (float)o.temperature,
                              .top_p = (float)o.top_p,
                              .min_p = (float)o.min_p,
                              .top_k = (int32_t)o.top_k,
                              .repetition_penalty = (float)o.repetition_penalty,
                              .seed = (uint64_t)o.seed,
                              .pending = -1,
                              .target = -1};
    if (!o.top_p_given && g->has_top_p)
        s.top_p = (float)g->top_p;
    if (!o.top_k_given && g->has_top_k)
        s.top_k = g->top_k;
    if (!o.min_p_given && g->has_min_p)
        s.min_p = (float)g->min_p;
    if (!o.repetition_given && g->has_repetition_penalty && !o.input_ids)
        s.repetition_penalty = (float)g->repetition_penalty;
    return s;
}

static int submit(struct job *j, struct run_answer *a, const struct run_prompt *p, uint64_t *id,
                  struct err *err)
{
    struct engine_adapter_use uses[LIMIT_ADAPTERS_PER_REQUEST];
    for (size_t i = 0; i < j->n_adapters; i++)
        uses[i] = (struct engine_adapter_use){j->adapters[i].content_id, j->adapters[i].scale};
    if (p->n >= j->rt->context_length)
        return err_set(err, ERR_LIMIT, "the prompt has %zu tokens; the context is %u", p->n,
                       j->rt->context_length);
    uint64_t room = j->rt->context_length - p->n;
    uint64_t wanted = o.max_tokens_given ? (uint64_t)o.max_tokens
                      : o.input_ids      ? CHECK_TOKENS
                                         : room;
    a->cap = wanted < room ? wanted : room;
    a->ids = sys_reallocarray(NULL, a->cap, sizeof *a->ids);
    if (!a->ids)
        return err_set(err, ERR_NO_MEMORY, "no memory for the answer");
    const struct engine_request request = {.prompt = p->ids,
                                           .n_prompt = p->n,
                                           .adapters = uses,
                                           .n_adapters = j->n_adapters,
                                           .max_new_tokens = (uint32_t)a->cap,
                                           .stop_ids = j->stop_ids,
                                           .n_stop_ids = j->n_stop_ids,
                                           .sampling = sampling(j->rt),
                                           .on_event = run_answer_on_event,
                                           .user = a};
    return engine_submit(j->rt->engine, &request, id, err);
}

/* The first stop string in the text, or its length. */
static size_t stop_at(const char *text, size_t n)
{
    size_t at = n;
    for (size_t i = 0; i < o.stops.n; i++) {
        const char *hit = memmem(text, n, o.stops.items[i], strlen(o.stops.items[i]));
        if (hit && (size_t)(hit - text) < at)
            at = (size_t)(hit - text);
    }
    return at;
}

static size_t longest_stop(void)
{
    size_t longest = 0;
    for (size_t i = 0; i < o.stops.n; i++) {
        size_t n = strlen(o.stops.items[i]);
        longest = n > longest ? n : longest;
    }
    return longest;
}

/* Waits for tokens, writes their text as it comes (not with --json); *text gets all of it. */
static int follow(struct job *j, struct run_answer *a, uint64_t id, struct strbuf *text,
                  struct err *err)
{
    struct token_stream *stream = NULL;
    int rc = token_stream_open(&stream, kit_of(j)->tokenizer, TOKENIZER_SKIP_SPECIAL, err);
    size_t fed = 0, shown = 0, hold = longest_stop();
    for (bool over = false; rc == 0 && !over;) {
        size_t n = run_answer_wait_more(a, fed, &over);
        for (; rc == 0 && fed < n; fed++)
            rc = token_stream_feed(stream, (uint32_t)a->ids[fed], text, err);
        if (rc == 0 && over)
            rc = token_stream_finish(stream, text, err);
        size_t end = stop_at(strbuf_text(text), text->len);
        if (end < text->len) {
            strbuf_truncate(text, end);
            engine_cancel(j->rt->engine, id);
            over = true;
        }
        size_t ready = over ? text->len : text->len > hold ? text->len - hold : 0;
        if (ready > shown && !j->ctx->json) {
            fwrite(text->data + shown, 1, ready - shown, stdout);
            fflush(stdout);
        }
        shown = ready > shown ? ready : shown;
        if (cmd_interrupted())
            rc = err_set(err, ERR_INTERRUPTED, "interrupted");
    }
    token_stream_free(stream);
    return rc;
}

static const char *reason_of(const struct run_answer *a, bool stopped)
{
    if (stopped || a->finish == ENGINE_FINISH_STOP || a->finish == ENGINE_FINISH_CANCELLED)
        return "stop";
    return "length";
}

/* Where the time from the start until the first token went. */
static json_t *seconds_json(const struct runtime *rt, const struct run_answer *a)
{
    const struct runtime_times *t = &rt->times;
    double first = a && a->first_ns ? (double)(a->first_ns - t->begin_ns) * 1e-9 : 0;
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "base", t->read_s, "device",
                     t->device_s, "memory", t->model_s, "weights", t->weights.seconds, "weights_gb",
                     (double)t->weights.bytes * 1e-9, "engine", t->start_s, "first_token", first);
}

static int answer_prompt(struct job *j, struct run_inbox *inbox, struct err *err)
{
    struct run_answer a = {.inbox = inbox};
    struct strbuf text;
    strbuf_init(&text);
    uint64_t id = 0;
    int rc = submit(j, &a, &j->prompts[0], &id, err);
    if (rc == 0) {
        rc = follow(j, &a, id, &text, err);
        if (rc != 0)
            engine_cancel(j->rt->engine, id);
        run_answer_wait(&a);
    }
    if (rc == 0 && a.finish == ENGINE_FINISH_ERROR)
        rc = err_set(err, a.error.code, "%s", a.error.msg);
    if (rc == 0 && j->ctx->json)
        cmd_print_json(json_pack("{s:o, s:o, s:s, s:I, s:I, s:o}", "text",
                                 json_stringn(strbuf_text(&text), text.len), "ids",
                                 run_answer_ids(&a), "finish_reason", reason_of(&a, false),
                                 "prompt_tokens", (json_int_t)j->prompts[0].n, "completion_tokens",
                                 (json_int_t)a.n, "seconds", seconds_json(j->rt, &a)));
    else if (rc == 0)
        putchar('\n');
    sys_free(a.ids);
    strbuf_release(&text);
    return rc;
}

/* All prompts at once; ids alone. */
static int answer_ids(struct job *j, struct run_inbox *inbox, struct err *err)
{
    struct run_answer *answers = sys_calloc(j->n_prompts, sizeof *answers);
    int rc = answers ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for the answers");
    size_t n = 0;
    for (; rc == 0 && n < j->n_prompts; n++) {
        uint64_t id;
        answers[n].inbox = inbox;
        rc = submit(j, &answers[n], &j->prompts[n], &id, err);
        if (rc != 0)
            break;
    }
    json_t *all = json_array();
    for (size_t i = 0; i < n; i++) {
        run_answer_wait(&answers[i]);
        if (rc == 0 && answers[i].finish == ENGINE_FINISH_ERROR)
            rc = err_set(err, answers[i].error.code, "%s", answers[i].error.msg);
        json_array_append_new(all, run_answer_ids(&answers[i]));
    }
    if (rc == 0 && j->ctx->json) {
        cmd_print_json(json_pack("{s:O, s:o}", "ids", all, "seconds",
                                 seconds_json(j->rt, n ? answers : NULL)));
    } else {
        for (size_t i = 0; rc == 0 && i < n; i++) {
            for (size_t k = 0; k < answers[i].n; k++)
                printf("%s%d", k ? " " : "", answers[i].ids[k]);
            putchar('\n');
        }
    }
    for (size_t i = 0; answers && i < j->n_prompts; i++)
        sys_free(answers[i].ids);
    json_decref(all);
    sys_free(answers);
    return rc;
}

static int write_logits(struct job *j, struct err *err)
{
    size_t width = j->rt->config.vocab_size;
    float *logits = sys_calloc(j->n_prompts * width, sizeof *logits);
    int rc = logits ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for the logits");
    if (rc == 0)
        rc = run_logits(j->rt, j->adapters, j->n_adapters, j->prompts, j->n_prompts, logits, err);
    if (rc == 0)
        rc = run_write_npy(o.logits, logits, j->n_prompts, width, j->ctx->force, err);
    sys_free(logits);
    return rc;
}

static int drive(struct job *j, struct err *err)
{
    struct run_inbox inbox;
    pthread_mutex_init(&inbox.mutex, NULL);
    pthread_cond_init(&inbox.changed, NULL);
    int rc = runtime_start(j->rt, NULL, NULL, err);
    if (rc == 0)
        names_set_engine(j->names, j->rt->engine);
    for (size_t i = 0; rc == 0 && i < j->n_adapters; i++)
        rc = served_ready(j->served[i], err);
    if (rc == 0 && !o.input_ids)
        rc = tokenise_prompt(j, j->ctx->args[1], err);
    if (rc == 0)
        rc = collect_stop_ids(j, err);
    if (rc == 0)
        rc = o.input_ids ? answer_ids(j, &inbox, err) : answer_prompt(j, &inbox, err);
    names_set_engine(j->names, NULL);
    runtime_stop(j->rt);
    pthread_cond_destroy(&inbox.changed);
    pthread_mutex_destroy(&inbox.mutex);
    return rc;
}

static int check_words(const struct cmd_context *ctx, struct err *err)
{
    if (o.logits && !o.input_ids)
        return err_set(err, ERR_USAGE, "--logits needs --input-ids FILE");
    if (o.input_ids && ctx->n_args != 1)
        return err_set(err, ERR_USAGE, "with --input-ids there is no PROMPT");
    if (!o.input_ids && ctx->n_args != 2)
        return err_set(err, ERR_USAGE, "wanted a MODEL and a PROMPT");
    return 0;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct job j = {.ctx = ctx};
    int rc = check_words(ctx, err);
    if (rc != 0)
        return rc;
    o.base.model = ctx->args[0];
    o.base.skip_tokenizer = o.input_ids != NULL;
    rc = runtime_open(&j.rt, &o.base, ctx->store_path, err);
    if (rc == 0)
        log_info("run", "device=\"%s\"", j.rt->device_note);
    if (rc == 0)
        rc = open_adapters(&j, err);
    if (rc == 0 && o.input_ids)
        rc = run_prompts_read(&j.prompts, &j.n_prompts, o.input_ids, j.rt->config.vocab_size, err);
    if (rc == 0)
        rc = runtime_load(j.rt, NULL, NULL, err);
    if (rc == 0 && o.logits)
        rc = write_logits(&j, err);
    if (rc == 0 && (!o.logits || ctx->json))
        rc = drive(&j, err);
    for (size_t i = 0; i < j.n_adapters; i++)
        served_release(j.served[i]);
    names_free(j.names);
    runtime_close(j.rt);
    run_prompts_free(j.prompts, j.n_prompts);
    sys_free(j.stop_ids);
    return rc;
}

const struct command command_run = {
    .name = "run",
    .arguments = "MODEL [PROMPT]",
    .summary = "one answer, without a server",
    .description = "Loads the base and the adapters, answers the prompt and streams the text. The "
                   "chat template is used when the model has one; --raw sends the words as they "
                   "are.",
    .examples = "lora run tinytalk --adapter upper-lora \"some words\"\n"
                "lora run ./base -a ./adapters/sql=0.5 --raw \"SELECT\" -n 20\n"
                "lora run ./base --input-ids prompts.json --logits out.npy",
    .min_args = 1,
    .max_args = 2,
    .options = table,
    .run = run,
};
