/*
 * table: aligned columns for a terminal. Widths count columns as a terminal shows them (UTF-8).
 */
#ifndef CMD_TABLE_H
#define CMD_TABLE_H

#include <stdint.h>
#include <stdio.h>

struct table;

/* headings: "NAME", ">BYTES" (a leading > aligns right), NULL-ended. NULL when memory is out. */
struct table *table_open(const char *const *headings);
void table_free(struct table *t);
/* As many strings as headings; copied. */
void table_row(struct table *t, const char *const *cells);
void table_print(const struct table *t, FILE *out);

/* Into buf, which is returned: "1.2 GB" (powers of 1000), "12 s ago", "41.9 M". */
const char *table_bytes(char *buf, uint64_t bytes);
const char *table_count(char *buf, uint64_t n);
const char *table_age(char *buf, uint64_t unix_seconds_then);
enum { TABLE_CELL_BYTES = 32 };

#endif
