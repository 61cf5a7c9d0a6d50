/*
 * run_answer: what the engine says of one prompt, kept for the main thread of `lora run`.
 * run_answer_on_event runs on the engine's thread, the rest on the main thread.
 */
#ifndef CMD_RUN_ANSWER_H
#define CMD_RUN_ANSWER_H

#include <jansson.h>
#include <pthread.h>

#include "libcore/engine/engine.h"

struct run_inbox { // shared by all answers
    pthread_mutex_t mutex;
    pthread_cond_t changed;
};

struct run_answer {
    struct run_inbox *inbox;
    int32_t *ids; // room for cap of them
    size_t n, cap;
    uint64_t first_ns; // when the first id came (thread_now_ns)
    bool finished;
    enum engine_finish finish;
    struct err error;
};

void run_answer_on_event(void *user, const struct engine_event *ev); // user: the answer
/* Waits until there are more than n_known ids or it is over; gives how many there are. */
size_t run_answer_wait_more(struct run_answer *a, size_t n_known, bool *over);
void run_answer_wait(struct run_answer *a); // until it is over
json_t *run_answer_ids(const struct run_answer *a);

#endif
