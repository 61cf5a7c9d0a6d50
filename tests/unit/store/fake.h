/*
 * fake: store content for tests that do not care what is in it: objects made by hand, without a
 * real adapter behind them. Header-only: each test program has its own copy.
 */
#ifndef TESTS_UNIT_STORE_FAKE_H
#define TESTS_UNIT_STORE_FAKE_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libcore/base/sys.h"
#include "store/blob.h"
#include "store/publish.h"
#include "tests/lib/test.h"

__attribute__((unused)) static const char *fake_store_path(void)
{
    static int n;
    static char path[4200];
    snprintf(path, sizeof path, "%s/store-%d", test_tmp(), n++);
    return path;
}

__attribute__((unused)) static struct store *fake_store(const char *path)
{
    struct store *s;
    struct err err = {0};
    struct store_options opt = {.create = true, .lock_timeout_ms = 20000};
    if (store_open(&s, path, &opt, &err) != 0) {
        test_fail(__FILE__, __LINE__, "store_open: %s", err.msg);
        return NULL;
    }
    return s;
}

/* An id made of a seed: 64 hex digits. */
__attribute__((unused)) static const char *fake_id(unsigned seed)
{
    static char ids[8][DIGEST_HEX_CHARS + 1];
    static int n;
    char *id = ids[n++ % 8];
    struct digest d;
    digest_buffer(&seed, sizeof seed, &d, NULL);
    digest_hex(&d, id);
    return id;
}

/* A manifest of an adapter with one file; the file's digest goes to digest[65]. */
__attribute__((unused)) static json_t *fake_manifest(const char *id, const char *base_id,
                                                     const char *bytes, char *digest)
{
    struct digest d;
    digest_buffer(bytes, strlen(bytes), &d, NULL);
    digest_hex(&d, digest);
    return json_pack("{s:i,s:s,s:s,s:s,s:s,s:i,s:{s:s,s:s},s:i,s:[i,i],s:i,s:i,s:i,s:s,s:s,"
                     "s:{s:i,s:i,s:i},s:[{s:s,s:s,s:i}]}",
                     "schema", 1, "kind", "adapter", "id", id, "name", "fake", "format", "peft",
                     "created", 1000, "base", "fingerprint", base_id, "name", "some/base", "kinds",
                     1, "rank", 8, 16, "layers", 2, "modules", 4, "parameters", 1000, "targets",
                     "q_proj,v_proj", "dtype", "F32", "bytes", "disk", (int)strlen(bytes), "host",
                     4000, "device", 2000, "files", "path", "data.bin", "sha256", digest, "size",
                     (int)strlen(bytes));
}

/* Publishes an adapter whose one file has the text `bytes`; through a work folder, as import does.
 */
__attribute__((unused)) static int fake_publish(struct store *s, const char *id,
                                                const char *base_id, const char *name,
                                                const char *bytes, bool force,
                                                enum publish_state *state, struct err *err)
{
    struct work w;
    int rc = work_open(&w, s, "import", err);
    if (rc)
        return rc;
    char from[4400], to[4400];
    snprintf(from, sizeof from, "%s/source", w.folder);
    snprintf(to, sizeof to, "%s/copy", w.folder);
    struct publish_file file = {.tmp = to};
    struct blob_copy *copy = NULL;
    int fd = sys_open(from, O_WRONLY | O_CREAT, 0666);
    rc = fd < 0 ? err_set(err, ERR_IO, "%s", from) : 0;
    if (!rc && sys_write(fd, bytes, strlen(bytes)) != (ssize_t)strlen(bytes))
        rc = err_set(err, ERR_IO, "%s: write", from);
    if (fd >= 0)
        sys_close(fd);
    struct digest d;
    if (!rc)
        rc = blob_copy_open(&copy, from, to, false, NULL, NULL, err);
    if (!rc)
        rc = blob_copy_finish(copy, &d, err);
    blob_copy_free(copy);
    json_t *m = fake_manifest(id, base_id, bytes, file.digest);
    if (!rc && !m)
        rc = err_set(err, ERR_NO_MEMORY, "no memory for a manifest");
    struct publish p = {.id = id,
                        .manifest = m,
                        .files = &file,
                        .n_files = 1,
                        .name = name,
                        .tag = "latest",
                        .force = force};
    if (!rc)
        rc = publish(s, &p, state, err);
    json_decref(m);
    work_close(&w);
    return rc;
}

#endif
