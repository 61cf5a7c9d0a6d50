/*
 * kernels: the back ends that this program can open.
 */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include "libcore/backend.h"

/* "cpu" or "cuda:N": opens it. "auto": the first CUDA device if the plug-in is there and usable,
 * else the CPU; `note` gets one line that says what was found. cuda without a usable plug-in or
 * card is ERR_DEVICE with the reason. The plug-in is lora_cuda.so beside the program (or
 * $LORA_CUDA_PLUGIN), opened once with dlopen; its symbol is `backend_cuda_ops`. */
int kernels_open(struct backend **out, const struct backend_options *opt, char *note,
                 size_t note_bytes, struct err *err);

extern const struct backend_ops backend_cpu_ops;

#endif
