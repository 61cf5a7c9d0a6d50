#!/usr/bin/env python3
"""Makes tests/golden/initial/: adapters begun with PiSSA and OLoRA as PEFT saves them raw, and what must come of them.

float32 sets: PEFT's own conversion. On a bfloat16 base PEFT rounds the first A0 and B0 after it took them out, so that
its conversion is off by that rounding: there the trained weights themselves (residual.safetensors) are the reference.

    python3 tests/golden/make_initial.py examples/tinytalk/base tests/golden/initial     (needs peft)
"""
import os, shutil, sys
import torch
from safetensors.torch import save_file
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

base, out = sys.argv[1:3]
shutil.rmtree(out, ignore_errors=True)
for init, rslora, dtype in (("pissa", False, torch.float32), ("olora", False, torch.float32),
                            ("pissa", True, torch.float32), ("pissa", False, torch.bfloat16),
                            ("olora", False, torch.bfloat16)):
    torch.manual_seed(3)
    name = init + ("-rslora" if rslora else "") + ("-bf16" if dtype == torch.bfloat16 else "")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    cfg = LoraConfig(r=3, lora_alpha=5, target_modules=["k_proj", "v_proj"], layers_to_transform=[2],
                     init_lora_weights=init, use_rslora=rslora, task_type="CAUSAL_LM")
    m = get_peft_model(model, cfg)
    m.peft_config["default"].init_lora_weights = True
    m.save_pretrained(f"{out}/start")
    with torch.no_grad():
        for k, p in m.named_parameters():
            if "lora_" in k:
                p += 0.02 * p.abs().mean() * torch.randn_like(p)
    m.peft_config["default"].init_lora_weights = init
    m.save_pretrained(f"{out}/{name}/raw")
    if dtype == torch.float32:
        m.save_pretrained(f"{out}/{name}/converted", path_initial_model_for_weight_conversion=f"{out}/start")
    else:
        save_file({k.replace("base_model.model.", "").replace(".base_layer", ""): v.contiguous()
                   for k, v in m.state_dict().items() if ".base_layer.weight" in k}, f"{out}/{name}/residual.safetensors")
    shutil.rmtree(f"{out}/start")
    for d in ("raw", "converted"):
        if os.path.exists(f"{out}/{name}/{d}/README.md"):
            os.remove(f"{out}/{name}/{d}/README.md")
