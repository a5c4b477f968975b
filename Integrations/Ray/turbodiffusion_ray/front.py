"""The front of the fleet: an ASGI application that speaks `/v1/videos` and keeps nothing itself, so that there may be several."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import os
import traceback
import urllib.parse
from typing import Any, Awaitable, Callable, Protocol

from .protocol import (
    APIError,
    byte_range,
    conflict,
    drawn,
    fingerprint,
    invalid,
    list_object,
    no_video,
    not_found,
    parse_body,
    parse_query,
    picture_of,
    poll_pause,
    remixed,
)
from .results import Results
from .store import new_id

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_KINDS = {"thumbnail": ("thumbnail.webp", "image/webp"), "spritesheet": ("spritesheet.webp", "image/webp")}
# Between two comments of a stream in which nothing happens: proxies and clients see that it lives.
_COMMENT_SECONDS = 15.0
# Enough for the check of a request with a picture, whose content does not matter there.
_ANY_PICTURE = "data:image/png;base64,AA=="


class AsyncCaller(Protocol):
    """Calls a method of the desk."""

    async def __call__(self, method: str, *values: Any, **named: Any) -> Any: ...


class Front:
    """`keys`: bearer tokens, one of which every request needs; none: whoever reaches it may ask. `check_seconds`: how long a new
    request waits for a replica to look at it."""

    def __init__(
        self,
        desk: AsyncCaller,
        results: Results,
        keys: list[str] | None = None,
        body_limit: int = 32 << 20,
        check_seconds: float = 5,
    ) -> None:
        self._desk, self._results, self._keys = desk, results, [key.encode() for key in keys or []]
        self._body_limit, self._check_seconds = body_limit, check_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await _lifespan(scope, receive, send)
        answer = _Answer(send, scope["method"] == "HEAD")
        try:
            path = scope["path"].removeprefix(scope.get("root_path", "") or "")
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            body = await _body(receive, self._body_limit)
            self._check_key(path, headers)
            parts = [urllib.parse.unquote(part) for part in path.split("/")[1:]]
            await self._route(_Request(scope, headers, path, parts, body, receive), answer)
        except Exception as caught:
            if answer.has_begun:
                raise
            error = caught if isinstance(caught, APIError) else APIError(500, "server_error", "internal", "something went wrong here")
            if error is not caught:
                traceback.print_exception(caught)
            more = {}
            if error.retry_after is not None:
                more["retry-after"] = str(error.retry_after)
            if error.status == 401:
                more["www-authenticate"] = "Bearer"
            if error.status == 409:
                more["x-should-retry"] = "false"
            await answer.json(error.object, error.status, more)

    def _check_key(self, path: str, headers: dict[str, str]) -> None:
        if not self._keys or path in ("/health", "/ready"):
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        # All of them, whichever fits: how long it takes tells nothing.
        fits = [hmac.compare_digest(key, token.strip().encode()) for key in self._keys]
        if scheme.lower() != "bearer" or not any(fits):
            raise APIError(401, "authentication_error", "invalid_api_key", "this service needs a key: Authorization: Bearer KEY")

    # Routes

    async def _route(self, request: _Request, answer: _Answer) -> None:
        match request.parts:
            case ["v1", "videos", *rest]:
                await self._videos(request, rest, answer)
            case ["v1", "models"]:
                request.need("GET")
                await answer.json(list_object(await self._desk("models")))
            case ["v1", "models", *name]:
                request.need("GET")
                await answer.json(_model(await self._desk("models"), "/".join(name)))
            case ["v1", "loras"]:
                # Which there are only the nodes know.
                request.need("GET")
                await answer.json(list_object([]))
            case ["v1", "events"]:
                request.need("GET")
                await self._events(request, None, answer)
            case ["health"]:
                request.need("GET")
                await answer.json({"status": "ok"})
            case ["ready"]:
                request.need("GET")
                await self._desk("models")
                await answer.json({"status": "ready"})
            case ["metrics"]:
                request.need("GET")
                text = await self._desk("metrics")
                await answer.whole(text.encode(), {"content-type": "text/plain; version=0.0.4; charset=utf-8"})
            case _:
                raise not_found("no_such_route", f"there is nothing at {request.path[:80]}")

    async def _videos(self, request: _Request, parts: list[str], answer: _Answer) -> None:
        match parts:
            case [] if request.is_read:
                await self._list(request, answer)
            case []:
                request.need("POST")
                await self._create(request, None, answer)
            case ["plan"] if request.method == "POST":
                await self._plan(request, answer)
            case ["edits" | "extensions" | "characters", *_]:
                raise APIError(
                    501, "not_implemented_error", "not_implemented",
                    "no model of this service does that; it makes videos from text and from a first picture",
                )  # fmt: skip
            case [id] if request.is_read:
                await self._video(await self._found(id), answer)
            case [id]:
                request.need("DELETE")
                job = await self._desk("delete", id)
                if job is None:
                    raise no_video(id)
                await asyncio.to_thread(remove_files, self._results, job)
                await answer.json({"id": id, "object": "video.deleted", "deleted": True})
            case [id, "content"]:
                request.need("GET")
                await self._content(request, id, answer)
            case [id, "events"]:
                request.need("GET")
                await self._found(id)
                await self._events(request, id, answer)
            case [id, "cancel"]:
                request.need("POST")
                found = await self._desk("cancel", id)
                if found is None:
                    raise no_video(id)
                if "over" in found:
                    raise conflict("already_over", f"'{id}' is {found['over']} already")
                await self._video(found["video"], answer)
            case [id, "remix"]:
                request.need("POST")
                await self._create(request, id, answer)
            case _:
                raise not_found("no_such_route", f"there is nothing at {request.path[:80]}")

    async def _found(self, id: str) -> dict[str, Any]:
        video: dict[str, Any] | None = await self._desk("get", id)
        if video is None:
            raise no_video(id)
        return video

    async def _video(self, video: dict[str, Any], answer: _Answer) -> None:
        open = video["status"] in ("queued", "in_progress")
        await answer.json(video, more={"openai-poll-after-ms": str(poll_pause(video))} if open else {})

    async def _list(self, request: _Request, answer: _Answer) -> None:
        after, limit, newest_first, statuses = parse_query(request.query)
        page = await self._desk("page", after, limit, newest_first, list(statuses))
        if page is None:
            raise no_video(after or "")
        await answer.json(list_object(page["videos"], page["has_more"]))

    # Coming

    async def _create(self, request: _Request, base: str | None, answer: _Answer) -> None:
        said = parse_body(request.body, request.headers.get("content-type"))
        key = request.headers.get("idempotency-key")
        values: dict[str, Any] = {"remix_of": base}
        if key is not None:
            if not 1 <= len(key.encode()) <= 255:
                raise invalid("invalid_value", "Idempotency-Key must be 1 to 255 characters", "Idempotency-Key")
            values.update(key=key, key_hash=fingerprint(said, base))
            # Before anything is checked: what was accepted once stays so.
            known = await self._desk("known", key, values["key_hash"])
            if known is not None:
                return await self._created(known, answer)
        picture, fields = picture_of(said)
        if base is not None:
            job = await self._desk("job", base)
            if job is None:
                raise no_video(base)
            fields = remixed(job["fields"], fields)
            fields.setdefault("model", job["model"])
            if picture is None and job["input"] is not None:
                try:
                    picture = await asyncio.to_thread(self._results.read_input, job["input"])
                except FileNotFoundError:
                    message = f"the picture of '{base}' is gone; send it again"
                    raise not_found("video_not_found", message, "input_reference") from None
        model = await self._model_of(fields, picture is not None)
        fields = drawn({name: value for name, value in fields.items() if name != "model"})
        plan = await self._check(model, fields, picture is not None)
        values["estimate"] = None if plan is None else plan.get("seconds")
        id = new_id()
        if picture is not None:
            await asyncio.to_thread(self._results.write_input, id, picture)
            values["input"] = id
        found = await self._desk("create", model, fields, id=id, **values)
        if picture is not None and found.get("video", {}).get("id") != id:
            await asyncio.to_thread(self._results.remove_input, id)
        await self._created(found, answer)

    async def _created(self, found: dict[str, Any], answer: _Answer) -> None:
        match found.get("error"):
            case "queue_full":
                raise APIError(
                    429, "rate_limit_error", "queue_full", f"{found['limit']} requests wait already", retry_after=found["retry_after"]
                )
            case "idempotency_conflict":
                raise conflict("idempotency_conflict", "this Idempotency-Key came with another request before")
        await self._video(found["video"], answer)

    async def _model_of(self, fields: dict[str, Any], has_picture: bool) -> str:
        models = await self._desk("models")
        name = fields.get("model")
        if name is None:
            fitting = [model for model in models if model.get("takes_image") or not has_picture]
            return str((fitting or models)[0]["id"])
        if not isinstance(name, str):
            raise invalid("invalid_value", f"model must be a text, not {json.dumps(name)[:80]}", "model")
        return str(_model(models, name)["id"])

    async def _check(self, model: str, fields: dict[str, Any], has_picture: bool) -> dict[str, Any] | None:
        """As far as can be seen here, then by a service that has the model. None where none could look at it."""
        prompt = fields.get("prompt")
        if prompt is None:
            raise invalid("missing_field", "prompt is missing: what the video shows", "prompt")
        if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > 32000:
            raise invalid("invalid_value", "prompt must be a text of 1 to 32000 characters", "prompt")
        question = {**fields, "model": model}
        if has_picture:
            question["input_reference"] = _ANY_PICTURE
        told = await self._desk("ask", model, question, self._check_seconds) if self._check_seconds > 0 else None
        if told is None:
            return None
        status, body = told
        if 400 <= status < 500:
            error = body.get("error") or {}
            raise APIError(
                status, error.get("type") or "invalid_request_error", error.get("code") or "invalid_value",
                error.get("message") or "the model does not take this request", error.get("param"),
            )  # fmt: skip
        return body if status == 200 else None

    async def _plan(self, request: _Request, answer: _Answer) -> None:
        picture, fields = picture_of(parse_body(request.body, request.headers.get("content-type")))
        model = await self._model_of(fields, picture is not None)
        plan = await self._check(model, {name: value for name, value in fields.items() if name != "model"}, picture is not None)
        if plan is None:
            raise APIError(503, "server_error", "starting", f"no replica with {model} runs now", retry_after=10)
        await answer.json({**plan, "queue_seconds": await self._desk("queue_seconds", model)})

    # Going

    async def _content(self, request: _Request, id: str, answer: _Answer) -> None:
        variant = dict(urllib.parse.parse_qsl(request.query)).get("variant", "video")
        if variant not in ("video", "preview", *_KINDS):
            raise invalid("invalid_value", f"variant must be video, thumbnail, spritesheet or preview, not {variant[:80]}", "variant")
        job = await self._desk("job", id)
        if job is None:
            raise no_video(id)
        result = job["result"] or {"name": "", "files": {}}
        if variant == "preview":
            if "preview.png" in result["files"]:
                return await self._file(request, result, "preview.png", {"content-type": "image/png"}, answer)
            image = await self._desk("preview", id)
            if image is None:
                raise not_found("video_not_ready", f"there is no preview of '{id}'")
            headers = {"content-type": "image/png", "cache-control": "no-store"}
            return await answer.whole(base64.b64decode(image.split(",", 1)[1]), headers)
        if job["status"] != "completed":
            raise not_found("video_not_ready", f"'{id}' has no video: it is {job['status']}")
        if variant in _KINDS:
            file, kind = _KINDS[variant]
            if file not in result["files"]:
                raise not_found("video_not_ready", f"there is no {variant} of '{id}'")
            return await self._file(request, result, file, {"content-type": kind}, answer)
        headers = {
            "content-type": "video/mp4", "accept-ranges": "bytes", "etag": f'"{id}"',
            "content-disposition": f'inline; filename="{id}.mp4"',
        }  # fmt: skip
        await self._file(request, result, "video.mp4", headers, answer)

    async def _file(
        self, request: _Request, result: dict[str, Any], file: str, headers: dict[str, str], answer: _Answer
    ) -> None:
        name, size = result["name"], result["files"][file]
        start, end, status = 0, size, 200
        if "accept-ranges" in headers:
            wanted = byte_range(request.headers.get("range"), size)
            if wanted is False:
                return await answer.whole(b"", {**headers, "content-range": f"bytes */{size}"}, 416)
            if isinstance(wanted, tuple):
                (start, end), status = wanted, 206
                headers = {**headers, "content-range": f"bytes {start}-{end - 1}/{size}"}
        if await asyncio.to_thread(self._results.size, name, file) != size:
            raise APIError(500, "server_error", "internal", f"the file of '{name.split('.')[0]}' is not where results are kept")
        await answer.begin(status, {**headers, "content-length": str(end - start)})
        if request.method != "HEAD":
            chunks = self._results.read(name, file, start, end)
            while (data := await asyncio.to_thread(next, chunks, None)) is not None:
                await answer.more(data)
        await answer.end()

    # Events

    async def _events(self, request: _Request, id: str | None, answer: _Answer) -> None:
        headers = {"content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no"}
        await answer.begin(200, headers)
        gone = asyncio.ensure_future(_disconnected(request.receive))
        try:
            cursor: int | None = None
            while not gone.done():
                told = asyncio.ensure_future(self._desk("listen", id, cursor, _COMMENT_SECONDS))
                await asyncio.wait([told, gone], return_when=asyncio.FIRST_COMPLETED)
                if not told.done():
                    told.cancel()
                    break
                found = told.result()
                cursor = found["cursor"]
                text = "".join(f"id: {number}\nevent: {name}\ndata: {data}\n\n" for number, name, data in found["events"])
                await answer.more((text or ":\n\n").encode())
                if found["ended"]:
                    break
        finally:
            gone.cancel()
        await answer.end()


class _Request:
    def __init__(self, scope: Scope, headers: dict[str, str], path: str, parts: list[str], body: bytes, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.query: str = scope.get("query_string", b"").decode("latin-1")
        self.headers, self.path, self.parts, self.body, self.receive = headers, path, parts, body, receive

    @property
    def is_read(self) -> bool:
        return self.method in ("GET", "HEAD")

    def need(self, method: str) -> None:
        if not (self.is_read if method == "GET" else self.method == method):
            raise APIError(
                405, "invalid_request_error", "method_not_allowed", f"{self.method[:20]} is not for {self.path[:80]}: use {method}"
            )


class _Answer:
    def __init__(self, send: Send, is_head: bool) -> None:
        self._send, self._is_head = send, is_head
        self.has_begun = False

    async def begin(self, status: int, headers: dict[str, str]) -> None:
        self.has_begun = True
        headers = {**headers, "x-content-type-options": "nosniff"}
        pairs = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def more(self, data: bytes) -> None:
        if not self._is_head:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def whole(self, data: bytes, headers: dict[str, str], status: int = 200) -> None:
        await self.begin(status, {**headers, "content-length": str(len(data))})
        await self.more(data)
        await self.end()

    async def json(self, object: Any, status: int = 200, more: dict[str, str] | None = None) -> None:
        await self.whole(json.dumps(object, ensure_ascii=False).encode(), {"content-type": "application/json", **(more or {})}, status)


def remove_files(results: Results, job: dict[str, Any]) -> None:
    """Of a job that nobody knows any more."""
    if job["result"] is not None:
        results.remove(job["result"]["name"])
    if job["input"] is not None:
        results.remove_input(job["input"])


def read_keys(path: str) -> list[str]:
    """One a line, 16 characters or more; `#` begins a comment. Raises ValueError, OSError."""
    if os.stat(path).st_mode & 0o004:
        raise ValueError(f"{path} can be read by everybody: chmod o-r")
    with open(path, encoding="utf-8") as file:
        keys = [line.strip() for line in file if line.strip() and not line.startswith("#")]
    if not keys or any(len(key) < 16 for key in keys):
        raise ValueError(f"{path} must hold keys of 16 characters or more, one a line")
    return keys


def _model(models: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for model in models:
        if model["id"] == name:
            return model
    known = ", ".join(model["id"] for model in models)
    raise not_found("model_not_found", f"there is no model '{name[:80]}'; served: {known}", "model")


async def _body(receive: Receive, limit: int) -> bytes:
    """It is read to its end also where it is too large: whoever sends first would not see the answer."""
    parts: list[bytes] = []
    count = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        data = message.get("body", b"")
        count += len(data)
        parts.append(data)
        if count > limit:
            parts.clear()
        if not message.get("more_body"):
            break
    if count > limit:
        raise APIError(413, "invalid_request_error", "body_too_large", f"a request must be at most {limit} bytes")
    return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "lifespan":
        return
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
