"""`turbodiffusion serve` as a child on this machine's loopback, which ends with whoever started it."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import queue
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, IO, Iterator, Sequence

# The kernel ends the child when the thread that started it is gone, also by SIGKILL. The words run in a fresh interpreter that
# becomes the program: between fork and exec of a process with threads Python must not run.
_TIED = (
    "import ctypes,os,sys;"
    "ctypes.CDLL(None).prctl(1,9,0,0,0);"
    "os.getppid()==int(sys.argv[1]) or os._exit(1);"
    "os.execv(sys.argv[2],sys.argv[2:])"
)


class ServiceGone(RuntimeError):
    """The child has ended or does not answer."""


class Service:
    """Starts with `start`, and again with `ensure` where it has ended. Methods block; any thread may call them.

    `models` as of `--model`; `devices` as of `--device`; `options` are further ones; `scratch`: where its own folder is made."""

    def __init__(
        self,
        program: str,
        models: Sequence[str],
        devices: Sequence[str] = ("cpu",),
        options: Sequence[str] = (),
        scratch: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._words = [program, "serve"]
        for model in models:
            self._words += ["--model", model]
        for device in devices:
            self._words += ["--device", device]
        self._options = list(options)
        self._scratch = scratch or os.path.join(tempfile.gettempdir(), "turbodiffusion-ray")
        self._environment = environment or {}
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: str | None = None
        self._held: IO[str] | None = None
        self._port = 0
        self._key = ""
        self.starts = 0
        self._is_closed = False

    # The process

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def ensure(self, wait: float = 300) -> None:
        """Starts it where it does not answer. Raises ServiceGone, with the last line of what it said."""
        with self._lock:
            try:
                self.ask("GET", "/ready")
            except ServiceGone:
                self.start(wait)

    def start(self, wait: float = 300) -> None:
        with self._lock:
            self.stop(0)
            if self._is_closed:
                raise ServiceGone("the service is closed")
            folder = self._make_folder()
            self._key = secrets.token_urlsafe(32)
            keys = os.path.join(folder, "keys")
            with open(os.open(keys, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(self._key + "\n")
            words = [
                *self._words, "--port", "0", "--api-key-file", keys, "--output", os.path.join(folder, "output"),
                "--drain", "requeue", *self._options,
            ]  # fmt: skip
            told: queue.Queue[str | None] = queue.Queue()
            # The thread lives as long as the child: with it the child would go.
            threading.Thread(target=self._keep, args=(words, told), daemon=True).start()
            deadline, last = time.monotonic() + wait, "nothing"
            while True:
                try:
                    line = told.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    self.stop(0)
                    raise ServiceGone(f"the service did not start within {wait:g} s; it said: {last}") from None
                if line is None:
                    raise ServiceGone(f"the service did not start: {last}")
                if found := re.search(r"listening on http://\S+:(\d+)", line):
                    self._port = int(found[1])
                    break
                last = line
            while True:
                try:
                    if self.ask("GET", "/ready")[0] == 200:
                        break
                except ServiceGone:
                    if not self.is_running:
                        raise
                if time.monotonic() > deadline:
                    self.stop(0)
                    raise ServiceGone(f"the service was not ready within {wait:g} s")
                time.sleep(0.05)
            self.starts += 1

    def _keep(self, words: list[str], told: queue.Queue[str | None]) -> None:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *words],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                env={**os.environ, **self._environment},
            )  # fmt: skip
        except OSError as error:
            told.put(str(error))
            told.put(None)
            return
        self._process = process
        assert process.stderr is not None
        for line in process.stderr:
            text = line.decode(errors="replace").strip()
            if text:
                told.put(text)
                print(f"turbodiffusion: {text}", file=sys.stderr, flush=True)
        process.wait()
        told.put(None)

    def close(self, wait: float = 10) -> None:
        """Stops it, and it is not started again."""
        self._is_closed = True
        self.stop(wait)

    def stop(self, wait: float = 10) -> None:
        with self._lock:
            process, self._process = self._process, None
            if process is not None and process.poll() is None:
                if wait > 0:
                    process.terminate()
                    try:
                        process.wait(wait)
                    except subprocess.TimeoutExpired:
                        pass
                if process.poll() is None:
                    process.kill()
                    process.wait()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None
            if self._held is not None:
                self._held.close()
                self._held = None

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(0)

    def _make_folder(self) -> str:
        """One of its own. Those of processes that were killed go: nobody holds their lock any more."""
        os.makedirs(self._scratch, mode=0o700, exist_ok=True)
        for name in os.listdir(self._scratch):
            path = os.path.join(self._scratch, name)
            try:
                with open(os.path.join(path, "lock")) as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            except OSError:
                continue
        folder = tempfile.mkdtemp(dir=self._scratch)
        # Made under another name, locked, then named: nobody finds it unlocked.
        held = open(os.path.join(folder, "lock.new"), "w")
        fcntl.flock(held, fcntl.LOCK_EX)
        os.rename(os.path.join(folder, "lock.new"), os.path.join(folder, "lock"))
        self._folder, self._held = folder, held
        return folder

    # Requests

    def ask(self, method: str, path: str, fields: dict[str, Any] | None = None, key: str | None = None) -> tuple[int, bytes]:
        """→ status, body. Raises ServiceGone."""
        connection = self._connect(60)
        try:
            headers = {"Authorization": f"Bearer {self._key}"}
            if fields is not None:
                headers["Content-Type"] = "application/json"
            if key is not None:
                headers["Idempotency-Key"] = key
            connection.request(method, path, None if fields is None else json.dumps(fields), headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServiceGone(f"the service does not answer: {error}") from None
        finally:
            connection.close()

    def ask_json(self, method: str, path: str, fields: dict[str, Any] | None = None, key: str | None = None) -> tuple[int, Any]:
        status, data = self.ask(method, path, fields, key)
        try:
            return status, json.loads(data)
        except ValueError:
            raise ServiceGone(f"the service answered {status} without JSON") from None

    def events(self, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and data of each. Raises ServiceGone where the stream breaks; ends where it ends."""
        connection = self._connect(45)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self._key}"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise ServiceGone(f"the service answered {answer.status} instead of events")
            name = ""
            for line in answer:
                text = line.decode().rstrip("\r\n")
                if text.startswith("event: "):
                    name = text[7:]
                elif text.startswith("data: "):
                    yield name, json.loads(text[6:])
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServiceGone(f"the service's events broke off: {error}") from None
        finally:
            connection.close()

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        if not self.is_running:
            raise ServiceGone("the service has ended")
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)


def find_program(named: str = "") -> str:
    """Raises FileNotFoundError."""
    found = named or os.environ.get("TURBODIFFUSION_PROGRAM") or ""
    if not found:
        try:
            from turbodiffusion_swift import find_program as installed  # type: ignore[import-not-found,unused-ignore]

            return str(installed())
        except ImportError:
            found = shutil.which("turbodiffusion") or ""
        except RuntimeError as error:
            raise FileNotFoundError(str(error)) from None
    if not found or not os.access(found, os.X_OK):
        raise FileNotFoundError(
            f"there is no program at '{found}': install the wheel on every node, or name the program in the fleet's 'program'"
        )
    return os.path.abspath(found)
