"""The OpenSSF model-signing package, both ways: it verifies what `lora sign` signed, and `lora verify` what it signed."""
# tiers: clients
import json
import os
import shutil
import subprocess
import sys
import tempfile

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from harness import BUILD, TINYTALK, done, equal, ok
from model_signing import hashing, signing, verifying

WORK = tempfile.mkdtemp(prefix="lora-signing-")
ENV = {**os.environ, "LORA_STORE": os.path.join(WORK, "store"), "XDG_CONFIG_HOME": os.path.join(WORK, "config")}


def path(*parts):
    return os.path.join(WORK, *parts)


def lora(*args):
    return subprocess.run([os.path.join(BUILD, "lora"), *args], env=ENV, capture_output=True, text=True)


def done_well(run, name):
    return ok(run.returncode == 0, name, run.stderr)


def make_key(name, form):
    """A pair as NAME.pem and NAME.pub, in one of the two forms that private keys have."""
    key = ec.generate_private_key(ec.SECP256R1())
    with open(path(name + ".pem"), "wb") as f:
        f.write(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    with open(path(name + ".pub"), "wb") as f:
        f.write(key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))


def package_takes(folder, signature, name, key="a", **ignored):
    """Whether the package verifies it, as its command line does."""
    config = verifying.Config().use_elliptic_key_verifier(public_key=path(key + ".pub"))
    # The command line leaves the signature itself out when it lies in the folder.
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[os.path.basename(signature)]))
    try:
        config.verify(folder, signature)
        return ok(True, name)
    except Exception as e:  # noqa: BLE001: whatever it says is the failure
        return ok(False, name, f"{type(e).__name__}: {e}")


def package_refuses(folder, signature, name, key="a"):
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=path(key + ".pub")).verify(folder, signature)
    except Exception:  # noqa: BLE001: it has several
        return ok(True, name)
    return ok(False, name, "it was taken")


def package_signs(folder, signature, key="a", config=None):
    config = config or hashing.Config().set_ignored_paths(paths=["model.sig"])
    signing.Config().use_elliptic_key_signer(private_key=path(key + ".pem")).set_hashing_config(config).sign(folder, signature)


def package(*args):
    """Its command line."""
    return subprocess.run([sys.executable, "-m", "model_signing", *args], capture_output=True, text=True)


def folder_of(name, *more, adapter="math-lora"):
    """A copy of an adapter with more files in it."""
    to = path(name)
    shutil.copytree(os.path.join(TINYTALK, "adapters", adapter), to)
    for file, text in more:
        os.makedirs(os.path.dirname(os.path.join(to, file)), exist_ok=True)
        with open(os.path.join(to, file), "w") as f:
            f.write(text)
    return to


def check_store():
    source = folder_of("bot", ("README.md", "# A card\n"), ("chat_template.jinja", "{{ messages }}"))
    done_well(lora("import", source), "an adapter is imported")
    done_well(lora("sign", "bot", "--key", path("a.pem"), "--signature", path("bot.sig")), "…and signed")
    done_well(lora("export", "bot", "--output", path("out")), "…and exported")
    package_takes(path("out"), path("out", "model.sig"), "the package verifies the export")
    done_well(package("verify", "key", path("out"), "--signature", path("out", "model.sig"), "--public_key", path("a.pub")),
              "…by its command line")
    package_takes(path("out"), path("bot.sig"), "…with the signature beside it")
    package_takes(source, path("bot.sig"), "…and the folder that it came from")
    package_refuses(path("out"), path("bot.sig"), "…with another key it does not", key="b")
    with open(path("out", "README.md"), "a") as f:
        f.write("x")
    package_refuses(path("out"), path("bot.sig"), "…nor with a changed file")
    lora("export", "bot", "--output", path("out"), "--force")
    with open(path("out", "more.txt"), "a") as f:
        f.write("x")
    package_refuses(path("out"), path("bot.sig"), "…nor with one more")
    done_well(lora("sign", "bot", "--key", path("b.pem")), "a second signer, whose key has the other form")
    done_well(lora("export", "bot", "--output", path("out2"), "--signer", path("b.pub")), "…whose signature is exported")
    package_takes(path("out2"), path("out2", "model.sig"), "…which the package verifies", key="b")
    done_well(lora("pack", "bot", "--output", path("bot.tar")), "packed")
    subprocess.run(["tar", "-xf", path("bot.tar"), "-C", WORK], check=True)
    record = json.load(open(path("LORA-PACK.json")))["adapters"][0]
    for signature in record["signatures"]:
        owner = "a" if open(path(signature["path"])).read() == open(path("bot.sig")).read() else "b"
        package_takes(path("adapters", "bot"), path(signature["path"]), f"…what tar unpacks verifies, by {owner}", key=owner)


def check_folder():
    folder = folder_of("tree", ("a/z", "1"), ("a.txt", "2"), ("a/b/c", "3"), ("empty", ""), ("ümläut €.md", "4"),
                       (".git/HEAD", "5"), (".gitignore", "6"), ("sub/.gitignore", "7"))
    done_well(lora("sign", folder, "--key", path("a.pem")), "a folder is signed")
    package_takes(folder, os.path.join(folder, "model.sig"), "the package verifies it")
    os.remove(os.path.join(folder, "model.sig"))
    done_well(package("sign", "key", folder, "--signature", os.path.join(folder, "model.sig"), "--private_key", path("a.pem")),
              "the package's command line signs it")
    done_well(lora("verify", folder, "--key", path("a.pub")), "…which is verified")
    equal(lora("verify", folder, "--key", path("b.pub")).returncode, 4, "…by that key alone")
    with open(os.path.join(folder, "a", "z"), "w") as f:
        f.write("x")
    changed = lora("verify", folder, "--key", path("a.pub"))
    equal(changed.returncode, 5, "…a changed file is seen")
    ok("a/z is not what was signed" in changed.stderr, "…and named", changed.stderr)
    single = os.path.join(folder, "a.txt")
    done_well(lora("sign", single, "--key", path("a.pem"), "--signature", path("single.sig")), "a single file is signed")
    package_takes(single, path("single.sig"), "…and the package verifies it")
    package_signs(single, path("single2.sig"))
    done_well(lora("verify", single, "--signature", path("single2.sig"), "--key", path("a.pub")), "…and the other way round")


def check_forms():
    folder = folder_of("forms", ("README.md", "# A card\n"), ("runs/log", "text"))
    for size in (1000, 883168, 1_000_000):
        config = hashing.Config().use_shard_serialization(shard_size=size).set_ignored_paths(paths=["model.sig"])
        package_signs(folder, path("shards.sig"), config=config)
        done_well(lora("verify", folder, "--signature", path("shards.sig"), "--key", path("a.pub")), f"shards of {size}")
    for algorithm in ("blake2", "blake3"):
        config = hashing.Config().use_file_serialization(hashing_algorithm=algorithm)
        package_signs(folder, path("other.sig"), config=config)
        refused = lora("verify", folder, "--signature", path("other.sig"), "--key", path("a.pub"))
        equal(refused.returncode, 4, f"{algorithm} is refused")
        ok(algorithm in refused.stderr, "…by name", refused.stderr)
    config = hashing.Config().set_ignored_paths(paths=["model.sig", "runs", "README.md"])
    package_signs(folder, os.path.join(folder, "model.sig"), config=config)
    done_well(lora("verify", folder, "--key", path("a.pub")), "paths that were left out")
    done_well(lora("import", folder, "--require-signature", path("a.pub")), "…an import, card and all")
    done_well(lora("verify", "forms", "--key", path("a.pub")), "…is verified in the store")


def check_import():
    # Another adapter: of math-lora the store has signatures by now that list nothing besides its files.
    folder = folder_of("trained", ("README.md", "# A card\n"), ("runs/events", "text"), ("training_args.json", "{}"),
                       adapter="upper-lora")
    package_signs(folder, os.path.join(folder, "model.sig"))
    done_well(lora("import", folder, "--require-signature", path("a.pub")), "a folder that the package signed is imported")
    done_well(lora("verify", "trained", "--key", path("a.pub")), "…with its signature")
    done_well(lora("export", "trained", "--output", path("trained-out")), "…exported")
    package_refuses(path("trained-out"), path("trained-out", "model.sig"), "…less than what was signed, so the package refuses")
    done_well(lora("verify", "trained", "--key", path("a.pub")), "…while of the adapter nothing is missing")
    equal(lora("verify", path("trained-out"), "--key", path("a.pub")).returncode, 5, "…and as a folder we refuse as well")


make_key("a", serialization.PrivateFormat.TraditionalOpenSSL)
make_key("b", serialization.PrivateFormat.PKCS8)
try:
    check_store()
    check_folder()
    check_forms()
    check_import()
finally:
    shutil.rmtree(WORK)
done()
