#!/usr/bin/env python3
"""Stands in for `turbodiffusion serve`: the same options, lines and protocol, and videos that take SECONDS of sleep and hold their request.

Prompts ask for trouble: `fail CODE`, `crash` (the process ends), `hang` (until it is cancelled), `slow` (ten times as long)."""
import argparse
import hashlib
import http.server
import json
import os
import sys
import threading
import time
import uuid

PREVIEW = "data:image/png;base64,iVBORw0KGgo="


class Videos:
    def __init__(self, devices, seconds):
        self.names, self.devices, self.seconds = devices, threading.Semaphore(len(devices)), seconds
        self.condition = threading.Condition()
        self.videos, self.events, self.keys = {}, {}, {}

    def create(self, fields, key):
        with self.condition:
            if key in self.keys:
                return self.videos[self.keys[key]]
            id = "video_" + uuid.uuid4().hex
            if key:
                self.keys[key] = id
            self.videos[id] = {
                "id": id, "object": "video", "model": fields.get("model", "nano"), "status": "queued", "error": None,
                "progress": 0, "prompt": fields["prompt"], "size": fields.get("size", "256x144"), "seconds": "0.31",
                "num_frames": int(fields.get("num_frames", 33)), "seed": int(fields.get("seed", 0)), "fps": 16,
                "inference_time_s": None, "request": {"prompt": fields["prompt"], "seed": fields.get("seed"), "devices": self.names,
                            "visible": os.environ.get("CUDA_VISIBLE_DEVICES")},
            }
            self.events[id] = []
        threading.Thread(target=self.make, args=(id, fields), daemon=True).start()
        return self.videos[id]

    def tell(self, id, name, data):
        with self.condition:
            if id in self.events:
                self.events[id].append((name, data))
                self.condition.notify_all()

    def change(self, id, **values):
        with self.condition:
            video = self.videos.get(id)
            if video is None or video["status"] in ("completed", "failed", "cancelled"):
                return None
            video.update(values)
            return dict(video)

    def make(self, id, fields):
        with self.devices:
            if not (video := self.change(id, status="in_progress")):
                return
            self.tell(id, "video", video)
            words = fields["prompt"].split()
            seconds = self.seconds * (10 if "slow" in words else 1)
            for step in range(4):
                time.sleep(seconds / 4)
                while "hang" in words and self.change(id):
                    time.sleep(0.05)
                if "crash" in words:
                    os._exit(9)
                if not self.change(id, progress=25 * step):
                    return
                self.tell(id, "progress", {"id": id, "progress": 25 * step, "fraction": step / 4, "title": f"step {step + 1}/4"})
                self.tell(id, "preview", {"id": id, "step": step + 1, "of": 4, "width": 1, "height": 1, "image": PREVIEW})
            if "fail" in words:
                code = words[words.index("fail") + 1]
                video = self.change(id, status="failed", error={"code": code, "message": f"asked to fail with {code}"})
            else:
                video = self.change(id, status="completed", progress=100, inference_time_s=seconds)
            if video:
                self.tell(id, video["status"], video)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, kind="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def error(self, status, code, message, param=None):
        self.answer(status, {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}})

    def do_GET(self):
        self.route("GET")

    def do_POST(self):
        self.route("POST")

    def do_DELETE(self):
        self.route("DELETE")

    def route(self, method):
        videos = self.server.videos
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {self.server.key}":
            return self.error(401, "invalid_api_key", "no key")
        path, _, query = self.path.partition("?")
        parts = path.split("/")[1:]
        if parts == ["ready"]:
            return self.answer(200, {"status": "ready"})
        if parts == ["v1", "models"]:
            return self.answer(200, {"object": "list", "data": [
                {"id": name, "object": "model", "created": 1, "owned_by": "turbodiffusion", "takes_image": False, "is_loaded": True,
                 "defaults": {"width": 256, "height": 144, "num_frames": 33, "fps": 16, "num_inference_steps": 4}}
                for name in self.server.models]})
        if method == "POST" and parts in (["v1", "videos"], ["v1", "videos", "plan"]):
            fields = json.loads(data)
            if int(fields.get("width", 16)) % 16:
                return self.error(400, "invalid_value", f"width must be a multiple of 16, not {fields['width']}", "width")
            if parts[-1] == "plan":
                return self.answer(200, {"object": "plan", "seconds": videos.seconds, "peak_memory_bytes": 1 << 20, "notices": []})
            return self.answer(200, videos.create(fields, self.headers.get("Idempotency-Key")))
        id = parts[2] if len(parts) > 2 else ""
        video = videos.videos.get(id)
        if video is None:
            return self.error(404, "video_not_found", "no such video")
        if method == "DELETE":
            videos.change(id, status="cancelled")
            with videos.condition:
                videos.videos.pop(id), videos.events.pop(id)
            return self.answer(200, {"id": id, "deleted": True})
        if parts[3:] == []:
            return self.answer(200, video)
        if parts[3:] == ["cancel"]:
            ended = videos.change(id, status="cancelled")
            if ended:
                videos.tell(id, "cancelled", ended)
            return self.answer(200 if ended else 409, video)
        if parts[3:] == ["content"]:
            if query in ("variant=thumbnail", "variant=spritesheet"):
                return self.answer(200, b"RIFF    WEBP" + query.encode(), "image/webp")
            if query == "variant=preview":
                return self.answer(200, b"\x89PNG\r\n\x1a\n", "image/png")
            # Equal requests give equal bytes.
            text = json.dumps([video["prompt"], video["seed"], video["num_frames"]])
            return self.answer(200, text.encode() + hashlib.sha512(text.encode()).digest() * 64, "video/mp4")
        if parts[3:] == ["events"]:
            return self.stream(id)
        self.error(404, "no_such_route", "nothing here")

    def stream(self, id):
        videos = self.server.videos
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        sent, open = 0, True
        try:
            self.wfile.write(f"id: 0\nevent: video\ndata: {json.dumps(videos.videos[id])}\n\n".encode())
            while open:
                with videos.condition:
                    if id not in videos.events:
                        return
                    if len(videos.events[id]) == sent:
                        videos.condition.wait(1)
                    events = videos.events.get(id, [])[sent:]
                for name, data in events:
                    self.wfile.write(f"id: {sent}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode())
                    open = name not in ("completed", "failed", "cancelled")
                    sent += 1
                self.wfile.flush()
        except (OSError, KeyError):
            pass


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("--model", action="append")
    parser.add_argument("--device", action="append")
    parser.add_argument("--port", type=int)
    parser.add_argument("--api-key-file")
    parser.add_argument("--output")
    parser.add_argument("--drain")
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("STANDIN_SECONDS", "0.2")))
    options = parser.parse_args()
    os.makedirs(options.output)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    server.daemon_threads = True
    server.videos = Videos(options.device, options.seconds)
    server.models = [name.rstrip("/").rsplit("/", 1)[-1] for name in options.model]
    with open(options.api_key_file) as file:
        server.key = file.read().strip()
    print(f"listening on http://127.0.0.1:{server.server_port}", file=sys.stderr, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
