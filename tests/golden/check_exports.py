#!/usr/bin/env python3
"""Reads exported adapters with their own tools' readers and formulas and compares every ΔW with the PEFT form's.

    check_exports.py BASE PEFT_FOLDER EXPORTED_FOLDER kohya|mlx|gguf|peft [TOLERANCE]
Needs numpy and safetensors; for gguf the gguf package. Prints "equal N modules, worst E" or what differs (exit 1).
"""
import glob, json, math, os, sys
import numpy as np
from plain_safetensors import tensors

base, peft, folder, kind = sys.argv[1:5]
tolerance = float(sys.argv[5]) if len(sys.argv) > 5 else 0.0
cfg = json.load(open(os.path.join(base, "config.json")))


def find(patterns, name):
    import re
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value


def read_peft(path):
    c, t = json.load(open(path + "/adapter_config.json")), tensors(path + "/adapter_model.safetensors")
    out = {}
    for name, a in t.items():
        for mark, end in ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B")):
            if not name.endswith(mark):
                continue
            module = name[len("base_model.model."):-len(mark)]
            r = find(c.get("rank_pattern") or {}, module) or c["r"]
            alpha = find(c.get("alpha_pattern") or {}, module)
            alpha = c["lora_alpha"] if alpha is None else alpha
            assert a.shape[0] == r, (module, a.shape, r)
            out[module] = (alpha / (math.sqrt(r) if c.get("use_rslora") else r)) * (t[name[:-len(mark)] + end] @ a)
    return out


def read_kohya(path):
    t = tensors(glob.glob(path + "/*.safetensors")[0])
    return {k[:-len(".alpha")]: v / t[k[:-len(".alpha")] + ".lora_down.weight"].shape[0] *
            (t[k[:-len(".alpha")] + ".lora_up.weight"] @ t[k[:-len(".alpha")] + ".lora_down.weight"])
            for k, v in t.items() if k.endswith(".alpha")}


def read_mlx(path):
    """mlx-lm: y = W x + scale * ((x @ lora_a) @ lora_b); an embedding row + scale * lora_a[row] @ lora_b."""
    c, t = json.load(open(path + "/adapter_config.json")), tensors(path + "/adapters.safetensors")
    p, out = c["lora_parameters"], {}
    for name, a in t.items():
        if name.endswith(".lora_a"):
            module = name[:-len(".lora_a")]
            assert a.shape[1] == p["rank"]
            leaf = module.split(".", 3)[3] if module.startswith("model.layers.") else module
            assert leaf in p["keys"], leaf
            out[module] = p["scale"] * (a @ t[module + ".lora_b"]).T
    return out


def read_gguf(path):
    import gguf
    r = gguf.GGUFReader(glob.glob(path + "/*.gguf")[0])
    text = lambda k: bytes(r.fields[k].parts[-1]).decode()
    assert text("general.type") == "adapter" and text("adapter.type") == "lora"
    alpha = float(r.fields["adapter.lora.alpha"].parts[-1][0])
    tensor = {t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float64) for t in r.tensors}
    names, out = {}, {}
    tmap = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, cfg["num_hidden_layers"])
    for module in want:
        names[tmap.get_name(module)] = module
    for name, a in tensor.items():
        if not name.endswith(".weight.lora_a"):
            continue
        ggml = name[:-len(".weight.lora_a")]
        module, b = names[ggml], tensor[ggml + ".weight.lora_b"]
        if ggml == "token_embd":
            a = a.T
        heads = {"q_proj": cfg["num_attention_heads"], "k_proj": cfg["num_key_value_heads"]}.get(module.rsplit(".", 1)[-1])
        delta = alpha / a.shape[0] * (b @ a)
        if heads:  # the inverse of LlamaModel.permute
            delta = delta.reshape(heads, delta.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(delta.shape)
        out[module] = delta
    return out


want = read_peft(peft)
got = {"kohya": read_kohya, "mlx": read_mlx, "gguf": read_gguf, "peft": read_peft}[kind](folder)
if kind == "kohya":
    want = {"lora_te_" + k.replace(".", "_"): v for k, v in want.items()}
if set(want) != set(got):
    sys.exit(f"modules differ: {sorted(set(want) ^ set(got))[:4]}")
worst = max(np.abs(want[k] - got[k]).max() / np.abs(want[k]).max() for k in want)
if worst > max(tolerance, 1e-15):
    sys.exit(f"differs by {worst}")
print(f"equal {len(want)} modules, worst {worst:.2g}")
