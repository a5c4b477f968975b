"""One run after the other on a service of this machine: a job is claimed, made, kept, and reported under its lease."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from typing import Any, Protocol, Sequence

from .child import Service, ServiceGone
from .protocol import is_over, with_picture
from .results import Results

# What is kept of the description by the service that made the video.
_KEPT = (
    "size", "seconds", "width", "height", "num_frames", "fps", "seed", "num_inference_steps", "loras", "inference_time_s",
    "stage_durations", "peak_memory_mb", "request", "estimated_seconds",
)  # fmt: skip
# Several events of a run travel together.
_TOGETHER = 0.25


class Caller(Protocol):
    """Calls a method of the desk and waits for what it returns."""

    def __call__(self, method: str, *values: Any) -> Any: ...


class Runner:
    """`models`: ids of which it takes jobs; `run` may be called from as many threads as the service makes videos beside each other."""

    def __init__(
        self,
        service: Service,
        desk: Caller,
        results: Results,
        models: Sequence[str],
        beat_seconds: float = 2,
        variants: Sequence[str] = ("thumbnail", "spritesheet", "preview"),
        name: str = "",
    ) -> None:
        self.service, self._desk, self._results = service, desk, results
        self._models, self._beat_seconds, self._variants = list(models), beat_seconds, variants
        self._name = name or uuid.uuid4().hex[:8]
        self.trouble: str | None = None
        """Why this machine should take no further job: its device failed."""

    def run(self) -> bool:
        """Makes the oldest job that waits. False where there is none. Raises ServiceGone where the service cannot be started."""
        self.service.ensure()
        lease = self._desk("claim", self._models, f"{self._name}-{uuid.uuid4().hex}")
        if lease is None:
            return False
        job, token = lease["job"], lease["token"]
        pump = _Pump(self._desk, self.service, job["id"], token, self._beat_seconds)
        try:
            ending = self._make(job, token, pump)
        except ServiceGone as error:
            ending = ("release", str(error))
        except Exception:
            pump.stop()
            self._desk("release", job["id"], token)
            raise
        pump.stop()
        if pump.is_lost:
            if ending[0] == "finish":
                self._results.remove(ending[1]["name"])
        elif ending[0] == "finish":
            if not self._desk("finish", job["id"], token, ending[1], ending[2]):
                # Another one has the job, or nobody wants it any more.
                self._results.remove(ending[1]["name"])
        elif ending[0] == "fail":
            self._desk("fail", job["id"], token, ending[1], ending[2])
        else:
            self._desk("release", job["id"], token)
        return True

    def _make(self, job: dict[str, Any], token: int, pump: _Pump) -> tuple[Any, ...]:
        """→ finish, result, video; fail, code, message; or release, why"""
        fields = dict(job["fields"])
        fields["model"] = job["model"]
        if job["input"] is not None:
            try:
                fields = with_picture(fields, self._results.read_input(job["input"]))
            except FileNotFoundError:
                return "fail", "media", "the picture of the request is gone"
        own = self._submit(fields, f"{job['id']}-{token}")
        if "error" in own:
            return "fail", own["error"]["code"], own["error"]["message"]
        id = own["video"]["id"]
        pump.follow(id)
        video = self._follow(id, job["id"], pump)
        if video["status"] == "completed" and not pump.is_lost:
            result = self._keep(id, f"{job['id']}.{token}")
            self._forget(id)
            return "finish", result, {name: video.get(name) for name in _KEPT if name in video}
        self._forget(id)
        if video["status"] == "failed":
            error = video.get("error") or {"code": "other", "message": "the run failed without a word"}
            if error["code"] in ("device", "interrupted"):
                # A fault of this machine, not of the request.
                if error["code"] == "device":
                    self.trouble = error["message"]
                return "release", error["message"]
            return "fail", error["code"], error["message"]
        return "release", f"the run was {video['status']}"

    def _submit(self, fields: dict[str, Any], key: str) -> dict[str, Any]:
        """→ `video`, or `error` where the service does not take it"""
        deadline = time.monotonic() + 60
        while True:
            status, body = self.service.ask_json("POST", "/v1/videos", fields, key)
            if status == 200:
                return {"video": body}
            if status not in (429, 503):
                error = body.get("error") or {}
                return {"error": {"code": error.get("code") or "other", "message": error.get("message") or f"status {status}"}}
            if time.monotonic() > deadline:
                raise ServiceGone(f"the service answered {status} for a minute")
            time.sleep(0.5)

    def _follow(self, id: str, job: str, pump: _Pump) -> dict[str, Any]:
        """→ the service's video, once it is over"""
        while True:
            try:
                for name, data in self.service.events(f"/v1/videos/{id}/events"):
                    if "status" in data:
                        if is_over(data["status"]):
                            return data
                        pump.live(video={name: data.get(name) for name in _KEPT if name in data})
                    elif name == "deleted":
                        return {"status": "cancelled"}
                    else:
                        pump.add(name, {**data, "id": job})
            except ServiceGone:
                if not self.service.is_running:
                    raise
            status, video = self.service.ask_json("GET", f"/v1/videos/{id}")
            if status != 200:
                raise ServiceGone(f"the service no longer knows its video: {status}")
            if is_over(video["status"]):
                found: dict[str, Any] = video
                return found
            time.sleep(0.2)

    def _keep(self, id: str, name: str) -> dict[str, Any]:
        status, data = self.service.ask("GET", f"/v1/videos/{id}/content")
        if status != 200 or not data:
            raise ServiceGone(f"the service answered {status} instead of its video")
        files = {"video.mp4": data}
        for variant in self._variants:
            status, picture = self.service.ask("GET", f"/v1/videos/{id}/content?variant={variant}")
            # A video is whole without them.
            if status == 200:
                files[f"{variant}.png" if variant == "preview" else f"{variant}.webp"] = picture
        try:
            self._results.write(name, files)
        except FileExistsError:
            # An answer of the folder was lost: a token is one worker's, so it is ours.
            self._results.remove(name)
            self._results.write(name, files)
        sizes = {file: len(bytes) for file, bytes in files.items()}
        return {"name": name, "files": sizes, "sha256": hashlib.sha256(data).hexdigest()}

    def _forget(self, id: str) -> None:
        """The service's own copy."""
        try:
            self.service.ask("DELETE", f"/v1/videos/{id}")
        except ServiceGone:
            pass

    def plan(self, fields: dict[str, Any]) -> tuple[int, Any]:
        """What the service says of a request. Raises ServiceGone."""
        return self.service.ask_json("POST", "/v1/videos/plan", fields)

    def models(self) -> list[dict[str, Any]]:
        """Raises ServiceGone where they are others than were expected."""
        _, body = self.service.ask_json("GET", "/v1/models")
        found: list[dict[str, Any]] = body["data"]
        if missing := set(self._models) - {model["id"] for model in found}:
            raise ServiceGone(f"the service has {', '.join(model['id'] for model in found)}, not {', '.join(sorted(missing))}")
        return found


class _Pump(threading.Thread):
    """Keeps the lease of a run alive and tells the desk how far it is. Where the lease is lost it ends the run."""

    def __init__(self, desk: Caller, service: Service, job: str, token: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self._desk, self._service, self._job, self._token, self._seconds = desk, service, job, token, seconds
        self._condition = threading.Condition()
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._live: dict[str, Any] = {}
        self._id: str | None = None
        self._is_done = False
        self.is_lost = False
        self.start()

    def follow(self, id: str) -> None:
        with self._condition:
            self._id = id
            lost = self.is_lost
        if lost:
            self._end()

    def live(self, **values: Any) -> None:
        with self._condition:
            self._live.update(values)

    def add(self, name: str, data: dict[str, Any]) -> None:
        with self._condition:
            if name == "progress":
                self._live.update(progress=data.get("progress"), stage=data.get("title"))
                if self._events and self._events[-1][0] == "progress":
                    self._events.pop()
            self._events.append((name, data))
            self._condition.notify()

    def stop(self) -> None:
        """What was heard is told before how it ended."""
        with self._condition:
            self._is_done = True
            self._condition.notify()
        self.join()

    def run(self) -> None:
        while True:
            with self._condition:
                if not self._is_done:
                    self._condition.wait(self._seconds)
            if not self._is_done and self._events:
                time.sleep(min(_TOGETHER, self._seconds))
            with self._condition:
                events, self._events = self._events, []
                live, self._live = self._live, {}
                is_done = self._is_done
            if is_done and not events and not live:
                return
            try:
                if not self._desk("beat", self._job, self._token, live, events):
                    self.is_lost = True
                    self._end()
                    return
            except Exception as error:
                # The desk is away: the run goes on, and what it ends with is told again and again.
                print(f"turbodiffusion: no heartbeat for {self._job}: {error}", flush=True)
            if is_done:
                return

    def _end(self) -> None:
        if self._id is not None:
            try:
                self._service.ask("POST", f"/v1/videos/{self._id}/cancel")
            except ServiceGone:
                pass


def answer_questions(runner: Runner, desk: Caller, questions: Sequence[dict[str, Any]]) -> None:
    """Of the desk, to the service."""
    for question in questions:
        try:
            status, body = runner.plan(question["fields"])
        except ServiceGone as error:
            status, body = 503, {"error": {"message": str(error), "type": "server_error", "param": None, "code": "starting"}}
        desk("answer", question["number"], status, body)
