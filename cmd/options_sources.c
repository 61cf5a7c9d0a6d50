/*
 * options_sources: values that come from the environment and from the config file.
 */
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/options_impl.h"
#include "libcore/base/file.h"
#include "libcore/base/limits.h"
#include "libcore/base/sys.h"

// ---- environment --------------------------------------------------------------------------------

/* Lists are split at white space. */
static int set_from_environment(struct cmd_private *priv, struct row_state *state,
                                const char *value, struct err *err)
{
    const struct option *row = state->row;
    options_mark(state, OPTIONS_FROM_ENVIRONMENT);
    if (row->type != OPTION_LIST && row->type != OPTION_WORDS)
        return option_set_text(priv, state, value, row->env, err);
    int rc = 0;
    char *copy = arena_strdup(&priv->arena, value), *save = NULL;
    if (!copy)
        return err_set(err, ERR_NO_MEMORY, "no memory for %s", row->env);
    for (char *w = strtok_r(copy, " \t\n", &save); w && !rc; w = strtok_r(NULL, " \t\n", &save))
        rc = option_set_text(priv, state, w, row->env, err);
    return rc;
}

int options_read_environment(struct cmd_private *priv, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; i < priv->n_states && !rc; i++) {
        struct row_state *state = &priv->states[i];
        const char *value = state->row->env ? getenv(state->row->env) : NULL;
        if (value && *value && !state->origin)
            rc = set_from_environment(priv, state, value, err);
    }
    return rc;
}

// ---- config file --------------------------------------------------------------------------------

/* $VARIABLE/lora or ~/FALLBACK/lora, to free; NULL when neither is known. XDG: a relative path is
 * ignored. */
int options_xdg_folder(const char *variable, const char *fallback, char **out, struct err *err)
{
    *out = NULL;
    const char *base = getenv(variable);
    char *in_home = NULL;
    if (!base || base[0] != '/') {
        const char *home = getenv("HOME");
        if (!home || home[0] != '/') {
            const struct passwd *user = getpwuid(getuid());
            home = user ? user->pw_dir : NULL;
        }
        if (!home)
            return 0;
        base = in_home = file_join(home, fallback);
    }
    if (base)
        *out = file_join(base, "lora");
    sys_free(in_home);
    return *out ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for options");
}

static int load_config(struct cmd_private *priv, struct err *err)
{
    char *folder;
    int rc = options_xdg_folder("XDG_CONFIG_HOME", ".config", &folder, err);
    if (rc || !folder)
        return rc;
    priv->config_path = file_join(folder, "config.json");
    sys_free(folder);
    if (!priv->config_path)
        return err_set(err, ERR_NO_MEMORY, "no memory for options");
    char *text;
    size_t n;
    rc = file_read(priv->config_path, LIMIT_CONFIG_BYTES, &text, &n, err);
    if (rc == ERR_NOT_FOUND)
        return 0;
    if (rc)
        return rc;
    json_error_t why;
    priv->config = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    sys_free(text);
    if (!json_is_object(priv->config))
        return err_set(err, ERR_USAGE, "%s: %s", priv->config_path,
                       priv->config ? "wanted a JSON object" : why.text);
    return 0;
}

/* A JSON value as the text a flag would have had; NULL when memory is out. */
static const char *json_as_text(struct arena *arena, const json_t *value)
{
    if (json_is_string(value))
        return json_string_value(value);
    char *dumped = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    char *text = dumped ? arena_strdup(arena, dumped) : NULL;
    free(dumped);
    return text;
}

static int set_from_json(struct cmd_private *priv, struct row_state *state, const json_t *value,
                         const char *where, struct err *err)
{
    bool list = state->row->type == OPTION_LIST || state->row->type == OPTION_WORDS;
    size_t n = list && json_is_array(value) ? json_array_size(value) : 1;
    options_mark(state, OPTIONS_FROM_FILE);
    for (size_t i = 0; i < n; i++) {
        const char *text = json_as_text(
            &priv->arena, list && json_is_array(value) ? json_array_get(value, i) : value);
        if (!text)
            return err_set(err, ERR_NO_MEMORY, "no memory for %s", where);
        int rc = option_set_text(priv, state, text, where, err);
        if (rc)
            return rc;
    }
    return 0;
}

static bool known_anywhere(const char *key)
{
    if (cmd_find(key))
        return true;
    size_t n = strlen(key);
    for (const struct option *row = options_shared(); !option_is_end(row); row++) {
        if (option_has_name(row, key, n))
            return true;
    }
    for (const struct command *const *c = cmd_table; *c; c++) {
        for (const struct option *row = (*c)->options; row && !option_is_end(row); row++) {
            if (option_has_name(row, key, n))
                return true;
        }
    }
    return false;
}

/* `section`: keys of the command's own section, all of them its options. Else the top level, where
 * a key may be any command's option or section. */
static int apply_config(struct cmd_private *priv, const struct command *command, json_t *object,
                        bool section, struct err *err)
{
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        char where[512];
        snprintf(where, sizeof where, "%s: %s%s%s", priv->config_path, section ? command->name : "",
                 section ? "." : "", key);
        struct row_state *state = options_find_long(priv, key, strlen(key));
        bool known =
            state != NULL || (!section && (strcmp(key, command->name) == 0 || known_anywhere(key)));
        if (!known)
            return err_set(err, ERR_USAGE, "%s: no option has this name", where);
        if (!state || state->origin || (!section && json_is_object(value)))
            continue;
        int rc = set_from_json(priv, state, value, where, err);
        if (rc)
            return rc;
    }
    return 0;
}

int options_read_config(struct cmd_private *priv, const struct command *command, struct err *err)
{
    int rc = load_config(priv, err);
    if (rc || !priv->config)
        return rc;
    json_t *section = json_object_get(priv->config, command->name);
    if (json_is_object(section))
        rc = apply_config(priv, command, section, true, err);
    return rc ? rc : apply_config(priv, command, priv->config, false, err);
}
