#include "cmd/import_initial.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/model_ref.h"
#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/format/adapter_file.h"
#include "libcore/merge/initial.h"

static int open_initial(struct store *s, const char *ref, struct base_model **out, struct err *err)
{
    struct model_ref r;
    int rc = model_ref_resolve(&r, s, ref, STORE_BASE, err);
    if (!rc)
        rc = r.in_store ? base_model_open(out, s, r.id, err)
                        : base_model_open_folder(out, r.path, err);
    model_ref_release(&r);
    return rc;
}

static int convert_into(const struct base_model *base, const char *path, const char *folder,
                        struct initial_report *report, struct err *err)
{
    static const char field[] = "init_lora_weights";
    const char *ignored[] = {field};
    const struct peft_options opt = {.ignore_fields = ignored, .n_ignore_fields = 1};
    struct adapter *raw = NULL, *converted = NULL;
    struct peft_files files;
    int rc = adapter_file_read(&raw, path, &opt, err);
    if (!rc)
        rc = initial_convert(&converted, raw, base->folder, report, err);
    if (!rc)
        rc = peft_write(converted, folder, err);
    adapter_free(converted);
    adapter_free(raw);
    if (rc)
        return rc;
    rc = adapter_files_list(&files, path, err);
    for (size_t i = 0; !rc && i < files.n; i++) { // tokenizer, template, card
        const struct peft_file *f = &files.items[i];
        char *to = file_join(folder, f->name);
        bool text = f->role != PEFT_FILE_WEIGHTS && f->role != PEFT_FILE_CONFIG;
        rc = !to    ? err_set(err, ERR_NO_MEMORY, "no memory")
             : text ? file_copy(f->path, to, err)
                    : 0;
        sys_free(to);
    }
    peft_files_release(&files);
    return rc;
}

static void tell_conversion(const char *path, const struct initial_report *r)
{
    double bound = r->rounding + r->arithmetic;
    fprintf(stderr,
            "%s: converted to plain LoRA of twice the rank, %zu modules. What was trained differs "
            "from it by %.3g at most, %.3g %% of the change (%.3g by the rounding of the residual "
            "base, %.3g by float32 in training); training went %.3g %% of the way that the "
            "initialisation is long\n",
            path, r->n_modules, bound, 100 * bound / r->change, r->rounding, r->arithmetic,
            100 * r->distance);
}

int import_converted(struct cmd_context *ctx, struct store *s, const char *initial_ref,
                     const char *path, struct import_options *opt, struct import_result *r,
                     struct err *err)
{
    struct base_model *base = NULL;
    struct initial_report report;
    const char *tmp = getenv("TMPDIR");
    struct strbuf folder;
    strbuf_init(&folder);
    strbuf_addf(&folder, "%s/lora-import.%ld", tmp && *tmp ? tmp : "/tmp", (long)getpid());
    char *own_name = peft_name_of_path(path);
    int rc = folder.failed || !own_name ? err_set(err, ERR_NO_MEMORY, "%s: no memory", path)
             : sys_mkdir(folder.data, 0700) != 0
                 ? err_set_errno(err, errno, "%s: cannot be made", folder.data)
                 : 0;
    bool made = !rc;
    opt->name = opt->name ? opt->name : own_name;
    if (!rc)
        rc = open_initial(s, initial_ref, &base, err);
    if (!rc)
        rc = convert_into(base, path, folder.data, &report, err);
    if (!rc) {
        opt->base = opt->base ? opt->base : base;
        rc = import_adapter(s, folder.data, opt, r, err);
    }
    if (!rc && !ctx->quiet)
        tell_conversion(path, &report);
    if (made)
        file_remove_tree(folder.data, NULL);
    base_model_free(base);
    sys_free(own_name);
    strbuf_release(&folder);
    return rc;
}
