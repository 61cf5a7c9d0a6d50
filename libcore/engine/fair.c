#include "libcore/engine/fair.h"

#include <stddef.h>

#include "libcore/engine/sequence.h"

bool fair_before(const struct sequence *a, const struct sequence *b)
{
    return a->fair.key != b->fair.key ? a->fair.key < b->fair.key : a->id < b->id;
}

static void client_add(struct fair_queue *q, struct fair_client *client)
{
    if (client->n_running == 0 && client->vtime < q->clock)
        client->vtime = q->clock;
    client->prev = NULL;
    client->next = q->clients;
    if (q->clients)
        q->clients->prev = client;
    q->clients = client;
}

static void client_remove(struct fair_queue *q, struct fair_client *client)
{
    if (client->prev)
        client->prev->next = client->next;
    else
        q->clients = client->next;
    if (client->next)
        client->next->prev = client->prev;
}

void fair_add(struct fair_queue *q, struct sequence *s)
{
    struct fair_client *client = s->fair.client;
    if (client->n_waiting++ == 0)
        client_add(q, client);
    q->n_waiting++;
    struct sequence *after = client->last;
    while (after && fair_before(s, after))
        after = after->fair.prev;
    s->fair.prev = after;
    s->fair.next = after ? after->fair.next : client->first;
    if (s->fair.next)
        s->fair.next->fair.prev = s;
    else
        client->last = s;
    if (after)
        after->fair.next = s;
    else
        client->first = s;
}

void fair_remove(struct fair_queue *q, struct sequence *s)
{
    struct fair_client *client = s->fair.client;
    if (s->fair.prev)
        s->fair.prev->fair.next = s->fair.next;
    else
        client->first = s->fair.next;
    if (s->fair.next)
        s->fair.next->fair.prev = s->fair.prev;
    else
        client->last = s->fair.prev;
    s->fair.prev = s->fair.next = NULL;
    q->n_waiting--;
    if (--client->n_waiting == 0)
        client_remove(q, client);
}

void fair_begin(struct fair_queue *q)
{
    q->round++;
}

/* Rounds toward minus infinity, so that a class lasts FAIR_AGE_STEPS steps on both sides of 0. */
static int64_t class_of(const struct sequence *s, uint64_t now_step)
{
    int64_t waited = (int64_t)now_step - s->fair.key;
    int64_t quotient = waited / FAIR_AGE_STEPS;
    return waited % FAIR_AGE_STEPS < 0 ? quotient - 1 : quotient;
}

struct fair_client *fair_next(struct fair_queue *q, uint64_t now_step)
{
    struct fair_client *best = NULL;
    int64_t best_class = 0;
    for (struct fair_client *c = q->clients; c; c = c->next) {
        if (c->skipped_round == q->round)
            continue;
        int64_t class = class_of(c->first, now_step);
        bool better = !best || class > best_class;
        if (!better && class == best_class)
            better = c->vtime != best->vtime ? c->vtime < best->vtime
                                             : fair_before(c->first, best->first);
        if (better) {
            best = c;
            best_class = class;
        }
    }
    return best;
}

void fair_skip(struct fair_queue *q, struct fair_client *client)
{
    client->skipped_round = q->round;
}

void fair_admitted(struct fair_queue *q, struct fair_client *client)
{
    if (client->vtime > q->clock)
        q->clock = client->vtime;
}
