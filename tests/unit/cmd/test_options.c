#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cmd/cmd.h"
#include "libcore/base/file.h"
#include "libcore/base/log.h"
#include "tests/lib/fault.h"
#include "tests/lib/test.h"

/* A command of its own, so that nothing here depends on what the real ones offer. */
static struct {
    bool flag, flag_given, no_cache, noise;
    const char *name, *device;
    int64_t port;
    double share;
    uint64_t size;
    struct string_list tags, paths;
} o;

static const struct option rows[] = {
    {.long_name = "flag",
     .short_name = 'f',
     .type = OPTION_FLAG,
     .value = &o.flag,
     .given = &o.flag_given,
     .help = "A flag."},
    {.long_name = "no-cache",
     .type = OPTION_FLAG,
     .value = &o.no_cache,
     .help = "Starts with no-."},
    {.type = OPTION_HEADING, .help = "More"},
    {.long_name = "name",
     .short_name = 'n',
     .type = OPTION_STRING,
     .value = &o.name,
     .help = "A name."},
    {.long_name = "device",
     .type = OPTION_STRING,
     .value = &o.device,
     .choices = "auto,cpu",
     .env = "TEST_DEVICE",
     .help = "A choice."},
    {.long_name = "port",
     .type = OPTION_INT,
     .value = &o.port,
     .min = 1,
     .max = 65535,
     .env = "TEST_PORT",
     .aliases = "listen-port,p0rt",
     .help = "A number."},
    {.long_name = "share", .type = OPTION_DOUBLE, .value = &o.share, .help = "A fraction."},
    {.long_name = "size", .type = OPTION_SIZE, .value = &o.size, .help = "A size."},
    {.long_name = "tag",
     .type = OPTION_LIST,
     .value = &o.tags,
     .env = "TEST_TAGS",
     .help = "Many."},
    {.long_name = "lora-paths", .type = OPTION_WORDS, .value = &o.paths, .help = "Words."},
    {.long_name = "noise", .type = OPTION_FLAG, .value = &o.noise, .hidden = true},
    {0},
};

static int run(struct cmd_context *ctx, struct err *err)
{
    (void)ctx;
    (void)err;
    return 0;
}

static const struct command command = {
    .name = "unit",
    .arguments = "[A [B]]",
    .summary = "a command for tests",
    .options = rows,
    .max_args = 2,
    .run = run,
};

/* Parses words separated by blanks after defaults were set. The context is released by the caller.
 */
static int parse(struct cmd_context *ctx, const char *words, struct err *err)
{
    static char text[1024];
    static char *argv[64];
    int argc = 1;
    char *save = NULL;
    memset(&o, 0, sizeof o);
    o.port = 30000;
    o.device = "auto";
    argv[0] = "lora";
    snprintf(text, sizeof text, "%s", words);
    for (char *w = strtok_r(text, " ", &save); w; w = strtok_r(NULL, " ", &save))
        argv[argc++] = w;
    argv[argc] = NULL;
    setenv("HOME", test_tmp(), 1);
    unsetenv("XDG_DATA_HOME");
    return options_parse(ctx, &command, argc, argv, err);
}

#define PARSED(words)                                                                              \
    struct cmd_context ctx;                                                                        \
    struct err err = {0};                                                                          \
    CHECK_OK(parse(&ctx, words, &err), err)

static void refused(const char *words, const char *why)
{
    struct cmd_context ctx;
    struct err err = {0};
    int rc = parse(&ctx, words, &err);
    options_release(&ctx);
    EXPECT_MSG(rc == ERR_USAGE && strstr(err.msg, why), "'%s' gives %d \"%s\", want \"%s\"", words,
               rc, err.msg, why);
}

static void config(const char *text)
{
    struct err err;
    char path[600];
    snprintf(path, sizeof path, "%s/config/lora", test_tmp());
    CHECK_OK(file_make_folders(path, &err), err);
    strcat(path, "/config.json");
    if (text)
        CHECK_OK(file_write_atomic(path, text, strlen(text), &err), err);
    else
        unlink(path);
    snprintf(path, sizeof path, "%s/config", test_tmp());
    setenv("XDG_CONFIG_HOME", path, 1);
}

TEST(defaults_stay_when_nothing_is_said)
{
    PARSED("");
    EXPECT_INT(o.port, 30000);
    EXPECT_STR(o.device, "auto");
    EXPECT(!o.flag && !o.flag_given && !ctx.json && !ctx.quiet && !ctx.force);
    EXPECT_STR(ctx.progress, "auto");
    EXPECT_STR(options_origin(&ctx, &rows[0]), "default");
    EXPECT_INT(ctx.n_args, 0);
    options_release(&ctx);
}

TEST(every_type_is_read)
{
    PARSED("--flag --name x --port=80 --share 0.5 --size 64K --tag a --tag=b");
    EXPECT(o.flag && o.flag_given);
    EXPECT_STR(o.name, "x");
    EXPECT_INT(o.port, 80);
    EXPECT_NEAR(o.share, 0.5, 0);
    EXPECT_INT(o.size, 65536);
    CHECK_INT(o.tags.n, 2);
    EXPECT_STR(o.tags.items[0], "a");
    EXPECT_STR(o.tags.items[1], "b");
    EXPECT_STR(options_origin(&ctx, &rows[0]), "flag");
    options_release(&ctx);
}

TEST(short_options_join_and_take_values)
{
    PARSED("-fq -nx");
    EXPECT(o.flag && ctx.quiet);
    EXPECT_STR(o.name, "x");
    options_release(&ctx);
    CHECK_OK(parse(&ctx, "-n x -f", &err), err);
    EXPECT_STR(o.name, "x");
    EXPECT(o.flag);
    options_release(&ctx);
}

TEST(no_turns_a_flag_off_and_a_flag_named_no_is_itself)
{
    PARSED("--flag --no-flag --no-cache");
    EXPECT(!o.flag && o.flag_given && o.no_cache);
    options_release(&ctx);
    CHECK_OK(parse(&ctx, "--flag=false --no-cache=true", &err), err);
    EXPECT(!o.flag && o.no_cache);
    options_release(&ctx);
    refused("--no-port", "unknown option --no-port");
    refused("--flag=maybe", "wanted true or false, got 'maybe'");
}

TEST(aliases_and_underscores_are_the_same_option)
{
    PARSED("--listen-port 1");
    EXPECT_INT(o.port, 1);
    options_release(&ctx);
    CHECK_OK(parse(&ctx, "--listen_port=2 --lora_paths a", &err), err);
    EXPECT_INT(o.port, 2);
    EXPECT_INT(o.paths.n, 1);
    options_release(&ctx);
}

TEST(words_go_on_until_the_next_option)
{
    PARSED("first --lora-paths a=1 b=2 --flag second --lora-paths c=3");
    CHECK_INT(o.paths.n, 3);
    EXPECT_STR(o.paths.items[0], "a=1");
    EXPECT_STR(o.paths.items[1], "b=2");
    EXPECT_STR(o.paths.items[2], "c=3");
    options_release(&ctx);
    refused("a b --flag c", "one argument too many: 'c'");
}

TEST(many_list_values_are_all_kept)
{
    char words[1024] = "--lora-paths";
    for (int i = 0; i < 50; i++)
        sprintf(words + strlen(words), " w%d", i);
    PARSED(words);
    CHECK_INT(o.paths.n, 50);
    EXPECT_STR(o.paths.items[0], "w0");
    EXPECT_STR(o.paths.items[49], "w49");
    options_release(&ctx);
}

TEST(two_dashes_end_options_and_one_is_an_argument)
{
    PARSED("-f -- --name");
    CHECK_INT(ctx.n_args, 1);
    EXPECT_STR(ctx.args[0], "--name");
    options_release(&ctx);
    CHECK_OK(parse(&ctx, "a --flag -", &err), err);
    CHECK_INT(ctx.n_args, 2);
    EXPECT_STR(ctx.args[1], "-");
    options_release(&ctx);
}

TEST(a_value_may_be_negative_but_not_an_option)
{
    PARSED("--share -0.5 --name -x1");
    EXPECT_NEAR(o.share, -0.5, 0);
    EXPECT_STR(o.name, "-x1");
    options_release(&ctx);
    refused("--name --flag", "--name: wanted a value");
    refused("--name -f", "--name: wanted a value");
    refused("--port", "--port: wanted a value");
    refused("--name --", "--name: wanted a value");
}

TEST(wrong_words_are_refused_with_what_was_wanted)
{
    refused("--port 0", "--port: wanted a whole number from 1 to 65535, got '0'");
    refused("--port 65536", "from 1 to 65535");
    refused("--port 8x", "got '8x'");
    refused("--port=", "got ''");
    refused("--port 99999999999999999999", "from 1 to 65535");
    refused("--share much", "--share: wanted a number, got 'much'");
    refused("--share nan", "--share: wanted a number");
    refused("--size big", "--size: wanted a size");
    refused("--device tpu", "--device: wanted one of auto,cpu, got 'tpu'");
    refused("--device aut", "wanted one of");
    refused("-x", "unknown option -x");
}

TEST(a_misspelt_option_names_the_nearest)
{
    refused("--prot 1", "did you mean --port?");
    refused("--nmae x", "did you mean --name?");
    refused("--lora-path x", "did you mean --lora-paths?");
    refused("--jsn", "did you mean --json?");
    struct cmd_context ctx;
    struct err err;
    EXPECT(parse(&ctx, "--zzzzzz", &err) == ERR_USAGE);
    EXPECT(!strstr(err.msg, "did you mean"));
    options_release(&ctx);
    EXPECT(parse(&ctx, "--nois", &err) == ERR_USAGE); // hidden ones are not offered
    EXPECT(!strstr(err.msg, "noise"));
    options_release(&ctx);
}

TEST(json_is_known_even_when_parsing_fails)
{
    struct cmd_context ctx;
    struct err err;
    EXPECT(parse(&ctx, "--json --bad", &err) == ERR_USAGE);
    EXPECT(ctx.json);
    options_release(&ctx);
}

TEST(help_stops_all_checks)
{
    PARSED("a b c d --help");
    EXPECT(ctx.help);
    options_release(&ctx);
}

TEST(flag_beats_environment_beats_file_beats_default)
{
    config("{\"unit\": {\"port\": 3, \"device\": \"cpu\", \"tag\": [\"x\", 7]}, \"share\": 0.25,"
           " \"env\": {\"x\": 1}, \"log-level\": \"error\"}");
    PARSED("");
    EXPECT_INT(o.port, 3);
    EXPECT_STR(o.device, "cpu");
    EXPECT_NEAR(o.share, 0.25, 0);
    CHECK_INT(o.tags.n, 2);
    EXPECT_STR(o.tags.items[1], "7");
    EXPECT_STR(options_origin(&ctx, &rows[5]), "config file");
    EXPECT(!log_enabled(LOG_LEVEL_WARN));
    options_release(&ctx);
    setenv("TEST_PORT", "2", 1);
    setenv("TEST_TAGS", "p  q r", 1);
    CHECK_OK(parse(&ctx, "", &err), err);
    EXPECT_INT(o.port, 2);
    EXPECT_INT(o.tags.n, 3);
    EXPECT_STR(options_origin(&ctx, &rows[5]), "environment");
    options_release(&ctx);
    CHECK_OK(parse(&ctx, "--port 1 --tag only", &err), err);
    EXPECT_INT(o.port, 1);
    EXPECT_INT(o.tags.n, 1);
    EXPECT_STR(options_origin(&ctx, &rows[5]), "flag");
    options_release(&ctx);
    setenv("TEST_PORT", "99999", 1);
    refused("", "TEST_PORT: wanted a whole number");
    unsetenv("TEST_PORT");
    unsetenv("TEST_TAGS");
    config(NULL);
    log_set_level(LOG_LEVEL_WARN);
}

TEST(a_wrong_config_file_says_where)
{
    config("{\"unit\": {\"prot\": 3}}");
    refused("", "config.json: unit.prot: no option has this name");
    config("{\"prot\": 3}");
    refused("", "config.json: prot: no option has this name");
    config("{\"unit\": {\"port\": 0}}");
    refused("", "config.json: unit.port: wanted a whole number from 1 to 65535, got '0'");
    config("{\"unit\": ");
    refused("", "config.json: ");
    config("[]");
    refused("", "config.json: wanted a JSON object");
    config("{\"store\": \"/a\", \"store\": \"/b\"}");
    refused("", "config.json: duplicate object key");
    config(NULL);
}

TEST(the_store_has_a_place_and_an_origin)
{
    PARSED("");
    char want[600];
    snprintf(want, sizeof want, "%s/.local/share/lora", test_tmp());
    EXPECT_STR(ctx.store_path, want);
    EXPECT_STR(ctx.store_path_from, "default");
    options_release(&ctx);
    CHECK_OK(parse(&ctx, "--store /x", &err), err);
    EXPECT_STR(ctx.store_path, "/x");
    EXPECT_STR(ctx.store_path_from, "flag");
    options_release(&ctx);
    setenv("LORA_STORE", "/y", 1);
    CHECK_OK(parse(&ctx, "", &err), err);
    EXPECT_STR(ctx.store_path, "/y");
    EXPECT_STR(ctx.store_path_from, "environment");
    options_release(&ctx);
    unsetenv("LORA_STORE");
    refused("--store=", "--store: wanted a folder");
}

TEST(sizes_are_read_as_people_write_them)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } rows_of[] = {
        {"0", 0},
        {"1024", 1024},
        {"64K", 65536},
        {"64k", 65536},
        {"64KiB", 65536},
        {"64KB", 64000},
        {"1.5G", 1610612736},
        {"2GiB", 2147483648},
        {"80GB", 80000000000},
        {"1T", 1099511627776},
        {"7B", 7},
        {"9007199254740993", 9007199254740993},
    };
    struct err err;
    for (size_t i = 0; i < sizeof rows_of / sizeof *rows_of; i++) {
        uint64_t got = 0;
        CHECK_OK(options_parse_size(rows_of[i].text, &got, &err), err);
        EXPECT_MSG(got == rows_of[i].bytes, "%s is %llu", rows_of[i].text, (unsigned long long)got);
    }
    static const char *const bad[] = {"",     "K",   "-1",  " 1",   "1KK", "1 G",
                                      "0x10", "nan", "inf", "1e99", "16E", "1G2"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint64_t got;
        EXPECT_MSG(options_parse_size(bad[i], &got, &err) == ERR_USAGE, "'%s' was taken", bad[i]);
    }
}

static int parse_all(void *arg, struct err *err)
{
    (void)arg;
    struct cmd_context ctx;
    int rc = parse(&ctx, "--flag --tag a --lora-paths b c d e f g h i j k -- x", err);
    options_release(&ctx);
    return rc;
}

TEST(a_failed_allocation_is_an_error_and_leaks_nothing)
{
    config(NULL);
    EXPECT(test_each_fault(SYS_FAULT_MEM, false, parse_all, NULL) >= 4);
}

TEST(pages_show_what_the_table_says)
{
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    memset(&o, 0, sizeof o);
    o.port = 30000;
    options_help(&command, out);
    fclose(out);
    EXPECT(strstr(text, "usage: lora unit [options] [A [B]]"));
    EXPECT(strstr(text, "-f, --flag"));
    EXPECT(strstr(text, "\nMore:\n"));
    EXPECT(strstr(text, "Default: 30000. Also"));
    EXPECT(strstr(text, "TEST_PORT."));
    EXPECT(strstr(text, "--store DIR"));
    EXPECT(!strstr(text, "--noise"));
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        EXPECT_MSG(strlen(line) <= 80, "%s", line);
    free(text);
}
