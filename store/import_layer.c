#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "store/import_pack_impl.h"

/*
 * A layer that is a tar: its entries are read like those of any pack, each into the work folder
 * under a number; those that are files of an adapter take the layer's place in the list.
 */
static int add_unpacked(const struct arrival *a, json_t *files, struct err *err)
{
    json_t *file = json_pack("{s:s,s:s,s:I}", "path", file_base_name(a->name), "sha256", a->digest,
                             "size", (json_int_t)a->size);
    return json_array_append_new(files, file) == 0
               ? 0
               : err_set(err, ERR_NO_MEMORY, "%s: no memory", a->name);
}

static int take_entries(struct landing *l, struct archive_in *in, json_t *files, size_t *left_out,
                        struct err *err)
{
    struct archive_in_entry e;
    bool more;
    int rc;
    while ((rc = archive_in_next(in, &e, &more, err)) == 0 && more) {
        bool wanted = peft_is_file_name(file_base_name(e.name));
        *left_out += !wanted;
        rc = wanted ? landing_take_entry(l, in, &e, err) : archive_in_data(in, NULL, NULL, err);
        if (!rc && wanted)
            rc = add_unpacked(&l->files.items[l->files.n - 1], files, err);
        if (rc)
            break;
    }
    return rc;
}

int landing_unpack(struct landing *l, const struct arrival *layer, const char *where, json_t *files,
                   struct err *err)
{
    struct archive_in *in;
    size_t left_out = 0, before = json_array_size(files);
    char *path = sys_strdup(layer->path); // the list of arrivals grows meanwhile
    int rc = path ? archive_in_open(&in, path, NULL, NULL, err)
                  : err_set(err, ERR_NO_MEMORY, "%s: no memory", l->path);
    if (!rc) {
        rc = take_entries(l, in, files, &left_out, err);
        archive_in_free(in);
    }
    if (rc)
        import_restore_paths(err, path, where);
    if (!rc && left_out)
        rc = landing_note(l, err, "%zu files of layer %.100s are no part of an adapter: left out",
                          left_out, where);
    if (!rc && json_array_size(files) == before && !left_out)
        rc = landing_note(l, err, "layer %.100s is empty", where);
    sys_free(path);
    return rc;
}
