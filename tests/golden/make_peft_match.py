#!/usr/bin/env python3
"""Writes peft_match.json: configurations and what PEFT's own rules, run by Python's re, make of them.

    make_peft_match.py >peft_match.json

The rules are those of PEFT 0.21: get_pattern_key (utils/other.py) for rank_pattern and
alpha_pattern, check_target_module_exists (tuners/tuners_utils.py) for the rest.
"""
import json, random, re

random.seed(21)
NAMES = ["model.embed_tokens", "lm_head", "model.norm", "model.layers.0.self_attn.q_proj",
         "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.v_proj", "model.layers.11.mlp.up_proj",
         "model.layers.2.mlp.experts.3.w1"]
ATOMS = ["q_proj", "v_proj", ".*", "up", "_proj", "layers", r"\.", r"\d+", "[01]", "(?:q|v)", "(q|up)",
         "(?P<x>v)", ".", "+", "?", "self_attn", "^", "$", "mlp", "experts", "1", "|", "model", "(?!q)",
         "(?=v)", "{1,2}", "*", ".*?", r"\b", "w1", "[^.]+", "(?i:Q)", r"(?<=\.)", r"\w", r"\S+"]


def pattern():
    return "".join(random.choice(ATOMS) for _ in range(random.randint(1, 5)))


def first_key(keys, name):
    compiled = [re.compile(rf"(.*\.)?({k})$") for k in keys]  # all of them: PCRE2 compiles all too
    return next((k for k, c in zip(keys, compiled) if c.match(name)), None)


def listed(entries, name):
    return name in entries or any(name.endswith(f".{e}") for e in entries)


def layer_fits(c, name):
    wanted, patterns = c.get("layers_to_transform"), c.get("layers_pattern")
    if wanted is None or wanted == []:
        return True
    if not patterns:
        match = re.match(r".*?\.[^.]*\.(?P<idx>\d+)\.", name)
    else:
        for p in [patterns] if isinstance(patterns, str) else patterns:
            match = re.match(rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\.", name)
            if match:
                break
    if not match:
        return False
    index = int(match["idx"])
    return index == wanted if isinstance(wanted, int) else index in wanted


def targeted(c, name):
    exclude, target = c.get("exclude_modules"), c["target_modules"]
    if isinstance(exclude, str) and re.fullmatch(exclude, name):
        return False
    if isinstance(exclude, list) and listed(exclude, name):
        return False
    if any(re.match(rf"(^|.*\.){m}($|\..*)", name) for m in c.get("modules_to_save") or []):
        return False
    if isinstance(target, str):
        return re.fullmatch(target, name) is not None
    return listed(target, name) and layer_fits(c, name)


def configuration():
    c = {"r": 8, "lora_alpha": 16,
         "rank_pattern": {pattern(): random.randint(1, 64) for _ in range(random.randint(0, 3))},
         "alpha_pattern": {pattern(): random.randint(1, 64) for _ in range(random.randint(0, 3))}}
    entries = ["q_proj", "v_proj", "self_attn.q_proj", "lm_head", "embed_tokens", "w1", "up_proj", "proj",
               "model.layers.0.mlp.up_proj"]
    c["target_modules"] = pattern() if random.random() < 0.5 else random.sample(entries, 3)
    if random.random() < 0.3:
        c["exclude_modules"] = pattern() if random.random() < 0.5 else ["v_proj", "lm_head"]
    if random.random() < 0.3:
        c["modules_to_save"] = [random.choice(["lm_head", "embed_tokens", "mlp", "norm", "head"])]
    if isinstance(c["target_modules"], list) and random.random() < 0.4:
        c["layers_to_transform"] = random.choice([0, 1, [1, 2], [11], []])
        if random.random() < 0.5:
            c["layers_pattern"] = random.choice(["layers", "experts", ["h", "layers"], [], "ayers"])
    return c


cases = []
while len(cases) < 300:
    c = configuration()
    try:
        rows = [[c["rank_pattern"].get(first_key(c["rank_pattern"], n), 8),
                 c["alpha_pattern"].get(first_key(c["alpha_pattern"], n), 16), targeted(c, n)] for n in NAMES]
    except re.error:
        continue
    cases.append({"config": c, "want": rows})
print('{"names":%s,"cases":[' % json.dumps(NAMES))
print(",\n".join(json.dumps(c, separators=(",", ":")) for c in cases))
print("]}")
