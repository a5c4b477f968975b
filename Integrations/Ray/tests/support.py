"""What the tests share: the package beside them, a loop with a desk, an HTTP client without HTTP."""
import asyncio
import json
import os
import shutil
import sys
import tempfile
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
# Where a commit costs nothing; what the tests count is not durability.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
STANDIN = os.path.join(HERE, "standin.py")

from turbodiffusion_ray.desk import Desk  # noqa: E402
from turbodiffusion_ray.front import Front  # noqa: E402
from turbodiffusion_ray.results import FolderResults  # noqa: E402
from turbodiffusion_ray.store import JobStore  # noqa: E402


class Time:
    """Goes on when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Answer:
    def __init__(self):
        self.status, self.headers, self.data = 0, {}, b""

    @property
    def json(self):
        return json.loads(self.data)

    @property
    def code(self):
        return self.json["error"]["code"]

    @property
    def events(self):
        """(name, data)"""
        found = []
        for block in self.data.decode().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
            if "event" in lines:
                found.append((lines["event"], json.loads(lines["data"])))
        return found


class Fleet:
    """A desk, its store and a front in one process, on a loop of their own. `with` ends it."""

    def __init__(self, ids=("nano",), keys=None, lease_seconds=30, check_seconds=5, queue_limit=100, body_limit=1 << 20, **values):
        self.folder = tempfile.mkdtemp(prefix="turbodiffusion-ray-", dir=MEMORY)
        self.store = JobStore(os.path.join(self.folder, "jobs.sqlite"), lease_seconds, **values)
        self.results = FolderResults(os.path.join(self.folder, "results"))
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.desk = Desk(self.store, ids, queue_limit=queue_limit)

        async def ask(method, *values, **named):
            return await getattr(self.desk, method)(*values, **named)

        self.front = Front(ask, self.results, keys, body_limit, check_seconds)

    def call(self, method, *values, **named):
        """Of the desk, from a thread."""
        return self.wait(getattr(self.desk, method)(*values, **named))

    def wait(self, coroutine, timeout=60):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def ask(self, method, path, body=None, headers=(), data=None):
        """→ the front's answer, whole"""
        return self.wait(self._ask(method, path, body, dict(headers), data))

    async def _ask(self, method, path, body, headers, data):
        answer = Answer()
        if body is not None:
            data = json.dumps(body).encode()
            headers = {"Content-Type": "application/json", **headers}
        path, _, query = path.partition("?")
        parts = [data or b""]

        async def receive():
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            await asyncio.sleep(3600)

        async def send(message):
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answer.data += message["body"]

        scope = {
            "type": "http", "method": method, "path": path, "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
        await self.front(scope, receive, send)
        return answer

    def create(self, prompt="A red sphere.", **fields):
        answer = self.ask("POST", "/v1/videos", {"prompt": prompt, "num_frames": 5, **fields})
        assert answer.status == 200, answer.data
        return answer.json["id"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.store.close()
        shutil.rmtree(self.folder, ignore_errors=True)
