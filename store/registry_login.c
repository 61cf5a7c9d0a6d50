#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "store/registry_impl.h"

/*
 * Who we are to a registry: $DOCKER_CONFIG/config.json or ~/.docker/config.json, and the programs
 * docker-credential-NAME that it names. Read at each push and pull; nothing is kept, or logged.
 */
void login_release(struct login *l)
{
    sys_free(l->user);
    sys_free(l->secret);
    sys_free(l->identity_token);
    *l = (struct login){0};
}

// ---- base64 ------------------------------------------------------------------------------------

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

char *base64_encode(const char *text, size_t n)
{
    const unsigned char *p = (const unsigned char *)text;
    char *out = sys_malloc((n + 2) / 3 * 4 + 1), *to = out;
    for (size_t i = 0; out && i < n; i += 3) {
        size_t left = n - i;
        unsigned v = (unsigned)p[i] << 16 | (left > 1 ? (unsigned)p[i + 1] << 8 : 0) |
                     (left > 2 ? p[i + 2] : 0u);
        *to++ = alphabet[v >> 18];
        *to++ = alphabet[v >> 12 & 63];
        *to++ = left > 1 ? alphabet[v >> 6 & 63] : '=';
        *to++ = left > 2 ? alphabet[v & 63] : '=';
    }
    if (out)
        *to = '\0';
    return out;
}

char *base64_decode(const char *text, size_t *n)
{
    size_t k = strlen(text);
    char *out = sys_malloc(k / 4 * 3 + 4);
    unsigned v = 0, bits = 0;
    *n = 0;
    for (; out && *text && *text != '='; text++) {
        const char *at = strchr(alphabet, *text);
        if (!at) {
            sys_free(out);
            return NULL;
        }
        v = v << 6 | (unsigned)(at - alphabet);
        bits += 6;
        if (bits >= 8) {
            bits -= 8;
            out[(*n)++] = (char)(v >> bits & 255);
        }
    }
    if (out)
        out[*n] = '\0';
    return out;
}

// ---- helpers -----------------------------------------------------------------------------------

extern char **environ;

static int start_helper(const char *program, int in[2], int out[2], pid_t *pid)
{
    posix_spawn_file_actions_t actions;
    char *argv[] = {(char *)program, "get", NULL};
    // A socket, so that a helper that ends early does not end this process with a signal.
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, in) != 0)
        return errno;
    if (pipe2(out, O_CLOEXEC) != 0) {
        int e = errno;
        sys_close(in[0]);
        sys_close(in[1]);
        return e;
    }
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    int e = posix_spawnp(pid, program, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    sys_close(in[0]);
    sys_close(out[1]);
    if (e) {
        sys_close(in[1]);
        sys_close(out[0]);
    }
    return e;
}

static int read_helper(int fd, struct strbuf *text)
{
    char buf[4096];
    ssize_t n;
    while ((n = sys_read(fd, buf, sizeof buf)) > 0)
        strbuf_add(text, buf, (size_t)n);
    return n < 0 ? errno : 0;
}

static int ask_helper(struct login *out, const char *name, const char *server, struct err *err)
{
    char program[128];
    int in[2], from[2], status = 0;
    pid_t pid;
    if (strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != strlen(name) ||
        snprintf(program, sizeof program, "docker-credential-%s", name) >= (int)sizeof program)
        return err_set(err, ERR_REFUSED, "config.json: '%.60s' is no name of a helper", name);
    int e = start_helper(program, in, from, &pid);
    if (e)
        return err_set_errno(err, e, "%s: cannot be started", program);
    struct strbuf text;
    strbuf_init(&text);
    text.max = 1 << 20;
    (void)!send(in[1], server, strlen(server), MSG_NOSIGNAL);
    sys_close(in[1]);
    read_helper(from[0], &text);
    sys_close(from[0]);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    json_t *root = status == 0 ? json_loads(strbuf_text(&text), 0, NULL) : NULL;
    const char *user = json_string_value(json_object_get(root, "Username"));
    const char *secret = json_string_value(json_object_get(root, "Secret"));
    bool token = user && strcmp(user, "<token>") == 0;
    if (user && secret && token)
        out->identity_token = sys_strdup(secret);
    else if (user && secret) {
        out->user = sys_strdup(user);
        out->secret = sys_strdup(secret);
    }
    json_decref(root);
    strbuf_release(&text);
    return 0; // a helper that knows nothing of the host is no error
}

// ---- config.json -------------------------------------------------------------------------------

static char *config_path(void)
{
    const char *folder = getenv("DOCKER_CONFIG"), *home = getenv("HOME");
    if (folder && *folder)
        return file_join(folder, "config.json");
    return home && *home ? file_join(home, ".docker/config.json") : NULL;
}

static int take_auth(struct login *out, const json_t *entry, const char *host, struct err *err)
{
    const char *auth = json_string_value(json_object_get(entry, "auth"));
    const char *token = json_string_value(json_object_get(entry, "identitytoken"));
    if (token && *token)
        out->identity_token = sys_strdup(token);
    if (!auth || !*auth)
        return 0;
    size_t n;
    char *text = base64_decode(auth, &n), *colon = text ? strchr(text, ':') : NULL;
    if (colon) {
        out->user = sys_strndup(text, (size_t)(colon - text));
        out->secret = sys_strdup(colon + 1);
    }
    sys_free(text);
    return colon
               ? 0
               : err_set(err, ERR_CORRUPT, "config.json: the \"auth\" of %s cannot be read", host);
}

/* Entries are called by host, or by URL. */
static const json_t *entry_of(const json_t *all, const char *host)
{
    const char *key;
    json_t *value;
    size_t n = strlen(host);
    json_object_foreach((json_t *)all, key, value)
    {
        const char *p = strncmp(key, "https://", 8) == 0  ? key + 8
                        : strncmp(key, "http://", 7) == 0 ? key + 7
                                                          : key;
        if (strncmp(p, host, n) == 0 && (p[n] == '\0' || p[n] == '/'))
            return value;
    }
    return NULL;
}

int login_find(struct login *out, const char *host, struct err *err)
{
    *out = (struct login){0};
    char *path = config_path(), *text = NULL;
    size_t n;
    if (!path || !file_exists(path)) {
        sys_free(path);
        return 0;
    }
    json_error_t why = {0};
    int rc = file_read(path, LIMIT_CONFIG_BYTES, &text, &n, err);
    json_t *root = rc ? NULL : json_loadb(text, n, 0, &why);
    if (!rc && !root)
        rc = err_set(err, ERR_CORRUPT, "%s: %s", path, why.text);
    const json_t *entry = entry_of(json_object_get(root, "auths"), host);
    const char *helper =
        json_string_value(json_object_get(json_object_get(root, "credHelpers"), host));
    const char *store = json_string_value(json_object_get(root, "credsStore"));
    if (!rc && helper)
        rc = ask_helper(out, helper, host, err);
    else if (!rc && entry && json_object_get(entry, "auth"))
        rc = take_auth(out, entry, host, err);
    else if (!rc && store)
        rc = ask_helper(out, store, host, err);
    json_decref(root);
    sys_free(text);
    sys_free(path);
    return rc;
}
