/*
 * help_man: man pages and completion scripts, written from the tables.
 */
#include <string.h>

#include "cmd/options_impl.h"

// ---- man pages ----------------------------------------------------------------------------------

/* Text for roff: - and \ escaped, a dot or quote at a line's start kept from being a request. */
static void roff(FILE *out, const char *text)
{
    bool at_start = true;
    for (const char *p = text; *p; p++) {
        if (at_start && (*p == '.' || *p == '\''))
            fputs("\\&", out);
        if (*p == '\\')
            fputs("\\e", out);
        else if (*p == '-')
            fputs("\\-", out);
        else if (*p == '\n' && p[1] == '\n')
            fputs("\n.PP", out);
        else
            fputc(*p, out);
        at_start = *p == '\n';
    }
}

static void man_rows(const struct option *rows, FILE *out)
{
    for (const struct option *row = rows; row && !option_is_end(row); row++) {
        if (row->hidden)
            continue;
        if (row->type == OPTION_HEADING) {
            fputs(".SS ", out);
            roff(out, row->help);
            fputc('\n', out);
            continue;
        }
        fputs(".TP\n", out);
        if (row->short_name)
            fprintf(out, "\\fB\\-%c\\fR, ", row->short_name);
        fputs("\\fB\\-\\-", out);
        roff(out, row->long_name);
        fputs("\\fR", out);
        if (option_takes_value(row)) {
            fputs(" \\fI", out);
            roff(out, row->value_name ? row->value_name : "VALUE");
            fputs("\\fR", out);
        }
        char text[1024];
        fputc('\n', out);
        roff(out, option_full_help(row, text, sizeof text));
        fputc('\n', out);
    }
}

static void man_header(const char *name, const char *summary, FILE *out)
{
    fputs(".TH \"", out);
    roff(out, name);
    fprintf(out, "\" 1 \"\" \"lora %s\" \"User Commands\"\n.SH NAME\n", cmd_version());
    roff(out, name);
    fputs(" \\- ", out);
    roff(out, summary);
    fputs("\n.SH SYNOPSIS\n", out);
}

static void man_examples(const char *examples, FILE *out)
{
    fputs(".SH EXAMPLES\n.nf\n", out);
    roff(out, examples);
    fputs("\n.fi\n", out);
}

static void man_exit_status(FILE *out)
{
    static const struct {
        int status;
        const char *meaning;
    } rows[] = {
        {0, "done"},
        {1, "failed: not found, port in use, input or output error"},
        {2, "wrong usage"},
        {3, "partly done: some inputs failed"},
        {4, "refused: sound, but mismatched, not computable here, unsigned or would overwrite"},
        {5, "corrupt: a file breaks its own format"},
        {10, "there is no store"},
        {11, "the store is locked"},
        {130, "interrupted"},
    };
    fputs(".SH EXIT STATUS\n", out);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        fprintf(out, ".TP\n%d\n%s\n", rows[i].status, rows[i].meaning);
}

static void man_program(FILE *out)
{
    man_header("lora", "keep, merge, pack and serve LoRA adapters", out);
    fputs("\\fBlora\\fR \\fIcommand\\fR [\\fIoptions\\fR] [\\fIarguments\\fR]\n.SH COMMANDS\n",
          out);
    for (const struct command *const *c = cmd_table; *c; c++) {
        if ((*c)->hidden)
            continue;
        fprintf(out, ".TP\n\\fBlora\\-%s\\fR(1)\n", (*c)->name);
        roff(out, (*c)->summary);
        fputc('\n', out);
    }
    fputs(".SH OPTIONS\n", out);
    man_rows(options_shared(), out);
    man_exit_status(out);
}

void help_man(const struct command *command, FILE *out)
{
    if (!command) {
        man_program(out);
        return;
    }
    char name[64];
    snprintf(name, sizeof name, "lora-%s", command->name);
    man_header(name, command->summary, out);
    fprintf(out, "\\fBlora %s\\fR [\\fIoptions\\fR] ", command->name);
    roff(out, command->arguments ? command->arguments : "");
    fputs("\n.SH DESCRIPTION\n", out);
    roff(out, command->description ? command->description : command->summary);
    fputs("\n.SH OPTIONS\n", out);
    man_rows(command->options, out);
    man_rows(options_shared(), out);
    if (command->examples)
        man_examples(command->examples, out);
    man_exit_status(out);
    fputs(".SH SEE ALSO\n\\fBlora\\fR(1)\n", out);
}

// ---- completion ---------------------------------------------------------------------------------

/* Text inside '…' of a shell. fish knows \' inside quotes, the others need '\''. */
static void quoted(FILE *out, const char *text, bool fish)
{
    fputc('\'', out);
    for (; *text; text++) {
        if (*text == '\'')
            fputs(fish ? "\\'" : "'\\''", out);
        else if (fish && *text == '\\')
            fputs("\\\\", out);
        else
            fputc(*text, out);
    }
    fputc('\'', out);
}

/* Calls visit for each row of the command and of the shared table that a person may want. */
static void each_row(const struct command *c, FILE *out,
                     void (*visit)(const struct command *c, const struct option *row, FILE *out))
{
    const struct option *tables[] = {c->options, options_shared()};
    for (int t = 0; t < 2; t++) {
        for (const struct option *row = tables[t]; row && !option_is_end(row); row++) {
            if (row->long_name && !row->hidden)
                visit(c, row, out);
        }
    }
}

static void choices_as_words(const char *choices, FILE *out)
{
    for (; *choices; choices++)
        fputc(*choices == ',' ? ' ' : *choices, out);
}

static void bash_name(const struct command *c, const struct option *row, FILE *out)
{
    (void)c;
    fprintf(out, " --%s", row->long_name);
}

static void bash_choices(const struct command *c, const struct option *row, FILE *out)
{
    if (!row->choices)
        return;
    fprintf(out, "        %s:--%s) COMPREPLY=($(compgen -W '", c->name, row->long_name);
    choices_as_words(row->choices, out);
    fputs("' -- \"$word\")); return;;\n", out);
}

static void bash(FILE *out)
{
    fputs("# bash completion for lora\n_lora() {\n"
          "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command= w\n"
          "    for w in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n"
          "        case $w in -*) ;; *) command=$w; break;; esac\n"
          "    done\n"
          "    case $command:$before in\n",
          out);
    for (const struct command *const *c = cmd_table; *c; c++)
        each_row(*c, out, bash_choices);
    fputs("    esac\n    case $command in\n        '') COMPREPLY=($(compgen -W '", out);
    for (const struct command *const *c = cmd_table; *c; c++)
        fprintf(out, "%s%s", c == cmd_table ? "" : " ", (*c)->hidden ? "" : (*c)->name);
    fputs("' -- \"$word\")); return;;\n", out);
    for (const struct command *const *c = cmd_table; *c; c++) {
        fprintf(out, "        %s%s%s) set --", (*c)->name, (*c)->alias ? "|" : "",
                (*c)->alias ? (*c)->alias : "");
        each_row(*c, out, bash_name);
        fputs(";;\n", out);
    }
    fputs("        *) set --;;\n    esac\n"
          "    case $word in\n"
          "        -*) COMPREPLY=($(compgen -W \"$*\" -- \"$word\"));;\n"
          "        *) COMPREPLY=($(compgen -f -- \"$word\"));;\n"
          "    esac\n}\ncomplete -o filenames -F _lora lora\n",
          out);
}

static void zsh_row(const struct command *c, const struct option *row, FILE *out)
{
    char text[512];
    size_t n = 0;
    (void)c;
    // In a spec [ ] and : have a meaning of their own.
    for (const char *p = row->help ? row->help : ""; *p && n + 2 < sizeof text; p++) {
        if (strchr("[]:\\", *p))
            text[n++] = '\\';
        text[n++] = *p;
    }
    text[n] = '\0';
    char spec[768];
    int len = snprintf(spec, sizeof spec, "--%s[%s]", row->long_name, text);
    if (row->choices)
        snprintf(spec + len, sizeof spec - (size_t)len, ":value:(%s)", row->choices);
    else if (option_takes_value(row))
        snprintf(spec + len, sizeof spec - (size_t)len, ":value:_files");
    for (char *p = row->choices ? spec + len : NULL; p && *p; p++)
        *p = *p == ',' ? ' ' : *p;
    fputs(" \\\n            ", out);
    quoted(out, spec, false);
}

static void zsh(FILE *out)
{
    fputs("#compdef lora\n_lora() {\n    local -a commands=(\n", out);
    for (const struct command *const *c = cmd_table; *c; c++) {
        char spec[256];
        snprintf(spec, sizeof spec, "%s:%s", (*c)->name, (*c)->summary);
        if ((*c)->hidden)
            continue;
        fputs("        ", out);
        quoted(out, spec, false);
        fputc('\n', out);
    }
    fputs("    )\n    if (( CURRENT == 2 )); then _describe command commands; return; fi\n"
          "    local name=$words[2]\n    shift words; (( CURRENT-- ))\n    case $name in\n",
          out);
    for (const struct command *const *c = cmd_table; *c; c++) {
        fprintf(out, "        %s%s%s) _arguments", (*c)->name, (*c)->alias ? "|" : "",
                (*c)->alias ? (*c)->alias : "");
        each_row(*c, out, zsh_row);
        fputs(" \\\n            '*:file:_files';;\n", out);
    }
    fputs("    esac\n}\ncompdef _lora lora\n", out);
}

static void fish_row(const struct command *c, const struct option *row, FILE *out)
{
    fprintf(out, "complete -c lora -n '__fish_seen_subcommand_from %s' -l %s", c->name,
            row->long_name);
    if (row->short_name)
        fprintf(out, " -s %c", row->short_name);
    if (row->choices) {
        fputs(" -x -a '", out);
        choices_as_words(row->choices, out);
        fputc('\'', out);
    } else if (option_takes_value(row)) {
        fputs(" -r", out);
    }
    fputs(" -d ", out);
    quoted(out, row->help ? row->help : "", true);
    fputc('\n', out);
}

static void fish(FILE *out)
{
    for (const struct command *const *c = cmd_table; *c; c++) {
        if ((*c)->hidden)
            continue;
        fprintf(out, "complete -c lora -f -n __fish_use_subcommand -a %s -d ", (*c)->name);
        quoted(out, (*c)->summary, true);
        fputc('\n', out);
    }
    for (const struct command *const *c = cmd_table; *c; c++)
        each_row(*c, out, fish_row);
}

int help_completion(const char *shell, FILE *out, struct err *err)
{
    if (strcmp(shell, "bash") == 0)
        bash(out);
    else if (strcmp(shell, "zsh") == 0)
        zsh(out);
    else if (strcmp(shell, "fish") == 0)
        fish(out);
    else
        return err_set(err, ERR_USAGE, "completion: wanted bash, zsh or fish, got '%s'", shell);
    return 0;
}
