/*
 * progress: how far long work has come, on stderr: bytes, rate, time left.
 * A bar only on a terminal; `plain` gives a line every few seconds; `none` nothing. Thread-safe.
 */
#ifndef CMD_PROGRESS_H
#define CMD_PROGRESS_H

#include <stdint.h>

struct progress;

/* mode: "auto" (a bar if stderr is a terminal, else nothing), "plain", "none". NULL never fails:
 * every call accepts NULL. total_bytes 0: unknown. */
struct progress *progress_open(const char *mode, const char *what, uint64_t total_bytes);
void progress_free(struct progress *p); // removes the bar
void progress_add(struct progress *p, uint64_t bytes);
void progress_label(struct progress *p, const char *text); // the item in hand

#endif
