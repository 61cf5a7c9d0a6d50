"""A registry that misbehaves: python3 stub_registry.py LAYOUT PORT_FILE LOG

Serves the image of an OCI layout under every repository name; the name says what goes wrong (see MODES below). Pushes
are kept in memory. Each request is a line of LOG: method, path, status, bytes of the body."""
import base64
import hashlib
import http.server
import json
import os
import re
import sys
import threading
import time

layout, port_file, log_file = sys.argv[1:4]
top = json.load(open(os.path.join(layout, "index.json")))["manifests"][0]
blobs = {name: open(os.path.join(layout, "blobs/sha256", name), "rb").read() for name in os.listdir(os.path.join(layout, "blobs/sha256"))}
large = max(blobs, key=lambda d: len(blobs[d]))
counts, uploads, pushed, lock = {}, {}, {}, threading.Lock()
tags, referrers = {}, {} # of the mode "refer", which knows the referrers API
log = open(log_file, "w", buffering=1)


def nth(*key):
    with lock:
        counts[key] = counts.get(key, 0) + 1
        return counts[key]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", cut=None, **headers):
        log.write(f"{self.command} {self.path} {status} {len(body)}\n")
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)

    def error(self, status, code="DENIED", **headers):
        self.answer(status, json.dumps({"errors": [{"code": code, "message": "the stub says so"}]}).encode(), **headers)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def refused(self, mode):
        """What a mode does before anything else; True: answered."""
        auth = self.headers.get("Authorization", "")
        if mode == "basic" and auth != "Basic " + base64.b64encode(b"joe:secret word").decode():
            self.error(401, "UNAUTHORIZED", WWW_Authenticate='Basic realm="stub"')
        elif mode == "token" and auth != "Bearer good-token":
            realm = f"http://localhost:{server.server_port}/token"
            self.error(401, "UNAUTHORIZED", WWW_Authenticate=f'Bearer realm="{realm}",service="stub",scope="repository:token:pull"')
        elif mode == "forbidden":
            self.error(403)
        elif mode == "busy" and nth("busy", self.path) <= 2:
            self.error(429, "TOOMANYREQUESTS", Retry_After="1")
        elif mode == "busylong":
            self.error(429, "TOOMANYREQUESTS", Retry_After="3600")
        elif mode == "flaky" and nth("flaky", self.path) <= 2:
            self.error(503, "UNAVAILABLE")
        elif mode == "down":
            self.error(503, "UNAVAILABLE")
        elif mode == "hangup":
            log.write(f"{self.command} {self.path} 0 0\n")
            self.close_connection = True
            self.connection.shutdown(2)
        else:
            return False
        return True

    def do_GET(self):
        if self.path.startswith("/token"):
            good = self.headers.get("Authorization") == "Basic " + base64.b64encode(b"joe:secret word").decode()
            scope = "scope=repository%3Atoken%3Apull" in self.path
            return self.answer(200 if good and scope else 401, b'{"token": "good-token"}' if good and scope else b"{}")
        m = re.match(r"/v2/(refer[a-z0-9/-]*?)/referrers/sha256:([0-9a-f]{64})$", self.path)
        if m:
            index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": referrers.get(m.groups(), [])}
            return self.answer(200, json.dumps(index).encode(), Content_Type=index["mediaType"])
        m = re.match(r"/v2/([a-z0-9/-]+?)/(manifests|blobs)/(.+)$", self.path)
        if not m:
            return self.error(404, "NAME_UNKNOWN")
        mode, kind, ref = m.groups()
        if self.refused(mode):
            return
        if kind == "blobs" and ref.startswith("uploads/"):
            up = uploads.get(ref[8:].split("?")[0])
            if up is None:
                return self.error(404, "BLOB_UPLOAD_UNKNOWN")
            return self.answer(204, Location=self.path, Range=f"0-{max(len(up) - 1, 0)}")
        digest = ref.removeprefix("sha256:")
        if kind == "manifests" and not ref.startswith("sha256:"):
            digest = tags.get((mode, ref), "") if mode.startswith("refer") else top["digest"].removeprefix("sha256:")
        data = pushed.get((mode, digest)) if mode.startswith(("push", "refer")) else blobs.get(digest)
        if data is None or mode == "missing" or (mode == "noblob" and digest == large):
            return self.error(404, "MANIFEST_UNKNOWN")
        headers = {"Docker_Content_Digest": "sha256:" + digest}
        if kind == "manifests":
            headers["Content_Type"] = top["mediaType"] if digest in top["digest"] else "application/vnd.oci.image.manifest.v1+json"
            if mode == "wrongmanifest":
                data = data + b" "
            return self.answer(200, data, **headers)
        if digest == large:
            if mode == "wrong":
                data = data[:-1] + bytes([data[-1] ^ 1])
            elif mode == "short":
                data = data[:len(data) // 2]
            elif mode == "long":
                data = data + b"x"
            elif mode in ("broken", "brokenstart", "cutalways", "stall", "slow", "dies"):
                begin = 0
                wanted = re.match(r"bytes=(\d+)-$", self.headers.get("Range", ""))
                if wanted and mode != "brokenstart":
                    begin = int(wanted[1])
                part = data[begin:]
                n = nth(mode, self.path)
                if mode == "slow": # it comes, a little at a time
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    for at in range(0, len(data), len(data) // 40 + 1):
                        self.wfile.write(data[at:at + len(data) // 40 + 1])
                        self.wfile.flush()
                        time.sleep(0.05)
                    return None
                if mode == "dies": # half of it is sent, then the registry is gone
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data[:len(data) // 2])
                    self.wfile.flush()
                    time.sleep(0.1)
                    os._exit(9)
                if mode == "stall" and n == 1: # half of it, and then nothing for long
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data[:len(data) // 2])
                    self.wfile.flush()
                    return time.sleep(600)
                if mode == "stall":
                    n = 9
                cut = 0 if mode == "cutalways" else len(data) // 4 if n <= 3 and mode == "broken" else len(data) // 2 if n == 1 else None
                if begin:
                    headers["Content_Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
                return self.answer(206 if begin else 200, part, cut=cut, **headers)
        self.answer(200, data, **headers)

    do_HEAD = do_GET

    def do_POST(self):
        self.body()
        mode = self.path.split("/")[2]
        if self.refused(mode):
            return
        if mode == "pushreadonly":
            return self.error(405, "UNSUPPORTED")
        name = f"u{nth('upload')}"
        uploads[name] = b""
        self.answer(202, Location=f"/v2/{mode}/blobs/uploads/{name}?state=x", Range="0-0")

    def upload(self):
        name = re.search(r"uploads/(u\d+)", self.path)[1]
        return name, self.path.split("/")[2]

    def do_PATCH(self):
        data = self.body()
        name, mode = self.upload()
        if mode == "pushflaky" and nth("patch", name) == 2: # half of it is taken before it breaks
            uploads[name] += data[:len(data) // 2]
            return self.error(500, "UNKNOWN")
        begin = int(self.headers["Content-Range"].split("-")[0])
        if begin != len(uploads[name]):
            return self.error(416, "RANGE")
        uploads[name] += data
        self.answer(202, Location=f"/v2/{mode}/blobs/uploads/{name}?state=y", Range=f"0-{len(uploads[name]) - 1}")

    def do_PUT(self):
        data = self.body()
        if "/manifests/" in self.path:
            mode = self.path.split("/")[2]
            if mode == "pushnomanifest":
                return self.error(400, "MANIFEST_INVALID")
            digest = hashlib.sha256(data).hexdigest()
            pushed[(mode, digest)] = data
            if not mode.startswith("refer"):
                return self.answer(201)
            tags[(mode, self.path.rsplit("/", 1)[1])] = digest
            manifest = json.loads(data)
            subject = manifest.get("subject", {}).get("digest", "")
            if not subject:
                return self.answer(201)
            listed = referrers.setdefault((mode, subject.removeprefix("sha256:")), [])
            if all(d["digest"] != "sha256:" + digest for d in listed):
                listed.append({"mediaType": manifest["mediaType"], "digest": "sha256:" + digest, "size": len(data),
                               "artifactType": manifest.get("artifactType") or manifest["config"]["mediaType"],
                               "annotations": manifest.get("annotations", {})})
            return self.answer(201, OCI_Subject=subject)
        name, mode = self.upload()
        if mode == "pushlost" and nth("lost") == 1: # the upload is forgotten
            return self.error(404, "BLOB_UPLOAD_UNKNOWN")
        whole = uploads[name] + data
        digest = re.search(r"digest=sha256(?::|%3[aA])([0-9a-f]{64})", self.path)[1]
        if hashlib.sha256(whole).hexdigest() != digest:
            return self.error(400, "DIGEST_INVALID")
        pushed[(mode, digest)] = whole
        self.answer(201, Location=f"/v2/{mode}/blobs/sha256:{digest}")


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
server.handle_error = lambda *args: None # clients hang up here
with open(port_file + ".tmp", "w") as f:
    f.write(str(server.server_port))
os.rename(port_file + ".tmp", port_file)
server.serve_forever()
