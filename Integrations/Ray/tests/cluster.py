"""The fleet on a cluster of Ray on this machine, whose nodes are killed under load: no job lost, none with two results.

python cluster.py [--jobs 500] [--kills 20] [--program PATH] [--seconds 0.3]      PATH: of `turbodiffusion`; default: the stand-in
"""
import argparse
import asyncio
import collections
import hashlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

from support import HERE, STANDIN

# Nodes, workers and the controller find the package where the tests find it.
os.environ["PYTHONPATH"] = os.path.dirname(HERE) + os.pathsep + os.environ.get("PYTHONPATH", "")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")

import ray  # noqa: E402
from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from turbodiffusion_ray.config import Fleet  # noqa: E402
from turbodiffusion_ray.fleet import DeskCaller, build, remove_orphans  # noqa: E402
from turbodiffusion_ray.results import FolderResults  # noqa: E402

PORT = 18123


def say(text):
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def ask(method, path, body=None, headers=(), timeout=30):
    """→ status, bytes"""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=timeout)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json", **dict(headers)})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class Client(threading.Thread):
    """Sends its requests one after the other, each until it is answered, under a key of its own."""

    def __init__(self, numbers, fields, pause):
        super().__init__(daemon=True)
        self.numbers, self.fields, self.pause, self.answers, self.again = numbers, fields, pause, {}, 0

    def run(self):
        for number in self.numbers:
            body = {"prompt": f"A red sphere, number {number}.", "seed": number, **self.fields}
            while number not in self.answers:
                try:
                    status, data = ask("POST", "/v1/videos", body, {"Idempotency-Key": f"key-{number}"})
                    if status == 200:
                        self.answers[number] = json.loads(data)["id"]
                        break
                    if 400 <= status < 500 and status != 429:
                        raise SystemExit(f"{status}: {data!r}")
                except (OSError, http.client.HTTPException):
                    pass
                self.again += 1
                time.sleep(0.3)
            time.sleep(self.pause)


def be_patient():
    """Ray gives a node's processes half a minute to come up, which is little where others use the processors too."""
    from ray._private import services

    get_node = services.get_node

    def patient(*values):
        deadline = time.monotonic() + 120
        while True:
            try:
                return get_node(*values)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    services.get_node = patient


def ports():
    """Of a node's agents. Told beforehand: else the node ends where they have not said theirs within a quarter of a minute."""
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    sockets = [socket.create_server(("", 0)) for _ in names]
    found = {name: server.getsockname()[1] for name, server in zip(names, sockets)}
    for server in sockets:
        server.close()
    return found


class Nodes:
    """A head that computes nothing, and nodes with one worker each."""

    def __init__(self, count):
        # A node that is gone refuses connections at once; one that is only slow gets its time.
        quick = {"health_check_initial_delay_ms": 5000, "health_check_period_ms": 1500, "health_check_timeout_ms": 20000,
                 "health_check_failure_threshold": 3, "metrics_report_interval_ms": 60000,
                 "prestart_worker_first_driver": False, "worker_register_timeout_seconds": 240,
                 "gcs_server_request_timeout_seconds": 240, "agent_register_timeout_ms": 240_000}  # fmt: skip
        self.cluster = Cluster(initialize_head=True, head_node_args={
            "num_cpus": 2, "object_store_memory": 100 << 20, "include_dashboard": False, "_system_config": quick, **ports()})  # fmt: skip
        ray.init(address=self.cluster.address, log_to_driver=False, namespace="test")
        self.nodes = [self.add() for _ in range(count)]

    def add(self):
        for tries in range(5):
            try:
                return self.cluster.add_node(
                    num_cpus=1, object_store_memory=100 << 20, resources={"maker": 1}, wait=False, **ports())  # fmt: skip
            except Exception as error:
                say(f"a node did not start: {str(error)[:80]}")
        raise SystemExit("no node starts any more")

    def kill(self):
        """One at random, as if its power went; another one comes in its place."""
        index = random.randrange(len(self.nodes))
        self.cluster.remove_node(self.nodes[index], allow_graceful=False)
        self.nodes[index] = self.add()
        return index

    def close(self):
        ray.shutdown()
        self.cluster.shutdown()


def values_of(folder, options, **pool):
    program = options.program or STANDIN
    return {
        "name": "fleet", "program": program, "results": os.path.join(folder, "results"), "database": os.path.join(folder, "jobs.sqlite"),
        "lease_seconds": 6, "beat_seconds": 1, "check_seconds": 5, "max_attempts": 20, "queue_limit": options.jobs, "front_cpus": 0,
        "front_resources": {"node:__internal_head__": 0.001}, "drain_seconds": 5,
        "variants": ["thumbnail", "spritesheet", "preview"] if options.variants else [],
        "pools": [{
            "name": "nano", "models": ["nano"], "cpus": 0.5, "resources": {"maker": 1}, "min_replicas": 4, "max_replicas": 4,
            "environment": {"STANDIN_SECONDS": str(options.seconds)},
            "options": ["--threads", "1"] if options.program else [], **pool,
        }],
    }  # fmt: skip


def services(program):
    """Processes of the workers' services on this machine."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
                if program.encode() in words[:3] and b"serve" in words[:4] and b"-c" not in words:
                    found.append(int(name))
            except OSError:
                pass
    return found


def kill_desk(caller):
    """Its process; the actor starts again."""
    os.kill(caller("process"), signal.SIGKILL)


def kill_replicas(*deployments):
    """The processes of front and steward. → how many"""
    count = 0
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                title = file.read().decode(errors="replace")
        except (OSError, ValueError):
            continue
        if name.isdigit() and any(title.startswith(f"ray::ServeReplica:fleet:{deployment}") for deployment in deployments):
            os.kill(int(name), signal.SIGKILL)
            count += 1
    return count


def check(folder, answers, options):
    """Of jobs, results and transitions. → what is to be told"""
    database = sqlite3.connect(f"file:{folder}/jobs.sqlite?mode=ro", uri=True)
    jobs = {row[0]: row[1:] for row in database.execute("SELECT id, status, attempts, result, fields, key FROM jobs")}
    assert len(answers) == options.jobs and len(set(answers.values())) == options.jobs, "an id was given twice"
    assert set(jobs) == set(answers.values()), f"{len(jobs)} jobs of {len(answers)} answers"
    statuses = collections.Counter(job[0] for job in jobs.values())
    assert statuses == {"completed": options.jobs}, statuses
    names = os.listdir(os.path.join(folder, "results/videos"))
    assert sorted(name.split(".")[0] for name in names) == sorted(jobs), "other results than jobs, or two of one"
    hashes = collections.Counter()
    for number, id in answers.items():
        _, _, result, fields, key = jobs[id]
        result = json.loads(result)
        assert key == f"key-{number}" and json.loads(fields)["seed"] == number
        with open(os.path.join(folder, "results/videos", result["name"], "video.mp4"), "rb") as file:
            data = file.read()
        assert hashlib.sha256(data).hexdigest() == result["sha256"], f"{id} holds other bytes than were made"
        if not options.program:
            assert f"number {number}.".encode() in data, f"{id} holds another job's video"
        hashes[result["sha256"]] += 1
        steps = database.execute("SELECT before, after, token FROM transitions WHERE job = ? ORDER BY number", (id,)).fetchall()
        assert steps[0] == (None, "queued", None) and steps[-1][1] == "completed", steps
        assert all(step[1] == then[0] for step, then in zip(steps, steps[1:])), steps
        assert sum(step[1] == "completed" for step in steps) == 1, steps
        assert result["name"] == f"{id}.{steps[-1][2]}", "the result is not that of the lease which finished"
    # Seeds differ, so videos do.
    assert len(hashes) == options.jobs and set(hashes.values()) == {1}, "two jobs have one video"
    attempts = sum(job[1] for job in jobs.values())
    return f"{len(jobs)} jobs, {len(hashes)} different videos, {attempts - len(jobs)} runs begun again"


def load(options, folder, nodes):
    fields = {"num_frames": options.frames, "num_inference_steps": 1, "size": options.size}
    caller = DeskCaller(Fleet.parse(values_of(folder, options)))
    started = time.monotonic()
    clients = [Client(range(index, options.jobs, 8), fields, options.pause) for index in range(8)]
    for client in clients:
        client.start()
    kills, desks, fronts, last, shown, log = 0, 0, 0, time.monotonic(), 0.0, []
    while True:
        time.sleep(0.5)
        try:
            text = ask("GET", "/metrics", timeout=60)[1].decode()
            gauges = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
            waiting = int(gauges["turbodiffusion_queue_length"]) + int(gauges["turbodiffusion_running"])
        except (OSError, http.client.HTTPException, KeyError, ValueError):
            waiting, gauges = None, {}
        sent = sum(len(client.answers) for client in clients)
        if time.monotonic() - shown > 15:
            shown = time.monotonic()
            replicas = gauges.get('turbodiffusion_replicas{pool="nano"}')
            say(f"{sent} sent, {waiting} open, {replicas} replicas, {kills} nodes and {desks} desks killed")
        if sent == options.jobs and waiting == 0:
            break
        if waiting and kills < options.kills and time.monotonic() - last > random.uniform(options.every / 2, options.every * 1.5):
            index = nodes.kill()
            kills, last = kills + 1, time.monotonic()
            log.append(index)
            if desks < options.desks and kills % 5 == 2:
                kill_desk(caller)
                desks += 1
            if fronts < options.fronts and kills % 5 == 4:
                fronts += kill_replicas("Entry", "Steward") > 0
        if time.monotonic() - started > options.limit:
            raise SystemExit(f"not done within {options.limit} s: {sent} sent, {waiting} open")
    for client in clients:
        client.join()
    seconds = time.monotonic() - started
    answers = {number: id for client in clients for number, id in client.answers.items()}
    again = sum(client.again for client in clients)
    results = FolderResults(os.path.join(folder, "results"))

    async def desk(method, *values):
        return caller(method, *values)

    # Workers that were cut off may still be about to tidy up.
    time.sleep(2)
    orphans = asyncio.run(remove_orphans(desk, results, 0))
    told = check(folder, answers, options)
    text = ask("GET", "/metrics")[1].decode()
    lapsed = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith("turbodiffusion_leases_lapsed_total")]
    say(f"{told}; {kills} nodes killed {dict(collections.Counter(log))}, {desks} times the desk, {fronts} times front and steward; {orphans} results of nobody removed; "
        f"{again} requests sent again; {seconds:.0f} s; leases lapsed since the desk's last start: {lapsed[0]}")  # fmt: skip
    assert kills == options.kills, f"only {kills} nodes were killed before all was done: --jobs must be more"


def grow(options, folder):
    """From none to several replicas and back to none, as the queue goes."""
    values = values_of(folder, options, min_replicas=0, max_replicas=3, upscale_delay_s=1, downscale_delay_s=5)
    values.update(database=os.path.join(folder, "growing.sqlite"), name="growing", results=os.path.join(folder, "growing"))
    serve.run(build(values), name="fleet", route_prefix="/")
    time.sleep(3)

    def replicas():
        found = serve.status().applications["fleet"].deployments["Worker-nano"].replica_states
        return found.get("RUNNING", 0)

    assert replicas() == 0, replicas()
    start, most = time.monotonic(), 0
    ids = []
    for number in range(30):
        status, data = ask("POST", "/v1/videos", {"prompt": "A ball.", "seed": number, "num_frames": options.frames, "size": options.size})
        assert status == 200, data
        ids.append(json.loads(data)["id"])
    done = 0
    while done < len(ids) or replicas():
        time.sleep(0.5)
        most = max(most, replicas())
        open_ids = {video["id"] for video in json.loads(ask("GET", "/v1/videos?limit=100&status=queued,in_progress")[1])["data"]}
        done = sum(id not in open_ids for id in ids)
        assert time.monotonic() - start < 240, (done, most, replicas())
    say(f"from no replica to {most} and back to none with {len(ids)} jobs: {time.monotonic() - start:.0f} s")
    assert most > 1, most


def batch(options, folder, nodes):
    """As a job of Ray Data, twice: what is there is not made again."""
    prompts, output = os.path.join(folder, "prompts.jsonl"), os.path.join(folder, "batch")
    lines = [{"prompt": f"A blue cube {number}.", "num_frames": options.frames, "size": options.size, "num_inference_steps": 1}
             for number in range(8)]  # fmt: skip
    with open(prompts, "w") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    words = [sys.executable, "-m", "turbodiffusion_ray.batch", prompts, "--output", output, "--model", "nano", "--cpus", "0.25",
             "--replicas", "2", "--program", options.program or STANDIN, "--address", nodes.cluster.address]  # fmt: skip

    def run():
        found = subprocess.run(words, capture_output=True, text=True, timeout=400)
        assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-3000:]
        return found.stdout.strip().splitlines()[-1]

    start = time.monotonic()
    assert (told := run()) == "8 made, 0 were there, 0 failed", told
    names = sorted(os.listdir(output))
    assert len(names) == 16 and not any(name.startswith(".") for name in names), names
    videos = [name for name in names if name.endswith(".mp4")]
    before = {name: os.stat(os.path.join(output, name)).st_mtime_ns for name in videos}
    os.unlink(os.path.join(output, videos[3]))
    assert (told := run()) == "1 made, 7 were there, 0 failed", told
    after = {name: os.stat(os.path.join(output, name)).st_mtime_ns for name in videos}
    assert [name for name in videos if before[name] != after[name]] == [videos[3]]
    say(f"a batch of 8, then again without one of them: {time.monotonic() - start:.0f} s")


def cards(options, folder, nodes):
    """Replicas have the cards that Ray gave them, and make as many videos beside each other. The cards are Ray's word for it only:
    services that stand in tell what they were started with."""
    nodes.cluster.add_node(num_cpus=2, num_gpus=3, object_store_memory=100 << 20, resources={"cards": 2}, wait=False, **ports())
    pools = [{"name": name, "models": [name], "gpus": gpus, "cpus": 0.5, "resources": {"cards": 1}, "min_replicas": 1,
              "max_replicas": 1, "environment": {"STANDIN_SECONDS": "4"}} for name, gpus in (("one", 1), ("two", 2))]  # fmt: skip
    values = values_of(folder, options)
    values.update(name="cards", program=STANDIN, database=os.path.join(folder, "cards.sqlite"), pools=pools)
    serve.run(build(values), name="fleet", route_prefix="/")
    ids = []
    for name in ("one", "two", "two"):
        status, data = ask("POST", "/v1/videos", {"prompt": "A ball.", "model": name})
        assert status == 200, data
        ids.append(json.loads(data)["id"])
    deadline, together = time.monotonic() + 120, 0
    while True:
        videos = [json.loads(ask("GET", f"/v1/videos/{id}")[1]) for id in ids]
        together = max(together, sum(video["status"] == "in_progress" for video in videos[1:]))
        if all(video["status"] == "completed" for video in videos):
            break
        assert time.monotonic() < deadline, [video["status"] for video in videos]
        time.sleep(0.2)
    told = [(video["request"]["devices"], video["request"]["visible"].split(",")) for video in videos]
    assert [devices for devices, _ in told] == [["cuda:0"], ["cuda:0", "cuda:1"], ["cuda:0", "cuda:1"]], told
    assert told[1] == told[2] and sorted(told[0][1] + told[1][1]) == ["0", "1", "2"], told
    assert together == 2, "two cards make two videos beside each other"
    say(f"cards of two replicas: {told[0][1]} and {told[1][1]}")


def streams(options):
    """Events of a video come through while it is made."""
    status, data = ask("POST", "/v1/videos", {"prompt": "slow", "seed": 1, "num_frames": options.frames, "size": options.size})
    assert status == 200, data
    id = json.loads(data)["id"]
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    connection.request("GET", f"/v1/videos/{id}/events")
    answer = connection.getresponse()
    assert answer.headers["content-type"] == "text/event-stream"
    names, times = [], []
    for line in answer:
        if line.startswith(b"event: "):
            names.append(line[7:].strip().decode())
            times.append(time.monotonic())
    connection.close()
    assert names[0] == "video" and names[-1] == "completed" and "progress" in names, names
    status, data = ask("GET", f"/v1/videos/{id}/content")
    assert status == 200 and data
    ask("DELETE", f"/v1/videos/{id}")
    say(f"{len(names)} events of one video over {times[-1] - times[0]:.1f} s: {dict(collections.Counter(names))}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--desks", type=int, default=3, help="how often the desk is killed too")
    parser.add_argument("--fronts", type=int, default=2, help="how often front and steward are")
    parser.add_argument("--every", type=float, default=12, help="seconds between two kills, about")
    parser.add_argument("--pause", type=float, default=0.2, help="of each of 8 clients between two requests")
    parser.add_argument("--program", default="")
    parser.add_argument("--seconds", type=float, default=2, help="of a video of the stand-in")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--size", default="64x64")
    parser.add_argument("--variants", action="store_true", help="pictures beside each video")
    parser.add_argument("--limit", type=float, default=1800)
    parser.add_argument("--no-growth", action="store_true")
    parser.add_argument("--no-batch", action="store_true")
    parser.add_argument("--no-cards", action="store_true")
    options = parser.parse_args()
    if options.program:
        options.program = os.path.abspath(options.program)
    folder = tempfile.mkdtemp(prefix="ray-fleet-")
    be_patient()
    nodes = Nodes(4)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT, "location": "HeadOnly"})
        start = time.monotonic()
        serve.run(build(values_of(folder, options)), name="fleet", route_prefix="/")
        say(f"five nodes, four workers: ready after {time.monotonic() - start:.0f} s")
        streams(options)
        load(options, folder, nodes)
        left = services(options.program or STANDIN)
        assert len(left) <= 4, f"{len(left)} services run beside four workers: some outlived theirs"
        if not options.no_batch:
            batch(options, folder, nodes)
        if not options.no_growth:
            grow(options, folder)
        if not options.no_cards:
            cards(options, folder, nodes)
        serve.shutdown()
        deadline = time.monotonic() + 20
        while services(options.program or STANDIN) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert not services(options.program or STANDIN), "services outlived their workers"
    finally:
        nodes.close()
        shutil.rmtree(folder, ignore_errors=True)
    say("done")


if __name__ == "__main__":
    sys.exit(main())
