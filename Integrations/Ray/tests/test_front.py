"""The protocol in front, against services that stand in: what clients see, and what they see when workers go away."""
import base64
import contextlib
import io
import os
import threading
import time
import unittest
import uuid

from support import STANDIN, Fleet
from turbodiffusion_ray.child import Service, ServiceGone
from turbodiffusion_ray.runner import Runner, answer_questions

PROGRAM = os.environ.get("TURBODIFFUSION_PROGRAM")


class Worker:
    """As a replica does it: a service, a runner, a thread that answers questions."""

    def __init__(self, fleet, models=("nano",), devices=1, seconds=0.1, beat_seconds=0.2, program=None):
        self.fleet = fleet
        options = ["--threads", "1"] if program else ["--seconds", str(seconds)]
        self.service = Service(program or STANDIN, list(models), ["cpu"] * devices, options)
        self.service.start()
        self.name = uuid.uuid4().hex
        self.runner = Runner(self.service, fleet.call, fleet.results, list(models), beat_seconds, name=self.name)
        self.models = self.runner.models()
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self.attend, daemon=True)]
        self.threads += [threading.Thread(target=self.work, daemon=True) for _ in range(devices)]
        for thread in self.threads:
            thread.start()

    def attend(self):
        while not self.stopped.is_set():
            answer_questions(self.runner, self.fleet.call, self.fleet.call("attend", self.name, "pool", self.models, 1, 0.2))

    def work(self):
        while not self.stopped.is_set():
            try:
                if not self.runner.run():
                    time.sleep(0.02)
            except ServiceGone:
                time.sleep(0.1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.service.close(0)
        for thread in self.threads:
            thread.join(10)


class FleetTestCase(unittest.TestCase):
    lease_seconds = 1

    def setUp(self):
        self.fleet = Fleet(lease_seconds=self.lease_seconds)
        self.addCleanup(self.fleet.__exit__)

    def worker(self, **values):
        worker = Worker(self.fleet, **values)
        self.addCleanup(worker.__exit__)
        return worker

    def wait(self, id, *statuses, seconds=20):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            video = self.fleet.ask("GET", f"/v1/videos/{id}").json
            if video["status"] in (statuses or ("completed", "failed", "cancelled")):
                return video
            time.sleep(0.02)
        self.fail(f"{id} is {video['status']}, expected {statuses}")


class FrontTests(FleetTestCase):
    def test_from_request_to_file(self):
        self.worker()
        answer = self.fleet.ask("POST", "/v1/videos", {"prompt": "A red sphere.", "frames": 5, "size": "64x64"})
        self.assertEqual(answer.status, 200)
        self.assertIn("openai-poll-after-ms", answer.headers)
        video = answer.json
        self.assertEqual((video["model"], video["num_frames"], video["size"]), ("nano", 5, "64x64"))
        done = self.wait(video["id"])
        self.assertEqual((done["status"], done["progress"], done["attempts"], done["seed"]), ("completed", 100, 1, video["seed"]))
        self.assertGreater(done["expires_at"], done["completed_at"])
        path = f"/v1/videos/{video['id']}/content"
        whole = self.fleet.ask("GET", path)
        self.assertEqual((whole.status, whole.headers["content-type"]), (200, "video/mp4"))
        self.assertEqual(len(whole.data), done["file_bytes"])
        part = self.fleet.ask("GET", path, headers={"Range": "bytes=10-19"})
        self.assertEqual((part.status, part.data), (206, whole.data[10:20]))
        self.assertEqual(part.headers["content-range"], f"bytes 10-19/{len(whole.data)}")
        self.assertEqual(self.fleet.ask("GET", path, headers={"Range": "bytes=-5"}).data, whole.data[-5:])
        self.assertEqual(self.fleet.ask("GET", path, headers={"Range": f"bytes={len(whole.data)}-"}).status, 416)
        self.assertEqual(self.fleet.ask("HEAD", path).headers["content-length"], str(len(whole.data)))
        for variant, kind in (("thumbnail", "image/webp"), ("spritesheet", "image/webp"), ("preview", "image/png")):
            picture = self.fleet.ask("GET", f"{path}?variant={variant}")
            self.assertEqual((picture.status, picture.headers["content-type"]), (200, kind))
        self.assertEqual(self.fleet.ask("GET", f"{path}?variant=audio").code, "invalid_value")
        self.assertEqual(self.fleet.ask("DELETE", f"/v1/videos/{video['id']}").json["deleted"], True)
        self.assertEqual(self.fleet.ask("GET", f"/v1/videos/{video['id']}").status, 404)
        self.assertEqual(os.listdir(os.path.join(self.fleet.results.root, "videos")), [])

    def test_forms(self):
        body = (b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nA ball\r\n'
                b'--x\r\nContent-Disposition: form-data; name="num_frames"\r\n\r\n5\r\n'
                b'--x\r\nContent-Disposition: form-data; name="lora[name]"\r\n\r\nstyle\r\n'
                b'--x\r\nContent-Disposition: form-data; name="extra_body"\r\n\r\n{"fps": 8}\r\n'
                b'--x\r\nContent-Disposition: form-data; name="input_reference"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
                b'\x89PNG\r\n\x1a\n\x00\xff\r\n--x--\r\n')  # fmt: skip
        answer = self.fleet.ask("POST", "/v1/videos", data=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
        self.assertEqual(answer.status, 200, answer.data)
        self.assertTrue(answer.json["input_reference"])
        job = self.fleet.call("job", answer.json["id"])
        self.assertEqual(self.fleet.results.read_input(job["input"]), b"\x89PNG\r\n\x1a\n\x00\xff")
        self.assertEqual({name: job["fields"][name] for name in ("num_frames", "lora", "fps")},
                         {"num_frames": "5", "lora": {"name": "style"}, "fps": 8})  # fmt: skip
        answer = self.fleet.ask("POST", "/v1/videos", data=b"prompt=A+ball&lora%5B%5D=a&lora%5B%5D=b",
                                headers={"Content-Type": "application/x-www-form-urlencoded"})  # fmt: skip
        self.assertEqual(self.fleet.call("job", answer.json["id"])["fields"]["lora"], ["a", "b"])
        remix = self.fleet.ask("POST", f"/v1/videos/{job['id']}/remix", {"prompt": "A cube"}).json
        self.assertEqual(self.fleet.results.read_input(remix["id"])[:4], b"\x89PNG")

    def test_bad_requests(self):
        self.worker()
        ask = self.fleet.ask
        for fields, code in (({"prompt": " "}, "invalid_value"), ({}, "missing_field"), ({"prompt": 3}, "invalid_value"),
                             ({"prompt": "x", "width": 100}, "invalid_value"), ({"prompt": "x", "model": "sora"}, "model_not_found"),
                             ({"prompt": "x", "frames": 5, "num_frames": 9}, "conflict"),
                             ({"prompt": "x", "input_reference": "http://evil.example/a.png"}, "invalid_value")):  # fmt: skip
            self.assertEqual(ask("POST", "/v1/videos", fields).code, code, fields)
        self.assertEqual(ask("POST", "/v1/videos", {"prompt": "x", "width": 100}).json["error"]["param"], "width")
        for data, kind in ((b"{", "application/json"), (b"[]", "application/json"), (b"x", "text/plain"),
                           (b"--y\r\n", "multipart/form-data; boundary=x"), (b"a=%ff", "application/x-www-form-urlencoded"),
                           (b"[" * 100_000, "application/json")):  # fmt: skip
            self.assertEqual(ask("POST", "/v1/videos", data=data, headers={"Content-Type": kind}).status, 400, data[:20])
        self.assertEqual(ask("POST", "/v1/videos", {"prompt": "x" * (2 << 20)}).status, 413)
        self.assertEqual(ask("POST", "/v1/videos", {"prompt": "x"}, {"Idempotency-Key": "k" * 256}).status, 400)
        self.assertEqual(ask("GET", "/v1/videos/video_none").code, "video_not_found")
        self.assertEqual(ask("GET", "/v1/videos/..%2f..%2fjobs.sqlite/content").status, 404)
        self.assertEqual(ask("POST", "/v1/videos/edits", {}).status, 501)
        self.assertEqual(ask("GET", "/nothing").code, "no_such_route")
        self.assertEqual(ask("PUT", "/v1/videos").status, 405)
        for query in ("limit=101", "limit=x", "order=up", "status=done", "before=1"):
            self.assertEqual(ask("GET", f"/v1/videos?{query}").status, 400, query)
        self.assertEqual(ask("GET", "/v1/videos?after=video_none").status, 404)
        self.assertEqual(ask("GET", "/v1/videos").json["data"], [])

    def test_list_and_remix(self):
        ids = [self.fleet.create(f"A ball {index}", size="64x32", seed=index) for index in range(5)]
        page = self.fleet.ask("GET", "/v1/videos?limit=2").json
        self.assertEqual(([video["id"] for video in page["data"]], page["has_more"]), (ids[:2:-1], True))
        page = self.fleet.ask("GET", f"/v1/videos?order=asc&after={page['last_id']}&status=queued").json
        self.assertEqual(page["data"][0]["id"], ids[4])
        self.assertEqual(self.fleet.ask("GET", f"/v1/videos/{ids[3]}").json["queue_position"], 4)
        video = self.fleet.ask("POST", f"/v1/videos/{ids[3]}/remix", {"prompt": "A cube", "width": 48}).json
        self.assertEqual((video["remixed_from_video_id"], video["prompt"], video["seed"], video["size"]), (ids[3], "A cube", 3, "48x32"))

    def test_idempotency(self):
        def send(key, prompt="A ball"):
            return self.fleet.ask("POST", "/v1/videos", {"prompt": prompt}, {"Idempotency-Key": key})

        first = send("a").json["id"]
        self.assertEqual(send("a").json["id"], first)
        self.assertNotEqual(send("b").json["id"], first)
        other = send("a", "A cube")
        self.assertEqual((other.status, other.code, other.headers["x-should-retry"]), (409, "idempotency_conflict", "false"))
        found = []
        threads = [threading.Thread(target=lambda: found.append(send("c").json["id"])) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual((len(found), len(set(found))), (8, 1))

    def test_queue_limit(self):
        self.fleet.desk._queue_limit = 1
        self.fleet.create()
        answer = self.fleet.ask("POST", "/v1/videos", {"prompt": "x"})
        self.assertEqual((answer.status, answer.code), (429, "queue_full"))
        self.assertIn("retry-after", answer.headers)

    def test_events(self):
        id = self.fleet.create("slow")
        found = []
        thread = threading.Thread(target=lambda: found.append(self.fleet.ask("GET", f"/v1/videos/{id}/events")))
        thread.start()
        time.sleep(0.1)
        self.worker()
        self.wait(id)
        thread.join(10)
        answer = found[0]
        self.assertEqual(answer.headers["content-type"], "text/event-stream")
        names = [name for name, _ in answer.events]
        self.assertEqual((names[0], names[-1]), ("video", "completed"))
        self.assertTrue({"progress", "preview"} <= set(names), names)
        self.assertTrue(all(data["id"] == id for _, data in answer.events))
        progress = [data["progress"] for name, data in answer.events if name == "progress"]
        self.assertEqual(progress, sorted(progress))
        # Of one that is over: how things stand, and the end.
        self.assertEqual([name for name, _ in self.fleet.ask("GET", f"/v1/videos/{id}/events").events], ["video"])

    def test_events_of_all(self):
        id = self.fleet.create()
        first = self.fleet.call("listen", None, None, 0)
        self.assertEqual([name for _, name, _ in first["events"]], ["queue", "video"])
        self.fleet.ask("DELETE", f"/v1/videos/{id}")
        found = self.fleet.call("listen", None, first["cursor"], 1)
        self.assertEqual([name for _, name, _ in found["events"]], ["deleted", "queue"])

    def test_cancel_where_it_waits_and_runs(self):
        waiting = self.fleet.create()
        answer = self.fleet.ask("POST", f"/v1/videos/{waiting}/cancel")
        self.assertEqual((answer.status, answer.json["status"]), (200, "cancelled"))
        self.assertEqual(self.fleet.ask("POST", f"/v1/videos/{waiting}/cancel").code, "already_over")
        self.worker()
        running = self.fleet.create("hang")
        self.wait(running, "in_progress")
        self.assertEqual(self.fleet.ask("POST", f"/v1/videos/{running}/cancel").json["status"], "cancelled")
        self.assertEqual(self.fleet.ask("GET", f"/v1/videos/{running}/content").code, "video_not_ready")
        # The worker hears of it at its next heartbeat, and its only device is free again.
        deleted = self.fleet.create("hang")
        self.wait(deleted, "in_progress")
        self.fleet.ask("DELETE", f"/v1/videos/{deleted}")
        self.assertEqual(self.wait(self.fleet.create())["status"], "completed")

    def test_failures(self):
        self.worker()
        for code in ("not_finite", "out_of_memory"):
            video = self.wait(self.fleet.create(f"fail {code}"))
            self.assertEqual((video["status"], video["error"]["code"], video["attempts"]), ("failed", code, 1))

    def test_a_failed_device_costs_the_run(self):
        worker = self.worker()
        video = self.wait(self.fleet.create("fail device"))
        # Given back each time; what always fails ends.
        self.assertEqual((video["status"], video["error"]["code"], video["attempts"]), ("failed", "interrupted", 5))
        self.assertIn("device", worker.runner.trouble)

    def test_a_service_that_dies_is_started_again(self):
        worker = self.worker()
        id = self.fleet.create("slow")
        self.wait(id, "in_progress")
        worker.service._process.kill()
        video = self.wait(id)
        self.assertEqual((video["status"], video["attempts"]), ("completed", 2))
        self.assertEqual(worker.service.starts, 2)
        crash = self.wait(self.fleet.create("crash"), seconds=40)
        self.assertEqual((crash["status"], crash["error"]["code"]), ("failed", "interrupted"))

    def test_a_worker_that_is_cut_off_gives_no_result(self):
        """It goes on, but nobody hears of it; another one takes the job; it comes back when both are done."""
        cut = threading.Event()

        def call(method, *values):
            if method == "beat" and not cut.is_set():
                raise ConnectionError("cut off")
            if method == "finish":
                cut.wait(20)
            return self.fleet.call(method, *values)

        with Service(STANDIN, ["nano"], ["cpu"], ["--seconds", "0.1"]) as service:
            service.start()
            runner = Runner(service, call, self.fleet.results, ["nano"], 0.2)
            id = self.fleet.create()
            thread = threading.Thread(target=runner.run)
            thread.start()
            time.sleep(1.5)
            self.worker()
            done = self.wait(id)
            self.assertEqual(done["attempts"], 2)
            cut.set()
            thread.join(10)
        name = self.fleet.store.job(id).result["name"]
        self.assertEqual(os.listdir(os.path.join(self.fleet.results.root, "videos")), [name])
        self.assertEqual([after for _, after, _ in self.fleet.store.transitions(id)].count("completed"), 1)

    def test_several_devices_of_a_worker(self):
        self.worker(devices=3, seconds=0.5)
        ids = [self.fleet.create(str(index)) for index in range(3)]
        start = time.monotonic()
        for id in ids:
            self.wait(id)
        self.assertLess(time.monotonic() - start, 1.4)

    def test_models_plan_metrics(self):
        with Fleet(["nano", "big"]) as fleet:
            self.assertEqual([model["id"] for model in fleet.ask("GET", "/v1/models").json["data"]], ["nano", "big"])
            self.assertEqual(fleet.ask("POST", "/v1/videos/plan", {"prompt": "x"}).status, 503)
            with Worker(fleet):
                time.sleep(0.3)
                nano = fleet.ask("GET", "/v1/models/nano").json
                self.assertEqual((nano["is_loaded"], nano["defaults"]["num_frames"]), (True, 33))
                self.assertFalse(fleet.ask("GET", "/v1/models/big").json["is_loaded"])
                plan = fleet.ask("POST", "/v1/videos/plan", {"prompt": "x"}).json
                self.assertEqual((plan["object"], plan["seconds"], plan["queue_seconds"]), ("plan", 0.1, 0))
                self.assertEqual(fleet.ask("POST", "/v1/videos/plan", {"prompt": "x", "width": 7}).status, 400)
                fleet.create()
                text = fleet.ask("GET", "/metrics").data.decode()
                self.assertIn('turbodiffusion_replicas{pool="pool"} 1\n', text)
                self.assertRegex(text, r"\nturbodiffusion_(queue_length|running) 1\n")
            self.assertEqual(fleet.ask("GET", "/v1/models/sora").code, "model_not_found")
            self.assertEqual(fleet.ask("GET", "/health").json, {"status": "ok"})
            self.assertEqual(fleet.ask("GET", "/ready").json, {"status": "ready"})

    def test_keys(self):
        with Fleet(keys=["secret-0123456789abcdef"]) as fleet:
            self.assertEqual(fleet.ask("GET", "/v1/models").code, "invalid_api_key")
            self.assertEqual(fleet.ask("GET", "/v1/models", headers={"Authorization": "Bearer wrong"}).status, 401)
            right = {"Authorization": "Bearer secret-0123456789abcdef"}
            self.assertEqual(fleet.ask("GET", "/v1/models", headers=right).status, 200)
            self.assertEqual(fleet.ask("GET", "/health").status, 200)
            self.assertEqual(fleet.ask("GET", "/metrics").status, 401)

    def test_a_fault_of_our_own(self):
        self.fleet.desk.page = None
        with contextlib.redirect_stderr(io.StringIO()) as said:
            answer = self.fleet.ask("GET", "/v1/videos")
        self.assertEqual((answer.status, answer.code), (500, "internal"))
        self.assertIn("TypeError", said.getvalue())
        self.assertNotIn("NoneType", answer.data.decode())

    def test_a_changed_description(self):
        self.fleet.desk.change(["nano", "big"], 1, 1, 7, 2)
        self.assertEqual([model["id"] for model in self.fleet.ask("GET", "/v1/models").json["data"]], ["nano", "big"])
        self.fleet.create(model="big")
        self.assertEqual(self.fleet.ask("POST", "/v1/videos", {"prompt": "x"}).code, "queue_full")
        self.assertEqual(self.fleet.call("claim", ["big"], "a")["seconds"], 7)

    def test_pictures_as_urls(self):
        data = base64.b64encode(b"\x89PNG....").decode()
        for value in (f"data:image/png;base64,{data}", {"image_url": f"data:image/png;base64,{data}"},
                      {"image_url": {"url": f"data:image/png;base64,{data}"}}):  # fmt: skip
            id = self.fleet.create(input_reference=value)
            self.assertEqual(self.fleet.results.read_input(id), b"\x89PNG....")
            self.assertNotIn("input_reference", self.fleet.store.job(id).fields)


@unittest.skipUnless(PROGRAM, "TURBODIFFUSION_PROGRAM does not name the program: a stand-in took its place in the other tests")
class ProgramTests(FleetTestCase):
    """The program itself with nano on the CPU."""

    lease_seconds = 30

    def test_from_request_to_file(self):
        self.worker(program=os.path.abspath(PROGRAM))
        error = self.fleet.ask("POST", "/v1/videos", {"prompt": "A ball", "width": 100})
        self.assertEqual((error.status, error.json["error"]["param"]), (400, "width"))
        self.assertEqual(self.fleet.ask("POST", "/v1/videos", {"prompt": "A ball", "widht": 64}).code, "unknown_field")
        fields = {"num_frames": 5, "size": "64x64", "num_inference_steps": 1, "seed": 7}
        videos = [self.wait(self.fleet.create("A red ball.", **fields), seconds=120) for _ in range(2)]
        for video in videos:
            self.assertEqual((video["status"], video["size"], video["num_frames"], video["seed"]), ("completed", "64x64", 5, 7), video)
            self.assertIn("prompt", video["request"])
        paths = [f"/v1/videos/{video['id']}/content" for video in videos]
        first, second = [self.fleet.ask("GET", path).data for path in paths]
        self.assertEqual((first[4:8], first), (b"ftyp", second))
        for variant, begin in (("thumbnail", b"RIFF"), ("spritesheet", b"RIFF"), ("preview", b"\x89PNG")):
            self.assertEqual(self.fleet.ask("GET", f"{paths[0]}?variant={variant}").data[:4], begin)
        remix = self.wait(self.fleet.ask("POST", f"/v1/videos/{videos[0]['id']}/remix", {"prompt": "A cube."}).json["id"], seconds=120)
        self.assertEqual((remix["status"], remix["num_frames"], remix["seed"]), ("completed", 5, 7), remix)
        # Of a form, whose numbers are texts.
        form = b"prompt=A+ball&num_frames=5&size=64x64&steps=1&seed=8"
        answer = self.fleet.ask("POST", "/v1/videos", data=form, headers={"Content-Type": "application/x-www-form-urlencoded"})
        self.assertEqual(self.wait(answer.json["id"], seconds=120)["seed"], 8)


if __name__ == "__main__":
    unittest.main()
