"""The service that makes the videos: one that runs already, or one of our own beside ComfyUI."""

import atexit
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid


class ServiceError(RuntimeError):
    """What the service says, in one line."""


class Service:
    """`turbodiffusion serve` over HTTP. Its methods block: call them on a thread."""

    def __init__(self, models_folder, lora_folder=None):
        self.models_folder = models_folder
        self.lora_folder = lora_folder
        self._url = os.environ.get("TURBODIFFUSION_URL", "").rstrip("/")
        self._key = os.environ.get("TURBODIFFUSION_API_KEY", "")
        self._is_own = not self._url
        self._process = None
        self._folder = None
        self._lock = threading.Lock()

    # Requests

    def create(self, fields):
        """Puts a request into the queue. Returns the video."""
        # Tried again where the answer was lost: the key makes sure that there is one video only.
        key = str(uuid.uuid4())
        return self._json("POST", "/v1/videos", fields, {"Idempotency-Key": key}, tries=3)

    def video(self, identity):
        return self._json("GET", f"/v1/videos/{_quoted(identity)}", tries=3)

    def cancel(self, identity):
        """Ends it where it waits or runs."""
        try:
            self._json("POST", f"/v1/videos/{_quoted(identity)}/cancel")
        except ServiceError:
            # It is over already.
            pass

    def delete(self, identity):
        try:
            self._json("DELETE", f"/v1/videos/{_quoted(identity)}")
        except ServiceError:
            pass

    def content(self, identity, variant="video"):
        """The bytes of the MP4, or of the preview."""
        return self._ask("GET", f"/v1/videos/{_quoted(identity)}/content?variant={variant}", tries=3)

    def preview(self, identity):
        """A PNG of what the last step looks like; None before there is one."""
        try:
            return self._ask("GET", f"/v1/videos/{_quoted(identity)}/content?variant=preview")
        except ServiceError:
            return None

    def models(self):
        """Names of what is served; empty where no service runs yet."""
        if self._is_own and self._process is None:
            return []
        try:
            return [model["id"] for model in self._json("GET", "/v1/models")["data"]]
        except ServiceError:
            return []

    def _json(self, method, path, fields=None, headers=None, tries=1):
        body = json.dumps(fields).encode() if fields is not None else None
        return json.loads(self._ask(method, path, body, headers, tries))

    def _ask(self, method, path, body=None, headers=None, tries=1):
        url = self._address() + path
        headers = dict(headers or {})
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        while True:
            tries -= 1
            try:
                request = urllib.request.Request(url, body, headers, method=method)
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return answer.read()
            except urllib.error.HTTPError as error:
                if error.code >= 500 and tries > 0:
                    time.sleep(0.5)
                    continue
                raise ServiceError(_told(error)) from None
            except OSError as error:
                if tries > 0:
                    time.sleep(0.5)
                    continue
                raise ServiceError(f"the service at {self._url} does not answer: {error}") from None

    # The process

    def _address(self):
        if not self._is_own:
            return self._url
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            return self._url

    def _start(self):
        program = _program()
        os.makedirs(self.models_folder, exist_ok=True)
        if self._folder is None:
            # Only this user may read it.
            self._folder = tempfile.TemporaryDirectory(prefix="turbodiffusion-")
            atexit.register(self.stop)
        self._key = secrets.token_urlsafe(32)
        keys = os.path.join(self._folder.name, "keys")
        with open(os.open(keys, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(self._key + "\n")
        words = [program, "serve", "--port", "0", "--api-key-file", keys,
                 "--output", os.path.join(self._folder.name, "videos"), "--expire-hours", "1"]
        own = self._own_models()
        for name in own:
            words += ["--model", os.path.join(self.models_folder, name)]
        if own:
            words += ["--model", "nano"]
        if self.lora_folder and os.path.isdir(self.lora_folder):
            words += ["--loras", self.lora_folder]
        words += shlex.split(os.environ.get("TURBODIFFUSION_OPTIONS", ""))
        process = subprocess.Popen(
            words, cwd=self.models_folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        )
        told = []
        for line in process.stderr:
            found = re.search(r"listening on (http://\S+)", line)
            if found:
                self._url = found[1]
                break
            told.append(line.strip())
        else:
            raise ServiceError(f"the service did not start: {told[-1] if told else process.wait()}")
        self._process = process
        # What it says from here on must not fill the pipe.
        threading.Thread(target=_drain, args=(process.stderr,), daemon=True).start()

    def _own_models(self):
        """Folders of models beside the published ones."""
        try:
            names = sorted(os.listdir(self.models_folder))
        except OSError:
            return []
        return [name for name in names if os.path.isfile(os.path.join(self.models_folder, name, "config.json"))]

    def known_models(self):
        return ["nano", "Wan2.1-1.3B", "Wan2.1-14B", "Wan2.2-A14B", "Wan2.2-T2V-A14B", *self._own_models()]

    def known_loras(self):
        try:
            names = sorted(os.listdir(self.lora_folder or ""))
        except OSError:
            return []
        return [name[: -len(".safetensors")] for name in names if name.endswith(".safetensors")]

    def stop(self):
        """Ends our own service, if there is one."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _program():
    try:
        from turbodiffusion_swift import find_program

        return find_program()
    except ImportError:
        found = os.environ.get("TURBODIFFUSION_PROGRAM") or shutil.which("turbodiffusion")
        if not found:
            raise ServiceError(
                "the program 'turbodiffusion' was not found: install its wheel into ComfyUI's environment, "
                "or name a running service with TURBODIFFUSION_URL"
            ) from None
        return found


def _quoted(identity):
    return urllib.parse.quote(str(identity), safe="")


def _told(error):
    try:
        return json.loads(error.read())["error"]["message"]
    except (ValueError, KeyError, TypeError, OSError):
        return f"the service answered {error.code} {error.reason}"


def _drain(stream):
    with stream:
        for _ in stream:
            pass
