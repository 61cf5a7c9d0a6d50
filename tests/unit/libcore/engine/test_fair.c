#include "libcore/engine/fair.h"
#include "libcore/engine/sequence.h"
#include "tests/lib/test.h"

static void arrive(struct fair_queue *q, struct sequence *s, struct fair_client *client,
                   uint64_t id, uint64_t step, int32_t priority)
{
    *s = (struct sequence){.id = id, .priority = priority};
    s->fair = (struct fair_item){.client = client,
                                 .key = (int64_t)step - (int64_t)priority * FAIR_AGE_STEPS};
    fair_add(q, s);
}

/* Takes the head of the client that is next, charging it `cost`. */
static uint64_t serve(struct fair_queue *q, uint64_t now, uint64_t cost)
{
    fair_begin(q);
    struct fair_client *c = fair_next(q, now);
    if (!c)
        return 0;
    struct sequence *s = c->first;
    fair_admitted(q, c);
    fair_remove(q, s);
    c->vtime += cost;
    return s->id;
}

TEST(one_client_is_served_in_order_of_arrival)
{
    struct fair_queue q = {0};
    struct fair_client c = {0};
    struct sequence s[3];
    for (unsigned i = 0; i < 3; i++)
        arrive(&q, &s[i], &c, i + 1, i, 0);
    for (unsigned i = 0; i < 3; i++)
        EXPECT_INT(serve(&q, 3, 10), i + 1);
    EXPECT_INT(serve(&q, 3, 10), 0);
}

TEST(clients_take_turns_by_what_they_were_given)
{
    struct fair_queue q = {0};
    struct fair_client a = {0}, b = {0};
    struct sequence s[6];
    for (unsigned i = 0; i < 4; i++)
        arrive(&q, &s[i], &a, i + 1, 0, 0);
    arrive(&q, &s[4], &b, 5, 0, 0);
    arrive(&q, &s[5], &b, 6, 0, 0);
    static const unsigned want[] = {1, 5, 2, 6, 3, 4};
    for (unsigned i = 0; i < 6; i++)
        EXPECT_INT(serve(&q, 1, 10), want[i]);
}

TEST(whoever_comes_back_has_saved_up_nothing)
{
    struct fair_queue q = {0};
    struct fair_client a = {0}, b = {0};
    struct sequence s[30];
    for (unsigned i = 0; i < 10; i++) { // a alone is served for long
        arrive(&q, &s[i], &a, i + 1, i, 0);
        serve(&q, i, 100);
    }
    for (unsigned i = 10; i < 20; i++) {
        arrive(&q, &s[i], &b, 100 + i, 10, 0);
        arrive(&q, &s[i + 10], &a, 200 + i, 10, 0);
    }
    unsigned of_b = 0;
    for (unsigned i = 0; i < 10; i++)
        of_b += serve(&q, 11, 100) < 200;
    EXPECT_MSG(of_b >= 4 && of_b <= 6, "b got %u of 10 turns", of_b);
}

TEST(a_higher_priority_goes_first_and_age_outweighs_it)
{
    struct fair_queue q = {0};
    struct fair_client a = {0}, b = {0};
    struct sequence s[3];
    arrive(&q, &s[0], &a, 1, 0, 0);
    arrive(&q, &s[1], &b, 2, 5, 1);
    fair_begin(&q);
    EXPECT(fair_next(&q, 6) == &b);
    fair_remove(&q, &s[1]);
    // two ages later a fresh request of priority 1 stands behind the old one of priority 0
    arrive(&q, &s[2], &b, 3, 2 * FAIR_AGE_STEPS, 1);
    fair_begin(&q);
    EXPECT(fair_next(&q, 2 * FAIR_AGE_STEPS + 1) == &a);
}

TEST(within_a_client_age_outweighs_priority_too)
{
    struct fair_queue q = {0};
    struct fair_client c = {0};
    struct sequence s[3];
    arrive(&q, &s[0], &c, 1, 0, 0);
    arrive(&q, &s[1], &c, 2, 10, 1);
    arrive(&q, &s[2], &c, 3, 2 * FAIR_AGE_STEPS, 1);
    EXPECT_INT(serve(&q, 20, 0), 2);
    EXPECT_INT(serve(&q, 20, 0), 1);
    EXPECT_INT(serve(&q, 20, 0), 3);
}

TEST(a_skipped_client_comes_again_in_the_next_round)
{
    struct fair_queue q = {0};
    struct fair_client a = {0}, b = {0};
    struct sequence s[2];
    arrive(&q, &s[0], &a, 1, 0, 0);
    arrive(&q, &s[1], &b, 2, 0, 0);
    fair_begin(&q);
    fair_skip(&q, fair_next(&q, 0));
    EXPECT(fair_next(&q, 0) == &b);
    fair_skip(&q, &b);
    EXPECT(fair_next(&q, 0) == NULL);
    fair_begin(&q);
    EXPECT(fair_next(&q, 0) == &a);
}
