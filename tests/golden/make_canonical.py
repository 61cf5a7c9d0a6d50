#!/usr/bin/env python3
"""Writes canonical.json: the canonical form of every fixture adapter, told by a second reader.

    make_canonical.py FIXTURES >canonical.json

One line a module, sorted: name parameter rank scale, then what else it has, each tensor by the
first 16 digits of its bytes' sha256. The file keeps the sha256 of those lines by adapter.
"""
import glob, hashlib, json, math, os, re, struct, sys

PARTS = [(".lora_A.weight", "a"), (".lora_B.weight", "b"), (".lora_B.bias", "lora_bias"),
         (".lora_embedding_A", "a"), (".lora_embedding_B", "b"), (".lora_magnitude_vector", "magnitude"),
         (".token_adapter.trainable_tokens_delta", "rows"), (".base_layer.weight", "saved_base"),
         (".base_layer.bias", "bias"), (".bias", "bias"), (".weight", "full")]


def tensors(path):
    raw = open(path, "rb").read()
    n = struct.unpack("<Q", raw[:8])[0]
    for name, t in json.loads(raw[8:8 + n]).items():
        if name != "__metadata__":
            begin, end = t["data_offsets"]
            yield name.removeprefix("base_model.model."), t["shape"], raw[8 + n + begin:8 + n + end]


def first(patterns, key, default):
    return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", key)), default)


def modules(folder):
    c = json.load(open(f"{folder}/adapter_config.json"))
    found, experts = {}, {}
    for name, shape, data in tensors(f"{folder}/adapter_model.safetensors"):
        suffix, part = next(p for p in PARTS if name.endswith(p[0]))
        module = name.removesuffix(suffix)
        target = experts if ".experts" in module else found
        target.setdefault(module, {})[part] = (shape, data)
        if "embedding" in suffix:
            target[module]["embedding"] = True
    for module, m in experts.items():  # mixtral and qwen3 register gate_up_proj first: it is inside
        inner = module.endswith(".base_layer")
        found[module.removesuffix(".base_layer"), "gate_up_proj" if inner else "down_proj"] = m
    for key, m in found.items():
        module, parameter = key if isinstance(key, tuple) else (key, "weight")
        yield c, module, parameter, m


def line(c, module, parameter, m):
    out, digest = [module, parameter], lambda data: hashlib.sha256(data).hexdigest()[:16]
    parameters = c["target_parameters"] or []
    key = module if parameter == "weight" else f"{module}.{parameter}"
    if any(f"{module}.weight".endswith("." + p) for p in parameters):
        key = f"{module}.weight"
    if "a" in m:
        rank, alpha = first(c["rank_pattern"], key, c["r"]), first(c["alpha_pattern"], key, c["lora_alpha"])
        scale = alpha / math.sqrt(rank) if c["use_rslora"] else alpha / rank
        out += [str(rank), "%.17g" % scale]
        if parameter != "weight":
            out.append("experts=%d" % (m["a"][0][0] // rank))
        if "embedding" in m:
            out.append("embedding")
    for part in ("a", "b", "magnitude", "lora_bias", "bias", "full", "saved_base", "rows"):
        if part in m:
            shape, data = m[part]
            if part == "rows":
                ids = next(v for k, v in c["trainable_token_indices"].items() if module.endswith(k))
                assert ids == sorted(ids)
                out.append("ids=" + ",".join(map(str, ids)))
            out.append("%s=%s:%s" % (part, "x".join(map(str, shape)), digest(data)))
    return " ".join(out)


result = {}
for folder in sorted(glob.glob(f"{sys.argv[1]}/kinds/*/adapters/*") + glob.glob(f"{sys.argv[1]}/archs/*/adapters/*") +
                     glob.glob(f"{sys.argv[1]}/tinytalk/adapters/*")):
    text = "".join(sorted(line(*m) + "\n" for m in modules(folder)))
    if os.environ.get("SHOW") and os.environ["SHOW"] in folder:
        sys.stderr.write(text)
    result[os.path.relpath(folder, sys.argv[1])] = hashlib.sha256(text.encode()).hexdigest()
json.dump(result, sys.stdout, indent=0, sort_keys=True)
print()
