/*
 * lora version: the program, how it was built, the libraries that it runs with and the back ends it
 * finds.
 */
#include <dlfcn.h>
#include <string.h>

#include "cmd/cmd.h"
#include "kernels/kernels.h"

/* Asked at run time and by name: each library's header has its one home elsewhere, and what counts
 * is the library that was loaded, not the header that was compiled. */
static const struct {
    const char *library, *function;
} libraries[] = {
    {"jansson", "jansson_version_str"},
    {"sqlite", "sqlite3_libversion"},
    {"libarchive", "archive_version_string"},
    {"zstd", "ZSTD_versionString"},
    {"openssl", "OpenSSL_version"},
    {"pcre2", "pcre2_config_8"},
    {"utf8proc", "utf8proc_version"},
    {"libmicrohttpd", "MHD_get_version"},
    {"curl", "curl_version"},
};

static const char *variant(void)
{
#if defined(__SANITIZE_ADDRESS__)
    return "asan";
#elif defined(__SANITIZE_THREAD__)
    return "tsan";
#elif defined(__OPTIMIZE__)
    return "release";
#else
    return "debug";
#endif
}

/* POSIX lets dlsym's result be called, C11 does not let it be cast; so it is copied. */
static const char *library_version(const char *function, char *buf, size_t n)
{
    void *symbol = dlsym(RTLD_DEFAULT, function);
    if (!symbol)
        return NULL;
    if (strcmp(function, "pcre2_config_8") == 0) {
        enum { CONFIG_VERSION = 11, VERSION_BYTES = 64 };
        int (*config)(uint32_t, void *);
        char text[VERSION_BYTES];
        memcpy(&config, &symbol, sizeof config);
        snprintf(buf, n, "%s", config(CONFIG_VERSION, text) > 0 ? text : "?");
    } else if (strcmp(function, "OpenSSL_version") == 0) {
        const char *(*version)(int);
        memcpy(&version, &symbol, sizeof version);
        snprintf(buf, n, "%s", version(0));
    } else {
        const char *(*version)(void);
        memcpy(&version, &symbol, sizeof version);
        snprintf(buf, n, "%s", version());
    }
    // Some say "libarchive 3.6.2" or a list; the first word that starts with a digit is the
    // version.
    char *digits = buf + strcspn(buf, "0123456789");
    digits[strcspn(digits, " ")] = '\0';
    return digits;
}

/* Whether the device opens; `text` says what it is, or why it does not. */
static bool find_device(const char *device, char *text, size_t n)
{
    struct backend_options options = {.device = device};
    struct backend *be;
    struct err err = {0};
    text[0] = '\0';
    if (kernels_open(&be, &options, text, n, &err) != 0) {
        snprintf(text, n, "%s", err.msg);
        return false;
    }
    be->ops->close(be);
    return true;
}

/* Adds {"device", "usable", "about"}, an unusable one only where it is `wanted`. */
static bool add_device(json_t *all, const char *device, bool wanted)
{
    char text[ERR_MSG_BYTES];
    bool found = find_device(device, text, sizeof text);
    if (found || wanted)
        json_array_append_new(
            all, json_pack("{s:s, s:b, s:s}", "device", device, "usable", found, "about", text));
    return found;
}

/* The CPU, the first card or why there is none, and the others. CUDA counts the fastest first: what
 * follows one that is not usable is no better. */
static json_t *find_devices(void)
{
    json_t *all = json_array();
    char device[32] = "cuda:0";
    add_device(all, "cpu", true);
    for (int card = 1; add_device(all, device, card == 1); card++)
        snprintf(device, sizeof device, "cuda:%d", card);
    return all;
}

static void print_devices(void)
{
    json_t *all = find_devices(), *d;
    size_t i;
    json_array_foreach(all, i, d)
    {
        const char *text = json_string_value(json_object_get(d, "about"));
        const char *about =
            strstr(text, ": "); // "cpu: …", "cuda: …": the name stands there already
        printf("  %-14s %s\n", json_string_value(json_object_get(d, "device")),
               about ? about + 2 : text);
    }
    json_decref(all);
}

static int print_json(void)
{
    json_t *all = json_object();
    for (size_t i = 0; i < sizeof libraries / sizeof *libraries; i++) {
        char buf[256];
        const char *text = library_version(libraries[i].function, buf, sizeof buf);
        json_object_set_new(all, libraries[i].library, text ? json_string(text) : json_null());
    }
    cmd_print_json(json_pack("{s:s, s:s, s:s, s:o, s:o}", "version", cmd_version(), "variant",
                             variant(), "compiler", __VERSION__, "libraries", all, "back_ends",
                             find_devices()));
    return 0;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    (void)err;
    if (ctx->json)
        return print_json();
    if (ctx->quiet) {
        puts(cmd_version());
        return 0;
    }
    printf("lora %s (%s, gcc %s)\n", cmd_version(), variant(), __VERSION__);
    for (size_t i = 0; i < sizeof libraries / sizeof *libraries; i++) {
        char buf[256];
        const char *text = library_version(libraries[i].function, buf, sizeof buf);
        printf("  %-14s %s\n", libraries[i].library, text ? text : "not linked");
    }
    print_devices();
    return 0;
}

const struct command command_version = {
    .name = "version",
    .summary = "the program's version, its libraries' and the back ends it finds",
    .examples = "lora version\nlora version -q",
    .run = run,
};
