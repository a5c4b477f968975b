"""Many requests from many clients, with the service killed in between: none lost, none doubled, order kept, memory level.

python3 load.py [--requests 1000] [--clients 50] [--kills 10]
"""
import argparse
import http.client
import json
import os
import random
import shutil
import sqlite3
import tempfile
import threading
import time

from service import Service


class Client(threading.Thread):
    """Sends its requests one after the other, each until it is answered, under a key of its own."""

    def __init__(self, service, numbers):
        super().__init__(daemon=True)
        self.service, self.numbers, self.answers = service, numbers, {}

    def run(self):
        for number in self.numbers:
            body = json.dumps({"prompt": f"A red sphere, number {number}.", "num_frames": 9, "size": "64x64", "seed": number})
            while number not in self.answers:
                try:
                    connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=30)
                    connection.request("POST", "/v1/videos", body, {
                        "Content-Type": "application/json", "Idempotency-Key": f"key-{number}"})
                    answer = connection.getresponse()
                    text = answer.read()
                    if answer.status == 200:
                        self.answers[number] = json.loads(text)["id"]
                    elif answer.status not in (429, 503):
                        raise SystemExit(f"{answer.status}: {text}")
                    else:
                        time.sleep(0.5)
                except (OSError, http.client.HTTPException):
                    time.sleep(0.1)
                finally:
                    connection.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="service-load-")
    start = time.monotonic()
    with Service(folder, "--queue-limit", str(options.requests)) as service:
        clients = [Client(service, range(index, options.requests, options.clients)) for index in range(options.clients)]
        for client in clients:
            client.start()
        memory, kills, lastkill = [], 0, time.monotonic()
        while True:
            time.sleep(0.25)
            try:
                waiting = service.gauge("turbodiffusion_queue_length") + service.gauge("turbodiffusion_running")
                memory.append((service.gauge("process_resident_memory_bytes"), service.gauge("process_open_fds")))
            except OSError:
                waiting = None
            sent = sum(len(client.answers) for client in clients)
            if kills < options.kills and time.monotonic() - lastkill > random.uniform(0.3, 4):
                service.kill()
                service.start()
                kills, lastkill = kills + 1, time.monotonic()
                continue
            if sent == options.requests and waiting == 0:
                break
        for client in clients:
            client.join()
        seconds = time.monotonic() - start
        answers = {number: id for client in clients for number, id in client.answers.items()}
        status = service.stop()
        assert status == 0, f"the service ended with {status}"

    database = sqlite3.connect(os.path.join(folder, "jobs.sqlite"))
    jobs = database.execute("SELECT number, id, status, started, attempts, idempotency_key FROM jobs ORDER BY number").fetchall()
    assert len(answers) == options.requests and len(set(answers.values())) == options.requests, "an id was given twice"
    assert len(jobs) == options.requests, f"{len(jobs)} jobs of {options.requests} requests"
    assert {job[1] for job in jobs} == set(answers.values()), "other jobs than were answered"
    assert all(job[2] == "completed" for job in jobs), [job for job in jobs if job[2] != "completed"][:3]
    for number, id in answers.items():
        assert next(job for job in jobs if job[1] == id)[5] == f"key-{number}"
    videos = sorted(os.listdir(os.path.join(folder, "videos")))
    assert videos == sorted(job[1] + ".mp4" for job in jobs), "other files than jobs"
    leftovers = os.listdir(os.path.join(folder, "pictures")) + os.listdir(os.path.join(folder, "inputs"))
    assert not leftovers, leftovers
    # Jobs that a kill interrupted begin again; all others begin in the order in which they were accepted.
    starts = [job[3] for job in jobs if job[4] == 1]
    if options.kills == 0:
        assert starts == sorted(starts), "not in order"
    doubled = sum(job[4] - 1 for job in jobs)
    assert doubled <= kills, f"{doubled} runs more than jobs, with {kills} kills"
    half = len(memory) // 2
    levels = [max(m[0] for m in part) / 2**20 for part in (memory[:half], memory[half:])]
    descriptors = [max(m[1] for m in part) for part in (memory[:half], memory[half:])]
    print(f"{options.requests} requests of {options.clients} clients, killed {kills} times: {seconds:.1f} s, "
          f"{doubled} runs begun again; memory {levels[0]:.0f}, then {levels[1]:.0f} MiB; descriptors {descriptors[0]:.0f}, then {descriptors[1]:.0f}")
    if options.kills == 0:
        assert levels[1] < levels[0] * 1.25 + 20, "memory grows"
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
