/* scheduler's own: shared by scheduler.c (sets, pages, the plan) and admission.c (who comes in). */
#ifndef LIBCORE_ENGINE_SCHEDULER_IMPL_H
#define LIBCORE_ENGINE_SCHEDULER_IMPL_H

#include "libcore/engine/scheduler.h"

struct scheduler {
    struct scheduler_options opt;
    struct fair_queue waiting;
    struct fair_client base_client, mixed_client;
    struct sequence **running; // by sequence_compare_rows()
    struct sequence **by_age;  // the same ones; the last is the first to be preempted
    uint32_t n_running, n_uses_running;
    uint32_t n_table_entries; // page table entries of all running sequences
    uint64_t step, n_plans;
    bool in_flight;
    uint32_t budget;         // rows left in the step that is planned
    uint32_t n_extra_logits; // logit rows beyond one for each running sequence
    struct sequence *urgent; // it has waited too long for room among the adapters
    bool urgent_only;        // and KV pages must go for it: nobody else is admitted
    struct scheduler_stats stats;
};

// scheduler.c
uint32_t scheduler_pages_for(const struct scheduler *s, uint32_t n_positions);
void scheduler_enter_running(struct scheduler *s, struct sequence *seq);
void scheduler_give_pages(struct scheduler *s, struct sequence *seq);
bool scheduler_need_pages(struct scheduler *s, struct sequence *seq, uint32_t n_positions);
void scheduler_plan_prefill(struct scheduler *s, struct sequence *seq);

// admission.c
void scheduler_admit(struct scheduler *s);
void scheduler_end_urgency(struct scheduler *s);

#endif
