/*
 * oci: adapters as OCI images in the ModelPack form (CNCF model-spec), and what such images hold.
 * One manifest an adapter; its layers are the files as they are (".raw"), so that a layer's digest
 * is the file's own; what the record says and the files do not goes into annotations. Several
 * adapters are an image index. docs/FORMATS.md has the annotations.
 * Only JSON is made and read here; blobs come and go elsewhere.
 */
#ifndef STORE_OCI_H
#define STORE_OCI_H

#include "store/pack.h"

#define OCI_MANIFEST_TYPE "application/vnd.oci.image.manifest.v1+json"
#define OCI_INDEX_TYPE    "application/vnd.oci.image.index.v1+json"

enum oci_compat {
    OCI_MODEL, // artifactType and config of ModelPack
    OCI_IMAGE, // an image's config and no artifactType: for registries with a list of allowed types
    OCI_EMPTY, // the empty config of OCI 1.1 and an artifactType
};

/* "image", "empty", "model" (or NULL): ERR_USAGE. */
int oci_compat_parse(const char *text, enum oci_compat *out, struct err *err);

/* A thing that a registry stores: a blob or a manifest. */
struct oci_top {
    char digest[STORE_ID_CHARS + 1];
    uint64_t size;
    const char *media_type; // OCI_MANIFEST_TYPE, or OCI_INDEX_TYPE for several adapters
};

/* A signature is a manifest of its own that refers to the adapter's ("subject"): the adapter's
 * image stays what it was. */
#define OCI_SIGNATURE_TYPE "application/vnd.dev.sigstore.bundle.v0.3+json"

/*
 * Everything of an image: items are named "blobs/sha256/<hex>", sorted, each digest once; the
 * manifests among them are listed in `manifests` (array of digests, leaves before the index), those
 * of signatures in `referrers` (array of their descriptors, "subject" added: the digest that they
 * refer to). Both are the caller's.
 */
int oci_items(const struct pack_plan *p, enum oci_compat compat, struct pack_items *out,
              json_t **manifests, json_t **referrers, struct oci_top *top, struct err *err);
/* Adds index.json and oci-layout, for a layout of it. `tag` becomes the reference's name. */
int oci_add_layout(struct pack_items *items, const struct oci_top *top, const json_t *referrers,
                   const char *tag, struct err *err);

/* What a manifest or an index is. */
enum oci_kind {
    OCI_KIND_MANIFEST,
    OCI_KIND_INDEX,
    OCI_KIND_SIGNATURE,
    OCI_KIND_OTHER, // refers to another manifest, and is no signature that is read here
};
/*
 * Parses the bytes of a manifest or an index (also a layout's index.json). `where` names it.
 * A manifest gives {"files": [{"path", "sha256", "size", "unpack": true for a tar of
 * files}], "record": the pack's record or absent,
 * "config": {"sha256", "size"}}; an index an array of {"sha256", "size"}; a signature {"sha256",
 * "size"} of its bundle, and "subject". *out is the caller's; NULL for OCI_KIND_OTHER.
 * ERR_CORRUPT, ERR_REFUSED (what it holds is no adapter in a form that is read here).
 */
int oci_parse(const char *text, size_t n, const char *where, enum oci_kind *kind, json_t **out,
              struct err *err);

#endif
