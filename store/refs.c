#include "store/refs.h"

#include <stdio.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"

enum { FOLDER_BYTES = LIMIT_NAME_BYTES + 8 };

static void folder_of(const char *name, char folder[FOLDER_BYTES])
{
    snprintf(folder, FOLDER_BYTES, "refs/%s", name);
    for (char *p = folder + 5; *p; p++) {
        if (*p == '/')
            *p = '+';
    }
}

static int load(const char *path, const char *name, const char *tag, json_t **out, struct err *err)
{
    char *text;
    size_t n;
    *out = NULL;
    int rc = file_read(path, LIMIT_CONFIG_BYTES, &text, &n, err);
    if (rc)
        return rc;
    json_error_t why;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    sys_free(text);
    const json_t *id = json_object_get(root, "id");
    struct digest d;
    const char *wrong = NULL;
    if (!root)
        wrong = why.text;
    else if (!json_is_null(id) && !(json_is_string(id) && digest_parse(json_string_value(id), &d)))
        wrong = "no \"id\"";
    else if (!json_is_array(json_object_get(root, "history")))
        wrong = "no \"history\"";
    else if (!json_is_string(json_object_get(root, "name")) ||
             strcmp(json_string_value(json_object_get(root, "name")), name) != 0 ||
             !json_is_string(json_object_get(root, "tag")) ||
             strcmp(json_string_value(json_object_get(root, "tag")), tag) != 0)
        wrong = "it names something else than its place does";
    if (wrong) {
        rc = err_set(err, ERR_CORRUPT, "%s: %s", path, wrong);
        json_decref(root);
        return rc;
    }
    *out = root;
    return 0;
}

int refs_read(struct store *s, const char *name, const char *tag, json_t **out, struct err *err)
{
    char folder[FOLDER_BYTES];
    folder_of(name, folder);
    *out = NULL;
    char *path = store_join(s, folder, tag, err);
    int rc = path ? load(path, name, tag, out, err) : ERR_NO_MEMORY;
    sys_free(path);
    return rc;
}

/* The old history, or an empty one when there is none or it cannot be read. */
static json_t *old_history(struct store *s, const char *name, const char *tag)
{
    json_t *root = NULL;
    if (refs_read(s, name, tag, &root, NULL) != 0)
        return json_array();
    json_t *history = json_incref(json_object_get(root, "history"));
    json_decref(root);
    return history;
}

int refs_write(struct store *s, const char *name, const char *tag, const char *id,
               const char *action, struct err *err)
{
    char folder[FOLDER_BYTES];
    folder_of(name, folder);
    json_t *history = old_history(s, name, tag);
    json_int_t now = (json_int_t)(thread_unix_ns() / 1000000000u);
    json_t *event = json_pack("{s:s?,s:I,s:s}", "id", id, "time", now, "action", action);
    if (history && event)
        json_array_insert(history, 0, event);
    while (json_array_size(history) > REFS_MAX_HISTORY)
        json_array_remove(history, json_array_size(history) - 1);
    json_t *root = json_pack("{s:i,s:s,s:s,s:s?,s:O}", "schema", 1, "name", name, "tag", tag, "id",
                             id, "history", history);
    int rc = root && event ? store_make_folder(s, folder, err)
                           : err_set(err, ERR_NO_MEMORY, "%s:%s: no memory", name, tag);
    if (!rc)
        rc = store_write_json(s, folder, tag, root, err);
    json_decref(root);
    json_decref(event);
    json_decref(history);
    return rc;
}

int refs_remove(struct store *s, const char *name, const char *tag, struct err *err)
{
    char folder[FOLDER_BYTES];
    folder_of(name, folder);
    int rc = store_remove_file(s, folder, tag, err);
    char *path = rc ? NULL : store_join(s, folder, NULL, err);
    if (path)
        sys_rmdir(path); // stays while other tags are in it
    sys_free(path);
    return rc;
}

typedef int ref_file_row(void *arg, const char *name, const char *tag, const json_t *root,
                         const struct err *problem);

static int each_tag(struct store *s, const char *folder_name, ref_file_row *row, void *arg,
                    struct err *err)
{
    char folder[FOLDER_BYTES], name[LIMIT_NAME_BYTES + 1];
    snprintf(folder, sizeof folder, "refs/%.200s", folder_name);
    snprintf(name, sizeof name, "%.200s", folder_name);
    for (char *p = name; *p; p++) {
        if (*p == '+')
            *p = '/';
    }
    char *path = store_join(s, folder, NULL, err), **tags = NULL;
    size_t n = 0;
    int rc = path ? file_list(path, &tags, &n, err) : ERR_NO_MEMORY;
    if (rc == ERR_NOT_FOUND) { // a gc beside us took the name's history
        err_clear(err);
        rc = 0;
    }
    for (size_t i = 0; !rc && i < n; i++) {
        struct err problem = {0};
        json_t *root = NULL;
        int bad = refs_read(s, name, tags[i], &root, &problem);
        if (bad != ERR_NOT_FOUND)
            rc = row(arg, name, tags[i], root, bad ? &problem : NULL);
        json_decref(root);
    }
    file_free_names(tags, n);
    sys_free(path);
    return rc;
}

int refs_each(struct store *s, ref_file_row *row, void *arg, struct err *err)
{
    char *path = store_join(s, "refs", NULL, err), **names = NULL;
    size_t n = 0;
    int rc = path ? file_list(path, &names, &n, err) : ERR_NO_MEMORY;
    for (size_t i = 0; !rc && i < n; i++)
        rc = each_tag(s, names[i], row, arg, err);
    file_free_names(names, n);
    sys_free(path);
    return rc;
}
