/*
 * A client leaves in the middle of a long answer, streaming or not: how many steps does the server
 * still compute for it? The request has many choices, so that a step takes far longer than
 * noticing.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "libcore/base/thread.h"
#include "tests/lib/http_load.h"

/* The step in flight when the steps were read, and two that a cancelled sequence may still be in.
 */
enum { STEPS_ALLOWED = 3, WAIT_MS = 120000, TRIES = 5 };

static double wait_until_idle(const struct load_options *o)
{
    for (int i = 0; i < WAIT_MS; i++) {
        if (load_metric(o, "vllm:num_requests_running") == 0 &&
            load_metric(o, "vllm:num_requests_waiting") == 0)
            return load_metric(o, "lora_steps_total");
        usleep(1000);
    }
    return -1;
}

static int leave(const struct load_options *o, bool stream)
{
    char body[256];
    snprintf(body, sizeof body,
             "{\"prompt\":\"hot sheet gush\",\"n\":100,\"max_tokens\":800,\"ignore_eos\":true,"
             "\"temperature\":1,\"stream\":%s}",
             stream ? "true" : "false");
    struct http_call call = {.method = "POST",
                             .path = "/v1/completions",
                             .key = o->key,
                             .body = body,
                             .n_body = strlen(body),
                             .leave_early = true};
    struct http_client *c = http_client_open(o->host, o->port, 1);
    if (!c)
        return 1;
    http_client_add(c, &call);
    /* A stream is left at its first piece, the other after a while. */
    http_client_run(c, stream ? 0 : thread_now_ns() + 500000000u);
    http_call_abort(&call);
    double then = load_metric(o, "lora_steps_total"), end = wait_until_idle(o);
    printf("%s: %.0f steps when the client left, %.0f more\n", stream ? "stream" : "no stream",
           then, end - then);
    bool good = !call.failed && then >= 0 && end >= then && end - then <= STEPS_ALLOWED;
    http_call_release(&call);
    http_client_free(c);
    return good ? 0 : 1;
}

/* On a busy machine the server's own threads wait for their turn: the best of several counts. */
static int best_of_several(const struct load_options *o, bool stream)
{
    int rc = 1;
    for (int i = 0; i < TRIES && rc; i++)
        rc = leave(o, stream);
    return rc;
}

int load_leave(const struct load_options *o)
{
    int rc = best_of_several(o, true);
    return best_of_several(o, false) | rc;
}
