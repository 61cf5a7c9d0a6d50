/*
 * help: usage lines and pages, written from the tables.
 */
#include <string.h>

#include "cmd/options_impl.h"

enum { PAGE_COLUMNS = 80, HELP_COLUMN = 30 };

/* Columns of UTF-8 text in which every code point is one column wide, as our own texts are. */
static size_t columns(const char *text, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += ((unsigned char)text[i] & 0xC0) != 0x80;
    return count;
}

/* Fills lines up to PAGE_COLUMNS; the pen stands at `column`, later lines start at `indent`. */
static void print_filled(FILE *out, const char *text, size_t column, size_t indent)
{
    bool first = true;
    while (*text) {
        size_t n = strcspn(text, " \n");
        size_t width = columns(text, n);
        if (!first && column + 1 + width > PAGE_COLUMNS) {
            fprintf(out, "\n%*s", (int)indent, "");
            column = indent;
        } else if (!first) {
            fputc(' ', out);
            column++;
        }
        fwrite(text, 1, n, out);
        column += width;
        text += n;
        if (text[0] == '\n' && text[1] == '\n') {
            fprintf(out, "\n\n%*s", (int)indent, "");
            column = indent;
            first = true;
            text += 2;
            continue;
        }
        first = false;
        text += *text != '\0';
    }
    fputc('\n', out);
}

void options_usage(const struct command *c, FILE *out)
{
    fprintf(out, "usage: lora %s [options]%s%s\n", c->name, c->arguments ? " " : "",
            c->arguments ? c->arguments : "");
}

/* "  -q, --quiet", "      --port N" */
static size_t print_flags(const struct option *row, FILE *out)
{
    char text[256];
    const char *value = option_takes_value(row) ? row->value_name ? row->value_name : "VALUE" : "";
    char first[8] = "    ";
    if (row->short_name)
        snprintf(first, sizeof first, "-%c, ", row->short_name);
    snprintf(text, sizeof text, "  %s--%s%s%s", first, row->long_name, *value ? " " : "", value);
    fputs(text, out);
    return columns(text, strlen(text));
}

/* The row's sentence with what a reader must know besides: choices, default, other spellings. */
const char *option_full_help(const struct option *row, char *buf, size_t n)
{
    char value[128];
    size_t len = (size_t)snprintf(buf, n, "%s", row->help ? row->help : "");
    if (row->choices && len < n)
        len += (size_t)snprintf(buf + len, n - len, " One of %s.", row->choices);
    const char *text = option_value_text(row, value, sizeof value);
    bool shown = row->type != OPTION_FLAG && !row->secret && *text && strcmp(text, "0") != 0;
    // `lora help X` has parsed the shared rows already: what they hold is no default any more.
    for (const struct option *r = options_shared(); !option_is_end(r); r++)
        shown = shown && r != row;
    if (shown && len < n)
        len += (size_t)snprintf(buf + len, n - len, " Default: %s.", text);
    if (row->aliases && len < n)
        len += (size_t)snprintf(buf + len, n - len, " Also --%s.", row->aliases);
    if (row->env && len < n)
        snprintf(buf + len, n - len, " Environment: %s.", row->env);
    return buf;
}

static void print_rows(const struct option *rows, FILE *out)
{
    char text[1024];
    for (const struct option *row = rows; row && !option_is_end(row); row++) {
        if (row->hidden)
            continue;
        if (row->type == OPTION_HEADING) {
            fprintf(out, "\n%s:\n", row->help);
            continue;
        }
        size_t column = print_flags(row, out);
        if (column + 2 > HELP_COLUMN) {
            fputc('\n', out);
            column = 0;
        }
        fprintf(out, "%*s", (int)(HELP_COLUMN - column), "");
        print_filled(out, option_full_help(row, text, sizeof text), HELP_COLUMN, HELP_COLUMN);
    }
}

/* Lines of examples, each behind two spaces. */
static void print_lines(const char *lines, FILE *out)
{
    while (*lines) {
        size_t n = strcspn(lines, "\n");
        fprintf(out, "  %.*s\n", (int)n, lines);
        lines += n + (lines[n] == '\n');
    }
}

void options_help(const struct command *c, FILE *out)
{
    options_usage(c, out);
    if (c->alias)
        fprintf(out, "also:  lora %s\n", c->alias);
    fputc('\n', out);
    print_filled(out, c->description ? c->description : c->summary, 0, 0);
    if (c->examples) {
        fputs("\nExamples:\n", out);
        print_lines(c->examples, out);
    }
    if (c->options && !option_is_end(c->options) && c->options[0].type != OPTION_HEADING)
        fputs("\nOptions:\n", out);
    print_rows(c->options, out);
    print_rows(options_shared(), out);
}

static bool is_second_rank(const char *name)
{
    return strcmp(name, "list") == 0 || strcmp(name, "run") == 0 || strcmp(name, "bench") == 0;
}

static void print_commands(FILE *out, int rank)
{
    for (const struct command *const *p = cmd_table; *p; p++) {
        const struct command *c = *p;
        int own = c->main_five ? 0 : is_second_rank(c->name) ? 1 : 2;
        if (!c->hidden && own == rank)
            fprintf(out, "  %-12s %s\n", c->name, c->summary);
    }
}

void help_overview(FILE *out)
{
    fputs("lora keeps, merges, packs and serves LoRA adapters.\n\n"
          "usage: lora <command> [options] [arguments]\n\n",
          out);
    print_commands(out, 0);
    print_commands(out, 1);
    fputs("\nmore:\n", out);
    print_commands(out, 2);
    fputs("\n`lora <command> --help` shows a command's page. Every command takes --store, --json,\n"
          "-q, --force, --progress, --log-level and --log-format, before or after its name.\n",
          out);
}
