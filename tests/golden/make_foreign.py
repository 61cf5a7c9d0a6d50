#!/usr/bin/env python3
"""Makes tests/golden/foreign/: one small adapter in every form that `lora import` reads, and files that it must refuse.

Run once with torch, safetensors and gguf installed; the outputs are committed:
    python3 tests/golden/make_foreign.py examples/tinytalk/base tests/golden/foreign

Every form of one set says the same adapter, so it must have the same content id as the PEFT form. The factors come
from numpy; the layouts are written here from the formats' own descriptions, not from lora's code.
"""
import io, json, os, pickle, shutil, struct, sys, zipfile
import gguf, numpy as np, torch
from safetensors.numpy import save_file

base, out = sys.argv[1], sys.argv[2]
cfg = json.load(open(os.path.join(base, "config.json")))
D, H, KV, FF = (cfg[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"))
HD = cfg.get("head_dim") or D // H
shutil.rmtree(out, ignore_errors=True)
rng = np.random.default_rng(7)

SHAPES = {"self_attn.q_proj": (H * HD, D), "self_attn.k_proj": (KV * HD, D), "self_attn.o_proj": (D, H * HD),
          "mlp.down_proj": (D, FF)}
GGML = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.o_proj": "attn_output",
        "mlp.down_proj": "ffn_down"}


def factors(rank_of):
    """{module: (A[r,in], B[out,r])} on layers 0 and 3."""
    mods = {}
    for layer in (0, 3):
        for leaf, (o, i) in SHAPES.items():
            r = rank_of(layer, leaf)
            mods[f"model.layers.{layer}.{leaf}"] = (rng.standard_normal((r, i)).astype(np.float32) / 16,
                                                    rng.standard_normal((o, r)).astype(np.float32) / 16)
    return mods


def folder(*parts):
    path = os.path.join(out, *parts)
    os.makedirs(path, exist_ok=True)
    return path


def peft_names(mods, magnitudes=None):
    t = {}
    for m, (a, b) in mods.items():
        t[f"base_model.model.{m}.lora_A.weight"] = a
        t[f"base_model.model.{m}.lora_B.weight"] = b
        if magnitudes:
            t[f"base_model.model.{m}.lora_magnitude_vector"] = magnitudes[m]
    return t


def peft(path, tensors, **fields):
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": None, "bias": "none",
              "base_model_name_or_path": "tinytalk", **fields}
    json.dump(config, open(os.path.join(path, "adapter_config.json"), "w"), indent=2, sort_keys=True)
    if tensors:
        save_file(tensors, os.path.join(path, "adapter_model.safetensors"), {"format": "pt"})


def anchored(mods, value_of):
    return {"^" + m.replace(".", "\\."): value_of(m) for m in mods}


def cut(mods):
    """Committed files stay small: two layers, q and o alone where a form needs no more."""
    return {m: f for m, f in mods.items() if "self_attn" in m}


def kohya(path, mods, alpha=None, magnitudes=None, prefix="lora_te_", dtype=np.float32):
    t = {}
    for m, (a, b) in mods.items():
        key = prefix + m.replace(".", "_")
        t[key + ".lora_down.weight"], t[key + ".lora_up.weight"] = a, b
        if alpha:
            t[key + ".alpha"] = np.array(alpha(m), dtype)
        if magnitudes:
            t[key + ".dora_scale"] = magnitudes[m][:, None].copy()
    save_file(t, path, {"ss_network_module": "networks.lora", "ss_network_dim": "4"})


def mlx(path, mods, scale, rank, magnitudes=None):
    t = {}
    for m, (a, b) in mods.items():
        t[m + ".lora_a"], t[m + ".lora_b"] = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
        if magnitudes:
            t[m + ".m"] = magnitudes[m]
    save_file(t, os.path.join(path, "adapters.safetensors"))
    json.dump({"fine_tune_type": "dora" if magnitudes else "lora", "num_layers": -1, "model": "tinytalk",
               "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0}},
              open(os.path.join(path, "adapter_config.json"), "w"))


def permute(w, heads):  # llama.cpp's LlamaModel.permute
    return np.ascontiguousarray(w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape))


def gguf_file(path, mods, alpha, arch="llama", quant=None, **extra):
    w = gguf.GGUFWriter(path, arch)
    w.add_type("adapter")
    w.add_string("adapter.type", "lora")
    if alpha is not None:
        w.add_float32("adapter.lora.alpha", alpha)
    if extra.get("alora"):
        w.add_array("adapter.alora.invocation_tokens", [1, 2])
    for m, (a, b) in mods.items():
        _, _, layer, leaf = m.split(".", 3)
        if arch == "llama" and leaf.endswith(("q_proj", "k_proj")):
            b = permute(b, H if leaf.endswith("q_proj") else KV)
        name = f"blk.{layer}.{GGML[leaf]}.weight"
        if quant:
            w.add_tensor(name + ".lora_a", gguf.quantize(a, quant), raw_dtype=quant)
        else:
            w.add_tensor(name + ".lora_a", a)
        w.add_tensor(name + ".lora_b", b)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


# ---- plain: rank 4, scale 2 everywhere: every form can say it -----------------------------------
plain = cut(factors(lambda layer, leaf: 4))
p = folder("plain", "peft")
peft(p, peft_names(plain), r=4, lora_alpha=8)
state = {k: torch.from_numpy(v) for k, v in peft_names(plain).items()}
for name, new in (("bin", True), ("bin-old", False)):
    p = folder("plain", name)
    peft(p, None, r=4, lora_alpha=8)
    torch.save(state, os.path.join(p, "adapter_model.bin"), _use_new_zipfile_serialization=new)
# A parameter, an OrderedDict with its _metadata, transposed and offset views: what trainers really save.
p = folder("plain", "bin-views")
peft(p, None, r=4, lora_alpha=8)
module = torch.nn.Module()
from collections import OrderedDict
odd = OrderedDict()
for i, (k, v) in enumerate(state.items()):
    if i % 3 == 0:
        odd[k] = v.t().contiguous().t()
    elif i % 3 == 1:
        odd[k] = torch.cat([torch.zeros(8), v.flatten()])[8:].view(v.shape)
    else:
        odd[k] = torch.nn.Parameter(v)
odd._metadata = OrderedDict({"": {"version": 1}})
torch.save(odd, os.path.join(p, "adapter_model.bin"), pickle_protocol=4)
kohya(os.path.join(folder("plain"), "kohya.safetensors"), plain, lambda m: 8.0)
t = {}
for m, (a, b) in plain.items():
    t[f"text_encoder.{m}.lora_A.weight"], t[f"text_encoder.{m}.lora_B.weight"] = a, b
save_file(t, os.path.join(folder("plain"), "diffusers.safetensors"),
          {"lora_adapter_metadata": json.dumps({"text_encoder.r": 4, "text_encoder.lora_alpha": 8,
                                                "text_encoder.use_rslora": False})})
mlx(folder("plain", "mlx"), plain, 2.0, 4)
gguf_file(os.path.join(folder("plain"), "llama.gguf"), plain, 8.0)

# ---- unscaled: no alpha anywhere is scale 1 ----------------------------------------------------
few = {m: f for m, f in plain.items() if "layers.3" in m and "q_proj" in m}
peft(folder("unscaled", "peft"), peft_names(few), r=4, lora_alpha=4)
kohya(os.path.join(folder("unscaled"), "kohya.safetensors"), few)
t = {}
for m, (a, b) in few.items():
    t[f"transformer.{m}.lora.down.weight"], t[f"transformer.{m}.lora.up.weight"] = a, b
save_file(t, os.path.join(folder("unscaled"), "diffusers.safetensors"))
gguf_file(os.path.join(folder("unscaled"), "alpha0.gguf"), few, 0.0)
gguf_file(os.path.join(folder("unscaled"), "noalpha.gguf"), few, None)

# ---- mixed: ranks 2 and 6, alpha by module: kohya alone can say it ---------------------------------
mixed = cut(factors(lambda layer, leaf: 2 if layer else 6))
mixed = {m: f for m, f in mixed.items() if "o_proj" in m or "k_proj" in m}
alpha = {m: 3.0 if "k_proj" in m else 0.7 for m in mixed}
exact = {m: float(np.float32(v)) for m, v in alpha.items()}
peft(folder("mixed", "peft"), peft_names(mixed), r=6, lora_alpha=1,
     rank_pattern=anchored(mixed, lambda m: mixed[m][0].shape[0]), alpha_pattern=anchored(mixed, exact.get))
kohya(os.path.join(folder("mixed"), "kohya.safetensors"), mixed, exact.get, prefix="lora_unet_")

# ---- dora ----------------------------------------------------------------------------------------
one = {m: f for m, f in plain.items() if "layers.0" in m and "k_proj" in m}
mags = {m: np.abs(rng.standard_normal(b.shape[0])).astype(np.float32) + 1 for m, (a, b) in one.items()}
peft(folder("dora", "peft"), peft_names(one, mags), r=4, lora_alpha=8, use_dora=True)
kohya(os.path.join(folder("dora"), "kohya.safetensors"), one, lambda m: 8.0, mags)
mlx(folder("dora", "mlx"), one, 2.0, 4, mags)

# ---- quantised A: the values that Q8_0 holds, in PEFT form ------------------------------------------
q = {}
for m, (a, b) in few.items():
    q[m] = (gguf.dequantize(gguf.quantize(a, gguf.GGMLQuantizationType.Q8_0), gguf.GGMLQuantizationType.Q8_0), b)
peft(folder("q8", "peft"), peft_names(q), r=4, lora_alpha=8)
gguf_file(os.path.join(folder("q8"), "q8.gguf"), few, 8.0, quant=gguf.GGMLQuantizationType.Q8_0)

# ---- refused by name: file, what the message must hold ------------------------------------------------
r = folder("refuse")
key = "lora_te_model_layers_0_self_attn_q_proj"
a, b = np.ones((2, D), np.float32), np.ones((H * HD, 2), np.float32)
REFUSE = {}


def refuse(name, tensors, words, meta=None):
    save_file(tensors, os.path.join(r, name + ".safetensors"), meta)
    REFUSE[name + ".safetensors"] = words


small = np.ones((2, 3), np.float32)
down, up = f"{key}.lora_down.weight", f"{key}.lora_up.weight"
refuse("alpha0", {down: small, up: small.T.copy(), key + ".alpha": np.array(0, np.float32)}, "alpha is 0")
refuse("locon", {down: small, up: small.T.copy(), key + ".lora_mid.weight": np.ones((2, 2, 3, 3), np.float32)}, "Tucker")
refuse("conv", {down: np.ones((2, 3, 1, 1), np.float32), up: np.ones((3, 2, 1, 1), np.float32)}, "convolutions")
refuse("loha", {key + ".hada_w1_a": small}, "LoHa")
refuse("lokr", {key + ".lokr_w1": small}, "LoKr")
refuse("diff", {key + ".diff": small}, "difference of weights")
refuse("unet", {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": small,
                "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": small.T.copy()}, "no module of a causal")
refuse("clip", {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": small,
                "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": small.T.copy()},
       "no module of a causal")
refuse("half", {down: small}, "has no B")
refuse("columns", {down: small, up: small.T.copy(), key + ".dora_scale": np.ones((1, 3), np.float32)}, "magnitudes of columns")
refuse("order", {"transformer.model.layers.0.self_attn.q_proj.lora_A.weight": small,
                 "transformer.model.layers.0.self_attn.q_proj.lora_B.weight": small.T.copy(),
                 "transformer.model.layers.1.self_attn.q_proj.lora_A.weight": np.ones((3, 3), np.float32),
                 "transformer.model.layers.1.self_attn.q_proj.lora_B.weight": np.ones((3, 3), np.float32)}, "order of the keys")
refuse("pattern", {"transformer.model.layers.0.self_attn.q_proj.lora_A.weight": small,
                   "transformer.model.layers.0.self_attn.q_proj.lora_B.weight": small.T.copy()}, "alpha_pattern",
       {"lora_adapter_metadata": json.dumps({"transformer.r": 2, "transformer.lora_alpha": 2,
                                             "transformer.alpha_pattern": {"q_proj": 3}})})
refuse("bare-peft", {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": small}, "must lie beside")
tiny = {"model.layers.0.self_attn.o_proj": (np.ones((2, 4), np.float32), np.ones((4, 2), np.float32))}
gguf_file(os.path.join(r, "alora.gguf"), tiny, 2.0, alora=True)
REFUSE["alora.gguf"] = "aLoRA"
gguf_file(os.path.join(r, "arch.gguf"), tiny, 2.0, arch="mamba")
REFUSE["arch.gguf"] = "mamba"
for name, config, words in (("noscale", {"fine_tune_type": "lora", "lora_parameters": {"rank": 2}}, "lora_parameters.scale"),
                            ("full", {"fine_tune_type": "full", "lora_parameters": {"scale": 1.0}}, "extract"),
                            ("alpha", {"lora_parameters": {"rank": 2, "alpha": 2, "scale": 1.0}}, "versions of mlx-lm")):
    p = folder("refuse", "mlx-" + name)
    save_file({"model.layers.0.self_attn.q_proj.lora_a": small.T.copy(),
               "model.layers.0.self_attn.q_proj.lora_b": small}, os.path.join(p, "adapters.safetensors"))
    json.dump(config, open(os.path.join(p, "adapter_config.json"), "w"))
    REFUSE["mlx-" + name] = words
json.dump(REFUSE, open(os.path.join(r, "expected.json"), "w"), indent=1, sort_keys=True)

# ---- hostile: each must be refused as corrupt, its words in the message, and have no effect ------------
h = folder("hostile")
peft(h, None, r=4, lora_alpha=8)
HOSTILE = {}
MARK = "/tmp/lora-hostile-was-here"


class Call:
    def __init__(self, f, *args):
        self.f, self.args = f, args

    def __reduce__(self):
        return self.f, self.args


def hostile(name, data, words):
    open(os.path.join(h, name + ".bin"), "wb").write(data)
    HOSTILE[name + ".bin"] = words


def zipped(pkl, entries=(), method=zipfile.ZIP_STORED):
    buf = io.BytesIO()
    with zipfile.ZipFile(buf, "w", method) as z:
        z.writestr("archive/data.pkl", pkl)
        for n, d in entries:
            z.writestr(n, d)
    return buf.getvalue()


import builtins, subprocess
for proto in (0, 2, 4):
    hostile(f"system-{proto}", zipped(pickle.dumps(Call(os.system, f"touch {MARK}"), proto)),
            "posix.system" if proto else "hostile")
hostile("eval", zipped(pickle.dumps({"x": Call(eval, f"open('{MARK}','w')")}, 2)), "eval")
hostile("exec-bare", pickle.dumps(Call(exec, f"open('{MARK}','w')"), 2), "exec")
hostile("popen", zipped(pickle.dumps([Call(subprocess.Popen, ["touch", MARK])], 2)), "Popen")
nested = pickle.dumps(Call(os.system, f"touch {MARK}"), 2)
hostile("nested-loads", zipped(pickle.dumps({"w": Call(pickle.loads, nested)}, 2)), "loads")
hostile("torch-load", zipped(b"\x80\x02ctorch.serialization\nload\nq\x00X\x01\x00\x00\x00xq\x01\x85q\x02Rq\x03."),
        "torch.serialization.load")
hostile("getattr", zipped(b"\x80\x02c__builtin__\ngetattr\nq\x00."), "getattr")
hostile("build", zipped(b"\x80\x02ccollections\nOrderedDict\n)R]b."), "hostile")
hostile("inst", zipped(b"(S'x'\nios\nsystem\n."), "hostile")
hostile("newobj", zipped(b"\x80\x02ccollections\nOrderedDict\n)\x81."), "hostile")
hostile("ext", zipped(b"\x80\x02\x82\x01."), "hostile")
hostile("memo-hole", zipped(b"\x80\x02}r\xff\xff\xff\x7f."), "remembers out of order")
hostile("long-text", zipped(b"\x80\x02X\xff\xff\xff\x7f."), "cut off")
hostile("underflow", zipped(b"\x80\x02}(uuu."), "pickle")
hostile("no-stop", zipped(b"\x80\x02}q\x00"), "cut off")


def state_pickle(numel, offset, size, stride, key="0"):
    def number(v):
        return b"\x8a\x08" + struct.pack("<q", v)
    def text(v):
        return b"X" + struct.pack("<I", len(v)) + v.encode()
    return (b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\nFloatStorage\n" +
            text(key) + text("cpu") + number(numel) + b"tQ" + number(offset) + b"(" + b"".join(map(number, size)) + b"t(" +
            b"".join(map(number, stride)) + b"t\x89ccollections\nOrderedDict\n)RtRs.")


data = [("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))]
hostile("beyond", zipped(state_pickle(4, 0, (2, 3), (3, 1)), data), "beyond its storage")
hostile("offset", zipped(state_pickle(4, 3, (2,), (1,)), data), "beyond its storage")
hostile("expanded", zipped(state_pickle(4, 0, (1 << 40,), (0,)), data), "beyond its storage")
hostile("overflow", zipped(state_pickle(4, 0, (1 << 32, 1 << 32, 0), (1, 1, 1)), data), "beyond its storage")
hostile("storage-size", zipped(state_pickle(1 << 40, 0, (4,), (1,)), data), "wanted")
hostile("storage-gone", zipped(state_pickle(4, 0, (4,), (1,), "7"), data), "does not hold")
hostile("traversal", zipped(state_pickle(4, 0, (4,), (1,), "../../etc/passwd"), data), "impossible name")
good = open(os.path.join(out, "plain", "bin", "adapter_model.bin"), "rb").read()
hostile("truncated", good[:2000], "directory")
hostile("truncated-head", good[:3], "hostile")
bad = bytearray(zipped(state_pickle(4, 0, (4,), (1,)), data))
bad[bad.index(struct.pack("<4f", 1, 2, 3, 4))] ^= 1
hostile("bad-crc", bytes(bad), "CRC")
hostile("deflated", zipped(state_pickle(4, 0, (4,), (1,)), [("archive/data/0", b"\0" * 1000)], zipfile.ZIP_DEFLATED), "compressed")
hostile("two-data", zipped(b"\x80\x02}.", [("other/data.pkl", b"\x80\x02}.")]), "two data.pkl")
buf = io.BytesIO()
with zipfile.ZipFile(buf, "w") as z:
    z.writestr("x", "y")
hostile("no-data", buf.getvalue(), "without data.pkl")
json.dump(HOSTILE, open(os.path.join(h, "expected.json"), "w"), indent=1, sort_keys=True)
