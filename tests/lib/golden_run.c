/*
 * golden_run FOLDER TMP: holds `lora run` against the reference.json of a fixture folder: for the
 * base and every adapter the last-position logits (relative error <= 1e-3) and 12 greedy ids. Where
 * an id differs, our own logits of the two must be a near-tie (closer than 4 * tolerance * rms);
 * from there the reference's ids are what is compared, position by position.
 */
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double TOLERANCE = 1e-3;
enum { NPY_HEADER = 128, PATH_BYTES = 512 };

struct check {
    const char *folder, *tmp, *name; // name: "base" or an adapter
    const json_t *rows;
    size_t vocab, n_steps; // greedy ids a prompt
    float *logits;         // [n_rows * n_steps, vocab]: after the prompt and k reference ids
    json_t *greedy;        // what we answer to the bare prompts
    double worst;
    unsigned n_ties;
};

static int run(const struct check *c, const char *input, const char *more)
{
    char command[4 * PATH_BYTES], adapter[PATH_BYTES] = "";
    if (strcmp(c->name, "base") != 0)
        snprintf(adapter, sizeof adapter, "--adapter '%s/adapters/%s'", c->folder, c->name);
    snprintf(command, sizeof command,
             "lora run '%s' %s --device cpu --input-ids '%s' %s >'%s/out.json' 2>'%s/err.txt'",
             c->folder, adapter, input, more, c->tmp, c->tmp);
    return system(command);
}

static int write_json(const struct check *c, const char *file, json_t *value, char *path)
{
    snprintf(path, PATH_BYTES, "%s/%s", c->tmp, file);
    int rc = json_dump_file(value, path, JSON_COMPACT);
    json_decref(value);
    return rc;
}

/* Each prompt, and each prompt with the first k reference ids behind it. */
static json_t *extended_prompts(const struct check *c)
{
    json_t *all = json_array();
    for (size_t i = 0; i < json_array_size(c->rows); i++) {
        const json_t *row = json_array_get(c->rows, i);
        json_t *prompt = json_object_get(row, "prompt"), *greedy = json_object_get(row, "greedy");
        for (size_t k = 0; k < c->n_steps; k++) {
            json_t *ids = json_copy(prompt);
            for (size_t j = 0; j < k; j++)
                json_array_append(ids, json_array_get(greedy, j));
            json_array_append_new(all, ids);
        }
    }
    return all;
}

static int read_logits(struct check *c, const char *path)
{
    size_t n = json_array_size(c->rows) * c->n_steps * c->vocab;
    c->logits = malloc(n * sizeof *c->logits);
    FILE *f = fopen(path, "rb");
    bool ok = f && c->logits && fseek(f, NPY_HEADER, SEEK_SET) == 0 &&
              fread(c->logits, sizeof *c->logits, n, f) == n && fgetc(f) == EOF;
    if (f)
        fclose(f);
    return ok ? 0 : -1;
}

static int compute(struct check *c)
{
    char input[PATH_BYTES], npy[PATH_BYTES], more[2 * PATH_BYTES], out[PATH_BYTES];
    snprintf(npy, sizeof npy, "%s/logits.npy", c->tmp);
    snprintf(more, sizeof more, "--force --logits '%s'", npy);
    if (write_json(c, "extended.json", extended_prompts(c), input) != 0 ||
        run(c, input, more) != 0 || read_logits(c, npy) != 0)
        return -1;
    json_t *prompts = json_array();
    for (size_t i = 0; i < json_array_size(c->rows); i++)
        json_array_append(prompts, json_object_get(json_array_get(c->rows, i), "prompt"));
    snprintf(more, sizeof more, "--json --max-tokens %zu", c->n_steps);
    if (write_json(c, "prompts.json", prompts, input) != 0 || run(c, input, more) != 0)
        return -1;
    snprintf(out, sizeof out, "%s/out.json", c->tmp);
    json_t *answer = json_load_file(out, 0, NULL);
    c->greedy = json_incref(json_object_get(answer, "ids"));
    json_decref(answer);
    return json_array_size(c->greedy) == json_array_size(c->rows) ? 0 : -1;
}

static bool same_logits(struct check *c, const json_t *want, const float *got)
{
    double off = 0, norm = 0;
    for (size_t i = 0; i < c->vocab; i++) {
        double w = json_number_value(json_array_get(want, i)), d = (double)got[i] - w;
        off += d * d;
        norm += w * w;
    }
    double error = sqrt(off / norm);
    c->worst = error > c->worst || isnan(error) ? error : c->worst;
    return error <= TOLERANCE;
}

static size_t argmax(const float *v, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        best = v[i] > v[best] ? i : best;
    return best;
}

static bool near_tie(const struct check *c, const float *logits, size_t a, size_t b)
{
    double squares = 0;
    for (size_t i = 0; i < c->vocab; i++)
        squares += (double)logits[i] * logits[i];
    return fabs((double)logits[a] - logits[b]) < 4 * TOLERANCE * sqrt(squares / (double)c->vocab);
}

/* One prompt: its logits, every step after the reference's ids, and the engine's own answer. */
static bool check_row(struct check *c, size_t i)
{
    const json_t *row = json_array_get(c->rows, i), *greedy = json_object_get(row, "greedy");
    const json_t *ours = json_array_get(c->greedy, i);
    const float *logits = c->logits + i * c->n_steps * c->vocab;
    bool good = same_logits(c, json_object_get(row, "logits"), logits);
    if (!good)
        printf("# %s prompt %zu: logits off\n", c->name, i);
    bool together = true; // the engine's answer has not met a tie yet
    for (size_t k = 0; k < c->n_steps; k++) {
        const float *v = logits + k * c->vocab;
        size_t want = (size_t)json_integer_value(json_array_get(greedy, k));
        size_t best = argmax(v, c->vocab);
        bool tie = best != want && near_tie(c, v, best, want);
        c->n_ties += tie;
        if (best != want && !tie) {
            printf("# %s prompt %zu step %zu: id %zu, want %zu\n", c->name, i, k, best, want);
            good = false;
        }
        size_t answered = (size_t)json_integer_value(json_array_get(ours, k));
        if (together && answered != want && !near_tie(c, v, answered, want)) {
            printf("# %s prompt %zu step %zu: the engine answers %zu, want %zu\n", c->name, i, k,
                   answered, want);
            good = false;
        }
        together = together && answered == want;
    }
    return good;
}

static bool check_name(struct check *c)
{
    const json_t *first = json_array_get(c->rows, 0);
    c->vocab = json_array_size(json_object_get(first, "logits"));
    c->n_steps = json_array_size(json_object_get(first, "greedy"));
    bool good = c->vocab > 0 && compute(c) == 0;
    if (!good)
        printf("# %s: lora run failed, see %s/err.txt\n", c->name, c->tmp);
    for (size_t i = 0; good && i < json_array_size(c->rows); i++)
        good = check_row(c, i);
    free(c->logits);
    json_decref(c->greedy);
    return good;
}

int main(int argc, char **argv)
{
    char path[PATH_BYTES];
    if (argc != 3)
        return 2;
    snprintf(path, sizeof path, "%s/reference.json", argv[1]);
    json_t *reference = json_load_file(path, 0, NULL);
    unsigned n_bad = 0, n = 0, n_ties = 0;
    double worst = 0;
    const char *name;
    json_t *rows;
    json_object_foreach(reference, name, rows)
    {
        if (!json_is_array(rows))
            continue; // what the reference could not make: {"error"}
        struct check c = {.folder = argv[1], .tmp = argv[2], .name = name, .rows = rows};
        n_bad += !check_name(&c);
        n++;
        n_ties += c.n_ties;
        worst = c.worst > worst || isnan(c.worst) ? c.worst : worst;
    }
    printf("%u of %u as the reference, worst logits off by %.2g, %u near-ties\n", n - n_bad, n,
           worst, n_ties);
    json_decref(reference);
    return n > 0 && n_bad == 0 ? 0 : 1;
}
