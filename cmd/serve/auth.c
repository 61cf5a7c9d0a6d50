#include "cmd/serve/auth.h"

#include <string.h>
#include <strings.h>

#include "libcore/base/digest.h"
#include "libcore/base/file.h"
#include "libcore/base/limits.h"
#include "libcore/base/sys.h"

struct auth {
    struct digest *keys;
    size_t n_keys;
    struct digest admin;
    bool has_admin;
};

static int add_key(struct auth *a, const char *key, size_t n, struct err *err)
{
    if (n == 0)
        return err_set(err, ERR_USAGE, "--api-key: the key is empty");
    struct digest *keys = sys_reallocarray(a->keys, a->n_keys + 1, sizeof *keys);
    if (!keys)
        return err_set(err, ERR_NO_MEMORY, "no memory for API keys");
    a->keys = keys;
    int rc = digest_buffer(key, n, &keys[a->n_keys], err);
    if (rc == 0)
        a->n_keys++;
    return rc;
}

static int add_key_file(struct auth *a, const char *path, struct err *err)
{
    char *text = NULL;
    size_t size = 0;
    int rc = file_read(path, LIMIT_CONFIG_BYTES, &text, &size, err);
    if (rc != 0)
        return rc;
    size_t n_before = a->n_keys;
    for (char *line = text; rc == 0 && *line;) {
        size_t n = strcspn(line, "\n");
        char *next = line + n + (line[n] == '\n');
        while (n > 0 && strchr(" \t\r", line[n - 1]))
            n--;
        while (n > 0 && strchr(" \t", *line)) {
            line++;
            n--;
        }
        if (n > 0 && *line != '#')
            rc = add_key(a, line, n, err);
        line = next;
    }
    sys_free(text);
    if (rc == 0 && a->n_keys == n_before)
        rc = err_set(err, ERR_USAGE, "--api-key-file %s: there is no key in it", path);
    return rc;
}

int auth_open(struct auth **out, const char *const *keys, size_t n, const char *key_file,
              const char *admin_key, struct err *err)
{
    *out = NULL;
    struct auth *a = sys_calloc(1, sizeof *a);
    if (!a)
        return err_set(err, ERR_NO_MEMORY, "no memory for API keys");
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = add_key(a, keys[i], strlen(keys[i]), err);
    if (rc == 0 && key_file)
        rc = add_key_file(a, key_file, err);
    if (rc == 0 && admin_key) {
        a->has_admin = true;
        rc = *admin_key ? digest_buffer(admin_key, strlen(admin_key), &a->admin, err)
                        : err_set(err, ERR_USAGE, "--admin-api-key: the key is empty");
    }
    if (rc != 0) {
        auth_free(a);
        return rc;
    }
    *out = a;
    return 0;
}

void auth_free(struct auth *a)
{
    if (!a)
        return;
    sys_free(a->keys);
    sys_free(a);
}

/* Looks at every byte, whatever differs first. */
static bool same_digest(const struct digest *a, const struct digest *b)
{
    volatile unsigned difference = 0;
    for (size_t i = 0; i < DIGEST_BYTES; i++)
        difference |= (unsigned)(a->bytes[i] ^ b->bytes[i]);
    return difference == 0;
}

static bool is_known_key(const struct auth *a, const struct digest *given)
{
    bool known = false;
    for (size_t i = 0; i < a->n_keys; i++)
        known |= same_digest(&a->keys[i], given);
    return known;
}

static const char *bearer_token(const char *authorization)
{
    if (!authorization || strncasecmp(authorization, "Bearer ", 7) != 0)
        return NULL;
    const char *token = authorization + 7;
    return token + strspn(token, " ");
}

int auth_check(const struct auth *a, enum auth_access access, const char *authorization,
               bool loopback, const char **reason)
{
    *reason = NULL;
    if (access == AUTH_OPEN || (access == AUTH_KEY && a->n_keys == 0))
        return 0;
    if (a->n_keys == 0 && !a->has_admin) {
        *reason = "Without --admin-api-key this route answers to loopback addresses only.";
        return loopback ? 0 : 403;
    }
    const char *token = bearer_token(authorization);
    struct digest given;
    if (!token || digest_buffer(token, strlen(token), &given, NULL) != 0) {
        *reason = "Unauthorized: an Authorization header with a bearer key is needed.";
        return 401;
    }
    bool admin = a->has_admin && same_digest(&a->admin, &given);
    bool key = is_known_key(a, &given);
    if (admin || (key && (access == AUTH_KEY || !a->has_admin)))
        return 0;
    *reason = key ? "Unauthorized: this route needs the admin key." : "Unauthorized: wrong key.";
    return key ? 403 : 401;
}
