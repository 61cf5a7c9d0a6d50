#include "libcore/format/hub.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"

static const char ID_CHARS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "hub cache: no memory");
}

static const char *environment(const char *name)
{
    const char *v = getenv(name);
    return v && v[0] ? v : NULL;
}

static char *joined(const char *a, const char *b)
{
    return a ? file_join(a, b) : NULL;
}

int hub_cache_folder(char **out, struct err *err)
{
    const char *direct = environment("HF_HUB_CACHE"), *v;
    if (!direct)
        direct = environment("HUGGINGFACE_HUB_CACHE");
    if (direct)
        *out = sys_strdup(direct);
    else if ((v = environment("HF_HOME")))
        *out = joined(v, "hub");
    else if ((v = environment("XDG_CACHE_HOME")))
        *out = joined(v, "huggingface/hub");
    else if ((v = environment("HOME")))
        *out = joined(v, ".cache/huggingface/hub");
    else
        return err_set(err, ERR_NOT_FOUND,
                       "hub cache: neither HF_HUB_CACHE, HF_HOME nor HOME is set");
    return *out ? 0 : no_memory(err);
}

/* Length of org/name without the revision, 0 when the text has another form. */
static size_t id_length(const char *text)
{
    size_t org = strspn(text, ID_CHARS);
    if (!org || text[0] == '.' || text[org] != '/')
        return 0;
    const char *name = text + org + 1;
    size_t n = strspn(name, ID_CHARS);
    if (!n || name[0] == '.' || (name[n] && name[n] != '@'))
        return 0;
    if (name[n] == '@' && (!name[n + 1] || strstr(name + n, "..") || name[n + 1] == '/'))
        return 0;
    return org + 1 + n;
}

bool hub_is_id(const char *text)
{
    return id_length(text) != 0;
}

/* models--org--name below the cache. */
static char *repository_folder(const char *cache, const char *id, size_t n)
{
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_adds(&sb, "models--");
    for (size_t i = 0; i < n; i++) {
        if (id[i] == '/')
            strbuf_adds(&sb, "--");
        else
            strbuf_addc(&sb, id[i]);
    }
    char *folder = sb.failed ? NULL : file_join(cache, sb.data);
    strbuf_release(&sb);
    return folder;
}

/* The commit that a branch or tag names (refs may have slashes: refs/pr/1); NULL when there is
 * none. */
static char *read_ref(const char *repository, const char *revision)
{
    char *refs = joined(repository, "refs"), *path = joined(refs, revision), *text = NULL;
    size_t n = 0;
    if (path && !file_is_folder(path) && file_read(path, 256, &text, &n, NULL) == 0)
        text[strcspn(text, " \r\n")] = '\0';
    sys_free(refs);
    sys_free(path);
    if (text && (!text[0] || strchr(text, '/') || text[0] == '.')) {
        sys_free(text);
        return NULL;
    }
    return text;
}

/* The one snapshot whose name begins with prefix; *n_found counts them. */
static char *only_snapshot(const char *snapshots, const char *prefix, size_t *n_found)
{
    char **names, *found = NULL;
    size_t n;
    *n_found = 0;
    if (file_list(snapshots, &names, &n, NULL) != 0)
        return NULL;
    for (size_t i = 0; i < n; i++) {
        if (strncmp(names[i], prefix, strlen(prefix)) != 0)
            continue;
        if (++*n_found == 1)
            found = sys_strdup(names[i]);
    }
    file_free_names(names, n);
    if (*n_found == 1)
        return found;
    sys_free(found);
    return NULL;
}

static int find_snapshot(char **out, const char *repository, const char *id, const char *revision,
                         struct err *err)
{
    char *snapshots = joined(repository, "snapshots");
    if (!snapshots)
        return no_memory(err);
    size_t n_found = 0;
    char *commit = read_ref(repository, revision ? revision : "main"), *path = NULL;
    if (!commit && (!revision || strlen(revision) >= 6))
        commit = only_snapshot(snapshots, revision ? revision : "", &n_found);
    int rc = 0;
    path = joined(snapshots, commit);
    if (path && file_is_folder(path)) {
        *out = path;
        path = NULL;
    } else if (n_found > 1)
        rc = err_set(err, ERR_NOT_FOUND, "%s: %zu snapshots in %s, name a revision: %s@REVISION",
                     id, n_found, snapshots, id);
    else
        rc = err_set(err, ERR_NOT_FOUND, "%s: no snapshot%s%s in %s", id, revision ? " of " : "",
                     revision ? revision : "", snapshots);
    sys_free(path);
    sys_free(commit);
    sys_free(snapshots);
    return rc;
}

int hub_find(char **out, const char *id, struct err *err)
{
    *out = NULL;
    size_t n = id_length(id);
    if (!n)
        return err_set(err, ERR_USAGE, "%s: no hub id (org/name or org/name@revision)", id);
    char *cache;
    int rc = hub_cache_folder(&cache, err);
    if (rc)
        return rc;
    char *repository = repository_folder(cache, id, n);
    if (!repository)
        rc = no_memory(err);
    else if (!file_is_folder(repository))
        rc = err_set(err, ERR_NOT_FOUND, "%s: not in the local cache %s", id, cache);
    else
        rc = find_snapshot(out, repository, id, id[n] == '@' ? id + n + 1 : NULL, err);
    sys_free(repository);
    sys_free(cache);
    return rc;
}

char *hub_name_of_path(const char *path)
{
    const char *at = strstr(path, "models--");
    if (!at || (at != path && at[-1] != '/'))
        return NULL;
    at += strlen("models--");
    size_t n = strcspn(at, "/");
    if (strncmp(at + n, "/snapshots/", strlen("/snapshots/")) != 0)
        return NULL;
    char *name = sys_strndup(at, n);
    char *dashes = name ? strstr(name, "--") : NULL;
    if (!dashes) {
        sys_free(name);
        return NULL;
    }
    dashes[0] = '/'; // the first "--" parts organisation and name
    memmove(dashes + 1, dashes + 2, strlen(dashes + 2) + 1);
    return name;
}
