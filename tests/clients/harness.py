"""What the client tests share: TAP output, and a server of their own on a free port."""
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

ROOT = os.environ.get("LORA_ROOT", os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
BUILD = os.path.join(ROOT, os.environ.get("LORA_BUILD", "build/release"))
TINYTALK = os.path.join(ROOT, "examples", "tinytalk")
GOLDEN = json.load(open(os.path.join(ROOT, "tests", "golden", "tinytalk.json")))

_count = 0


def ok(condition, name, note=""):
    global _count
    _count += 1
    print(f"{'ok' if condition else 'not ok'} {_count} - {name}", flush=True)
    if not condition and note != "":
        print("# " + str(note)[:2000].replace("\n", "\n# "), flush=True)
    return bool(condition)


def equal(got, want, name):
    return ok(got == want, name, f"got {got!r}, want {want!r}")


def raises(kind, call, name):
    """Whether call() raises exactly `kind`; gives the exception."""
    try:
        call()
    except Exception as e:  # noqa: BLE001: the kind is what is tested
        ok(type(e) is kind, name, f"{type(e).__name__}: {e}")
        return e
    ok(False, name, "nothing was raised")
    return None


def done():
    print(f"1..{_count}")


class Server:
    """`lora serve` over tinytalk and its adapters."""

    def __init__(self, *args):
        self.folder = tempfile.mkdtemp(prefix="lora-client-")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        adapters = sorted(os.listdir(os.path.join(TINYTALK, "adapters")))
        command = [os.path.join(BUILD, "lora"), "serve", "--store", os.path.join(self.folder, "store"), "--model",
                   os.path.join(TINYTALK, "base"), "--served-model-name", "tinytalk", "--port", str(self.port),
                   "--lora-paths", *[f"{a}={os.path.join(TINYTALK, 'adapters', a)}" for a in adapters], *args]
        self.log = open(os.path.join(self.folder, "log"), "w+")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        for _ in range(3000):
            try:
                if urllib.request.urlopen(self.url + "/health", timeout=1).status == 200:
                    return self
            except OSError:
                pass
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.log.seek(0)
        raise RuntimeError("the server did not start: " + self.log.read())

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.status = self.process.wait(300)
        shutil.rmtree(self.folder, ignore_errors=True)
