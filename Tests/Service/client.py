"""The unmodified `openai` client against the service, and what goes beyond it."""
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import warnings

warnings.simplefilter("ignore", DeprecationWarning)
import openai  # noqa: E402

from service import Service  # noqa: E402

SMALL = {"num_frames": 9, "seed": 7}
TEXT = "A small red sphere bounces on a checkered floor."
tests = []


def test(function):
    tests.append(function)
    return function


def request(service, path, method="GET", body=None, headers={}):
    """→ status, headers, bytes"""
    data = json.dumps(body).encode() if body is not None else None
    if data is not None:
        headers = {"Content-Type": "application/json", **headers}
    question = urllib.request.Request(service.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(question, timeout=120) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def events(service, path):
    """Events of a stream: (name, data)."""
    with urllib.request.urlopen(service.url + path, timeout=120) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        name = None
        for line in answer:
            line = line.decode().rstrip("\n")
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                yield name, json.loads(line[6:])


def wait(client, video, *statuses):
    for _ in range(2400):
        video = client.videos.retrieve(video.id)
        if video.status in statuses:
            return video
        time.sleep(0.05)
    raise AssertionError(f"{video.id} is {video.status}, expected {statuses}")


def raises(kind, body):
    try:
        body()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def probe(data):
    """Frames and size of a video."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        text = subprocess.run(
            ["ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames,width,height",
             "-of", "csv=p=0", file.name], check=True, capture_output=True, text=True).stdout
    return text.strip()


@test
def create_and_poll(service, client):
    start = time.monotonic()
    video = client.videos.create_and_poll(prompt=TEXT, model="nano", seconds="1", extra_body=SMALL)
    print(f"   {time.monotonic() - start:.2f} s from the request to the answer")
    assert video.status == "completed" and video.progress == 100, video
    assert video.seconds == "0.56" and video.size == "256x144" and video.seed == 7, video
    assert video.expires_at > video.completed_at >= video.created_at, video
    content = client.videos.download_content(video.id)
    assert content.response.headers["content-type"] == "video/mp4"
    assert probe(content.read()) == "256,144,9"
    for variant in ("thumbnail", "spritesheet"):
        picture = client.videos.download_content(video.id, variant=variant)
        assert picture.response.headers["content-type"] == "image/webp"
        assert picture.read()[8:12] == b"WEBP"


@test
def same_request_same_bytes(service, client):
    videos = [client.videos.create_and_poll(prompt=TEXT, extra_body=SMALL) for _ in range(2)]
    assert len({client.videos.download_content(video.id).read() for video in videos}) == 1


@test
def retrieve_list_delete(service, client):
    made = [client.videos.create(prompt=f"{TEXT} {index}", extra_body=SMALL) for index in range(5)]
    assert made[0].status in ("queued", "in_progress"), made[0]
    assert client.videos.retrieve(made[0].id).prompt == TEXT + " 0"
    found = [video.id for video in client.videos.list(limit=2)]
    assert found[:5] == [video.id for video in reversed(made)], found
    page = client.videos.list(limit=2, order="asc", after=made[0].id)
    assert [video.id for video in page.data] == [made[1].id, made[2].id] and page.has_more
    for video in made:
        wait(client, video, "completed")
        assert client.videos.delete(video.id).deleted
        raises(openai.NotFoundError, lambda: client.videos.retrieve(video.id))
    names = sum((os.listdir(os.path.join(service.output, folder)) for folder in ("videos", "pictures", "inputs")), [])
    assert not any(video.id in name for video in made for name in names), names


@test
def deleted_while_it_is_read(service, client):
    for pause in (0, 0.02, 0.05, 0.1, 0.2):
        video = client.videos.create_and_poll(prompt=TEXT, extra_body=SMALL)
        answers = []
        reader = threading.Thread(target=lambda: answers.append(
            request(service, f"/v1/videos/{video.id}/content?variant=spritesheet")))
        reader.start()
        time.sleep(pause)
        client.videos.delete(video.id)
        reader.join()
        status, _, body = answers[0]
        assert status in (200, 404), (status, body)
        assert request(service, f"/v1/videos/{video.id}/content?variant=spritesheet")[0] == 404
        left = [name for _, _, names in os.walk(service.output) for name in names if video.id in name]
        assert not left, left


@test
def remix(service, client):
    base = client.videos.create_and_poll(prompt=TEXT, extra_body=SMALL)
    video = client.videos.remix(base.id, prompt="A blue cube.")
    assert video.remixed_from_video_id == base.id and video.prompt == "A blue cube." and video.seed == 7
    wait(client, video, "completed")
    assert video.num_frames == 9


@test
def form_fields(service, client):
    video = client.videos.create(prompt=TEXT, extra_body={
        "num_frames": 5, "steps": 2, "ode": True, "size": "64x64", "fps": 8, "enable_teacache": False})
    assert (video.width, video.num_frames, video.num_inference_steps, video.fps) == (64, 5, 2, 8), video
    video = client.videos.create(
        prompt=TEXT, extra_headers={"Content-Type": "application/json"}, extra_body={"num_frames": 5})
    assert video.num_frames == 5
    wait(client, video, "completed")


@test
def errors(service, client):
    def create(**fields):
        return lambda: client.videos.create(**{"prompt": TEXT, **fields})

    error = raises(openai.BadRequestError, create(extra_body={"width": 100}))
    assert error.param == "width" and "nearest: 96" in error.message, error
    assert raises(openai.BadRequestError, create(extra_body={"promt": "x"})).code == "unknown_field"
    assert raises(openai.BadRequestError, create(prompt=" ")).param == "prompt"
    assert raises(openai.BadRequestError, create(input_reference=("a.png", b"\x89PNG none"))).param == "input_reference"
    raises(openai.NotFoundError, create(model="sora-2"))
    raises(openai.NotFoundError, create(extra_body={"lora": {"name": "../../etc/passwd"}}))
    raises(openai.NotFoundError, lambda: client.videos.retrieve("video_" + "0" * 32))
    raises(openai.NotFoundError, lambda: client.videos.download_content("..%2f..%2fjobs.sqlite"))
    assert request(service, "/v1/videos/edits", "POST", {})[0] == 501
    assert request(service, "/nothing")[0] == 404
    assert request(service, "/v1/models", "POST", {})[0] == 405
    assert request(service, "/v1/videos", "POST", {"prompt": "x" * 40_000_000})[0] == 413
    assert request(service, "/v1/videos?limit=101")[0] == 400


@test
def foreign_pages(service, client):
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        status, _, body = request(service, "/v1/videos", "POST", {"prompt": TEXT}, headers)
        assert status == 403 and json.loads(body)["error"]["type"] == "permission_error"
    assert request(service, "/v1/models", headers={"Origin": service.url})[0] == 200


@test
def event_stream(service, client):
    video = client.videos.create(prompt=TEXT, extra_body=SMALL)
    seen = list(events(service, f"/v1/videos/{video.id}/events"))
    names = [name for name, _ in seen]
    assert names[0] == "video" and names[-1] == "completed", names
    previews = [data for name, data in seen if name == "preview"]
    assert [data["step"] for data in previews] == [1, 2, 3, 4], previews
    png = base64.b64decode(previews[-1]["image"].removeprefix("data:image/png;base64,"))
    assert probe(png) == "32,18,1"
    progress = [data["fraction"] for name, data in seen if name == "progress"]
    assert progress == sorted(progress) and progress[-1] > 0.5, progress
    assert seen[-1][1]["status"] == "completed"
    assert request(service, f"/v1/videos/{video.id}/content?variant=preview")[2] == png
    # Of one that is over: how things stand, and the end.
    start = time.monotonic()
    assert [name for name, _ in events(service, f"/v1/videos/{video.id}/events")] == ["video"]
    print(f"   {1000 * (time.monotonic() - start):.1f} ms for the stream of a finished video")


@test
def cancel(service, client):
    long = {"num_frames": 81, "sampler": "euler", "steps": 200, "seed": 1}
    running = client.videos.create(prompt=TEXT, extra_body=long)
    waiting = client.videos.create(prompt=TEXT, extra_body=long)
    gone = client.videos.create(prompt=TEXT, extra_body=long)
    wait(client, running, "in_progress")
    assert client.videos.retrieve(waiting.id).queue_position in (1, 2)
    start = time.monotonic()
    for video in (waiting, running):
        status, _, body = request(service, f"/v1/videos/{video.id}/cancel", "POST")
        assert status == 200 and json.loads(body)["status"] == "cancelled", body
    assert request(service, f"/v1/videos/{running.id}/cancel", "POST")[0] == 409
    wait(client, gone, "in_progress")
    assert client.videos.delete(gone.id).deleted
    quick = client.videos.create_and_poll(prompt=TEXT, extra_body=SMALL)
    assert quick.status == "completed"
    print(f"   {time.monotonic() - start:.2f} s until the next video was there")
    assert not os.path.exists(os.path.join(service.output, "videos", running.id + ".mp4"))


@test
def idempotency(service, client):
    def send(key, **fields):
        return client.videos.create(prompt=TEXT, extra_body={**SMALL, **fields}, extra_headers={"Idempotency-Key": key})

    first, second = send("a"), send("a")
    assert first.id == second.id
    assert send("b").id != first.id
    error = raises(openai.ConflictError, lambda: send("a", fps=8))
    assert error.code == "idempotency_conflict"
    found = []
    threads = [threading.Thread(target=lambda: found.append(send("together").id)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1, found


@test
def models_plan_metrics(service, client):
    models = client.models.list().data
    assert [model.id for model in models] == ["nano"] and models[0].is_loaded
    assert client.models.retrieve("nano").defaults["num_frames"] == 33
    status, _, body = request(service, "/v1/videos/plan", "POST", {"prompt": TEXT})
    plan = json.loads(body)
    assert status == 200 and plan["seconds"] > 0 and plan["peak_memory_bytes"] > 1 << 20, plan
    text = request(service, "/metrics")[2].decode()
    assert 'turbodiffusion_videos_total{status="completed"}' in text
    for path in ("/health", "/ready", "/", "/openapi.json", "/page/page.js"):
        assert request(service, path)[0] == 200, path
    assert request(service, "/health", "HEAD")[2] == b""


@test
def ranges(service, client):
    video = client.videos.create_and_poll(prompt=TEXT, extra_body=SMALL)
    path = f"/v1/videos/{video.id}/content"
    whole = request(service, path)[2]
    assert len(whole) == video.file_bytes
    status, headers, body = request(service, path, headers={"Range": "bytes=10-19"})
    assert (status, body) == (206, whole[10:20]) and headers["content-range"] == f"bytes 10-19/{len(whole)}"
    assert request(service, path, headers={"Range": f"bytes={len(whole)}-"})[0] == 416


@test
def overhead(service, client):
    """Of one request over the run itself, on loaded models."""
    extra = []
    for index in range(20):
        start = time.monotonic()
        video = client.videos.create(prompt=TEXT, extra_body={**SMALL, "num_frames": 5, "seed": index})
        for name, data in events(service, f"/v1/videos/{video.id}/events"):
            pass
        extra.append(time.monotonic() - start - data["inference_time_s"])
    extra.sort()
    print(f"   {1000 * extra[len(extra) // 2]:.1f} ms median, {1000 * extra[-1]:.1f} ms at most, beside the run")


@test
def graceful_stop(service, client):
    waiting = [client.videos.create(prompt=TEXT, extra_body={**SMALL, "seed": seed}) for seed in range(4)]
    wait(client, waiting[0], "in_progress", "completed")
    assert service.stop() == 0
    service.start()
    for video in waiting:
        assert wait(client, video, "completed").attempts == 1


@test
def keys(service, client):
    service.stop()
    path = os.path.join(service.output, "keys")
    with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
        file.write("# a key\nsecret-0123456789abcdef\n")
    with Service(service.output, "--api-key-file", path) as locked:
        raises(openai.AuthenticationError, openai.OpenAI(base_url=locked.url + "/v1", api_key="wrong").models.list)
        right = openai.OpenAI(base_url=locked.url + "/v1", api_key="secret-0123456789abcdef")
        assert right.models.list().data[0].id == "nano"
        assert request(locked, "/health")[0] == 200 and request(locked, "/metrics")[0] == 401
    service.start()


def main():
    wanted = sys.argv[1:]
    folder = tempfile.mkdtemp(prefix="service-")
    failures = 0
    try:
        with Service(folder) as service:
            for function in tests:
                if wanted and function.__name__ not in wanted:
                    continue
                client = openai.OpenAI(base_url=service.url + "/v1", api_key="none", max_retries=0)
                print(function.__name__, flush=True)
                try:
                    function(service, client)
                except Exception as error:
                    failures += 1
                    print(f"   FAILED: {type(error).__name__}: {error}", flush=True)
                    import traceback
                    traceback.print_exc(limit=4)
                    if service.process.poll() is not None:
                        service.start()
            if service.process.poll() is None:
                status = service.stop()
                assert status == 0, status
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(wanted or tests)} tests, {failures} failed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
