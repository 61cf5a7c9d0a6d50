/*
 * run_logits: last-position logits of prompts, through the back-end port alone: one prompt at a
 * time, no engine, no sampling. For checks of the arithmetic from outside (`lora run --logits`).
 */
#ifndef CMD_RUN_LOGITS_H
#define CMD_RUN_LOGITS_H

#include "cmd/run_prompt.h"
#include "cmd/serve/runtime.h"

/* The model is loaded, no engine is open. out: [n, vocab] float32, the caller's. */
int run_logits(struct runtime *rt, const struct run_adapter *adapters, size_t n_adapters,
               const struct run_prompt *prompts, size_t n, float *out, struct err *err);

#endif
