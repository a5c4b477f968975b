"""The fleet on Ray Serve: `serve run turbodiffusion_ray.fleet:build …`, or the same in a RayService.

    front ── desk ── workers      a front keeps nothing; a worker takes the oldest job of its models and makes it
               │        │
             jobs    service      the desk is an actor on the head, which owns the file; each worker owns a child
                        │
                     results      a folder that all nodes see

The steward lets a request for each open job wait at the workers' deployment. It carries no job: whoever gets it claims one. So
Ray Serve's own count of waiting requests is the length of the queue, and its autoscaling goes by that."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve
from ray.exceptions import GetTimeoutError, RayActorError

from .child import Service, find_program
from .config import Fleet, Pool
from .desk import Desk
from .front import Front, read_keys, remove_files
from .results import Results, open_results
from .runner import Runner, answer_questions
from .store import JobStore, StoreInUse

NAMESPACE = "turbodiffusion"
# Between two looks of the steward.
_LOOK = 0.25
_SWEEP = 60.0
# A result that no job names is removed only then: its worker may be about to tell of it.
_ORPHAN = 3600.0


# The desk


class DeskActor(Desk):
    def __init__(self, values: dict[str, Any]) -> None:
        fleet = Fleet.parse(values)
        super().__init__(_open_store(fleet), fleet.ids, fleet.expire_hours, fleet.queue_limit)

    async def describe(self, values: dict[str, Any]) -> None:
        fleet = Fleet.parse(values)
        self.change(fleet.ids, fleet.expire_hours, fleet.queue_limit, fleet.lease_seconds, fleet.max_attempts)

    async def process(self) -> int:
        return os.getpid()


def _open_store(fleet: Fleet) -> JobStore:
    deadline = time.monotonic() + 30
    while True:
        try:
            return JobStore(fleet.database, fleet.lease_seconds, fleet.max_attempts)
        except StoreInUse:
            # The one before it is still going.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def desk_actor(fleet: Fleet) -> Any:
    """The one that there is, or a new one. It starts again where it was killed, and what was asked meanwhile is asked again."""
    return (
        ray.remote(DeskActor)
        .options(
            name=f"{fleet.name}-desk", namespace=NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0,
            resources=fleet.store_resources, max_restarts=-1, max_task_retries=-1, max_concurrency=10_000,
        )
        .remote(fleet.plain())
    )  # fmt: skip


class DeskCaller:
    """Of threads."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._actor = desk_actor(fleet)

    def __call__(self, method: str, *values: Any) -> Any:
        while True:
            try:
                # Everything of the desk may be said twice.
                return ray.get(getattr(self._actor, method).remote(*values), timeout=120)
            except GetTimeoutError:
                print(f"turbodiffusion: the desk has not answered {method} for two minutes", flush=True)
            except RayActorError:
                # Ended for good, as by a new head: there is another one, or will be.
                time.sleep(1)
                self._actor = desk_actor(self._fleet)


class AsyncDeskCaller:
    """Of coroutines."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._actor = desk_actor(fleet)

    async def __call__(self, method: str, *values: Any, **named: Any) -> Any:
        try:
            return await getattr(self._actor, method).remote(*values, **named)
        except RayActorError:
            await asyncio.sleep(1)
            self._actor = await asyncio.to_thread(desk_actor, self._fleet)
            return await getattr(self._actor, method).remote(*values, **named)


# Workers


@serve.deployment
class Worker:
    """A service on this node's devices, and the jobs that it makes."""

    def __init__(self, values: dict[str, Any], pool_name: str) -> None:
        fleet = Fleet.parse(values)
        pool = next(pool for pool in fleet.pools if pool.name == pool_name)
        # Ray has set CUDA_VISIBLE_DEVICES: the service counts those that are visible.
        devices = [f"cuda:{index}" for index in range(pool.gpus)] or ["cpu"]
        self._service = Service(find_program(fleet.program), pool.models, devices, pool.options, environment=pool.environment)
        self._service.start()
        self._name = serve.get_replica_context().replica_id.unique_id
        self._desk = DeskCaller(fleet)
        self._runner = Runner(
            self._service, self._desk, open_results(fleet.results), pool.ids, fleet.beat_seconds, fleet.variants, self._name
        )
        self._threads = ThreadPoolExecutor(pool.runs, "run")
        self._has_left = False
        threading.Thread(target=self._attend, args=(pool, self._runner.models()), daemon=True).start()

    def _attend(self, pool: Pool, models: list[dict[str, Any]]) -> None:
        answers = ThreadPoolExecutor(2, "answer")
        while not self._has_left:
            try:
                questions = self._desk("attend", self._name, pool.name, models, pool.runs, 2.0)
                if questions:
                    answers.submit(answer_questions, self._runner, self._desk, questions)
            except Exception as error:
                print(f"turbodiffusion: the desk does not answer: {error}", flush=True)
                time.sleep(1)

    async def run(self) -> bool:
        """Makes the oldest job that waits; False where there is none."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._runner.run)

    def check_health(self) -> None:
        if self._runner.trouble is not None:
            raise RuntimeError(f"the device failed: {self._runner.trouble}")

    def __del__(self) -> None:
        self._has_left = True
        if hasattr(self, "_service"):
            self._service.close()


# The steward


@serve.deployment
class Steward:
    """There is one. Nothing is lost where it is away: jobs wait until it is there again."""

    # Ray Serve waits for it.
    async def __init__(self, values: dict[str, Any], *workers: Any) -> None:  # type: ignore[misc]
        self._fleet = Fleet.parse(values)
        self._workers = dict(zip([pool.name for pool in self._fleet.pools], workers))
        self._desk = AsyncDeskCaller(self._fleet)
        # It outlives a change of the fleet's description.
        await self._desk("describe", values)
        self._results = open_results(self._fleet.results)
        self._waiting = {pool.name: 0 for pool in self._fleet.pools}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loops = [asyncio.create_task(self._look()), asyncio.create_task(self._sweep())]

    async def _look(self) -> None:
        while True:
            try:
                counts = await self._desk("open_counts")
                for pool in self._fleet.pools:
                    open_jobs = sum(counts.get(id, 0) for id in pool.ids)
                    # More than that says nothing more to the autoscaling.
                    wanted = min(open_jobs, 2 * pool.max_replicas * pool.runs)
                    for _ in range(wanted - self._waiting[pool.name]):
                        self._waiting[pool.name] += 1
                        task = asyncio.create_task(self._call(pool.name))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
            except Exception as error:
                print(f"turbodiffusion: the steward found no jobs: {error}", flush=True)
            await asyncio.sleep(_LOOK)

    async def _call(self, pool: str) -> None:
        try:
            await self._workers[pool].run.remote()
        except Exception as error:
            # Its node, its process or its service is gone. The lease lapses, the job is still open, and is called for again.
            print(f"turbodiffusion: a run of pool {pool} ended: {type(error).__name__}", flush=True)
            await asyncio.sleep(1)
        finally:
            self._waiting[pool] -= 1

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            try:
                limit = int(self._fleet.disk_limit_gib * 2**30) or None
                for job in await self._desk("sweep", limit):
                    await asyncio.to_thread(remove_files, self._results, job)
                await remove_orphans(self._desk, self._results, _ORPHAN)
            except Exception as error:
                print(f"turbodiffusion: the steward could not sweep: {error}", flush=True)

    def check_health(self) -> None:
        for task in self._loops:
            if task.done():
                raise RuntimeError("the steward has stopped")


async def remove_orphans(desk: Any, results: Results, older_than: float) -> int:
    """Of workers whose lease was over and which could not tidy up. → how many"""
    count = 0
    for folder, remove in (("videos", results.remove), ("inputs", results.remove_input)):
        names = await asyncio.to_thread(results.names, folder, older_than)
        for start in range(0, len(names), 500):
            some = names[start : start + 500]
            for name in set(some) - set(await desk("wants", some)):
                await asyncio.to_thread(remove, name)
                count += 1
    return count


# The front


class _Made:
    """The front of this process: that of the deployment which was made in it."""

    front: Front | None = None


def app() -> Front:
    """Ray Serve asks for the application once the deployment has been made."""
    assert _Made.front is not None
    return _Made.front


@serve.deployment
@serve.ingress(app)
class Entry:
    def __init__(self, values: dict[str, Any], steward: Any) -> None:
        fleet = Fleet.parse(values)
        keys = read_keys(fleet.api_key_file) if fleet.api_key_file else None
        _Made.front = Front(AsyncDeskCaller(fleet), open_results(fleet.results), keys, fleet.body_limit, fleet.check_seconds)


# All of it


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application for `Fleet`'s fields. Raises ConfigError."""
    fleet = Fleet.parse(arguments)
    values = fleet.plain()
    workers = [_worker(fleet, pool).bind(values, pool.name) for pool in fleet.pools]
    place: dict[str, Any] = {"num_cpus": fleet.front_cpus, "resources": fleet.front_resources}
    # What the decorator makes of a class has methods of its own.
    kinds: tuple[Any, Any] = (Steward, Entry)
    steward = kinds[0].options(
        num_replicas=1, ray_actor_options={**place, "num_cpus": 0}, max_ongoing_requests=1000
    ).bind(values, *workers)  # fmt: skip
    front: serve.Application = kinds[1].options(
        num_replicas=fleet.front_replicas, ray_actor_options=place, max_ongoing_requests=5000, graceful_shutdown_timeout_s=10
    ).bind(values, steward)
    return front


def _worker(fleet: Fleet, pool: Pool) -> Any:
    actor: dict[str, Any] = {"num_cpus": pool.cpus, "num_gpus": pool.gpus, "resources": pool.resources}
    if pool.memory_gib > 0:
        actor["memory"] = pool.memory_gib * 2**30
    if pool.labels:
        actor["label_selector"] = pool.labels
    options: dict[str, Any] = {
        "name": f"Worker-{pool.name}",
        "ray_actor_options": actor,
        # One that is full is asked for nothing more: what waits, waits where it is counted.
        "max_ongoing_requests": pool.runs,
        "graceful_shutdown_timeout_s": fleet.drain_seconds,
        "health_check_period_s": 5,
    }
    if pool.min_replicas == pool.max_replicas:
        options["num_replicas"] = pool.max_replicas
    else:
        options["autoscaling_config"] = {
            "min_replicas": pool.min_replicas,
            "max_replicas": pool.max_replicas,
            "target_ongoing_requests": pool.runs,
            "upscale_delay_s": pool.upscale_delay_s,
            "downscale_delay_s": pool.downscale_delay_s,
            # Often enough for videos of a second.
            "metrics_interval_s": 1,
            "look_back_period_s": 5,
        }
    worker: Any = Worker
    return worker.options(**options)
