/*
 * output: the thread between the engine and the sockets. It takes what the engine said of each
 * generation, makes text of it and wakes each stream's connection once a step.
 */
#ifndef CMD_SERVE_OUTPUT_H
#define CMD_SERVE_OUTPUT_H

#include "cmd/serve/generation.h"
#include "cmd/serve/metrics.h"

/* metrics is borrowed. The engine is set before the first generation. */
int output_open(struct output **out, struct metrics *metrics, struct err *err);
void output_set_engine(struct output *o, struct engine *engine);
/* After the engine is gone: nothing may be marked any more. */
void output_free(struct output *o);

/* A generation is in work from here until every choice is over. Holds it. */
void output_add(struct output *o, struct generation *g);
/* The engine said something of it; takes the caller's reference. Any thread, never blocks long. */
void output_mark(struct output *o, struct generation *g);
/* The step is over: go on. Any thread. (engine_options.on_step, with the output as user.) */
void output_wake(void *o);
/* The client of this generation left. */
void output_gone(struct output *o, struct generation *g);
unsigned output_n_running(struct output *o);

#endif
