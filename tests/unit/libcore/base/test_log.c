#include "libcore/base/log.h"

#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "tests/lib/test.h"

/* tiers: check asan tsan */

/* What `write_lines` puts on stderr; to free with sys_free. */
static char *captured(void (*write_lines)(void))
{
    char path[600], *text = NULL;
    snprintf(path, sizeof path, "%s/stderr", test_tmp());
    int fd = sys_open(path, O_RDWR | O_CREAT | O_TRUNC | O_APPEND, 0600), keep = dup(2);
    dup2(fd, 2);
    write_lines();
    dup2(keep, 2);
    close(keep);
    sys_close(fd);
    file_read(path, 1 << 20, &text, NULL, NULL);
    return text;
}

static void one_of_each(void)
{
    log_debug("unit", "debug n=%d", 1);
    log_info("unit", "info n=%d", 2);
    log_warn("unit", "warn n=%d", 3);
    log_error("unit", "error n=%d", 4);
}

TEST(a_line_has_time_level_module_and_message)
{
    log_set_level(LOG_LEVEL_DEBUG);
    log_set_format(LOG_FORMAT_TEXT);
    char *text = captured(one_of_each);
    CHECK(text);
    regex_t re;
    const char *t = "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\\.[0-9]{3}Z ";
    char pattern[512];
    snprintf(pattern, sizeof pattern,
             "^%sdebug unit: debug n=1\n%sinfo  unit: info n=2\n"
             "%swarn  unit: warn n=3\n%serror unit: error n=4\n$",
             t, t, t, t);
    CHECK(regcomp(&re, pattern, REG_EXTENDED | REG_NOSUB) == 0);
    EXPECT_MSG(regexec(&re, text, 0, NULL, 0) == 0, "%s", text);
    regfree(&re);
    sys_free(text);
}

TEST(a_level_hides_what_lies_below)
{
    log_set_level(LOG_LEVEL_ERROR);
    log_set_format(LOG_FORMAT_TEXT);
    char *text = captured(one_of_each);
    EXPECT(strstr(text, "error n=4") && !strstr(text, "warn"));
    sys_free(text);
    log_set_level(LOG_LEVEL_OFF);
    text = captured(one_of_each);
    EXPECT_STR(text, "");
    sys_free(text);
    log_set_level(LOG_LEVEL_WARN);
    EXPECT(log_enabled(LOG_LEVEL_WARN) && !log_enabled(LOG_LEVEL_INFO));
}

static void awkward(void)
{
    log_warn("unit", "name=%s", "a\nb\"c\x01 \xFF");
}

TEST(a_message_cannot_start_a_second_line)
{
    log_set_level(LOG_LEVEL_WARN);
    log_set_format(LOG_FORMAT_TEXT);
    char *text = captured(awkward);
    EXPECT(strstr(text, "name=a\\x0ab\"c\\x01"));
    EXPECT(strchr(text, '\n') == text + strlen(text) - 1);
    sys_free(text);
}

TEST(json_lines_are_json)
{
    log_set_level(LOG_LEVEL_WARN);
    log_set_format(LOG_FORMAT_JSON);
    char *text = captured(awkward);
    json_t *line = json_loads(text, 0, NULL);
    CHECK_MSG(line, "%s", text);
    EXPECT_STR(json_string_value(json_object_get(line, "level")), "warn");
    EXPECT_STR(json_string_value(json_object_get(line, "module")), "unit");
    EXPECT_STR(json_string_value(json_object_get(line, "message")),
               "name=a\nb\"c\x01 \xEF\xBF\xBD");
    EXPECT(json_object_get(line, "time"));
    json_decref(line);
    sys_free(text);
    log_set_format(LOG_FORMAT_TEXT);
}

static void *shout(void *arg)
{
    for (int i = 0; i < 500; i++)
        log_warn("unit", "thread=%s line=%d end", (const char *)arg, i);
    return NULL;
}

static void all_shout(void)
{
    pthread_t threads[4];
    static const char *const names[] = {"a", "b", "c", "d"};
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, shout, (void *)names[i]);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
}

TEST(lines_of_threads_do_not_mix)
{
    log_set_level(LOG_LEVEL_WARN);
    char *text = captured(all_shout), *save = NULL;
    int n = 0;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        size_t len = strlen(line);
        CHECK_MSG(len > 40 && strcmp(line + len - 4, " end") == 0 && strlen(line) < 80, "%s", line);
        n++;
    }
    EXPECT_INT(n, 2000);
    sys_free(text);
}

TEST(level_names)
{
    enum log_level level = LOG_LEVEL_OFF;
    EXPECT(log_level_parse("debug", &level) && level == LOG_LEVEL_DEBUG);
    EXPECT(log_level_parse("warning", &level) && level == LOG_LEVEL_WARN);
    EXPECT(log_level_parse("off", &level) && level == LOG_LEVEL_OFF);
    EXPECT(!log_level_parse("loud", &level));
}
