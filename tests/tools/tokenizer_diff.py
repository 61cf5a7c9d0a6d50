#!/usr/bin/env python3
"""Compares `lora tokenize` with the `tokenizers` library on random nasty texts.

    pip install tokenizers==0.23.*       (in a virtual environment; this tool is not part of `make check`)
    tests/tools/tokenizer_diff.py [--count N] [--seed N] [--mutate N] FOLDER…

FOLDER holds a tokenizer.json. Compared are ids, ids with special tokens added, ids with special tokens
taken as text, decoded texts with and without special tokens. --mutate N also tries N random variations
of normalizer, pre-tokenizer, decoder and added tokens of each. Exit 1 when anything differs."""
import argparse, json, os, random, subprocess, sys, tempfile
from tokenizers import Tokenizer

RANGES = [(0x20, 0x7E)] * 6 + [(0, 0x1F), (0x7F, 0x9F), (0x30, 0x39)] + [
    (a, a + n) for a, n in ((0xA0, 0x5F), (0x100, 0x14F), (0x300, 0x6F), (0x370, 0x1CF), (0x590, 0x16F), (0x900, 0xFF),
                            (0xE00, 0x7F), (0x1100, 0xFF), (0x1680, 0x1F), (0x1E00, 0x1FF), (0x2000, 0x6F),
                            (0x2150, 0x3F), (0x2460, 0x9F), (0x2580, 4), (0x2E80, 0x7F), (0x3000, 0xFF), (0x3400, 0x19BF),
                            (0x4E00, 0x51FF), (0xAC00, 0x2BA3), (0xE000, 0x18FF), (0xF900, 0x1FF), (0xFB00, 0x4FF),
                            (0xFE00, 0x2F), (0xFF00, 0xFF), (0x10D30, 0x5F), (0x11300, 0xFF), (0x1D400, 0x3FF),
                            (0x1F100, 0xFF), (0x1F300, 0x3FF), (0x1F900, 0x1FF), (0x20000, 0xA6DF), (0x30000, 0x23AF),
                            (0xE0000, 0x7F), (0x10FF00, 0xFF))]
WORDS = """the of lora adapter Merge SERVER don't O'Neil I'LL we've it'S naïve café straße Ελλάδα ΑΣ данные 模型 データ カ゚
42 3.5B x86_64 camelCase ﬁn ſ K Å ǅ Ⅷ ½ ٣٤ १२३ 한국어 각 ไทย नमस्ते مَرْحَبًا שָׁלוֹם 👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇫🇷 e️⃣ ▁ ▁▁ Ġ Ċ <0x0A> <0xE2> � <s>
</s> <|im_start|> <|eot_id|> <bos> <think>""".split()
SPACES = [" ", "  ", " " * 7, "\n", "\n\n\n\n", "\r\n", "\r", "\t\t", "\u00a0", "\u3000", "\u200b", "\u2028", "\u0085",
          "\x0b", "\u180e", "\ufeff", " \n \t\n"]
PATTERNS = [r"\s+", r"\w+|[^\w\s]+", r"\p{N}{1,3}+", r" ?\p{L}+| ?\p{N}+", r"(?<=\s)\S+", r"(?i:é|ſ|k|Σ)", r"\p{Han}+",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}|\s+(?!\S)|\s+", r"a{2}?|b+?"]
BEHAVIORS = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]


def text(r):
    out = []
    for _ in range(r.choice([1, 2, 3, 5, 8, 13, 30])):
        kind = r.random()
        if kind < .4:
            a, b = r.choice(RANGES)
            out.append("".join(chr(r.randrange(a, b + 1)) for _ in range(r.randrange(1, 6))))
        elif kind < .7:
            out.append(r.choice(WORDS) + r.choice(["", "'s", "'LL", " "]))
        elif kind < .9:
            out.append(r.choice(SPACES))
        else:
            out.append(r.choice(["a", "ab", "\n", " ", "=", "🦙", "中", "\u0301", "<", "0"]) * r.randrange(1, 80))
    return "".join(out)


def mutate(r, tokenizer):
    pattern = lambda: {"Regex": r.choice(PATTERNS)} if r.random() < .7 else {"String": r.choice([" ", "▁", "a", "\n", "é"])}
    meta = lambda: {"type": "Metaspace", "replacement": "▁", "prepend_scheme": r.choice(["always", "first", "never"]),
                    "split": r.random() < .5}
    level = lambda: {"type": "ByteLevel", "add_prefix_space": r.random() < .5, "trim_offsets": True,
                     "use_regex": r.random() < .5}
    normalizers = [{"type": r.choice(["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt", "StripAccents"])},
                   {"type": "Strip", "strip_left": r.random() < .5, "strip_right": r.random() < .5},
                   {"type": "Replace", "pattern": pattern(), "content": r.choice(["", "▁", "xy"])},
                   {"type": "Prepend", "prepend": "▁"}]
    pre = [{"type": "Split", "pattern": pattern(), "behavior": r.choice(BEHAVIORS), "invert": r.random() < .3}, level(),
           meta(), {"type": "Digits", "individual_digits": r.random() < .5}, {"type": "Whitespace"},
           {"type": "WhitespaceSplit"}, {"type": "Punctuation", "behavior": r.choice(BEHAVIORS)},
           {"type": "FixedLength", "length": r.randrange(1, 6)}]
    decoders = [level(), meta(), {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Replace", "pattern": pattern(), "content": " "},
                {"type": "Strip", "content": " ", "start": r.randrange(3), "stop": 0}]
    some = lambda kind, key, of: {"type": kind, key: r.sample(of, r.randrange(1, 4))}
    tokenizer["normalizer"] = some("Sequence", "normalizers", normalizers)
    tokenizer["pre_tokenizer"] = some("Sequence", "pretokenizers", pre)
    tokenizer["decoder"] = some("Sequence", "decoders", decoders)
    for token in tokenizer["added_tokens"]:
        for flag in ("lstrip", "rstrip", "single_word"):
            token[flag] = r.random() < .3


def lora(program, folder, items, *flags):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        json.dump(items, f)
        f.flush()
        p = subprocess.run([program, "tokenize", folder, "--json", "--file", f.name, *flags], capture_output=True, text=True)
    if p.returncode:
        raise SystemExit(f"{folder}: {p.stderr.strip()}")
    return json.loads(p.stdout)["texts" if "--decode" in flags else "ids"]


def compare(program, folder, texts):
    t = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    plain = [t.encode(s, add_special_tokens=False).ids for s in texts]
    special = [t.encode(s).ids for s in texts]
    checks = [("ids", plain, lora(program, folder, texts)),
              ("ids with special tokens", special, lora(program, folder, texts, "--add-special")),
              ("decoded", [t.decode(i, skip_special_tokens=False) for i in plain],
               lora(program, folder, plain, "--decode")),
              ("decoded without special tokens", [t.decode(i) for i in special],
               lora(program, folder, special, "--decode", "--skip-special"))]
    t.encode_special_tokens = True
    checks.append(("special tokens as text", [t.encode(s, add_special_tokens=False).ids for s in texts],
                   lora(program, folder, texts, "--special-as-text")))
    bad = 0
    for what, want, got in checks:
        for s, w, g in zip(texts, want, got):
            if w != g:
                bad += 1
                if bad <= 3:
                    print(f"{folder}: {what} of {s!a}\n  lora    {g!a}\n  library {w!a}")
    return bad


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folders", nargs="+")
    p.add_argument("--count", type=int, default=1000)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--mutate", type=int, default=0)
    p.add_argument("--lora", default=os.path.join(os.path.dirname(__file__), "../../build/lora"))
    a = p.parse_args()
    bad = 0
    for folder in a.folders:
        r = random.Random(a.seed)
        n = compare(a.lora, folder, [text(r) for _ in range(a.count)])
        print(f"{folder}: {n} of {a.count} texts differ")
        bad += n
        with open(os.path.join(folder, "tokenizer.json")) as f:
            original = f.read()
        for i in range(a.mutate):
            tokenizer = json.loads(original)
            mutate(r, tokenizer)
            with tempfile.TemporaryDirectory() as d:
                with open(os.path.join(d, "tokenizer.json"), "w") as f:
                    json.dump(tokenizer, f)
                try:
                    n = compare(a.lora, d, [text(r) for _ in range(40)])
                except BaseException as e:  # the library panics on some combinations of its own parts
                    if isinstance(e, (SystemExit, KeyboardInterrupt)):
                        raise
                    continue
                if n:
                    print({k: tokenizer[k] for k in ("normalizer", "pre_tokenizer", "decoder")})
            bad += n
    sys.exit(bad > 0)


main()
