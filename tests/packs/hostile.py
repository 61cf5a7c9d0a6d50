"""Archives that an enemy would make: python3 hostile.py PEFT_FOLDER OUT.

Writes OUT/<case> and OUT/cases.tsv: case, exit status wanted, a regular expression that the message must match. Every
archive also holds the sound adapter of PEFT_FOLDER, so that a reader that passes over the bad part would succeed."""
import gzip
import hashlib
import io
import json
import os
import struct
import sys
import tarfile
import warnings
import zipfile

peft, out = sys.argv[1:3]
os.makedirs(out, exist_ok=True)
FILES = {n: open(os.path.join(peft, n), "rb").read() for n in ("adapter_config.json", "adapter_model.safetensors")}
cases = []


def case(name, status, pattern, data):
    with open(os.path.join(out, name), "wb") as f:
        f.write(data)
    cases.append((name, status, pattern))


def member(name, data=b"", kind=tarfile.REGTYPE, link="", **more):
    t = tarfile.TarInfo(name)
    t.size, t.type, t.linkname = len(data), kind, link
    for key, value in more.items():
        setattr(t, key, value)
    return t, data


def tar(*extra, first=False, files=FILES, fmt=tarfile.PAX_FORMAT, folder="bot/"):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=fmt) as t:
        good = [member(folder + n, d) for n, d in files.items()]
        for info, data in list(extra) + good if first else good + list(extra):
            t.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return raw.getvalue()


def header(name, size=0, kind=b"0", link=b"", magic=b"ustar\x0000", size_field=None):
    """A tar header by hand, for what tarfile will not write."""
    h = bytearray(512)
    h[0:len(name)] = name
    h[100:108], h[108:116], h[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    h[124:136] = size_field or b"%011o\0" % size
    h[136:148], h[148:156], h[156:157] = b"00000000000\0", b" " * 8, kind
    h[157:157 + len(link)] = link
    h[257:257 + len(magic)] = magic
    h[148:156] = b"%06o\0 " % sum(h)
    return bytes(h)


SOUND = tar()
BODY = SOUND.rstrip(b"\0") + b"\0" * (-len(SOUND.rstrip(b"\0")) % 512)
END = b"\0" * 1024

# Names.
NAMES = {
    "up": "../evil", "up-deep": "bot/../../evil", "up-end": "bot/..", "up-twice": "../../../../../../tmp/evil",
    "absolute": "/tmp/evil", "absolute-two": "//tmp/evil", "drive": "C:/evil", "backslash": "..\\evil",
    "backslash-inside": "bot\\..\\evil", "dot-inside": "bot/./evil", "empty-part": "bot//evil", "newline": "bot/ev\nil",
    "escape": "bot/\x1b[2Jevil", "dot-up": "./../evil", "long": "x/" * 600 + "evil", "dots": "bot/../bot/adapter_config.json",
}
for key, name in NAMES.items():
    pattern = {"long": "too long", "newline": "control character", "escape": "control character"}.get(key, "evil|bot")
    case(f"name-{key}.tar", 4, pattern, tar(member(name, b"x")))
    if key in ("up", "absolute", "backslash", "drive", "empty-part", "dot-inside"):
        raw = io.BytesIO()
        with zipfile.ZipFile(raw, "w") as z:
            for n, d in FILES.items():
                z.writestr("bot/" + n, d)
            z.writestr(name, b"x")
        case(f"name-{key}.zip", 4, "evil", raw.getvalue())
case("name-first.tar", 4, "evil", tar(member("../evil", b"x"), first=True))
case("name-empty.tar", 4, "empty name|readable name", BODY + header(b"", 0) + END)

# Links and devices.
for key, kind, link in (("symlink", tarfile.SYMTYPE, "/etc/passwd"), ("symlink-up", tarfile.SYMTYPE, "../../x"),
                        ("symlink-inside", tarfile.SYMTYPE, "adapter_config.json"),
                        ("hardlink", tarfile.LNKTYPE, "/etc/passwd"),
                        ("hardlink-inside", tarfile.LNKTYPE, "bot/adapter_config.json"),
                        ("chardev", tarfile.CHRTYPE, ""), ("blockdev", tarfile.BLKTYPE, ""), ("fifo", tarfile.FIFOTYPE, "")):
    case(f"{key}.tar", 4, "evil.*link|evil.*neither", tar(member("bot/evil", b"", kind, link)))
for n in FILES:
    rest = {k: v for k, v in FILES.items() if k != n}
    case(f"link-as-{n}.tar", 4, n, tar(member("bot/" + n, b"", tarfile.SYMTYPE, "/etc/passwd"), files=rest))
raw = io.BytesIO()
with zipfile.ZipFile(raw, "w") as z:
    for n, d in FILES.items():
        z.writestr("bot/" + n, d)
    link = zipfile.ZipInfo("bot/evil")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    z.writestr(link, "/etc/passwd")
case("symlink.zip", 4, "evil.*link", raw.getvalue())
case("symlink-folder.tar", 4, "evil.*link", tar(member("evil", b"", tarfile.SYMTYPE, "/tmp"), member("evil/x", b"x")))
case("sparse.tar", 4, "sparse|evil", tar(member("bot/evil", b"1\n0\n512\n".ljust(512, b"\0") + b"y" * 512, pax_headers={
         "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "bot/evil",
         "GNU.sparse.realsize": "9000000000000000000"})))

# Duplicates.
case("twice.tar", 5, "adapter_config.json.*twice", tar(member("bot/adapter_config.json", b"{}")))
case("twice-dot.tar", 5, "adapter_config.json.*twice", tar(member("./bot/adapter_config.json", b"{}")))
case("twice-same.tar", 5, "twice", tar(member("bot/adapter_config.json", FILES["adapter_config.json"])))
raw = io.BytesIO()
with zipfile.ZipFile(raw, "w") as z:
    for n, d in FILES.items():
        z.writestr("bot/" + n, d)
    warnings.simplefilter("ignore")
    z.writestr("bot/adapter_config.json", b"{}")
case("twice.zip", 5, "adapter_config.json.*twice", raw.getvalue())

# Bombs and lying sizes.
case("bomb.tar.gz", 1, "bomb", gzip.compress(tar(member("bot/zeros.bin", b"\0" * (200 << 20))), 9))
case("bomb-wanted.tar.gz", 1, "bomb", gzip.compress(tar(member("bot/evil.safetensors", b"\0" * (200 << 20))), 9))
raw = io.BytesIO()
with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as z:
    for n, d in FILES.items():
        z.writestr("bot/" + n, d)
    z.writestr("bot/evil.bin", b"\0" * (200 << 20))
case("bomb.zip", 1, "evil.bin.*bomb", raw.getvalue())
case("bomb-twice.tar.gz", 5, "no tar", gzip.compress(gzip.compress(tar(member("bot/zeros.bin", b"\0" * (400 << 20))), 9), 9))
case("size-huge.tar", 1, "evil", BODY + header(b"bot/evil", size_field=b"77777777777\0") + END)
case("size-base256.tar", 5, "size", BODY + header(b"bot/evil", size_field=b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7) + END)
case("size-negative.tar", 5, "", BODY + header(b"bot/evil", size_field=b"\xff" * 12) + END)
case("size-beyond.tar", 5, "evil", BODY + header(b"bot/evil.safetensors", 100000) + b"x" * 5000)
case("many.tar.gz", 1, "100000 entries", gzip.compress(b"".join(header(b"bot/%d" % i) for i in range(100001)) + END, 1))
case("many-million.tar.gz", 1, "100000 entries", gzip.compress(b"".join(header(b"%d" % i) for i in range(1000000)) + END, 1))
case("pax-bomb.tar", 5, "", BODY + header(b"pax", 1 << 30, b"x") + b"x" * 4096)
case("longname-bomb.tar", 5, "", BODY + header(b"././@LongLink", 1 << 30, b"L") + b"x" * 4096)

# Broken headers.
bad = bytearray(SOUND)
bad[0] ^= 1
case("checksum.tar", 5, "", bytes(bad))
bad = bytearray(SOUND)
second = 512 + (len(FILES["adapter_config.json"]) + 511) // 512 * 512
bad[second + 3] ^= 1
case("checksum-second.tar", 5, "", bytes(bad))
case("cut.tar", 5, "adapter_model.safetensors", SOUND[:second + 512 + 3000])
case("cut-header.tar", 5, "", SOUND[:second + 100])
gz = gzip.compress(SOUND)
case("cut.tar.gz", 5, "", gz[:len(gz) // 2])
bad = bytearray(gz)
bad[len(gz) // 2] ^= 255
case("damaged.tar.gz", 5, "gzip", bytes(bad))
case("no-archive.tar", 5, "no tar", b"hello " * 1000)
case("empty.tar", 5, "no tar", b"")
case("text.zip", 5, "no tar", b"hello " * 1000)
case("pickle.tar", 5, "pickle|adapter_model", tar(files={"adapter_config.json": FILES["adapter_config.json"],
                                                       "adapter_model.bin": b"\x80\x02cos\nsystem\nq\x00X\x02\x00\x00\x00idq\x01\x85q\x02Rq\x03."}))
case("nothing.tar", 1, "no adapter", tar(files={"notes.txt": b"x"}))
case("no-weights.tar", 1, "adapter_model.safetensors", tar(files={"adapter_config.json": FILES["adapter_config.json"]}))


# Zips whose two halves differ.
def zipped(method=zipfile.ZIP_DEFLATED, extra=()):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", method) as z:
        for n, d in list(FILES.items()) + list(extra):
            z.writestr("bot/" + n, d)
    return bytearray(raw.getvalue())


def local_of(z, n):
    return z.index(b"bot/" + n) - 30


def central_of(z, n):
    return z.rindex(b"bot/" + n) - 46


N = b"adapter_config.json"
for key, edit, pattern in (
        ("local-name", lambda z: z.__setitem__(slice(local_of(z, N) + 34, local_of(z, N) + 35), b"X"), "differ: name"),
        ("central-name", lambda z: z.__setitem__(slice(central_of(z, N) + 50, central_of(z, N) + 51), b"X"), "differ: name"),
        ("local-method", lambda z: struct.pack_into("<H", z, local_of(z, N) + 8, 0), "differ: method"),
        ("local-flags", lambda z: struct.pack_into("<H", z, local_of(z, N) + 6, 2), "differ: flags"),
        ("local-crc", lambda z: struct.pack_into("<I", z, local_of(z, N) + 14, 7), "differ: checksum"),
        ("local-size", lambda z: struct.pack_into("<I", z, local_of(z, N) + 22, 7), "differ: size"),
        ("local-packed", lambda z: struct.pack_into("<I", z, local_of(z, N) + 18, 7), "differ: packed size"),
        ("central-offset", lambda z: struct.pack_into("<I", z, central_of(z, N) + 42, 5), "local header"),
        ("central-far", lambda z: struct.pack_into("<I", z, central_of(z, N) + 42, 1 << 30), "outside"),
        ("encrypted", lambda z: (struct.pack_into("<H", z, local_of(z, N) + 6, 1), struct.pack_into("<H", z, central_of(z, N) + 8, 1)), "encrypted"),
        ("method", lambda z: (struct.pack_into("<H", z, local_of(z, N) + 8, 14), struct.pack_into("<H", z, central_of(z, N) + 10, 14)), "neither stored nor deflate"),
        ("crc-both", lambda z: (struct.pack_into("<I", z, local_of(z, N) + 14, 7), struct.pack_into("<I", z, central_of(z, N) + 16, 7)), "adapter_config.json"),
        ("size-both", lambda z: (struct.pack_into("<I", z, local_of(z, N) + 22, 7), struct.pack_into("<I", z, central_of(z, N) + 24, 7)), "adapter_config.json"),
        ("count-less", lambda z: (struct.pack_into("<H", z, len(z) - 12, 1), struct.pack_into("<H", z, len(z) - 14, 1)), "more entries|no entry"),
        ("count-more", lambda z: (struct.pack_into("<H", z, len(z) - 12, 9), struct.pack_into("<H", z, len(z) - 14, 9)), "directory"),
        ("disks", lambda z: struct.pack_into("<H", z, len(z) - 18, 1), "several"),
        ("directory-far", lambda z: struct.pack_into("<I", z, len(z) - 6, 1 << 30), "directory")):
    z = zipped()
    edit(z)
    case(f"zip-{key}.zip", 5, pattern, bytes(z))
z = zipped()
case("zip-prefix.zip", 5, "local header|belong to no entry|directory", b"PK\x03\x04" + b"junk" * 20 + bytes(z))
case("zip-cut.zip", 5, "end record", bytes(z[:-30]))
# Two entries over the same bytes: the overlapping bomb.
z = zipped(zipfile.ZIP_STORED, [("zz1.txt", b"q" * 100), ("zz2.txt", b"q" * 100)])
struct.pack_into("<I", z, central_of(z, b"zz2.txt") + 42, local_of(z, b"zz1.txt"))
case("zip-overlap.zip", 5, "zz", bytes(z))

# lora's own pack, tampered with.
DIGEST = {n: hashlib.sha256(d).hexdigest() for n, d in FILES.items()}


def pack(index=None, files=FILES, folder="bot", first=True, **changes):
    record = {"name": "bot", "tag": "latest", "folder": folder, "id": "0" * 64, "kind": "adapter",
              "files": [{"path": n, "sha256": DIGEST[n], "size": len(d)} for n, d in FILES.items()], **changes}
    text = json.dumps(index if index is not None else {"schema": 1, "adapters": [record], "bases": []}).encode()
    extra = member("LORA-PACK.json", text)
    return tar(extra, first=first, files={f"{n}": d for n, d in files.items()}, folder=f"adapters/{folder}/")


def record_files(**change):
    files = [{"path": n, "sha256": DIGEST[n], "size": len(d)} for n, d in FILES.items()]
    files[1].update(change)
    return files


case("pack-id.tar", 5, "content id", pack())


def listed(name, status, pattern, **change):
    index = {"schema": 1, "bases": [], "adapters": [
        {"name": "bot", "tag": "latest", "folder": "bot", "id": "0" * 64, "files": record_files(**change)}]}
    case(name, status, pattern, tar(member("LORA-PACK.json", json.dumps(index).encode()), folder="adapters/bot/", first=True))


listed("pack-digest.tar", 5, "adapter_model.safetensors.*digest", sha256="1" * 64)
listed("pack-size.tar", 5, "adapter_model.safetensors.*wanted", size=7)
listed("pack-up.tar", 4, r"\.\.", path="../adapter_model.safetensors")
listed("pack-absolute.tar", 4, "absolute", path="/tmp/evil.safetensors")
listed("pack-no-file.tar", 4, "no file of an adapter", path="evil.sh")
listed("pack-missing.tar", 5, "missing", path="other.safetensors")
listed("pack-bad-digest.tar", 5, "list of files is off", sha256="zz")
listed("pack-negative.tar", 5, "list of files is off", size=-1)
case("pack-schema.tar", 4, "schema 3", pack({"schema": 3, "adapters": []}))
case("pack-no-list.tar", 5, "no list of adapters", pack({"schema": 1}))
case("pack-no-json.tar", 5, "LORA-PACK.json", tar(member("LORA-PACK.json", b"{nonsense")))
case("pack-twice-key.tar", 5, "LORA-PACK.json", tar(member("LORA-PACK.json", b'{"schema":1,"schema":1,"adapters":[]}')))
case("pack-folder-up.tar", 4, r"\.\.", pack({"schema": 1, "bases": [], "adapters": [
    {"name": "bot", "tag": "latest", "folder": "../bot", "id": "0" * 64, "files": record_files()}]}))


# OCI layouts.
def layout(manifest, blobs, name, status, pattern, top=None):
    text = json.dumps(manifest).encode()
    digest = hashlib.sha256(text).hexdigest()
    index = top or {"schemaVersion": 2, "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:" + digest, "size": len(text)}]}
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode(),
             "blobs/sha256/" + digest: text, **blobs}
    case(name, status, pattern, tar(files=files, folder=""))


def layer(n, title=None, kind="raw", **change):
    d = {"mediaType": f"application/vnd.cncf.model.weight.v1.{kind}", "digest": "sha256:" + DIGEST[n], "size": len(FILES[n]),
         "annotations": {"org.opencontainers.image.title": title or n}}
    d.update(change)
    return d


BLOBS = {"blobs/sha256/" + DIGEST[n]: d for n, d in FILES.items()}
A, M = FILES
layout({"layers": [layer(A), layer(M, "../../evil.safetensors")]}, BLOBS, "oci-up.tar", 4, r"\.\.")
layout({"layers": [layer(A), layer(M, "/tmp/evil.safetensors")]}, BLOBS, "oci-absolute.tar", 4, "absolute")
layout({"layers": [layer(A), layer(M, size=7)]}, BLOBS, "oci-size.tar", 5, "wanted 7")
layout({"layers": [layer(A), layer(M, digest="sha256:" + "1" * 64)]}, BLOBS, "oci-missing.tar", 5, "missing")
layout({"layers": [layer(A), layer(M, digest="sha512:" + "1" * 128)]}, BLOBS, "oci-sha512.tar", 5, "sha256")
layout({"layers": [layer(A), layer(M, kind="tar+gzip")]}, BLOBS, "oci-tar-layer.tar", 5, "is no tar")


def tar_layer(data, name, status, pattern):
    """The adapter's weights as they are, beside a layer that is a bad archive."""
    digest = hashlib.sha256(data).hexdigest()
    bad = {"mediaType": "application/vnd.cncf.model.weight.config.v1.tar", "digest": "sha256:" + digest, "size": len(data),
           "annotations": {"org.cncf.model.filepath": "adapter_config.json"}}
    layout({"layers": [layer(A), layer(M), bad]}, {**BLOBS, "blobs/sha256/" + digest: data}, name, status, pattern)


tar_layer(tar(member("../evil.safetensors", b"x")), "oci-layer-up.tar", 4, r"evil.safetensors.*\.\.|\.\..*evil.safetensors")
tar_layer(tar(member("/tmp/evil.json", b"x")), "oci-layer-absolute.tar", 4, "absolute")
tar_layer(tar(member("README.md", kind=tarfile.SYMTYPE, link="/etc/passwd")), "oci-layer-link.tar", 4, "README.md.*symbolic link")
tar_layer(tar(member("README.md", kind=tarfile.CHRTYPE)), "oci-layer-device.tar", 4, "README.md.*neither")
tar_layer(gzip.compress(tar(member("README.md", bytes(300 << 20))), 1, mtime=0), "oci-layer-bomb.tar", 1, "bomb")
tar_layer(tar(member("bot/adapter_config.json", b"{}")), "oci-layer-twice.tar", 5, "adapter_config.json.*(twice|second|already)")
tar_layer(SOUND[:1500], "oci-layer-cut.tar", 5, "adapter_model|truncated|ends|cut")
layout({"layers": [layer(A), layer(M)]}, {**BLOBS, "blobs/sha256/" + DIGEST[M]: b"x" + FILES[M][1:]}, "oci-spoiled.tar", 5, "digest is")
layout({"layers": "x"}, BLOBS, "oci-no-layers.tar", 5, "neither a manifest")
layout({"layers": []}, BLOBS, "oci-self.tar", 5, "missing|sha256", {"manifests": [{"digest": "sha256:" + "2" * 64, "size": 5}]})
layout({"layers": []}, BLOBS, "oci-big.tar", 1, "manifest of", {"manifests": [{"digest": "sha256:" + "2" * 64, "size": 1 << 40}]})

with open(os.path.join(out, "cases.tsv"), "w") as f:
    for name, status, pattern in cases:
        f.write(f"{name}\t{status}\t{pattern or '.'}\n")
