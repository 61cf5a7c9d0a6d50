/*
 * initial: adapters whose training began by taking a part out of the base (PiSSA, OLoRA), as plain
 * LoRA on the base as it was.
 *
 * The trainer set W' = W - s B0 A0 and trained A, B on W', so on W the change is s (B A - B0 A0):
 * A' = [A; A0], B' = [B, -B0], twice the rank, the same scale. B0 A0 is computed again from W:
 *   PiSSA: the best approximation of rank r (PEFT 0.21 pissa_init), divided by s;
 *   OLoRA: Q R of W's QR decomposition, the first r columns of Q (olora_init).
 * Both are determined by W up to what the report says. pissa_niter_N is random, CorDA, LoRA-GA and
 * LoftQ need data: they cannot be computed again. Thread rule: re-entrant.
 */
#ifndef LIBCORE_MERGE_INITIAL_H
#define LIBCORE_MERGE_INITIAL_H

#include "libcore/adapter/adapter.h"

struct initial_report {
    size_t n_modules;
    double change;   // ||s (B A - B0 A0)||_F over all modules
    double distance; // the same, divided by ||s B0 A0||: how far training went from where it began
    double rounding; // bound on what rounding W' to the base's type changed, ||.||_F
    double arithmetic; // estimate of what float32 in the trainer did to B0 A0, ||.||_F
};

/* Whether init_lora_weights names a method that can be converted. */
bool initial_knows(const char *init);

/*
 * a: read with init_lora_weights passed over. base_folder: the base before training. *out is the
 * caller's. ERR_REFUSED: another method; a module that is no plain LoRA or does not fit; B0 A0 not
 * determined (singular values too close, dependent columns); the adapter is farther from this
 * base's B0 A0 than zero is, so that it was trained on another.
 */
int initial_convert(struct adapter **out, const struct adapter *a, const char *base_folder,
                    struct initial_report *report, struct err *err);

#endif
