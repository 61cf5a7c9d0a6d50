#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "store/registry.h"

static bool is_host(const char *text, size_t n)
{
    bool told = n == 9 && memcmp(text, "localhost", 9) == 0;
    for (size_t i = 0; i < n; i++) {
        if (!isalnum((unsigned char)text[i]) && !strchr(".:-[]", text[i]))
            return false;
        told |= text[i] == '.' || text[i] == ':';
    }
    return told && n > 0 && n <= REGISTRY_HOST_BYTES;
}

/* Lower-case letters, digits, and single separators between them, in parts. */
static bool is_repo(const char *text, size_t n)
{
    bool fresh = true; // a part begins, or a separator was just seen
    for (size_t i = 0; i < n; i++) {
        bool plain = islower((unsigned char)text[i]) || isdigit((unsigned char)text[i]);
        if (!plain && !strchr("._-/", text[i]))
            return false;
        bool twice = i && text[i] == text[i - 1] && (text[i] == '_' || text[i] == '-');
        if (!plain && fresh && !twice)
            return false;
        fresh = !plain;
    }
    return !fresh && n > 0 && n <= REGISTRY_REPO_BYTES;
}

static bool is_tag(const char *text)
{
    size_t n = strlen(text);
    for (size_t i = 0; i < n; i++) {
        if (!isalnum((unsigned char)text[i]) && text[i] != '_' &&
            (i == 0 || !strchr(".-", text[i])))
            return false;
    }
    return n > 0 && n <= STORE_TAG_BYTES;
}

int registry_ref_parse(const char *text, struct registry_ref *out, struct err *err)
{
    *out = (struct registry_ref){.reference = "latest"};
    const char *slash = strchr(text, '/');
    if (!slash || !is_host(text, (size_t)(slash - text)))
        return err_set(
            err, ERR_USAGE,
            "'%.200s': wanted REGISTRY/REPO[:TAG], as in registry.example.com/team/bot:v1", text);
    memcpy(out->host, text, (size_t)(slash - text));
    const char *repo = slash + 1, *end = repo + strcspn(repo, ":@");
    if (!is_repo(repo, (size_t)(end - repo)))
        return err_set(err, ERR_USAGE,
                       "'%.200s': a repository has lower-case letters, digits and . _ - / between",
                       text);
    memcpy(out->repo, repo, (size_t)(end - repo));
    struct digest d;
    if (*end == '@') {
        if (strncmp(end + 1, "sha256:", 7) != 0 || !digest_parse(end + 1, &d))
            return err_set(err, ERR_USAGE, "'%.200s': wanted @sha256: and 64 hex digits", text);
        snprintf(out->reference, sizeof out->reference, "%s", end + 1);
    } else if (*end == ':') {
        if (!is_tag(end + 1))
            return err_set(err, ERR_USAGE, "'%.200s': a tag has letters, digits and _ . -", text);
        snprintf(out->reference, sizeof out->reference, "%s", end + 1);
    }
    return 0;
}
