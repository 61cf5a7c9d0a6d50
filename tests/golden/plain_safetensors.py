"""A safetensors file as float64 arrays; shares nothing with lora's code and needs numpy alone."""
import json
import struct

import numpy as np


def tensors(path):
    data = open(path, "rb").read()
    n = struct.unpack("<Q", data[:8])[0]
    head = json.loads(data[8:8 + n])
    out = {}
    for name, e in head.items():
        if name == "__metadata__":
            continue
        raw = data[8 + n + e["data_offsets"][0]:8 + n + e["data_offsets"][1]]
        if e["dtype"] == "BF16":
            v = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            v = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[e["dtype"]])
        out[name] = v.astype(np.float64).reshape(e["shape"])
    return out
