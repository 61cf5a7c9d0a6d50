#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "store/pack.h"

int pack_write_archive(const struct pack_items *items, enum archive_kind kind,
                       const struct pack_output *out, uint64_t *bytes, struct err *err)
{
    struct archive_out *a;
    int rc = archive_out_open(&a, out->path, kind, out->on_bytes, out->arg, err);
    for (size_t i = 0; !rc && i < items->n; i++) {
        const struct pack_item *p = &items->items[i];
        struct archive_item item = {.name = p->name,
                                    .size = p->size,
                                    .data = p->data,
                                    .from = p->from,
                                    .digest = p->from && *p->digest ? p->digest : NULL,
                                    .align = p->align};
        rc = archive_out_put(a, &item, err);
    }
    if (!rc)
        rc = archive_out_finish(a, out->replace, bytes, err);
    archive_out_free(a);
    return rc;
}

// ---- a folder ----------------------------------------------------------------------------------

static int write_data(const struct pack_item *item, const char *path, struct err *err)
{
    int fd = sys_open(path, O_WRONLY | O_CREAT | O_EXCL, 0666);
    if (fd < 0)
        return err_set_errno(err, errno, "%s: cannot create", path);
    int rc = file_write_all(fd, item->data, item->size, path, err);
    if (!rc && sys_fsync(fd) != 0)
        rc = err_set_errno(err, errno, "%s: cannot sync", path);
    sys_close(fd);
    return rc;
}

static int sync_file(const char *path, struct err *err)
{
    int fd = sys_open(path, O_RDONLY, 0);
    if (fd < 0)
        return err_set_errno(err, errno, "%s: cannot open", path);
    int rc = sys_fsync(fd) == 0 ? 0 : err_set_errno(err, errno, "%s: cannot sync", path);
    sys_close(fd);
    return rc;
}

static int copy_checked(const struct pack_item *item, const char *path, struct err *err)
{
    struct digest d;
    char hex[DIGEST_HEX_CHARS + 1];
    int rc = file_copy(item->from, path, err);
    if (!rc)
        rc = digest_file(path, &d, NULL, err);
    if (rc)
        return rc;
    digest_hex(&d, hex);
    if (*item->digest && strcmp(hex, item->digest) != 0)
        return err_set(err, ERR_CORRUPT, "%s: its bytes have the digest %.12s, wanted %.12s",
                       item->from, hex, item->digest);
    // A blob is read-only in the store; what is given away is the user's.
    if (sys_chmod(path, 0644) != 0)
        return err_set_errno(err, errno, "%s: cannot change its mode", path);
    return sync_file(path, err);
}

static int write_item(const struct pack_item *item, const char *folder,
                      const struct pack_output *out, struct err *err)
{
    char *path = file_join(folder, item->name), *parent = path ? file_dir_name(path) : NULL;
    int rc = parent ? file_make_folders(parent, err) : err_set(err, ERR_NO_MEMORY, "no memory");
    if (!rc)
        rc = item->from ? copy_checked(item, path, err) : write_data(item, path, err);
    if (!rc && out->on_bytes && (rc = out->on_bytes(out->arg, item->size)) != 0)
        err_set(err, rc, "%s: interrupted", item->name);
    if (!rc)
        rc = file_sync_folder(parent, err);
    sys_free(parent);
    sys_free(path);
    return rc;
}

static int put_in_place(const char *work, const struct pack_output *out, struct err *err)
{
    if (out->replace && file_exists(out->path)) {
        int rc = file_remove_tree(out->path, err);
        if (rc)
            return rc;
    }
    return sys_rename_noreplace(work, out->path) == 0
               ? 0
               : err_set_errno(err, errno, "%s: cannot be made", out->path);
}

int pack_write_folder(const struct pack_items *items, const struct pack_output *out,
                      uint64_t *bytes, struct err *err)
{
    struct strbuf work;
    size_t n = strlen(out->path);
    while (n > 1 && out->path[n - 1] == '/')
        n--;
    strbuf_init(&work);
    strbuf_addf(&work, "%.*s.%ld.tmp", (int)n, out->path, (long)getpid());
    const char *folder = strbuf_text(&work);
    int rc =
        work.failed ? err_set(err, ERR_NO_MEMORY, "no memory") : file_make_folders(folder, err);
    for (size_t i = 0; !rc && i < items->n; i++)
        rc = write_item(&items->items[i], folder, out, err);
    if (!rc)
        rc = put_in_place(folder, out, err);
    if (rc)
        file_remove_tree(folder, NULL);
    *bytes = pack_items_bytes(items);
    strbuf_release(&work);
    return rc;
}
