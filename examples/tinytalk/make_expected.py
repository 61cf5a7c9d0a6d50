"""Makes expected.json: the answers of transformers and PEFT to the words of the demo, greedy, one at a time, float32
arithmetic on the bf16 base, chat template applied. Needs torch, transformers and peft (made with transformers 5.24.0, peft 0.21.2, torch 2.15.0 on a CPU)."""
import json
import os
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
PROMPTS = sys.argv[1:] or ["hot sheet gush", "12 30"]


def answer(model, tokenizer, prompt):
    text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                         add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    start = ids.shape[1]
    for _ in range(64):
        with torch.no_grad():
            best = int(model(input_ids=ids).logits[0, -1].argmax())
        if best == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, torch.tensor([[best]])], dim=1)
    return tokenizer.decode(ids[0, start:], skip_special_tokens=True)


def load():
    return AutoModelForCausalLM.from_pretrained(os.path.join(HERE, "base"), dtype=torch.float32).eval()


def main():
    tokenizer = AutoTokenizer.from_pretrained(os.path.join(HERE, "base"))
    answers = {p: {"tinytalk": answer(load(), tokenizer, p)} for p in PROMPTS}
    for name in sorted(os.listdir(os.path.join(HERE, "adapters"))):
        model = PeftModel.from_pretrained(load(), os.path.join(HERE, "adapters", name)).eval()
        for p in PROMPTS:
            answers[p][name] = answer(model, tokenizer, p)
    json.dump({"made_by": "make_expected.py: transformers 5.24.0, peft 0.21.2, float32, greedy", "answers": answers},
              open(os.path.join(HERE, "expected.json"), "w"), indent=1)


main()
