#!/usr/bin/env python3
"""Makes tests/golden/combine_svd.json: what PEFT's three svd combinations of upper-lora and title-lora would be in
float64, by numpy: for every module the leading eight singular values of the whole matrix M and M8 x for one fixed x,
M8 its best approximation of rank 8. tests/unit/libcore/merge/test_combine_peft.c measures ours and PEFT's saved
results against it.

    pip install numpy==2.4.6
    python3 tests/golden/make_combine_svd.py examples/tinytalk/adapters COMBOS.json tests/golden/combine_svd.json
COMBOS.json: {"svd-a": {"weights": [...], "density": ...}, ...}, the fixture's list of what was made.
"""
import json, os, sys
import numpy as np
from plain_safetensors import tensors

adapters, combos, out = sys.argv[1:4]
MARK = ".lora_A.weight"


def deltas(name):
    folder = os.path.join(adapters, name)
    c, t = json.load(open(folder + "/adapter_config.json")), tensors(folder + "/adapter_model.safetensors")
    return {k[len("base_model.model."):-len(MARK)]: c["lora_alpha"] / c["r"] * (t[k[:-len(MARK)] + ".lora_B.weight"] @ a)
            for k, a in t.items() if k.endswith(MARK)}


def prune(x, density):
    """The int(density n) largest by magnitude of the values that float32 holds."""
    flat = np.abs(x.astype(np.float32)).ravel()
    k = int(density * flat.size)
    keep = np.zeros(flat.size, bool)
    keep[np.argsort(-flat, kind="stable")[:k]] = True
    return np.where(keep.reshape(x.shape), x.astype(np.float32).astype(np.float64), 0)


def whole(method, ds, weights, density):
    if method == "svd":
        return sum(w * d for w, d in zip(weights, ds))
    ds = [prune(d, density) for d in ds]
    if method == "magnitude_prune_svd":
        return sum(w * d for w, d in zip(weights, ds))
    sign = np.where(sum(ds) >= 0, 1, -1)  # PEFT: elected before weights
    agree = [np.sign(d) == sign for d in ds]
    total = sum(w * d * a for w, d, a in zip(weights, ds, agree))
    return total / np.maximum(1, sum(a.astype(int) for a in agree))


both = [deltas("upper-lora"), deltas("title-lora")]
result = {}
for key, how in sorted(json.load(open(combos)).items()):
    method = key.rsplit("-", 1)[0]
    if "svd" not in method:
        continue
    rows = result[key] = {}
    for module in sorted(both[0]):
        m = whole(method, [b[module] for b in both], how["weights"], how.get("density"))
        u, s, vt = np.linalg.svd(m, full_matrices=False)
        x = np.sin(1 + 0.7 * np.arange(m.shape[1]))
        y = (u[:, :8] * s[:8]) @ (vt[:8] @ x)
        rows[module] = {"s": [float(v) for v in s[:8]], "y": [float(f"{v:.15g}") for v in y]}
json.dump(result, open(out, "w"), separators=(",", ":"), sort_keys=True)
