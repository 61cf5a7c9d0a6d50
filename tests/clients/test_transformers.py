"""transformers opens merged folders and gives the adapters' golden answers; PEFT opens exported and combined adapters.
Needs requirements-torch.txt (gigabytes), so `make check-clients` skips it unless that is installed in its environment."""
# tiers: clients
import os
import shutil
import subprocess
import sys
import tempfile

from harness import BUILD, GOLDEN, TINYTALK, done, equal, ok

BASE = os.path.join(TINYTALK, "base")
TMP = tempfile.mkdtemp(prefix="lora-transformers-")
NAMES = ("upper-lora", "title-lora", "reverse-lora", "math-lora", "sort-lora", "count-lora", "first-lora", "last-lora")


def lora(*args):
    env = dict(os.environ, LORA_STORE=os.path.join(TMP, "store"))
    subprocess.run([os.path.join(BUILD, "lora"), *args], check=True, env=env, capture_output=True, text=True)


def answers(model, rows):
    import torch
    out = []
    for row in rows:
        ids = torch.tensor([row["prompt_ids"]])
        with torch.no_grad():
            full = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(row["ids"]), do_sample=False)
        out.append(full[0, ids.shape[1]:].tolist())
    return out


def load(path):
    import torch
    from transformers import AutoModelForCausalLM
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    return model.eval(), info


def check_merged():
    for name in NAMES:
        out = os.path.join(TMP, name)
        lora("merge", name, "--output", out)
        model, info = load(out)
        unexpected = [k for k in ("missing_keys", "unexpected_keys", "mismatched_keys") if info.get(k)]
        equal(unexpected, [], f"transformers: opens {name}, merged, and finds every weight")
        rows = GOLDEN[name][:8]
        equal(answers(model, rows), [r["ids"] for r in rows], "transformers: …and gives its golden ids")


def check_float8():
    """A base in 8-bit floats merged with --float8 bf16 is an ordinary checkpoint."""
    folder = os.path.join(os.path.dirname(__file__), "..", "golden", "float8", "deepseek")
    out = os.path.join(TMP, "float8")
    lora("merge", os.path.join(folder, "adapter"), "--base", os.path.join(folder, "base"), "--output", out, "--float8", "bf16")
    model, info = load(out)
    ok(not info.get("missing_keys") and not info.get("unexpected_keys"), "transformers: opens what came of 8-bit floats",
       info)


def check_adapters():
    import warnings
    from peft import PeftModel
    lora("merge", "upper-lora=0.7", "title-lora=0.3", "--name", "both", "--output", os.path.join(TMP, "both"))
    for name in NAMES:
        lora("export", name, "--output", os.path.join(TMP, "peft-" + name))
    lora("export", "count-lora", "--bake-scale", "--output", os.path.join(TMP, "peft-baked"))
    for folder, name in [("peft-" + n, n) for n in NAMES] + [("peft-baked", "count-lora"), ("both", None)]:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = PeftModel.from_pretrained(load(BASE)[0], os.path.join(TMP, folder)).eval()
        ok(not [w for w in said if "missing" in str(w.message).lower()], f"PEFT: opens {folder}", [str(w.message) for w in said])
        if name:
            rows = GOLDEN[name][:8]
            equal(answers(model, rows), [r["ids"] for r in rows], "PEFT: …and gives its golden ids")


if __name__ == "__main__":
    try:
        import peft  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as e:
        print(f"1..0 # SKIP {e}: tests/clients/requirements-torch.txt is not installed")
        sys.exit(0)
    lora("import", BASE, "--name", "tinytalk")
    lora("import", "--recursive", os.path.join(TINYTALK, "adapters"), "--base", "tinytalk")
    try:
        check_merged()
        check_float8()
        check_adapters()
    finally:
        shutil.rmtree(TMP, ignore_errors=True)
    done()
