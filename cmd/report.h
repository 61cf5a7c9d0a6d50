/*
 * report: the HTML page of `lora inspect --html`: one file, no outside resources, an SVG heat map.
 */
#ifndef CMD_REPORT_H
#define CMD_REPORT_H

#include <jansson.h>

#include "libcore/base/err.h"

/* Writes the page of what inspect_info gathered. ERR_IO, ERR_NO_MEMORY. */
int report_write(const json_t *info, const char *path, struct err *err);

#endif
