"""An OCI layout of an adapter as other ModelPack tools make it: python3 modelpack.py PEFT_FOLDER OUT FORM.

FORM: tar (a layer a file), folder (one layer holds the whole folder, with a file that is none of an adapter's), tar+gzip,
tar+zstd (the command zstd is used), mixed (weights raw, the rest tar)."""
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

peft, out, form = sys.argv[1:4]
files = {n: open(os.path.join(peft, n), "rb").read() for n in sorted(os.listdir(peft))}
os.makedirs(out + "/blobs/sha256")


def blob(data):
    digest = hashlib.sha256(data).hexdigest()
    open(f"{out}/blobs/sha256/{digest}", "wb").write(data)
    return {"digest": "sha256:" + digest, "size": len(data)}


def tar(members):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as t:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def layer(name, members, kind):
    data = members[name] if kind == "raw" else tar(members)
    if kind == "tar+gzip":
        data = gzip.compress(data, mtime=0)
    if kind == "tar+zstd":
        data = subprocess.run(["zstd", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout
    group = "weight" if name.endswith(".safetensors") else "weight.config"
    return {"mediaType": f"application/vnd.cncf.model.{group}.v1.{kind}", **blob(data),
            "annotations": {"org.cncf.model.filepath": name}}


if form == "folder":
    inside = {"./bot/" + n: d for n, d in files.items()} | {"./bot/optimizer.pt": b"junk"}
    layers = [{"mediaType": "application/vnd.cncf.model.weight.v1.tar", **blob(tar(inside))}]
elif form == "mixed":
    layers = [layer(n, {n: d}, "raw" if n.endswith(".safetensors") else "tar") for n, d in files.items()]
else:
    layers = [layer(n, {n: d}, form) for n, d in files.items()]
config = {"descriptor": {"name": "bot"}, "config": {}, "modelfs": {"type": "layers", "diffIds": []}}
manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "application/vnd.cncf.model.manifest.v1+json",
            "config": {"mediaType": "application/vnd.cncf.model.config.v1+json", **blob(json.dumps(config).encode())},
            "layers": layers, "annotations": {"org.opencontainers.image.title": "bot"}}
top = {"mediaType": manifest["mediaType"], **blob(json.dumps(manifest).encode()),
       "annotations": {"org.opencontainers.image.ref.name": "v1"}}
json.dump({"schemaVersion": 2, "manifests": [top]}, open(out + "/index.json", "w"))
json.dump({"imageLayoutVersion": "1.0.0"}, open(out + "/oci-layout", "w"))
