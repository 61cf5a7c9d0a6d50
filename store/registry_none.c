/* What push and pull are where there is no libcurl. */
#include "store/registry.h"

struct registry {
    char nothing;
};

static int without(struct err *err)
{
    return err_set(
        err, ERR_REFUSED,
        "this lora was built without libcurl: it cannot push or pull; `lora pack --format "
        "oci` makes a layout that other tools push");
}

int registry_open(struct registry **out, const struct registry_ref *ref,
                  const struct registry_options *opt, struct err *err)
{
    (void)ref, (void)opt;
    *out = NULL;
    return without(err);
}

void registry_free(struct registry *r)
{
    (void)r;
}

int registry_push(struct registry *r, const struct pack_items *items, const json_t *manifests,
                  const json_t *referrers, const struct oci_top *top, struct registry_report *out,
                  struct err *err)
{
    (void)r, (void)items, (void)manifests, (void)referrers, (void)top, (void)out;
    return without(err);
}

int registry_pull(struct registry *r, struct store *s, const struct import_options *opt,
                  import_row_fn *row, void *arg, json_t **notes, struct registry_report *out,
                  struct err *err)
{
    (void)r, (void)s, (void)opt, (void)row, (void)arg, (void)notes, (void)out;
    return without(err);
}
