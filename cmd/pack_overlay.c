#include "cmd/pack_overlay.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "cmd/model_ref.h"
#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"

static int on_compared(void *arg, uint64_t bytes)
{
    (void)arg, (void)bytes;
    return cmd_interrupted() ? ERR_INTERRUPTED : 0;
}

/* r: what it resolved to; held in the store until the end. */
static int open_model(struct pack_overlay *p, struct model_ref *r, const char *ref,
                      struct base_model **out, struct err *err)
{
    int rc = model_ref_resolve(r, p->s, ref, STORE_BASE, err);
    const char *id = r->id;
    if (!rc && r->in_store)
        rc = lease_add_many(p->lease, p->s, &id, 1, err);
    if (!rc)
        rc = r->in_store ? base_model_open(out, p->s, r->id, err)
                         : base_model_open_folder(out, r->path, err);
    return rc;
}

static int open_both(struct pack_overlay *p, const char *ref, const char *base_ref, struct err *err)
{
    struct model_ref model = {0}, base = {0};
    int rc = open_model(p, &model, ref, &p->model, err);
    if (!rc)
        rc = open_model(p, &base, base_ref, &p->base, err);
    if (!rc) {
        snprintf(p->name, sizeof p->name, "%s", *model.name ? model.name : p->model->name);
        snprintf(p->tag, sizeof p->tag, "%s", *model.tag ? model.tag : "latest");
    }
    model_ref_release(&model);
    model_ref_release(&base);
    return rc;
}

static int make_work_folder(struct pack_overlay *p, const char *output, struct err *err)
{
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_addf(&sb, "%s.%ld.overlay", output, (long)getpid());
    p->work_folder = strbuf_take(&sb, NULL);
    strbuf_release(&sb);
    if (!p->work_folder)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", output);
    return sys_mkdir(p->work_folder, 0777) == 0
               ? 0
               : err_set_errno(err, errno, "%s: cannot create", p->work_folder);
}

int pack_overlay_open(struct pack_overlay *out, struct cmd_context *ctx, const char *ref,
                      const char *base_ref, const char *output, struct pack_items *items,
                      struct err *err)
{
    struct pack_overlay *p = out;
    *p = (struct pack_overlay){0};
    int rc = cmd_store_open_if_there(ctx, &p->s, err);
    if (!rc && p->s)
        rc = lease_open(&p->lease, p->s, "pack", NULL, 0, err);
    if (!rc)
        rc = open_both(p, ref, base_ref, err);
    if (!rc)
        rc = make_work_folder(p, output, err);
    if (!rc) {
        const struct overlay_source from = {.model = p->model,
                                            .base = p->base,
                                            .name = p->name,
                                            .tag = p->tag,
                                            .work_folder = p->work_folder,
                                            .on_bytes = on_compared};
        rc = overlay_items(&from, items, &p->record, err);
    }
    if (rc)
        pack_overlay_release(p);
    return rc;
}

void pack_overlay_release(struct pack_overlay *p)
{
    if (p->work_folder)
        file_remove_tree(p->work_folder, NULL);
    sys_free(p->work_folder);
    json_decref(p->record);
    base_model_free(p->model);
    base_model_free(p->base);
    lease_close(p->lease);
    store_close(p->s);
    *p = (struct pack_overlay){0};
}
