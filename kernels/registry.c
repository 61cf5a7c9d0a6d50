#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/kernels.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"

static int plugin_path(char *buf, size_t n, struct err *err)
{
    const char *set = getenv("LORA_CUDA_PLUGIN");
    if (set && *set) {
        snprintf(buf, n, "%s", set);
        return 0;
    }
    char self[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", self, sizeof self - 1);
    if (len <= 0)
        return err_set(err, ERR_DEVICE, "cuda: cannot find the program's own folder");
    self[len] = 0;
    char *folder = file_dir_name(self);
    if (!folder)
        return err_set(err, ERR_NO_MEMORY, "no memory for a path");
    snprintf(buf, n, "%s/lora_cuda.so", folder);
    sys_free(folder);
    return 0;
}

/* The plug-in's table. It stays open: dlopen counts, and code must outlive every back end. */
static int load_plugin(const struct backend_ops **out, struct err *err)
{
    char path[PATH_MAX + 16];
    *out = NULL;
    int rc = plugin_path(path, sizeof path, err);
    if (rc != 0)
        return rc;
    if (!file_exists(path))
        return err_set(err, ERR_DEVICE, "cuda: no plug-in at %s; `make cuda` builds it", path);
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        const char *why = dlerror();
        return err_set(err, ERR_DEVICE, "cuda: %s", why ? why : "the plug-in does not load");
    }
    const struct backend_ops *ops = dlsym(handle, "backend_cuda_ops");
    if (!ops)
        rc = err_set(err, ERR_DEVICE, "cuda: %s has no backend_cuda_ops", path);
    else if (ops->abi != BACKEND_ABI)
        rc = err_set(err, ERR_DEVICE, "cuda: %s is of version %u, want %d", path, ops->abi,
                     BACKEND_ABI);
    if (rc != 0) {
        dlclose(handle);
        return rc;
    }
    *out = ops;
    return 0;
}

static int open_cuda(struct backend **out, const struct backend_options *opt, struct err *err)
{
    const struct backend_ops *ops;
    int rc = load_plugin(&ops, err);
    return rc ? rc : ops->open(out, opt, err);
}

static void describe(struct backend *be, const char *why_not, char *note, size_t n)
{
    struct backend_info info;
    if (!note || n == 0)
        return;
    note[0] = 0;
    if (be->ops->info(be, &info, NULL) == 0)
        snprintf(note, n, "%s: %s%s%s", info.name, info.device, why_not ? "; " : "",
                 why_not ? why_not : "");
}

int kernels_open(struct backend **out, const struct backend_options *opt, char *note,
                 size_t note_bytes, struct err *err)
{
    struct backend_options o = *opt;
    const char *device = opt->device && *opt->device ? opt->device : "auto";
    struct err why = {0};
    int rc;
    *out = NULL;
    if (strcmp(device, "auto") == 0) {
        o.device = "cuda:0";
        rc = open_cuda(out, &o, &why);
        if (rc != 0) {
            o.device = "cpu";
            rc = backend_cpu_ops.open(out, &o, err);
        }
    } else if (strcmp(device, "cpu") == 0) {
        rc = backend_cpu_ops.open(out, &o, err);
    } else if (strncmp(device, "cuda", 4) == 0 && (device[4] == 0 || device[4] == ':')) {
        o.device = device[4] ? device : "cuda:0";
        rc = open_cuda(out, &o, err);
    } else {
        return err_set(err, ERR_USAGE, "device '%s': want auto, cpu or cuda:N", device);
    }
    if (rc == 0)
        describe(*out, why.code ? why.msg : NULL, note, note_bytes);
    return rc;
}
