"""Many videos into a folder, as a job of Ray Data: python -m turbodiffusion_ray.batch prompts.jsonl --output FOLDER --model nano

A video that is there is not made again: where a batch was broken off, or a node went away, the same command goes on. Files appear
whole or not at all. A line whose request cannot be is told and passed over; then the exit code is 1."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
import uuid
from typing import Any

from .child import Service, ServiceGone, find_program
from .prompts import Request, RequestsError, parse_requests


class Output:
    """NAME.mp4 and, before it, NAME.json in a folder that all nodes see, or in a store of fsspec."""

    def __init__(self, place: str) -> None:
        self._files: Any = None
        self._root = place[len("file://") :] if place.startswith("file://") else place
        if "://" in self._root:
            import fsspec  # type: ignore[import-untyped]

            self._files, self._root = fsspec.core.url_to_fs(self._root)
        else:
            self._root = os.path.abspath(self._root)

    def open(self) -> None:
        if self._files is None:
            os.makedirs(self._root, exist_ok=True)

    def has(self, name: str) -> bool:
        path = f"{self._root}/{name}.mp4"
        return bool(self._files.exists(path)) if self._files is not None else os.path.exists(path)

    def write(self, name: str, video: bytes, report: dict[str, Any]) -> None:
        # The video last: who sees it sees both.
        self._write(f"{name}.json", json.dumps(report, indent=1, sort_keys=True).encode() + b"\n")
        self._write(f"{name}.mp4", video)

    def _write(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        if self._files is not None:
            self._files.pipe_file(path, data)
            return
        unfinished = f"{self._root}/.{name}.{uuid.uuid4().hex}"
        try:
            with open(unfinished, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(unfinished, path)
        except BaseException:
            if os.path.exists(unfinished):
                os.unlink(unfinished)
            raise


class Maker:
    """An actor of Ray Data: a service of its own, one request after the other."""

    def __init__(self, program: str, model: str, output: str, gpus: int, options: list[str]) -> None:
        self._output = Output(output)
        devices = [f"cuda:{index}" for index in range(gpus)] or ["cpu"]
        self._service = Service(find_program(program), [model], devices, options)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        name, fields = row["name"], json.loads(row["fields"])
        start = time.monotonic()
        # Ray makes a row again where its node went away before it was told that the row was done.
        if self._output.has(name):
            return {"name": name, "outcome": "present", "message": "", "seconds": 0.0}
        for _ in range(3):
            try:
                self._service.ensure()
                outcome, message = self._make(name, fields)
                break
            except ServiceGone as error:
                outcome, message = "failed", str(error)
        return {"name": name, "outcome": outcome, "message": message, "seconds": time.monotonic() - start}

    def _make(self, name: str, fields: dict[str, Any]) -> tuple[str, str]:
        status, video = self._service.ask_json("POST", "/v1/videos", fields)
        if status != 200:
            return "failed", str(video["error"]["message"])
        id = video["id"]
        while video["status"] in ("queued", "in_progress"):
            # It ends with the video.
            for _, told in self._service.events(f"/v1/videos/{id}/events"):
                if told.get("status") in ("completed", "failed", "cancelled"):
                    break
            status, video = self._service.ask_json("GET", f"/v1/videos/{id}")
            if status != 200:
                raise ServiceGone(f"the service no longer knows its video: {status}")
        if video["status"] != "completed":
            return "failed", str((video.get("error") or {}).get("message") or video["status"])
        status, data = self._service.ask("GET", f"/v1/videos/{id}/content")
        if status != 200:
            raise ServiceGone(f"the service answered {status} instead of its video")
        kept = ("prompt", "model", "seed", "size", "num_frames", "fps", "num_inference_steps", "inference_time_s", "request")
        self._output.write(
            name, data, {"sha256": hashlib.sha256(data).hexdigest(), **{key: video[key] for key in kept if key in video}}
        )
        self._service.ask("DELETE", f"/v1/videos/{id}")
        return "made", ""

    def __del__(self) -> None:
        if hasattr(self, "_service"):
            self._service.close()


def run(requests: list[Request], options: argparse.Namespace) -> list[dict[str, Any]]:
    """→ of each request `name`, `outcome`: made, present, failed; `message`"""
    import ray

    output = Output(options.output)
    output.open()
    there = [request for request in requests if output.has(request.name)]
    names = {request.name for request in there}
    rows = [{"name": r.name, "fields": json.dumps(r.fields)} for r in requests if r.name not in names]
    outcomes = [{"name": request.name, "outcome": "present", "message": "", "seconds": 0.0} for request in there]
    if not rows:
        return outcomes
    ray.init(address=options.address, ignore_reinit_error=True, log_to_driver=False)
    # A block for each: what a node had when it went is one video.
    maker: Any = Maker
    data = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        maker,
        fn_constructor_args=(options.program, options.model, options.output, options.gpus, options.option),
        concurrency=(1, max(1, min(options.replicas, len(rows)))),
        num_gpus=options.gpus or None,
        num_cpus=options.cpus if not options.gpus else None,
        resources=dict(options.resource) or None,
    )
    # As they come: what was told stays told, also where the rest fails.
    for row in data.iter_rows():
        outcomes.append(row)
        print(f"{len(outcomes)}/{len(requests)}  {row['name']}  {row['outcome']}  {row['message']}".rstrip(), flush=True)
    return outcomes


def _resource(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"expected NAME or NAME=AMOUNT, not '{text}'")
    return name, float(amount or 1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m turbodiffusion_ray.batch", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("prompts", help="JSON lines: objects with fields of POST /v1/videos and perhaps a name, or texts")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="that all nodes see, or a URL for fsspec")
    parser.add_argument("--model", required=True, help="a published model's name, or a folder on the nodes")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="for all lines that do not say it")
    parser.add_argument("--replicas", type=int, default=8, help="at most so many services (default 8)")
    parser.add_argument("--gpus", type=int, default=0, help="of each service; 0: on the CPU")
    parser.add_argument("--cpus", type=float, default=1, help="of each service without a GPU")
    parser.add_argument("--resource", action="append", default=[], type=_resource, metavar="NAME=AMOUNT", help="that nodes must have")
    parser.add_argument("--program", default="", help="path of turbodiffusion on the nodes")
    parser.add_argument("--option", action="append", default=[], metavar="WORD", help="a further word for `turbodiffusion serve`")
    parser.add_argument("--address", default=None, help="of the cluster (default: RAY_ADDRESS, else one of this machine)")
    options = parser.parse_args()
    common: dict[str, Any] = {}
    for text in options.set:
        name, sign, value = text.partition("=")
        if not sign:
            parser.error(f"--set expects FIELD=VALUE, not '{text}'")
        common[name] = value
    try:
        with open(options.prompts, encoding="utf-8") as file:
            requests = parse_requests(file, common)
    except (OSError, RequestsError, UnicodeDecodeError) as error:
        print(f"{options.prompts}: {error}", file=sys.stderr)
        return 2
    outcomes = run(requests, options)
    counts = {outcome: sum(row["outcome"] == outcome for row in outcomes) for outcome in ("made", "present", "failed")}
    print(f"{counts['made']} made, {counts['present']} were there, {counts['failed']} failed")
    for row in outcomes:
        if row["outcome"] == "failed":
            print(f"{row['name']}: {row['message']}", file=sys.stderr)
    return 1 if counts["failed"] or len(outcomes) < len(requests) else 0


if __name__ == "__main__":
    sys.exit(main())
