#include "cmd/cmd.h"

#include <stdarg.h>
#include <string.h>

#include "cmd/cmd_impl.h"

#define COMMAND(name) extern const struct command command_##name;
#include "cmd/commands.inc"
#undef COMMAND

const struct command *const cmd_table[] = {
#define COMMAND(name) &command_##name,
#include "cmd/commands.inc"
#undef COMMAND
    NULL,
};

const struct command *cmd_find(const char *name)
{
    for (const struct command *const *c = cmd_table; *c; c++) {
        if (strcmp((*c)->name, name) == 0 || ((*c)->alias && strcmp((*c)->alias, name) == 0))
            return *c;
    }
    return NULL;
}

const char *cmd_version(void)
{
    return LORA_VERSION;
}

static volatile sig_atomic_t interrupted;

void cmd_set_interrupted(void)
{
    interrupted = 1;
}

bool cmd_interrupted(void)
{
    return interrupted != 0;
}

void cmd_print_json(json_t *fields)
{
    json_t *all = json_pack("{s:i}", "schema", 1);
    if (all && json_object_update(all, fields) == 0) {
        json_dumpf(all, stdout, JSON_COMPACT);
        putchar('\n');
    }
    json_decref(all);
    json_decref(fields);
}

static char hint[1024];

void cmd_hint(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(hint, sizeof hint, fmt, args);
    va_end(args);
}

const char *cmd_hint_text(void)
{
    return hint[0] ? hint : NULL;
}
