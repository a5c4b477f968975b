"""A service to test: starts it on a free port, kills it, starts it again."""
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
BINARY = os.environ.get("TURBODIFFUSION", os.path.join(ROOT, ".build/release/turbodiffusion"))


class Service:
    def __init__(self, output, *options, port=0):
        self.output, self.options, self.port = output, options, port
        self.process = None

    def start(self):
        command = [BINARY, "serve", "--model", "nano", "--output", self.output, "--port", str(self.port),
                   "--device", "cpu", *self.options]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            found = re.search(r"listening on http://[^ ]*:(\d+)", line)
            if found:
                self.port = int(found[1])
                break
        else:
            raise SystemExit(f"the service did not start: {self.process.wait()}")
        # What it says from here on must not fill the pipe.
        self.log = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=sys.stderr)
        self.wait_ready()
        return self

    def wait_ready(self):
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{self.url}/ready", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise SystemExit("the service is not ready")

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """As systemd does it. Returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)

    def gauge(self, name):
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return float(re.search(rf"^{name} (\S+)$", text, re.M)[1])

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.kill()
