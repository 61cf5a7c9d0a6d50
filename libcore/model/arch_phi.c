#include "libcore/model/arch.h"

static void read_phi3(struct model_config *c, struct config_reader *r)
{
    c->fused_qkv = c->fused_gate_up = true;
    config_set_windows(c, r, config_u32(r, "sliding_window", 0));
}

const struct arch_entry arch_phi3 = {
    .arch = ARCH_PHI3,
    .class_name = "Phi3ForCausalLM",
    .model_type = "phi3",
    .read = read_phi3,
};
