#include "cmd/run_answer.h"

#include "libcore/base/thread.h"

void run_answer_on_event(void *user, const struct engine_event *ev)
{
    struct run_answer *a = user;
    pthread_mutex_lock(&a->inbox->mutex);
    if (ev->type == ENGINE_EVENT_TOKEN && a->n == 0)
        a->first_ns = thread_now_ns();
    if (ev->type == ENGINE_EVENT_TOKEN && a->n < a->cap)
        a->ids[a->n++] = ev->token;
    if (ev->type == ENGINE_EVENT_FINISHED) {
        a->finished = true;
        a->finish = ev->finish;
        if (ev->finish == ENGINE_FINISH_ERROR)
            err_set(&a->error, ev->error ? ev->error->code : ERR_INTERNAL, "%s",
                    ev->error ? ev->error->msg : "the engine failed");
    }
    pthread_cond_signal(&a->inbox->changed);
    pthread_mutex_unlock(&a->inbox->mutex);
}

size_t run_answer_wait_more(struct run_answer *a, size_t n_known, bool *over)
{
    pthread_mutex_lock(&a->inbox->mutex);
    while (n_known == a->n && !a->finished)
        pthread_cond_wait(&a->inbox->changed, &a->inbox->mutex);
    size_t n = a->n;
    *over = a->finished;
    pthread_mutex_unlock(&a->inbox->mutex);
    return n;
}

void run_answer_wait(struct run_answer *a)
{
    pthread_mutex_lock(&a->inbox->mutex);
    while (!a->finished)
        pthread_cond_wait(&a->inbox->changed, &a->inbox->mutex);
    pthread_mutex_unlock(&a->inbox->mutex);
}

json_t *run_answer_ids(const struct run_answer *a)
{
    json_t *list = json_array();
    for (size_t i = 0; i < a->n; i++)
        json_array_append_new(list, json_integer(a->ids[i]));
    return list;
}
