/* Which back end is opened by which words. */
#include "kernels/kernels.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/lib/test.h"

static int open_device(const char *device, struct backend **be, char *note, size_t n,
                       struct err *err)
{
    struct backend_options opt = {.device = device, .n_threads = 2};
    err_clear(err);
    return kernels_open(be, &opt, note, n, err);
}

TEST(cpu_is_opened_and_says_what_it_is)
{
    struct backend *be;
    struct err err = {0};
    char note[256];
    CHECK_OK(open_device("cpu", &be, note, sizeof note, &err), err);
    CHECK_STR(be->ops->name, "cpu");
    CHECK_INT(be->ops->abi, BACKEND_ABI);
    CHECK_MSG(strncmp(note, "cpu: ", 5) == 0 && strstr(note, "2 threads"), "%s", note);
    be->ops->close(be);
}

TEST(auto_falls_back_to_the_cpu_and_says_why)
{
    struct backend *be;
    struct err err = {0};
    char note[512];
    setenv("LORA_CUDA_PLUGIN", "/nowhere/lora_cuda.so", 1);
    CHECK_OK(open_device("auto", &be, note, sizeof note, &err), err);
    CHECK_STR(be->ops->name, "cpu");
    CHECK_MSG(strstr(note, "no plug-in at /nowhere/lora_cuda.so"), "%s", note);
    be->ops->close(be);
    CHECK_CODE(open_device("cuda:0", &be, NULL, 0, &err), ERR_DEVICE, err);
    CHECK(be == NULL && strstr(err.msg, "/nowhere/lora_cuda.so"));
    unsetenv("LORA_CUDA_PLUGIN");
}

TEST(what_is_no_plugin_is_refused_with_the_reason)
{
    struct backend *be;
    struct err err = {0};
    char path[4096];
    snprintf(path, sizeof path, "%s/README.md", test_root());
    setenv("LORA_CUDA_PLUGIN", path, 1); // a file, but no library
    CHECK_CODE(open_device("cuda", &be, NULL, 0, &err), ERR_DEVICE, err);
    setenv("LORA_CUDA_PLUGIN", "/lib/x86_64-linux-gnu/libm.so.6", 1); // a library, but no plug-in
    CHECK_CODE(open_device("cuda", &be, NULL, 0, &err), ERR_DEVICE, err);
    unsetenv("LORA_CUDA_PLUGIN");
}

TEST(unknown_devices_and_instruction_sets_are_refused)
{
    struct backend *be;
    struct err err = {0};
    CHECK_CODE(open_device("tpu", &be, NULL, 0, &err), ERR_USAGE, err);
    setenv("LORA_CPU_ISA", "mmx", 1);
    CHECK_CODE(open_device("cpu", &be, NULL, 0, &err), ERR_DEVICE, err);
    CHECK(strstr(err.msg, "mmx"));
    unsetenv("LORA_CPU_ISA");
}
