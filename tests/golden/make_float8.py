#!/usr/bin/env python3
"""Makes tests/golden/float8/: small bases in 8-bit floats, one in every form that `lora merge` reads, one adapter, and
what merging must give, computed here in float64 and in exact fractions where float64 leaves a doubt.

Run once; the outputs are committed:
    pip install numpy==2.4.6 ml_dtypes==0.6.0 safetensors==0.8.0
    python3 tests/golden/make_float8.py tests/golden/float8

The rules (docs/MERGING.md): a scale stays where every value of its block rounds to a finite one at it (464 scales of
e4m3, 61440 of e5m2); else it is the least of its type, or the least power of two, at which the largest value is no more
than 448 (57344). Each value is then the nearest 8-bit float of (q * old scale + delta) / scale, ties to even. With
--float8 bf16 every weight is the nearest BF16 of q * scale + delta.
"""
import hashlib, json, os, shutil, sys
from fractions import Fraction
import ml_dtypes, numpy as np
from safetensors.numpy import save_file

out = sys.argv[1]
shutil.rmtree(out, ignore_errors=True)
rng = np.random.default_rng(11)
D, FF, V, RANK, ALPHA = 160, 192, 8, 4, 6
E4, E5, BF = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.bfloat16
TOP = {E4: 448.0, E5: 57344.0}
LIMIT = {E4: 464.0, E5: 61440.0}

config = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=D, intermediate_size=FF,
              num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=40, vocab_size=V,
              rms_norm_eps=1e-5, max_position_embeddings=64, tie_word_embeddings=False, hidden_act="silu",
              torch_dtype="bfloat16")
SHAPES = {"self_attn.q_proj": (160, D), "self_attn.k_proj": (80, D), "self_attn.v_proj": (80, D),
          "self_attn.o_proj": (D, 160), "mlp.gate_proj": (FF, D), "mlp.up_proj": (FF, D), "mlp.down_proj": (D, FF)}
TARGETS = ["q_proj", "o_proj", "down_proj", "gate_proj"]
names = {f"model.layers.0.{k}": v for k, v in SHAPES.items()}

expected, factors = {}, {}
for name, (o, i) in names.items():
    if name.split(".")[-1] in TARGETS:
        factors[name] = (rng.standard_normal((RANK, i)).astype(np.float32) / 8,
                         (rng.standard_normal((o, RANK)) / 8).astype(np.float32))


def write(path, tensors, cfg):
    os.makedirs(path)
    save_file(tensors, os.path.join(path, "model.safetensors"), metadata={"format": "pt"})
    json.dump(cfg, open(os.path.join(path, "config.json"), "w"), indent=2, sort_keys=True)


def digests(tensors):
    """{name: [dtype, sha256 of the payload]}"""
    kinds = {BF: "BF16", E4: "F8_E4M3", E5: "F8_E5M2", np.float32: "F32"}
    return {n: [next(k for t, k in kinds.items() if x.dtype == t), hashlib.sha256(x.tobytes()).hexdigest()]
            for n, x in tensors.items()}


def rest():
    t = {"model.embed_tokens.weight": rng.standard_normal((V, D)).astype(BF),
         "lm_head.weight": rng.standard_normal((V, D)).astype(BF), "model.norm.weight": np.ones(D, BF)}
    for n in ("input_layernorm", "post_attention_layernorm"):
        t[f"model.layers.0.{n}.weight"] = np.ones(D, BF)
    return t


def spread(scale, shape, block):
    """The scale of every value."""
    return np.repeat(np.repeat(scale, block[0], 0), block[1], 1)[:shape[0], :shape[1]]


def nearest(values, grid):
    """Exact: the index of the nearest of the sorted grid for every Fraction, ties to the even index."""
    res = np.empty(len(values), np.int64)
    for n, x in enumerate(values):
        i = int(np.searchsorted(grid, float(x)))
        best = None
        for k in range(max(0, i - 2), min(len(grid), i + 3)):
            d = abs(Fraction(float(grid[k])) - x)
            if best is None or d < best[0] or (d == best[0] and k % 2 == 0):
                best = (d, k)
        res[n] = best[1]
    return res


def exact_sum(w, name, i, j, alpha):
    x = Fraction(float(w))
    if name in factors:
        a, b = factors[name]
        s = sum((Fraction(float(b[i, k])) * Fraction(float(a[k, j])) for k in range(RANK)), Fraction(0))
        x += s * Fraction(alpha, RANK)
    return x


def round_all(wanted, w, name, scale, dtype, alpha):
    """Nearest values of dtype to wanted / scale; what float64 leaves in doubt in fractions."""
    t = wanted / scale
    got = t.astype(np.float32).astype(dtype)
    lo, hi = (t * (1 - 1e-6)).astype(np.float32).astype(dtype), (t * (1 + 1e-6)).astype(np.float32).astype(dtype)
    doubt = np.argwhere((lo.view(np.uint8 if dtype != BF else np.uint16) !=
                         hi.view(np.uint8 if dtype != BF else np.uint16)) | (t == 0))
    if dtype == BF:
        pos = np.arange(0, 0x7F80, dtype=np.uint16).view(BF).astype(np.float64)
    else:
        pos = np.arange(0, 0x7F if dtype == E4 else 0x7C, dtype=np.uint8).view(dtype).astype(np.float64)
    for i, j in doubt:
        x = exact_sum(w[i, j], name, i, j, alpha) / Fraction(float(scale[i, j]))
        if x == 0:
            got[i, j] = np.copysign(0.0, w[i, j])
            continue
        k = nearest([abs(x)], pos)[0]
        got[i, j] = pos[k] if x > 0 else -pos[k]
    return got, len(doubt)


def new_scale(peak, dtype, stored, power_of_two):
    s = peak / TOP[dtype]
    if power_of_two:
        return float(2.0 ** np.ceil(np.log2(s)))
    v = np.array(s).astype(np.float32).astype(stored)
    if float(v) < s:
        v = (v.view(np.uint32 if stored == np.float32 else np.uint16) + 1).astype(
            np.uint32 if stored == np.float32 else np.uint16).view(stored)
    return float(v)


def merge(name, q, scale, block, dtype, stored, power_of_two, alpha):
    """(q', scale', bf16, blocks rescaled)"""
    sc = spread(scale.astype(np.float64), q.shape, block)
    w = q.astype(np.float64) * sc
    delta = np.zeros_like(w)
    if name in factors:
        a, b = factors[name]
        delta = b.astype(np.float64) @ a.astype(np.float64) * (alpha / RANK)
    wanted = w + delta
    bf, doubts = round_all(wanted, w, name, np.ones_like(w), BF, alpha)
    now, n = scale.astype(np.float64).copy(), 0
    if name in factors:
        for bi in range(now.shape[0]):
            for bj in range(now.shape[1]):
                part = wanted[bi * block[0]:(bi + 1) * block[0], bj * block[1]:(bj + 1) * block[1]]
                peak = np.abs(part).max()
                if peak >= LIMIT[dtype] * now[bi, bj] and stored is not None:
                    now[bi, bj] = new_scale(peak, dtype, stored, power_of_two)
                    n += 1
        q2, more = round_all(wanted, w, name, spread(now, q.shape, block), dtype, alpha)
    else:
        q2, more = q, 0
    return q2, now, bf, n, doubts + more


def case(label, cfg, suffix, kind, dtype, stored, power_of_two=False, headroom=1.0, alpha=ALPHA, extra=None):
    base, keep, bf16 = rest(), {}, {}
    keep.update(base)
    bf16.update(base)
    total = doubts = 0
    for name, shape in names.items():
        block = {"tensor": shape, "channel": (1, shape[1]), "block": (128, 128), "none": shape}[kind]
        n = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
        w = rng.standard_normal(shape) * 0.05 * np.exp(rng.standard_normal((shape[0], 1)) * 0.5)
        scale = np.ones(n)
        if kind != "none":
            for bi in range(n[0]):
                for bj in range(n[1]):
                    part = w[bi * block[0]:(bi + 1) * block[0], bj * block[1]:(bj + 1) * block[1]]
                    s = np.abs(part).max() * headroom / TOP[dtype]
                    scale[bi, bj] = 2.0 ** np.ceil(np.log2(s)) if power_of_two else s
            scale = scale.astype(stored)
        q = (w / spread(scale.astype(np.float64), shape, block)).clip(-TOP[dtype], TOP[dtype]).astype(
            np.float32).astype(dtype)
        q[0, :3] = [0.0, -0.0, 0.0]
        q2, now, bf, n_new, n_doubt = merge(name, q, scale, block, dtype, stored if kind != "none" else None,
                                            power_of_two, alpha)
        total += n_new
        doubts += n_doubt
        base[name + ".weight"], keep[name + ".weight"], bf16[name + ".weight"] = q, q2, bf
        if kind == "none":
            continue
        as_stored = lambda x: (x.reshape(()) if suffix[1] == 0 else x.reshape(-1) if suffix[1] == 1 else x)
        base[name + suffix[0]] = np.ascontiguousarray(as_stored(scale))
        keep[name + suffix[0]] = np.ascontiguousarray(as_stored(now.astype(stored)))
        if extra:
            base[name + extra] = np.array(0.5, np.float32)
            keep[name + extra] = base[name + extra]
    quantized = dict(config, **({"quantization_config": cfg} if cfg else {}))
    write(os.path.join(out, label, "base"), base, quantized)
    expected[label] = {"keep": digests(keep), "bf16": digests(bf16), "scales_changed": total}
    adapter = os.path.join(out, label, "adapter")
    os.makedirs(adapter)
    tensors = {}
    for name, (a, b) in factors.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    save_file(tensors, os.path.join(adapter, "adapter_model.safetensors"), metadata={"format": "pt"})
    json.dump(dict(peft_type="LORA", r=RANK, lora_alpha=alpha, target_modules=sorted(TARGETS),
                   base_model_name_or_path="base"), open(os.path.join(adapter, "adapter_config.json"), "w"), indent=1)
    print(f"{label}: {total} scales change, {doubts} values by fractions")


tensor = {"quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
          "ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
              "num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}}}}
channel = json.loads(json.dumps(tensor))
channel["config_groups"]["group_0"]["weights"]["strategy"] = "channel"
deepseek = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}

case("deepseek", deepseek, (".weight_scale_inv", 2), "block", E4, np.float32)
case("ue8m0", dict(deepseek, scale_fmt="ue8m0"), (".weight_scale_inv", 2), "block", E4, np.float32,
     power_of_two=True, alpha=24)
case("static", {"quant_method": "fp8", "activation_scheme": "static"}, (".weight_scale", 0), "tensor", E4, np.float32,
     extra=".input_scale", alpha=30)
case("compressed", channel, (".weight_scale", 2), "channel", E4, BF)
case("fbgemm", {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}, (".weight_scale", 2), "channel",
     E4, np.float32, headroom=2.0)
case("e5m2", dict(deepseek, fmt="e5m2"), (".weight_scale_inv", 2), "block", E5, np.float32)
case("bare", None, None, "none", E4, None)
json.dump(expected, open(os.path.join(out, "expected.json"), "w"), indent=1, sort_keys=True)

# DoRA on 8-bit floats: judged by merge_check, for the gain is a float64 number of its own.
dora = os.path.join(out, "deepseek", "dora")
os.makedirs(dora)
tensors = {}
for name, (a, b) in factors.items():
    tensors[f"base_model.model.{name}.lora_A.weight"] = a
    tensors[f"base_model.model.{name}.lora_B.weight"] = b
    tensors[f"base_model.model.{name}.lora_magnitude_vector"] = (1 + rng.random(b.shape[0])).astype(np.float32)
save_file(tensors, os.path.join(dora, "adapter_model.safetensors"), metadata={"format": "pt"})
json.dump(dict(peft_type="LORA", r=RANK, lora_alpha=ALPHA, target_modules=sorted(TARGETS), use_dora=True,
               base_model_name_or_path="base"), open(os.path.join(dora, "adapter_config.json"), "w"), indent=1)
