/*
 * import_pack_impl: what importing a pack and pulling an image share: files in a work folder become
 * adapters of the store.
 */
#ifndef STORE_IMPORT_PACK_IMPL_H
#define STORE_IMPORT_PACK_IMPL_H

#include "libcore/format/peft.h"
#include "store/archive_impl.h"
#include "store/arrive.h"
#include "store/import_impl.h"
#include "store/oci.h"

#define LANDED_CONFIG  "adapter_config.json"
#define LANDED_WEIGHTS "adapter_model.safetensors"
#define LANDED_MLX     "adapters.safetensors"
#define LANDED_PICKLE  "adapter_model.bin"
#define LANDED_BASES   "bases/"

struct landing {
    struct store *s;  // NULL: a dry run without a store
    const char *path; // of the pack, for messages
    const struct import_options *opt;
    struct work work;
    char *own_folder; // instead of work's, for a dry run
    struct arrivals files;
    json_t *notes;
    json_t *signatures; // of images: [{"subject": digest of the image, "sha256": of the bundle}]
    import_row_fn *row;
    void *arg;
};

int landing_open(struct landing *l, struct store *s, const char *path,
                 const struct import_options *opt, import_row_fn *row, void *arg, struct err *err);
/* Removes what was not published. */
void landing_close(struct landing *l);
int landing_note(struct landing *l, struct err *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* One adapter of the pack, its files all there. Everything is borrowed but the array. */
struct landed_file {
    const struct arrival *arrival;
    const char *name; // in the adapter
};
struct landed {
    const char *where;     // in the pack; ""
    const char *suggested; // a path that gives it a name
    const json_t *record;
    size_t number;   // of the adapter in the pack
    bool from_image; // others may have referred to it: a signature that is not of it is no damage
    struct landed_file *files;
    size_t n_files;
    const struct arrival **signatures;
    size_t n_signatures;
};
/* Frees what landed_add() and landed_sign() made. */
void landed_release(struct landed *a);
int landed_sign(struct landed *a, const struct arrival *bundle, struct err *err);
int landed_add(struct landed *a, const struct arrival *arrival, const char *name, struct err *err);
/* The name under which the reader of adapters finds this file; NULL: it does not look at it. */
const char *landing_reader_name(const char *name);
/* Whether it is signed as it must be; asked of all adapters before the first one lands. */
int landing_judge(struct landing *l, const struct landed *a, struct err *err);
int landing_adapter(struct landing *l, const struct landed *a, struct err *err);

/* A base of the pack that travels as an overlay: its record checked, and that the base below it is
 * there; with publish it is built and imported. ERR_REFUSED: another base. */
int landing_overlay(struct landing *l, const json_t *record, size_t number, bool publish,
                    struct err *err);
/* Whether an entry of that name may belong to one. */
bool landing_is_overlay_name(const char *name);

/* "path", "sha256" and "size" of a record's file are sound, and it is a file of an adapter. */
int landing_check_file(const struct landing *l, const json_t *file, const char *where,
                       struct err *err);
/* What arrived is what the record says. */
int landing_check_arrival(const struct landing *l, const json_t *file, const struct arrival *a,
                          struct err *err);
const char *landing_text(const json_t *object, const char *key); // "" when there is none

/* {"subject", "sha256", "size"} of a signature whose bundle is in l->files, before
 * landing_image(). */
int landing_add_signature(struct landing *l, const json_t *signature, struct err *err);

/* One entry of an archive as the last of l->files. */
int landing_take_entry(struct landing *l, struct archive_in *in, const struct archive_in_entry *e,
                       struct err *err);
/* The files of an adapter in a layer that is a tar, appended to `files` as {"path", "sha256",
 * "size"}; where: for messages. */
int landing_unpack(struct landing *l, const struct arrival *layer, const char *where, json_t *files,
                   struct err *err);

/* How the blobs of an image come into l->files. ERR_NOT_FOUND, … */
struct landing_blobs {
    int (*get)(void *arg, const char *digest, uint64_t size, const char *what,
               const struct arrival **out, struct err *err);
    void *arg;
};
/* Imports what the manifest or index `text` leads to. */
int landing_image(struct landing *l, const char *text, size_t n, const char *where,
                  const struct landing_blobs *blobs, struct err *err);

#endif
