"""Where fronts and workers of a fleet meet: the job store, what is heard of running videos, and questions to whoever has a model.

There is one. Its methods take and return plain values, so that an actor of Ray can be it; what must outlive it is in the store."""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict, deque
from dataclasses import asdict
from typing import Any, Sequence

from .protocol import model_object, video_object
from .store import OVER, Job, JobStore

# Events that are kept for those who ask a little later, and previews of the last step.
EVENTS = 8192
PREVIEWS = 256
# Seconds without a word after which a replica counts as gone.
PRESENT = 10.0


class Desk:
    """`ids`: models of the fleet, in its order."""

    def __init__(self, store: JobStore, ids: Sequence[str], expire_hours: float = 168, queue_limit: int = 10_000) -> None:
        self.store = store
        self._ids = list(ids)
        self._expire_seconds = expire_hours * 3600
        self._queue_limit = queue_limit
        self._models = store.models()
        # Numbers of events rise over restarts too: a listener that comes back asks for what is after the last one.
        self._number = int(time.time() * 1000)
        self._events: deque[tuple[int, str | None, str, str]] = deque(maxlen=EVENTS)
        self._told = asyncio.Condition()
        self._live: dict[str, dict[str, Any]] = {}
        self._previews: OrderedDict[str, str] = OrderedDict()
        self._replicas: dict[str, dict[str, Any]] = {}
        self._questions: dict[int, dict[str, Any]] = {}
        self._asked = asyncio.Condition()
        self._question = 0
        self._ended = {status: 0 for status in OVER}
        self._waited = [0.0, 0]

    def change(self, ids: Sequence[str], expire_hours: float, queue_limit: int, lease_seconds: float, max_attempts: int) -> None:
        self._ids, self._expire_seconds, self._queue_limit = list(ids), expire_hours * 3600, queue_limit
        self.store.lease_seconds, self.store.max_attempts = lease_seconds, max_attempts

    # Of clients

    async def create(self, model: str, fields: dict[str, Any], **values: Any) -> dict[str, Any]:
        """`values` as of `JobStore.add`. → `video`, or `error`"""
        if (key := values.get("key")) is not None and (found := await self.known(key, values.get("key_hash"))) is not None:
            return found
        job = self.store.add(model, fields, limit=self._queue_limit, **values)
        if job is None:
            return {"error": "queue_full", "limit": self._queue_limit, "retry_after": 10}
        await self._tell_video("video", job)
        await self._tell_queue()
        return {"video": self._object(job)}

    async def known(self, key: str, key_hash: str | None) -> dict[str, Any] | None:
        job = self.store.known(key)
        if job is None:
            return None
        return {"video": self._object(job)} if job.key_hash == key_hash else {"error": "idempotency_conflict"}

    async def get(self, id: str) -> dict[str, Any] | None:
        job = self.store.job(id)
        return None if job is None else self._object(job)

    async def job(self, id: str) -> dict[str, Any] | None:
        job = self.store.job(id)
        return None if job is None else asdict(job)

    async def page(self, after: str | None, limit: int, newest_first: bool, statuses: Sequence[str]) -> dict[str, Any] | None:
        found = self.store.page(after, limit, newest_first, statuses)
        return None if found is None else {"videos": [self._object(job) for job in found[0]], "has_more": found[1]}

    async def cancel(self, id: str) -> dict[str, Any] | None:
        """→ `video`, or `over`: the status that it has already"""
        if not self.store.cancel(id, time.time() + self._expire_seconds):
            job = self.store.job(id)
            return None if job is None else {"over": job.status}
        return {"video": await self._over(id)}

    async def delete(self, id: str) -> dict[str, Any] | None:
        """→ the job as it was, whose files are to be removed"""
        job = self.store.remove(id)
        if job is None:
            return None
        self._live.pop(id, None)
        self._previews.pop(id, None)
        await self._tell("deleted", id, {"id": id})
        await self._tell_queue()
        return asdict(job)

    async def preview(self, id: str) -> str | None:
        """A `data:` URL."""
        return self._previews.get(id)

    async def models(self) -> list[dict[str, Any]]:
        loaded = {id for replica in self._present() for id in replica["models"]}
        return [{**model_object(id, self._models.get(id)), "is_loaded": id in loaded} for id in self._ids]

    async def queue_seconds(self, model: str) -> float:
        """Until a new request for the model would begin."""
        seconds = sum(job.estimate or 0 for job in self.store.open_jobs() if job.model == model)
        runs: int = sum(replica["runs"] for replica in self._present() if model in replica["models"])
        return float(seconds / max(runs, 1))

    async def listen(self, id: str | None, cursor: int | None, wait: float) -> dict[str, Any]:
        """What happened after `cursor`, to one video or to all; None: how things stand. Waits until there is something.

        → `cursor`, `events` of number, name and JSON, `ended`: no more will come of this video"""
        if cursor is None:
            return self._begin(id)
        deadline = time.monotonic() + wait
        async with self._told:
            while True:
                found = []
                # The last ones come last: few are looked at.
                for event in reversed(self._events):
                    if event[0] <= cursor:
                        break
                    if id is None or event[1] == id:
                        found.append(event)
                found.reverse()
                left = deadline - time.monotonic()
                if found or left <= 0:
                    break
                try:
                    await asyncio.wait_for(self._told.wait(), left)
                except asyncio.TimeoutError:
                    pass
        events = [(number, name, data) for number, _, name, data in found]
        ended = id is not None and any(name in OVER or name == "deleted" for _, name, _ in events)
        if not events and id is not None:
            job = self.store.job(id)
            # It ended, and what told of it is gone: the desk was away meanwhile.
            ended = job is None or job.is_over
            if job is not None and ended:
                self._number += 1
                events = [(self._number, job.status, json.dumps(self._object(job)))]
        return {"cursor": events[-1][0] if events else cursor, "events": events, "ended": ended}

    def _begin(self, id: str | None) -> dict[str, Any]:
        first: list[tuple[str, dict[str, Any]]] = []
        ended = False
        if id is None:
            first.append(("queue", self._queue()))
            first += [("video", self._object(job)) for job in self.store.open_jobs()]
        elif (job := self.store.job(id)) is not None:
            first.append(("video", self._object(job)))
            ended = job.is_over
        else:
            ended = True
        events = []
        for name, object in first:
            self._number += 1
            events.append((self._number, name, json.dumps(object)))
        return {"cursor": self._number, "events": events, "ended": ended}

    # Of workers

    async def claim(self, models: Sequence[str], owner: str) -> dict[str, Any] | None:
        for job in self.store.lapse():
            await self._changed(job)
        lease = self.store.claim(models, owner)
        if lease is None:
            return None
        self._live[lease.job.id] = {}
        if lease.job.attempts == 1 and lease.job.started is not None:
            self._waited = [self._waited[0] + lease.job.started - lease.job.created, self._waited[1] + 1]
        await self._tell_video("video", lease.job)
        await self._tell_queue()
        return {"job": asdict(lease.job), "token": lease.token, "seconds": lease.seconds}

    async def beat(self, id: str, token: int, live: dict[str, Any], events: Sequence[tuple[str, dict[str, Any]]] = ()) -> bool:
        """The worker lives; `live`: `progress`, `stage`, `video` of its service; `events` for who listens."""
        if not self.store.beat(id, token):
            return False
        self._live.setdefault(id, {}).update(live)
        for name, data in events:
            if name == "preview" and isinstance(data.get("image"), str):
                self._previews[id] = data["image"]
                self._previews.move_to_end(id)
                while len(self._previews) > PREVIEWS:
                    self._previews.popitem(last=False)
            await self._tell(name, id, data)
        return True

    async def finish(self, id: str, token: int, result: dict[str, Any], video: dict[str, Any]) -> bool:
        done = self.store.finish(id, token, result, video, time.time() + self._expire_seconds)
        if done:
            await self._over(id)
        return done

    async def fail(self, id: str, token: int, code: str, message: str) -> bool:
        done = self.store.fail(id, token, code, message, time.time() + self._expire_seconds)
        if done:
            await self._over(id)
        return done

    async def release(self, id: str, token: int) -> bool:
        done = self.store.release(id, token)
        if done and (job := self.store.job(id)) is not None:
            await self._changed(job)
        return done

    async def attend(self, replica: str, pool: str, models: Sequence[dict[str, Any]], runs: int, wait: float) -> list[dict[str, Any]]:
        """A replica says that it is there and which models it has. → questions that it shall answer; waits until there are any"""
        ids = [model["id"] for model in models]
        if replica not in self._replicas:
            self.store.keep_models(models)
            self._models = self.store.models()
        self._replicas[replica] = {"pool": pool, "models": ids, "runs": runs, "seen": time.monotonic() + wait}
        deadline = time.monotonic() + wait
        async with self._asked:
            while True:
                found = [question for question in self._questions.values() if not question["taken"] and question["model"] in ids]
                left = deadline - time.monotonic()
                if found or left <= 0:
                    break
                try:
                    await asyncio.wait_for(self._asked.wait(), left)
                except asyncio.TimeoutError:
                    pass
            for question in found:
                question["taken"] = True
        return [{"number": question["number"], "fields": question["fields"]} for question in found]

    async def ask(self, model: str, fields: dict[str, Any], wait: float) -> tuple[int, dict[str, Any]] | None:
        """How a service that has the model plans a request. → status and body; None where no replica answers in time"""
        if not any(model in replica["models"] for replica in self._present()):
            return None
        self._question += 1
        number, answer = self._question, asyncio.get_running_loop().create_future()
        self._questions[number] = {"number": number, "model": model, "fields": fields, "taken": False, "answer": answer}
        async with self._asked:
            self._asked.notify_all()
        try:
            found: tuple[int, dict[str, Any]] = await asyncio.wait_for(answer, wait)
            return found
        except asyncio.TimeoutError:
            return None
        finally:
            self._questions.pop(number, None)

    async def answer(self, number: int, status: int, body: dict[str, Any]) -> None:
        question = self._questions.get(number)
        if question is not None and not question["answer"].done():
            question["answer"].set_result((status, body))

    # Of the steward

    async def open_counts(self) -> dict[str, int]:
        """Requests that wait or run, by model."""
        for job in self.store.lapse():
            await self._changed(job)
        counts = {}
        for model, found in self.store.counts().items():
            counts[model] = found.get("queued", 0) + found.get("in_progress", 0)
        return counts

    async def sweep(self, disk_limit: int | None = None) -> list[dict[str, Any]]:
        """Forgets what has expired. → those jobs, whose files are to be removed"""
        gone = []
        for job in self.store.outdated(disk_limit):
            if (removed := await self.delete(job.id)) is not None:
                gone.append(removed)
        return gone

    async def wants(self, names: Sequence[str]) -> list[str]:
        return sorted(self.store.wants(names))

    async def metrics(self) -> str:
        """For Prometheus."""
        queue = self._queue()
        lines = []

        def add(name: str, kind: str, text: str, *values: tuple[str, float]) -> None:
            lines.extend([f"# HELP {name} {text}", f"# TYPE {name} {kind}", *(f"{name}{labels} {value:g}" for labels, value in values)])

        ended = [(f'{{status="{status}"}}', count) for status, count in self._ended.items()]
        add("turbodiffusion_videos_total", "counter", "Videos that are over, by how they ended.", *ended)
        add("turbodiffusion_queue_length", "gauge", "Requests that wait.", ("", queue["queued"]))
        add("turbodiffusion_running", "gauge", "Requests that run.", ("", queue["running"]))
        add("turbodiffusion_leases_lapsed_total", "counter", "Runs whose worker went away.", ("", self.store.lapsed))
        add("turbodiffusion_refused_total", "counter", "Results of workers whose lease was over.", ("", self.store.refused))
        lines += ["# HELP turbodiffusion_queue_wait_seconds From the request to its first run.",
                  "# TYPE turbodiffusion_queue_wait_seconds summary",
                  f"turbodiffusion_queue_wait_seconds_sum {self._waited[0]:g}",
                  f"turbodiffusion_queue_wait_seconds_count {self._waited[1]:g}"]  # fmt: skip
        pools: dict[str, int] = {}
        for replica in self._present():
            pools[replica["pool"]] = pools.get(replica["pool"], 0) + 1
        add("turbodiffusion_replicas", "gauge", "Replicas, by pool.", *((f'{{pool="{pool}"}}', n) for pool, n in pools.items()))
        return "\n".join(lines) + "\n"

    # Telling

    def _present(self) -> list[dict[str, Any]]:
        limit = time.monotonic() - PRESENT
        self._replicas = {name: replica for name, replica in self._replicas.items() if replica["seen"] > limit}
        return list(self._replicas.values())

    def _object(self, job: Job) -> dict[str, Any]:
        return video_object(job, self._models.get(job.model, {}), self._live.get(job.id, {}), self.store.position(job))

    def _queue(self) -> dict[str, int]:
        counts = self.store.counts().values()
        return {
            "queued": sum(found.get("queued", 0) for found in counts),
            "running": sum(found.get("in_progress", 0) for found in counts),
        }

    async def _changed(self, job: Job) -> None:
        """A run ended without a result."""
        if job.is_over:
            await self._over(job.id)
        else:
            self._live.pop(job.id, None)
            await self._tell_video("video", job)
            await self._tell_queue()

    async def _over(self, id: str) -> dict[str, Any]:
        self._live.pop(id, None)
        job = self.store.job(id)
        assert job is not None
        self._ended[job.status] += 1
        await self._tell_video(job.status, job)
        await self._tell_queue()
        return self._object(job)

    async def _tell_video(self, name: str, job: Job) -> None:
        await self._tell(name, job.id, self._object(job))

    async def _tell_queue(self) -> None:
        await self._tell("queue", None, self._queue())

    async def _tell(self, name: str, id: str | None, data: dict[str, Any]) -> None:
        self._number += 1
        self._events.append((self._number, id, name, json.dumps(data)))
        async with self._told:
            self._told.notify_all()
