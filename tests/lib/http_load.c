/*
 * http_load: a client for tests and the demo.
 *   http_load golden --port N --golden FILE [--clients N] [--repeat N]   every golden prompt over
 * HTTP http_load soak --port N --golden FILE --seconds S --clients N [--pid P] [--leave] http_load
 * ask --port N --base NAME --models a,b,… --prompt TEXT [--expected FILE] http_load metric --port N
 * NAME
 */
#include "tests/lib/http_load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

json_t *load_json_file(const char *path)
{
    json_error_t why;
    json_t *root = json_load_file(path, 0, &why);
    if (!root)
        fprintf(stderr, "http_load: %s: %s\n", path, why.text);
    return root;
}

double load_metric(const struct load_options *o, const char *name)
{
    struct http_client *c = http_client_open(o->host, o->port, 1);
    struct http_call call = {.method = "GET", .path = "/metrics"};
    double sum = -1;
    if (c) {
        http_client_add(c, &call);
        http_client_run(c, 0);
    }
    size_t n = strlen(name);
    const char *text = strbuf_text(&call.text);
    for (const char *line = text; line && *line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, name, n) != 0 || (line[n] != '{' && line[n] != ' '))
            continue;
        const char *end = strchr(line, '\n');
        const char *space = end ? memrchr(line, ' ', (size_t)(end - line)) : NULL;
        if (space)
            sum = (sum < 0 ? 0 : sum) + strtod(space + 1, NULL);
    }
    http_call_release(&call);
    http_client_free(c);
    return sum;
}

static int usage(void)
{
    fprintf(stderr, "usage: http_load golden|soak|ask|leave|metric --port N [options]\n");
    return 2;
}

static bool take_option(struct load_options *o, const char *name, const char *value)
{
    if (strcmp(name, "--port") == 0)
        o->port = (uint16_t)atoi(value);
    else if (strcmp(name, "--host") == 0)
        o->host = value;
    else if (strcmp(name, "--key") == 0)
        o->key = value;
    else if (strcmp(name, "--golden") == 0)
        o->golden = value;
    else if (strcmp(name, "--base") == 0)
        o->base = value;
    else if (strcmp(name, "--models") == 0)
        o->models = value;
    else if (strcmp(name, "--prompt") == 0)
        o->prompt = value;
    else if (strcmp(name, "--expected") == 0)
        o->expected = value;
    else if (strcmp(name, "--clients") == 0)
        o->clients = (unsigned)atoi(value);
    else if (strcmp(name, "--repeat") == 0)
        o->repeat = (unsigned)atoi(value);
    else if (strcmp(name, "--seconds") == 0)
        o->seconds = atof(value);
    else if (strcmp(name, "--tolerance") == 0)
        o->tolerance = atof(value);
    else if (strcmp(name, "--share") == 0)
        o->share = atof(value);
    else if (strcmp(name, "--pid") == 0)
        o->pid = atol(value);
    else
        return false;
    return true;
}

int main(int argc, char **argv)
{
    struct load_options o = {.host = "127.0.0.1",
                             .base = "tinytalk",
                             .clients = 256,
                             .repeat = 1,
                             .tolerance = 0.01,
                             .share = 1};
    const char *metric = NULL;
    if (argc < 2)
        return usage();
    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "--leave") == 0)
            o.leave = true;
        else if (strncmp(argv[i], "--", 2) != 0)
            metric = argv[i];
        else if (i + 1 == argc || !take_option(&o, argv[i], argv[i + 1]))
            return usage();
        else
            i++;
    }
    if (o.port == 0)
        return usage();
    if (strcmp(argv[1], "golden") == 0 && o.golden)
        return load_golden(&o);
    if (strcmp(argv[1], "soak") == 0 && o.golden)
        return load_soak(&o);
    if (strcmp(argv[1], "leave") == 0)
        return load_leave(&o);
    if (strcmp(argv[1], "ask") == 0 && o.models && o.prompt)
        return load_ask(&o);
    if (strcmp(argv[1], "metric") == 0 && metric) {
        printf("%.17g\n", load_metric(&o, metric));
        return 0;
    }
    return usage();
}
