/*
 * pack_overlay: `lora pack REF --overlay-of BASE`: what is packed of a base that lies over another.
 */
#ifndef CMD_PACK_OVERLAY_H
#define CMD_PACK_OVERLAY_H

#include "cmd/cmd.h"
#include "store/overlay.h"

struct pack_overlay {
    struct store *s; // NULL: both are folders
    struct lease *lease;
    struct base_model *model, *base;
    char *work_folder; // beside the output
    char name[LIMIT_NAME_BYTES + 1], tag[STORE_TAG_BYTES + 1];
    json_t *record;
};

/* ref, base_ref: bases of the store, folders or hub ids. *items: the pack's files, to be written
 * before pack_overlay_release(). */
int pack_overlay_open(struct pack_overlay *out, struct cmd_context *ctx, const char *ref,
                      const char *base_ref, const char *output, struct pack_items *items,
                      struct err *err);
void pack_overlay_release(struct pack_overlay *p);

#endif
