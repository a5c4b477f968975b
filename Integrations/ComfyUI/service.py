"""The service that makes the videos: one that runs already, or one of our own beside ComfyUI."""

import atexit
import json
import math
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


# The names of the catalogue, beside nano.
PUBLISHED = ("Wan2.1-1.3B", "Wan2.1-14B", "Wan2.2-A14B", "Wan2.2-T2V-A14B")
LIST_SECONDS = 10
LIST_TIMEOUT = 2


class ServiceError(RuntimeError):
    """What the service says, in one line."""


class Service:
    """`turbodiffusion serve` over HTTP. Its methods block: call them on a thread."""

    def __init__(self, library):
        self.library = library
        self._url = os.environ.get("TURBODIFFUSION_URL", "").rstrip("/")
        self._key = os.environ.get("TURBODIFFUSION_API_KEY", "")
        self._is_own = not self._url
        self._process = None
        self._folder = None
        self._lock = threading.Lock()
        self._names = {}

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
        """Names of the models that a graph may choose from: what is served, or before our own service runs what it may find."""
        if self._is_own and not self._is_running():
            return ["nano", *PUBLISHED, *self.library.own_models()]
        return self._listed("models") or ["nano", *PUBLISHED]

    def loras(self):
        """Names of the LoRAs that a graph may choose from."""
        return list(self.library.loras()) if self._is_own else self._listed("loras")

    def lora(self, name):
        """What the service calls the LoRA of a graph."""
        if not self._is_own:
            return name
        loras = self.library.loras()
        if name not in loras:
            raise ServiceError(f"there is no LoRA {name!r} in ComfyUI's folders of LoRAs")
        if self._folder is not None:
            self.library.link_loras(self._folder.name)
        return loras[name][0]

    def _listed(self, kind):
        """The ids of a list of the service. ComfyUI asks often and on its only thread: an answer holds for a while, and where
        none comes in time the last one does."""
        at, names = self._names.get(kind, (-math.inf, []))
        if time.monotonic() - at > LIST_SECONDS:
            try:
                names = [entry["id"] for entry in self._json("GET", f"/v1/{kind}", timeout=LIST_TIMEOUT)["data"]]
            except ServiceError:
                pass
            self._names[kind] = (time.monotonic(), names)
        return names

    def _json(self, method, path, fields=None, headers=None, tries=1, timeout=60):
        body = json.dumps(fields).encode() if fields is not None else None
        return json.loads(self._ask(method, path, body, headers, tries, timeout))

    def _ask(self, method, path, body=None, headers=None, tries=1, timeout=60):
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
                with urllib.request.urlopen(request, timeout=timeout) as answer:
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
            if not self._is_running():
                self._process = None
                self._start()
            return self._url

    def _is_running(self):
        return self._process is not None and self._process.poll() is None

    def _start(self):
        program = _program()
        if self._folder is None:
            # Only this user may read it.
            self._folder = tempfile.TemporaryDirectory(prefix="turbodiffusion-")
            atexit.register(self.stop)
        folder = self._folder.name
        self._key = secrets.token_urlsafe(32)
        keys = os.path.join(folder, "keys")
        with open(os.open(keys, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(self._key + "\n")
        self.library.link_models(folder)
        words = [program, "serve", "--port", "0", "--api-key-file", keys, "--output", os.path.join(folder, "videos"),
                 "--expire-hours", "1", "--drain", "requeue", "--loras", self.library.link_loras(folder)]
        own = self.library.own_models()
        if own:
            # Who names models gets no others.
            found = [name for name in PUBLISHED if _is_complete(program, name, folder)]
            words += [f"--model={name}" for name in ["nano", *found, *own.values()]]
        words += shlex.split(os.environ.get("TURBODIFFUSION_OPTIONS", ""))
        told, listens = [], threading.Event()
        # The service ends with the thread that has started it: one that lasts as long as ComfyUI does.
        threading.Thread(target=self._attend, args=(_with_parent(words), folder, told, listens), daemon=True).start()
        listens.wait()
        if self._process is None:
            raise ServiceError(f"the service did not start: {told[-1] if told else 'it said nothing'}")

    def _attend(self, words, folder, told, listens):
        """Starts the process, tells where it listens, and reads what it says, which must not fill the pipe."""
        try:
            process = subprocess.Popen(
                words, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                errors="replace",
            )
            with process.stderr:
                for line in process.stderr:
                    found = None if listens.is_set() else re.search(r"listening on (http://\S+)", line)
                    if found:
                        self._url, self._process = found[1], process
                        listens.set()
                    elif not listens.is_set():
                        told.append(line.strip())
            process.wait()
        except OSError as error:
            told.append(str(error))
        finally:
            listens.set()

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


class Job:
    """A video that is being made for somebody who may leave at any time."""

    def __init__(self, service, request):
        self._service = service
        self._request = request
        self._identity = None
        self._is_over = False
        self._is_closed = False
        self._lock = threading.Lock()

    def start(self):
        """Puts it into the queue. Returns the video."""
        video = self._service.create(self._request)
        with self._lock:
            self._identity = video["id"]
            is_closed = self._is_closed
        if is_closed:
            self._remove()
        return video

    def video(self):
        return self._service.video(self._identity)

    def preview(self):
        return self._service.preview(self._identity)

    def content(self):
        data = self._service.content(self._identity)
        self._is_over = True
        return data

    def close(self):
        """Ends it where it still waits or runs, also where the service has not answered yet. Nothing of it stays there."""
        with self._lock:
            self._is_closed = True
            is_there = self._identity is not None
        if is_there:
            self._remove()

    def _remove(self):
        if not self._is_over:
            self._service.cancel(self._identity)
        self._service.delete(self._identity)


def _with_parent(words):
    """The service must not outlive a ComfyUI that was killed."""
    tool = shutil.which("setpriv")
    return [tool, "--pdeathsig", "TERM", "--", *words] if tool else words


def _is_complete(program, name, folder):
    """Whether all files of a published model are here."""
    for command in ("t2v", "i2v"):
        plan = subprocess.run(
            [program, command, f"--model={name}", "--dry_run", "--json"], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True,
            check=False,
        )
        for line in plan.stdout.splitlines():
            event = json.loads(line)
            if event.get("event") == "plan":
                return not event["missing"]
    return False


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

