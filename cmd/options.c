#include "cmd/options_impl.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libcore/base/log.h"
#include "libcore/base/sys.h"

static const char ORIGIN_FLAG[] = "flag", ORIGIN_DEFAULT[] = "default";
const char OPTIONS_FROM_ENVIRONMENT[] = "environment";
const char OPTIONS_FROM_FILE[] = "config file";

// ---- the shared table ---------------------------------------------------------------------------

static struct {
    const char *store, *progress, *log_level, *log_format;
    bool json, quiet, force, help;
} shared;

static const struct option shared_rows[] = {
    {.type = OPTION_HEADING, .help = "Options of every command"},
    {.long_name = "store",
     .type = OPTION_STRING,
     .value = &shared.store,
     .value_name = "DIR",
     .env = "LORA_STORE",
     .help = "The store's folder; without it $XDG_DATA_HOME/lora or ~/.local/share/lora."},
    {.long_name = "json",
     .type = OPTION_FLAG,
     .value = &shared.json,
     .help = "Print one JSON object instead of text; errors too."},
    {.long_name = "quiet",
     .short_name = 'q',
     .type = OPTION_FLAG,
     .value = &shared.quiet,
     .help = "Print less; listings print ids only."},
    {.long_name = "force",
     .type = OPTION_FLAG,
     .value = &shared.force,
     .help = "Overwrite what is there. It never forces a number."},
    {.long_name = "progress",
     .type = OPTION_STRING,
     .value = &shared.progress,
     .value_name = "HOW",
     .choices = "auto,plain,none",
     .env = "LORA_PROGRESS",
     .help = "A bar on a terminal (auto, the default), a line every few seconds (plain), or none."},
    {.long_name = "log-level",
     .type = OPTION_STRING,
     .value = &shared.log_level,
     .value_name = "LEVEL",
     .choices = "debug,info,warn,warning,error,off",
     .env = "LORA_LOG_LEVEL",
     .help = "What is logged to stderr: warn and worse, by serve also info."},
    {.long_name = "log-format",
     .type = OPTION_STRING,
     .value = &shared.log_format,
     .value_name = "FORMAT",
     .choices = "text,json",
     .env = "LORA_LOG_FORMAT",
     .help = "How a log line is written; text is the default."},
    {.long_name = "help",
     .short_name = 'h',
     .type = OPTION_FLAG,
     .value = &shared.help,
     .help = "Show this page."},
    {0},
};

const struct option *options_shared(void)
{
    return shared_rows;
}

// ---- rows ---------------------------------------------------------------------------------------

bool option_is_end(const struct option *row)
{
    return !row->long_name && !row->help;
}

bool option_takes_value(const struct option *row)
{
    return row->type != OPTION_FLAG && row->type != OPTION_HEADING;
}

static bool same_name(const char *a, const char *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if ((a[i] == '_' ? '-' : a[i]) != (b[i] == '_' ? '-' : b[i]))
            return false;
    }
    return true;
}

bool option_has_name(const struct option *row, const char *name, size_t n)
{
    if (!row->long_name)
        return false;
    if (strlen(row->long_name) == n && same_name(row->long_name, name, n))
        return true;
    for (const char *p = row->aliases; p && *p;) {
        size_t len = strcspn(p, ",");
        if (len == n && same_name(p, name, n))
            return true;
        p += len + (p[len] == ',');
    }
    return false;
}

static int collect_rows(struct cmd_private *priv, const struct command *command, struct err *err)
{
    const struct option *tables[] = {command->options, shared_rows};
    size_t n = 0;
    for (int t = 0; t < 2; t++) {
        for (const struct option *row = tables[t]; row && !option_is_end(row); row++)
            n++;
    }
    priv->states = sys_calloc(n, sizeof *priv->states);
    if (!priv->states)
        return err_set(err, ERR_NO_MEMORY, "no memory for options");
    for (int t = 0; t < 2; t++) {
        for (const struct option *row = tables[t]; row && !option_is_end(row); row++)
            priv->states[priv->n_states++].row = row;
    }
    return 0;
}

/* The command's rows come first, so a command may hide a shared row by one of the same name. */
struct row_state *options_find_long(const struct cmd_private *priv, const char *name, size_t n)
{
    for (size_t i = 0; i < priv->n_states; i++) {
        if (option_has_name(priv->states[i].row, name, n))
            return &priv->states[i];
    }
    return NULL;
}

static struct row_state *find_short(const struct cmd_private *priv, char c)
{
    for (size_t i = 0; i < priv->n_states; i++) {
        if (priv->states[i].row->short_name == c)
            return &priv->states[i];
    }
    return NULL;
}

const char *options_origin(const struct cmd_context *ctx, const struct option *row)
{
    for (size_t i = 0; ctx->priv && i < ctx->priv->n_states; i++) {
        if (ctx->priv->states[i].row == row && ctx->priv->states[i].origin)
            return ctx->priv->states[i].origin;
    }
    return ORIGIN_DEFAULT;
}

void options_mark(struct row_state *state, const char *origin)
{
    state->origin = origin;
    if (state->row->given)
        *state->row->given = true;
}

// ---- argv ---------------------------------------------------------------------------------------

struct argv_reader {
    struct cmd_context *ctx;
    int argc, at; // argv[at] comes next
    char **argv;
};

static int unknown_option(const struct cmd_private *priv, const char *word, const char *name,
                          struct err *err)
{
    struct nearest nearest;
    nearest_init(&nearest, name);
    for (size_t i = 0; i < priv->n_states; i++) {
        const struct option *row = priv->states[i].row;
        if (row->long_name && !row->hidden)
            nearest_offer(&nearest, row->long_name);
    }
    const char *near = nearest_name(&nearest);
    if (near)
        return err_set(err, ERR_USAGE, "unknown option %s; did you mean --%s?", word, near);
    return err_set(err, ERR_USAGE, "unknown option %s", word);
}

/* Whether a word is an option of this command: then it is not the value of the option before it. */
static bool is_known_option(const struct cmd_private *priv, const char *word)
{
    if (word[0] != '-' || word[1] == '\0')
        return false;
    if (word[1] != '-')
        return word[2] == '\0' && find_short(priv, word[1]);
    return word[2] == '\0' || options_find_long(priv, word + 2, strcspn(word + 2, "="));
}

static int take_value(struct argv_reader *r, struct row_state *state, const char *attached,
                      const char *where, struct err *err)
{
    struct cmd_private *priv = r->ctx->priv;
    const char *text = attached;
    if (!text) {
        if (r->at == r->argc || is_known_option(priv, r->argv[r->at]))
            return err_set(err, ERR_USAGE, "%s: wanted a value (%s)", where,
                           state->row->value_name ? state->row->value_name : "VALUE");
        text = r->argv[r->at++];
    }
    int rc = option_set_text(priv, state, text, where, err);
    bool more = state->row->type == OPTION_WORDS && !attached;
    while (!rc && more && r->at < r->argc && r->argv[r->at][0] != '-')
        rc = option_set_text(priv, state, r->argv[r->at++], where, err);
    return rc;
}

static int take_long(struct argv_reader *r, char *word, struct err *err)
{
    struct cmd_private *priv = r->ctx->priv;
    const char *name = word + 2;
    size_t n = strcspn(name, "=");
    const char *attached = name[n] == '=' ? name + n + 1 : NULL;
    char where[128];
    snprintf(where, sizeof where, "--%.*s", (int)n, name);
    struct row_state *state = options_find_long(priv, name, n);
    if (!state && n > 3 && strncmp(name, "no-", 3) == 0) {
        state = options_find_long(priv, name + 3, n - 3);
        if (state && state->row->type == OPTION_FLAG && !attached) {
            *(bool *)state->row->value = false;
            options_mark(state, ORIGIN_FLAG);
            return 0;
        }
        state = NULL;
    }
    if (!state)
        return unknown_option(priv, where, where + 2, err);
    options_mark(state, ORIGIN_FLAG);
    if (option_takes_value(state->row))
        return take_value(r, state, attached, where, err);
    if (attached)
        return option_set_text(priv, state, attached, where, err);
    *(bool *)state->row->value = true;
    return 0;
}

/* -q, -qh, -o FILE, -oFILE */
static int take_short(struct argv_reader *r, char *word, struct err *err)
{
    for (char *p = word + 1; *p; p++) {
        char where[3] = {'-', *p, '\0'};
        struct row_state *state = find_short(r->ctx->priv, *p);
        if (!state)
            return unknown_option(r->ctx->priv, word, word + 1, err);
        options_mark(state, ORIGIN_FLAG);
        if (option_takes_value(state->row))
            return take_value(r, state, p[1] ? p + 1 : NULL, where, err);
        *(bool *)state->row->value = true;
    }
    return 0;
}

static int read_argv(struct cmd_context *ctx, int argc, char **argv, struct err *err)
{
    struct argv_reader r = {.ctx = ctx, .argc = argc, .at = 1, .argv = argv};
    ctx->args = arena_array(&ctx->priv->arena, (size_t)argc + 1, sizeof *ctx->args);
    if (!ctx->args)
        return err_set(err, ERR_NO_MEMORY, "no memory for arguments");
    bool options = true;
    int rc = 0;
    while (!rc && r.at < argc) {
        char *word = argv[r.at++];
        if (!options || word[0] != '-' || word[1] == '\0')
            ctx->args[ctx->n_args++] = word;
        else if (word[1] != '-')
            rc = take_short(&r, word, err);
        else if (word[2] == '\0')
            options = false;
        else
            rc = take_long(&r, word, err);
    }
    return rc;
}

const char *options_config_path(const struct cmd_context *ctx)
{
    return ctx->priv && ctx->priv->config_path ? ctx->priv->config_path : "";
}

// ---- the whole ----------------------------------------------------------------------------------

static int resolve_store(struct cmd_context *ctx, struct err *err)
{
    ctx->store_path = shared.store;
    for (size_t i = 0; i < ctx->priv->n_states; i++) {
        if (ctx->priv->states[i].row->value == &shared.store)
            ctx->store_path_from = ctx->priv->states[i].origin;
    }
    if (ctx->store_path_from)
        return *ctx->store_path ? 0 : err_set(err, ERR_USAGE, "--store: wanted a folder, got ''");
    char *folder;
    int rc = options_xdg_folder("XDG_DATA_HOME", ".local/share", &folder, err);
    if (rc)
        return rc;
    if (!folder)
        return err_set(err, ERR_USAGE, "where is the store? Give --store, LORA_STORE or HOME");
    ctx->store_path = arena_strdup(&ctx->priv->arena, folder);
    ctx->store_path_from = ORIGIN_DEFAULT;
    sys_free(folder);
    return ctx->store_path ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for options");
}

static void apply_log_options(void)
{
    enum log_level level;
    if (shared.log_level && log_level_parse(shared.log_level, &level))
        log_set_level(level);
    if (shared.log_format)
        log_set_format(strcmp(shared.log_format, "json") == 0 ? LOG_FORMAT_JSON : LOG_FORMAT_TEXT);
}

static int start(struct cmd_context *ctx, const struct command *command, struct err *err)
{
    memset(&shared, 0, sizeof shared);
    shared.progress = "auto";
    ctx->command = command;
    ctx->priv = sys_calloc(1, sizeof *ctx->priv);
    if (!ctx->priv)
        return err_set(err, ERR_NO_MEMORY, "no memory for options");
    arena_init(&ctx->priv->arena);
    return collect_rows(ctx->priv, command, err);
}

static int finish(struct cmd_context *ctx, struct err *err)
{
    int rc = options_read_environment(ctx->priv, err);
    if (!rc)
        rc = options_read_config(ctx->priv, ctx->command, err);
    if (!rc)
        rc = resolve_store(ctx, err);
    if (rc)
        return rc;
    ctx->json = shared.json;
    ctx->quiet = shared.quiet;
    ctx->force = shared.force;
    ctx->progress = shared.progress;
    const char *no_color = getenv("NO_COLOR");
    ctx->color = isatty(STDOUT_FILENO) && !(no_color && *no_color) && !shared.json;
    apply_log_options();
    return 0;
}

static int check_arguments(const struct cmd_context *ctx, struct err *err)
{
    const struct command *c = ctx->command;
    if (ctx->n_args < c->min_args)
        return err_set(err, ERR_USAGE, "%s: wanted %s%s%s", c->name,
                       c->arguments ? c->arguments : "an argument",
                       ctx->n_args ? ", got only " : "",
                       ctx->n_args ? ctx->args[ctx->n_args - 1] : "");
    if (ctx->n_args > c->max_args)
        return err_set(err, ERR_USAGE, "%s: one argument too many: '%s'", c->name,
                       ctx->args[c->max_args]);
    return 0;
}

int options_parse(struct cmd_context *ctx, const struct command *command, int argc, char **argv,
                  struct err *err)
{
    *ctx = (struct cmd_context){.program = argc > 0 ? argv[0] : "lora"};
    int rc = start(ctx, command, err);
    if (!rc)
        rc = read_argv(ctx, argc, argv, err);
    ctx->json = shared.json;
    ctx->help = shared.help;
    if (rc || ctx->help)
        return rc;
    rc = finish(ctx, err);
    return rc ? rc : check_arguments(ctx, err);
}

int options_load(struct cmd_context *ctx, const struct command *command, struct err *err)
{
    *ctx = (struct cmd_context){.program = "lora"};
    int rc = start(ctx, command, err);
    return rc ? rc : finish(ctx, err);
}

void options_release(struct cmd_context *ctx)
{
    struct cmd_private *priv = ctx->priv;
    if (!priv)
        return;
    // A list's array goes with the arena; another command may have the same list.
    for (size_t i = 0; i < priv->n_states; i++) {
        const struct row_state *state = &priv->states[i];
        bool list = state->row->type == OPTION_LIST || state->row->type == OPTION_WORDS;
        if (list && state->origin)
            *(struct string_list *)state->row->value = (struct string_list){0};
    }
    json_decref(priv->config);
    arena_release(&priv->arena);
    sys_free(priv->states);
    sys_free(priv->config_path);
    sys_free(priv);
    ctx->priv = NULL;
}
