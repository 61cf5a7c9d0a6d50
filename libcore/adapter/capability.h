/*
 * capability: what serving and merging will say of an adapter, before anything is loaded.
 * "Why was this adapter refused?" is answered here. It looks at the adapter alone; whether it fits
 * a base is libcore/model/bind's to say, and a back end's supports() has the last word on types.
 */
#ifndef LIBCORE_ADAPTER_CAPABILITY_H
#define LIBCORE_ADAPTER_CAPABILITY_H

#include "libcore/adapter/adapter.h"

enum capability_use {
    CAPABILITY_SERVE,   // alone, at scale 1
    CAPABILITY_SCALE,   // served at another scale, or with others in one request
    CAPABILITY_MERGE,   // into base weights
    CAPABILITY_COMBINE, // with others into a new adapter, by its factors
    CAPABILITY_COUNT
};

struct capability {
    bool ok;
    char why[200]; // "" when ok without remark; else the reason, or what to know
};

/* served_kinds: the kinds that the back end computes (ADAPTER_… bits). */
void capability_of(const struct adapter *a, enum capability_use use, unsigned served_kinds,
                   struct capability *out);

const char *capability_use_name(enum capability_use use); // "serve", "scale", "merge", "combine"

#endif
