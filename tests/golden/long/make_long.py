#!/usr/bin/env python3
"""Long prompts and rope tables: what transformers and PEFT say of them.

    python -m venv V && V/bin/pip install torch==2.15.0 transformers==5.24.0 peft==0.21.2
    V/bin/python tests/golden/long/make_long.py        # CPU, a minute; writes beside itself

Random miniatures (weights bf16, reference arithmetic float32), each with adapters; reference.json holds, as in the
fixtures' archs/, the last position's logits and the greedy ids of prompts of 2,000 to 3,000 tokens. What is long here:
llama: llama3 frequencies, prompts beyond original_max_position_embeddings; phi3: longrope's long regime; mistral: a
sliding window of 512, which 2,000 tokens overrun. rope.json holds inverse frequencies and attention factors of
modeling_rope_utils.ROPE_INIT_FUNCTIONS for configurations of every type that is computed here.
"""
import json
import os
import shutil
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

HERE = os.path.dirname(os.path.abspath(__file__))
SMALL = dict(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=4096, bos_token_id=0, eos_token_id=1, pad_token_id=0)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=512)
LONGROPE = dict(rope_type="longrope", short_factor=[1 + i / 8 for i in range(8)],
                long_factor=[1 + i * i / 2 for i in range(8)])
BASES = {
    "llama": ("llama", dict(SMALL, head_dim=16, rope_theta=500000.0, rope_scaling=LLAMA3)),
    "mistral": ("mistral", dict(SMALL, head_dim=16, sliding_window=512)),
    "phi3": ("phi3", dict(SMALL, original_max_position_embeddings=512, rope_scaling=LONGROPE)),
}
ADAPTERS = {
    "plain": dict(r=8, lora_alpha=16, target_modules="all-linear"),
    "dora": dict(r=4, lora_alpha=8, use_dora=True, target_modules="all-linear"),
}
LENGTHS, STEPS = (2000, 3000), 4

# The tables that tests/unit/libcore/model/test_config_rope.c holds config_rope_table() against.
PLAIN = dict(SMALL, head_dim=16)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=1024)
ROPES = {
    "linear": dict(rope_type="linear", factor=4.0),
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn-mscale": dict(YARN, mscale=1.0, mscale_all_dim=0.5, beta_fast=16.0, beta_slow=2.0),
    "yarn-no-truncate": dict(YARN, truncate=False, attention_factor=1.25),
    "longrope-short": dict(LONGROPE, original_max_position_embeddings=512),
    "longrope-long": dict(LONGROPE, original_max_position_embeddings=512),
}


@torch.no_grad()
def probe(model, prompts):
    rows = []
    for prompt in prompts:
        ids, greedy, first, margin = list(prompt), [], None, 1e9
        for _ in range(STEPS):
            row = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
            first = row if first is None else first
            top = row.topk(2).values
            margin = min(margin, float(top[0] - top[1]) / float(row.pow(2).mean().sqrt()))
            greedy.append(int(row.argmax()))
            ids.append(greedy[-1])
        print(f"  {len(prompt)} tokens, smallest margin {margin:.3f} rms")
        rows.append(dict(prompt=list(prompt), logits=[round(v, 5) for v in first.tolist()], greedy=greedy))
    return rows


def make_base(name, model_type, fields):
    folder = f"{HERE}/{name}"
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields))
    with torch.no_grad():
        for key, p in model.named_parameters():
            p.normal_(0, 0.12 if p.dim() > 1 else 0.1)
            if "norm" in key:
                p.add_(1.0)
    model.to(torch.bfloat16).save_pretrained(folder)
    load = lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    g = torch.Generator().manual_seed(7)
    prompts = [torch.randint(2, SMALL["vocab_size"], (n,), generator=g).tolist() for n in LENGTHS]
    print(name)
    reference = {"base": probe(load(), prompts)}
    for adapter, options in ADAPTERS.items():
        torch.manual_seed(13)
        peft = get_peft_model(load(), LoraConfig(task_type="CAUSAL_LM", **options))
        with torch.no_grad():
            for key, p in peft.named_parameters():
                if "lora_B" in key:
                    p.normal_(0, 0.05)
                if "magnitude" in key:
                    p.mul_(1 + 0.1 * torch.randn_like(p))
        path = f"{folder}/adapters/{adapter}"
        peft.save_pretrained(path)
        config = json.load(open(f"{path}/adapter_config.json"))
        config["base_model_name_or_path"] = f"tests/golden/long/{name}"
        json.dump(config, open(f"{path}/adapter_config.json", "w"), indent=1, sort_keys=True)
        if os.path.exists(f"{path}/README.md"):
            os.remove(f"{path}/README.md")
        reference[adapter] = probe(PeftModel.from_pretrained(load(), path).eval(), prompts)
    json.dump(reference, open(f"{folder}/reference.json", "w"), separators=(",", ":"))


def rope_row(name, rope):
    model_type = "phi3" if name.startswith("longrope") else "llama"
    fields = dict(SMALL if model_type == "phi3" else PLAIN, rope_theta=10000.0, rope_scaling=dict(rope))
    if model_type == "phi3":
        fields["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    config = AutoConfig.for_model(model_type, **fields)
    if rope["rope_type"] == "longrope":
        seq_len = 4096 if name.endswith("long") else 256
    else:
        seq_len = None
    inv_freq, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu", seq_len=seq_len)
    return dict(rope=rope, inv_freq=inv_freq.double().tolist(), attention_factor=float(factor))


if __name__ == "__main__":
    rows = {name: rope_row(name, rope) for name, rope in ROPES.items()}
    json.dump(rows, open(f"{HERE}/rope.json", "w"), indent=1)
    for name, (model_type, fields) in BASES.items():
        if len(sys.argv) < 2 or name in sys.argv[1:]:
            make_base(name, model_type, fields)
