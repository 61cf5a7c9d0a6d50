/*
 * hub: finds snapshots in the local Hugging Face cache. Never the network.
 * HF_HUB_CACHE, else HUGGINGFACE_HUB_CACHE, else $HF_HOME/hub, else
 * $XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub.
 */
#ifndef LIBCORE_FORMAT_HUB_H
#define LIBCORE_FORMAT_HUB_H

#include <stdbool.h>

#include "libcore/base/err.h"

/* The cache's folder, whether or not it is there; the caller's, to free with sys_free. */
int hub_cache_folder(char **out, struct err *err);

/* Whether the text has the form org/name[@revision] (letters, digits, ., _, -). */
bool hub_is_id(const char *text);

/* Folder of a snapshot of "org/name[@revision]": the revision is a branch or tag of refs/, a commit
 * or a unique prefix of one (≥ 6); without it: main, else the only snapshot. *out is the caller's.
 * ERR_NOT_FOUND says what was looked for where; ERR_USAGE: no hub id. */
int hub_find(char **out, const char *id, struct err *err);

/* Name of a snapshot's repository ("org/name") from a path into the cache
 * (…/models--org--name/snapshots/<hash>…), or NULL. The caller's, to free with sys_free. */
char *hub_name_of_path(const char *path);

#endif
