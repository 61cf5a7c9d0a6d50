"""Exported adapters in the tools they are for: llama.cpp (through xllamacpp) generates the golden answers with a GGUF
adapter over a GGUF base written here; mlx-lm loads the MLX form and has the same ΔW and the same answers, and opens merged folders, whose every value numpy
computes again."""
# tiers: clients
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np
from harness import BUILD, GOLDEN, TINYTALK, done, equal, ok

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "golden"))
from plain_safetensors import tensors  # noqa: E402
BASE = os.path.join(TINYTALK, "base")
CFG = json.load(open(os.path.join(BASE, "config.json")))
TMP = tempfile.mkdtemp(prefix="lora-exports-")


def lora(*args):
    env = dict(os.environ, LORA_STORE=os.path.join(TMP, "store"))
    return subprocess.run([os.path.join(BUILD, "lora"), *args], check=True, env=env, capture_output=True, text=True)


def export(name, kind, *more):
    out = os.path.join(TMP, f"{name}-{kind}")
    lora("export", name, "--format", kind, "--output", out, *more)
    return out


# ---- llama.cpp ----------------------------------------------------------------------------------

def write_gguf_base(path):
    """The tinytalk base as llama.cpp wants it: q and k rows interleaved for its rotation, norms in float32. The
    vocabulary is a stand-in: prompts and answers are token ids."""
    import gguf
    w = gguf.GGUFWriter(path, "llama")
    heads, kv_heads = CFG["num_attention_heads"], CFG["num_key_value_heads"]
    w.add_context_length(CFG["max_position_embeddings"])
    w.add_embedding_length(CFG["hidden_size"])
    w.add_block_count(CFG["num_hidden_layers"])
    w.add_feed_forward_length(CFG["intermediate_size"])
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_layer_norm_rms_eps(CFG["rms_norm_eps"])
    w.add_rope_freq_base(CFG.get("rope_theta") or CFG["rope_parameters"]["rope_theta"])
    w.add_rope_dimension_count(CFG.get("head_dim") or CFG["hidden_size"] // heads)
    w.add_vocab_size(CFG["vocab_size"])
    w.add_tokenizer_model("llama")
    w.add_token_list([f"<{i}>".encode() for i in range(CFG["vocab_size"])])
    w.add_token_scores([0.0] * CFG["vocab_size"])
    w.add_token_types([int(gguf.TokenType.NORMAL)] * CFG["vocab_size"])
    w.add_bos_token_id(CFG["bos_token_id"])
    eos = CFG["eos_token_id"]
    w.add_eos_token_id(eos[0] if isinstance(eos, list) else eos)
    w.add_add_bos_token(False)

    def interleave(x, n):
        return x.reshape(n, 2, x.shape[0] // n // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, x in tensors(os.path.join(BASE, "model.safetensors")).items():
        module = name[:-len(".weight")]
        x = x.astype(np.float32)
        if module.startswith("model.layers."):
            layer, leaf = module[len("model.layers."):].split(".", 1)
            x = interleave(x, heads) if leaf.endswith("q_proj") else interleave(x, kv_heads) if leaf.endswith("k_proj") else x
            w.add_tensor(f"blk.{layer}.{names[leaf]}.weight", np.ascontiguousarray(x))
        else:
            w.add_tensor(f"{top[module]}.weight", x)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def llama_answers(base, adapter, rows):
    """Greedy ids of llama.cpp for the rows' prompts."""
    import xllamacpp as xlc
    p = xlc.CommonParams()
    p.model.path = base
    p.n_ctx, p.n_parallel, p.warmup = 512, 1, False
    if adapter:
        p.lora_adapters = [xlc.CommonAdapterLoraInfo(adapter, 1.0)]
    server = xlc.Server(p)
    out = []
    for row in rows:
        answer = server.handle_completions({"prompt": row["prompt_ids"], "n_predict": len(row["ids"]), "temperature": 0.0,
                                            "cache_prompt": False})
        out.append([int(t) for t in re.findall(r"<(\d+)>", answer["choices"][0]["text"])])
    return out


def check_llama_cpp():
    base = os.path.join(TMP, "base.gguf")
    write_gguf_base(base)
    equal(llama_answers(base, None, GOLDEN["base"]), [r["ids"] for r in GOLDEN["base"]], "llama.cpp: the base's golden ids")
    for name, more in (("upper-lora", []), ("math-lora", []), ("reverse-lora", []), ("count-lora", ["--bake-scale"])):
        adapter = os.path.join(export(name, "gguf", *more), "adapter.gguf")
        equal(llama_answers(base, adapter, GOLDEN[name]), [r["ids"] for r in GOLDEN[name]],
              f"llama.cpp: golden ids with the GGUF form of {name}")


# ---- mlx-lm -------------------------------------------------------------------------------------

def mlx_answer(model, row):
    """Greedy ids, the whole sequence at each step."""
    import mlx.core as mx
    ids = list(row["prompt_ids"])
    for _ in row["ids"]:
        ids.append(int(mx.argmax(model(mx.array([ids]))[0, -1])))
    return ids[len(row["prompt_ids"]):]


def mlx_delta(module):
    """What mlx-lm's layer adds to its weight."""
    import mlx.core as mx
    a, b = (np.array(x.astype(mx.float32)).astype(np.float64) for x in (module.lora_a, module.lora_b))
    return module.scale * (a @ b).T


def peft_deltas(name, magnitudes=False):
    """ΔW of every module; with magnitudes the sums of |products|, for bounds of float64's error."""
    folder = os.path.join(TINYTALK, "adapters", name)
    c, t = json.load(open(folder + "/adapter_config.json")), tensors(folder + "/adapter_model.safetensors")
    scale = c["lora_alpha"] / (c["r"] ** 0.5 if c.get("use_rslora") else c["r"])
    mark = ".lora_A.weight"
    f = np.abs if magnitudes else lambda x: x
    return {k[len("base_model.model."):-len(mark)]: scale * (f(t[k[:-len(mark)] + ".lora_B.weight"]) @ f(a))
            for k, a in t.items() if k.endswith(mark)}


def check_mlx():
    import mlx.core as mx
    from mlx_lm.utils import load_adapters, load_model
    from pathlib import Path
    mx.set_default_device(mx.cpu)
    for name in ("upper-lora", "math-lora", "reverse-lora", "sort-lora"):
        model, _ = load_model(Path(BASE))
        model.set_dtype(mx.float32)
        model = load_adapters(model, export(name, "mlx"))
        want = peft_deltas(name)
        got = {k: mlx_delta(m) for k, m in model.named_modules() if hasattr(m, "lora_a")}
        equal(sorted(got), sorted(want), f"mlx-lm: {name} lands on the same modules")
        worst = max(np.abs(got[k] - want[k]).max() / np.abs(want[k]).max() for k in want if k in got)
        ok(worst < 1e-6, f"mlx-lm: …with the same ΔW ({worst:.1e})")
        rows = GOLDEN[name][:6]
        equal([mlx_answer(model, r) for r in rows], [r["ids"] for r in rows], "mlx-lm: …and the golden ids")


def check_merged():
    """The merged folder is an ordinary checkpoint: mlx-lm opens it and gives the adapter's answers."""
    import mlx.core as mx
    from mlx_lm.utils import load_model
    from pathlib import Path
    for name in ("math-lora", "sort-lora", "last-lora"):
        out = os.path.join(TMP, "merged-" + name)
        lora("merge", name, "--output", out)
        model, _ = load_model(Path(out))
        model.set_dtype(mx.float32)
        rows = GOLDEN[name][:6]
        equal([mlx_answer(model, r) for r in rows], [r["ids"] for r in rows], f"mlx-lm: golden ids of {name}, merged")


# ---- every value, by numpy ----------------------------------------------------------------------

def write_plain(path, values, kind):
    """The tinytalk base in another type."""
    os.makedirs(path)
    head, at, parts = {}, 0, []
    for name, x in values.items():
        raw = x.astype("<f2" if kind == "F16" else "<f4").tobytes()
        head[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": [at, at + len(raw)]}
        at += len(raw)
        parts.append(raw)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(path, "model.safetensors"), "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text + b"".join(parts))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(BASE, name), path)


def nearest_bf16(x):
    """To nearest, ties to even, from float64: round to odd at 24 bits first, so that it is rounded once."""
    f = x.astype(np.float32)
    bits = f.view(np.uint32).astype(np.int64)
    away = (f.astype(np.float64) != x) & ((np.abs(f.astype(np.float64)) > np.abs(x)))
    bits = bits - away  # toward zero
    odd = (bits.astype(np.uint32).view(np.float32).astype(np.float64) != x)
    bits = bits | odd
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32).astype(np.float64)


NEAREST = {"BF16": nearest_bf16, "F16": lambda x: x.astype(np.float16).astype(np.float64),
           "F32": lambda x: x.astype(np.float32).astype(np.float64)}


def check_values():
    """Every merged value is the nearest one to base + sum of deltas in float64; where float64's own error leaves two, one
    of the two."""
    values = tensors(os.path.join(BASE, "model.safetensors"))
    weights = {"upper-lora": 0.7, "math-lora": -0.4}
    sums, sizes = {}, {}
    for name, w in weights.items():
        sizes_of = peft_deltas(name, magnitudes=True)
        for module, d in peft_deltas(name).items():
            sums[module + ".weight"] = sums.get(module + ".weight", 0) + w * d
            sizes[module + ".weight"] = sizes.get(module + ".weight", 0) + abs(w) * sizes_of[module]
    for kind, nearest in NEAREST.items():
        base, out = (BASE if kind == "BF16" else os.path.join(TMP, "base-" + kind)), os.path.join(TMP, "values-" + kind)
        if kind != "BF16":
            write_plain(base, values, kind)
        lora("merge", *[f"{os.path.join(TINYTALK, 'adapters', n)}={w}" for n, w in weights.items()], "--base", base,
             "--output", out)
        got, was, wrong, open_ = tensors(os.path.join(out, "model.safetensors")), tensors(os.path.join(base, "model.safetensors")), 0, 0
        for name, x in got.items():
            if name not in sums:
                wrong += int((x != was[name]).sum())
                continue
            wanted = was[name] + sums[name]
            slack = 2.0 ** -53 * (20 * sizes[name] + 2 * np.abs(wanted))
            low, high = nearest(wanted - slack), nearest(wanted + slack)
            wrong += int(((x != low) & (x != high)).sum())
            open_ += int((low != high).sum())
        ok(wrong == 0, f"numpy: every merged {kind} value is the nearest ({open_} of {sum(x.size for x in got.values())} "
                       "beyond what float64 decides)", wrong)


def missing():
    try:
        import gguf, mlx_lm, xllamacpp  # noqa: F401, E401
    except ImportError as e:
        return str(e)
    return None


if __name__ == "__main__":
    why = missing()
    if why:
        print(f"1..0 # SKIP {why}: tests/clients/requirements-exports.txt could not be installed")
        sys.exit(0)
    lora("import", BASE, "--name", "tinytalk")
    lora("import", "--recursive", os.path.join(TINYTALK, "adapters"))
    try:
        check_llama_cpp()
        check_mlx()
        check_merged()
        check_values()
    finally:
        shutil.rmtree(TMP, ignore_errors=True)
    done()
