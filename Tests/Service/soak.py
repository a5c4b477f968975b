"""An hour of mixed requests, cancels, deletions, events and bad requests; with `schemathesis` installed, its cases too.

No answer of 500 or above, every job ended, and no growth of memory, threads or descriptors from the second tenth of the
time to the last.

python3 soak.py [--seconds 3600]
"""
import argparse
import http.client
import json
import random
import shutil
import subprocess
import tempfile
import threading
import time

from service import Service

BAD = [
    {}, {"prompt": ""}, {"prompt": "x", "size": "7x7"}, {"prompt": "x", "num_frames": -1}, {"prompt": "x", "steps": 2 ** 63},
    {"prompt": "x", "colour": "red"}, {"prompt": "x", "model": "../../etc"}, {"prompt": "x" * 100000},
    {"prompt": "x", "input_reference": "data:image/png;base64,AAAA"}, [], "x", None, {"prompt": ["x"]}, {"prompt": "x", "seed": 0.5},
]


class Guest(threading.Thread):
    """Does one thing after the other, as clients do and as they should not."""

    def __init__(self, service, seed, end):
        super().__init__(daemon=True)
        self.service, self.random, self.end = service, random.Random(seed), end
        self.count, self.faults, self.jobs = 0, [], []

    def ask(self, method, path, body=None, headers={}):
        connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=120)
        try:
            data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            text = answer.read()
            self.count += 1
            if answer.status >= 500:
                self.faults.append(f"{answer.status} of {method} {path}: {text[:200]}")
            return answer.status, text
        finally:
            connection.close()

    def listen(self, path):
        """Leaves a stream of events in the middle."""
        connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=120)
        try:
            connection.request("GET", path)
            connection.getresponse().read1(2000)
            self.count += 1
        finally:
            connection.close()

    def act(self):
        pick = self.random.random()
        if pick < 0.15 or not self.jobs:
            body = {"prompt": f"a red sphere {self.random.random()}", "num_frames": self.random.choice([1, 5, 9]),
                    "size": self.random.choice(["64x64", "128x64"]), "seed": self.random.randrange(1 << 31)}
            status, text = self.ask("POST", "/v1/videos", body)
            if status == 200:
                self.jobs.append(json.loads(text)["id"])
            elif status == 429:
                time.sleep(1)
            return
        job = f"/v1/videos/{self.random.choice(self.jobs)}"
        if pick < 0.3:
            self.ask("GET", job)
        elif pick < 0.4:
            self.ask("GET", f"/v1/videos?limit={self.random.choice([1, 20, 100, 0, -1])}")
        elif pick < 0.5:
            self.listen(job + "/events")
        elif pick < 0.6:
            self.ask("GET", job + "/content?variant=" + self.random.choice(["video", "thumbnail", "spritesheet", "none"]))
        elif pick < 0.65:
            self.ask("POST", job + "/cancel")
        elif pick < 0.75:
            self.ask("DELETE", job)
        elif pick < 0.8:
            self.ask("POST", job + "/remix", {"prompt": "a blue cube"})
        elif pick < 0.9:
            self.ask("POST", "/v1/videos", self.random.choice(BAD))
        elif pick < 0.95:
            self.ask("POST", "/v1/videos", self.random.randbytes(self.random.randrange(2000)),
                     {"Content-Type": self.random.choice(["multipart/form-data; boundary=x", "application/json", "text/x"])})
        else:
            self.ask(self.random.choice(["GET", "PUT", "PATCH"]), self.random.choice(["/", "/x", "/v1/models", "/metrics", "/v1/videos"]))
        self.jobs = self.jobs[-50:]

    def run(self):
        while time.monotonic() < self.end:
            try:
                self.act()
            except (OSError, http.client.HTTPException) as error:
                self.faults.append(repr(error))
            time.sleep(self.random.expovariate(4))


def measure(service):
    with open(f"/proc/{service.process.pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return (service.gauge("process_resident_memory_bytes") / 2 ** 20, int(fields["Threads"]), service.gauge("process_open_fds"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3600)
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="service-soak-")
    start, seconds = time.monotonic(), options.seconds
    with Service(folder, "--queue-limit", "30") as service:
        guests = [Guest(service, seed, start + seconds) for seed in range(8)]
        for guest in guests:
            guest.start()
        schema = None
        if shutil.which("schemathesis"):
            schema = subprocess.Popen(
                ["schemathesis", "run", f"{service.url}/openapi.json", "--max-examples", str(max(5, int(seconds / 12))),
                 "--checks", "not_a_server_error"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        samples = []
        while time.monotonic() < start + seconds:
            time.sleep(seconds / 400)
            samples.append(measure(service))
        for guest in guests:
            guest.join(timeout=150)
        if schema:
            schema.terminate()
            print(schema.communicate()[0][-1500:])
        deadline = time.monotonic() + 600
        while service.gauge("turbodiffusion_queue_length") + service.gauge("turbodiffusion_running") and time.monotonic() < deadline:
            time.sleep(0.5)
        left = service.gauge("turbodiffusion_queue_length")
        assert service.stop() == 0
    shutil.rmtree(folder)
    faults = [fault for guest in guests for fault in guest.faults]
    tenth = len(samples) // 10
    (early, late) = ([max(part[i] for part in samples[a:b]) for i in range(3)] for a, b in ((tenth, 2 * tenth), (-tenth, len(samples))))
    print(f"{sum(guest.count for guest in guests)} requests in {seconds:.0f} s, {len(faults)} faults, {left:.0f} jobs left; most of "
          f"memory, threads, descriptors: {early[0]:.0f} MiB, {early[1]}, {early[2]:.0f}; at the end {late[0]:.0f} MiB, {late[1]}, {late[2]:.0f}")
    for fault in faults[:20]:
        print(fault)
    assert not faults and left == 0
    assert late[0] < early[0] * 1.15 + 8, "memory grows"
    assert late[1] <= early[1] + 8 and late[2] <= early[2] + 16, "threads or descriptors grow"


main()
