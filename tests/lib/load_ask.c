/*
 * The same words to several models at once; a table of the answers. With --expected the answers
 * must be those.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/http_load.h"

enum { MAX_MODELS = 32 };

struct question {
    struct http_call call;
    char *model, *body;
    struct strbuf answer;
};

static void prepare(const struct load_options *o, struct question *q)
{
    json_t *body =
        json_pack("{s:s, s:[{s:s, s:s}], s:i, s:i}", "model", q->model, "messages", "role", "user",
                  "content", o->prompt, "temperature", 0, "max_tokens", 64);
    q->body = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    q->call = (struct http_call){.method = "POST",
                                 .path = "/v1/chat/completions",
                                 .key = o->key,
                                 .body = q->body,
                                 .n_body = q->body ? strlen(q->body) : 0};
}

static void read_answer(struct question *q)
{
    json_t *body = json_loadb(strbuf_text(&q->call.text), q->call.text.len, 0, NULL);
    const json_t *choice = json_array_get(json_object_get(body, "choices"), 0);
    const json_t *content = json_object_get(json_object_get(choice, "message"), "content");
    if (json_is_string(content))
        strbuf_add(&q->answer, json_string_value(content), json_string_length(content));
    else
        strbuf_addf(&q->answer, "(status %d: %.200s)", q->call.status, strbuf_text(&q->call.text));
    json_decref(body);
}

/* The wanted answer of a model to these words; NULL: there is none. */
static const char *wanted(const json_t *expected, const char *prompt, const char *model)
{
    const json_t *answers = json_object_get(expected, "answers");
    return json_string_value(json_object_get(json_object_get(answers, prompt), model));
}

static bool show(const struct load_options *o, const struct question *q, const json_t *expected)
{
    const char *want = expected ? wanted(expected, o->prompt, q->model) : NULL;
    const char *got = strbuf_text(&q->answer);
    bool good = !expected || (want && strcmp(want, got) == 0);
    printf("   %-14s %-24s %s\n", q->model, got,
           !expected ? ""
           : good    ? "= transformers and PEFT"
                     : "WRONG");
    if (!good)
        printf("   %-14s %s\n", "  wanted", want ? want : "(no expected answer)");
    return good;
}

int load_ask(const struct load_options *o)
{
    struct question questions[MAX_MODELS];
    memset(questions, 0, sizeof questions);
    json_t *expected = o->expected ? load_json_file(o->expected) : NULL;
    struct http_client *c = http_client_open(o->host, o->port, MAX_MODELS);
    char *names = strdup(o->models), *save = NULL;
    size_t n = 0;
    if (!c || !names || (o->expected && !expected))
        return 1;
    for (char *m = strtok_r(names, ",", &save); m && n < MAX_MODELS;
         m = strtok_r(NULL, ",", &save)) {
        questions[n].model = m;
        prepare(o, &questions[n]);
        http_client_add(c, &questions[n++].call);
    }
    http_client_run(c, 0);
    bool good = n > 0;
    printf("\n   %-14s “%s”\n   ────────────── ────────────────────────%s\n", "MODEL", o->prompt,
           expected ? " ───────────────────────" : "");
    for (size_t i = 0; i < n; i++) {
        read_answer(&questions[i]);
        good = show(o, &questions[i], expected) && good;
        free(questions[i].body);
        strbuf_release(&questions[i].answer);
        http_call_release(&questions[i].call);
    }
    free(names);
    http_client_free(c);
    json_decref(expected);
    return good ? 0 : 1;
}
