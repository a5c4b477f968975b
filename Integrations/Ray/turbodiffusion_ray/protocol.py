"""The protocol of docs/service.md where HTTP meets it: errors, bodies as one object of fields, objects as clients see them."""

from __future__ import annotations

import base64
import email.parser
import email.policy
import hashlib
import json
import random
import re
import urllib.parse
from typing import Any

from .store import OVER, STATUSES, Job


class APIError(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, kind: str, code: str, message: str, param: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.kind, self.code, self.message, self.param = status, kind, code, message, param
        self.retry_after = retry_after

    @property
    def object(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(code: str, message: str, param: str | None = None) -> APIError:
    return APIError(400, "invalid_request_error", code, message, param)


def not_found(code: str, message: str, param: str | None = None) -> APIError:
    return APIError(404, "not_found_error", code, message, param)


def no_video(id: str) -> APIError:
    return not_found("video_not_found", f"there is no video '{id[:80]}'")


def conflict(code: str, message: str) -> APIError:
    return APIError(409, "conflict_error", code, message)


# Bodies

_SYNONYMS = {
    "frames": "num_frames", "steps": "num_inference_steps", "image": "input_reference", "image_reference": "input_reference",
    "true_cfg_scale": "guidance_scale", "shift": "flow_shift", "boundary": "boundary_ratio", "loras": "lora", "resolution": "size",
}  # fmt: skip
# What one of these says, the others said before: of use where a request is changed.
_GROUPS = (("size", "width", "height"), ("num_frames", "seconds"))


def parse_body(data: bytes, content_type: str | None) -> dict[str, Any]:
    """Fields by their own names. Files become `data:` URLs, and texts of forms stay texts: the service reads numbers from them.

    Raises APIError."""
    kind = (content_type or "").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        fields = _multipart(data, content_type or "")
    elif kind == "application/x-www-form-urlencoded":
        fields = {}
        try:
            pairs = urllib.parse.parse_qsl(data.decode(), keep_blank_values=True, errors="strict")
        except ValueError:
            raise invalid("invalid_body", "the form is not UTF-8") from None
        for name, value in pairs:
            _add(fields, name, value)
    elif kind == "application/json" or kind.endswith("+json") or (not kind and data):
        try:
            parsed = json.loads(data)
        except (ValueError, RecursionError):
            raise invalid("invalid_body", "the body is not JSON") from None
        if not isinstance(parsed, dict):
            raise invalid("invalid_body", "the body must be a JSON object")
        fields = parsed
    elif data:
        raise invalid(
            "invalid_body",
            "expected a body of application/json, multipart/form-data or application/x-www-form-urlencoded, not "
            + (kind or "without a type"),
        )
    else:
        fields = {}
    for name in ("extra_body", "extra_params", "video_params"):
        inner = fields.pop(name, None)
        if isinstance(inner, str):
            try:
                inner = json.loads(inner)
            except ValueError:
                pass
        if inner is not None and not isinstance(inner, dict):
            raise invalid("invalid_value", f"{name} must be an object of fields", name)
        for key, value in (inner or {}).items():
            fields.setdefault(key, value)
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None:
            continue
        own = _SYNONYMS.get(name, name)
        if own in found:
            raise invalid("conflict", f"{own} is given twice", name)
        found[own] = value
    return found


def _multipart(data: bytes, content_type: str) -> dict[str, Any]:
    head = f"Content-Type: {content_type}\r\nMIME-Version: 1.0\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + data)
    if not message.is_multipart() or message.defects:
        raise invalid("invalid_body", "the body is not the form that its type says")
    fields: dict[str, Any] = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        if not isinstance(name, str):
            raise invalid("invalid_body", "a part of the form has no name")
        payload = part.get_payload(decode=True)
        content = payload if isinstance(payload, bytes) else b""
        if part.get_filename() is not None:
            if name in fields:
                raise invalid("invalid_body", f"'{name}' is given twice", name)
            if not content:
                raise invalid("invalid_value", f"{name} must be a picture, not an empty file", name)
            kind = part.get_content_type() if part.get_content_type().startswith("image/") else "image/png"
            fields[name] = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        else:
            try:
                _add(fields, name, content.decode())
            except UnicodeDecodeError:
                raise invalid("invalid_body", f"{name[:80]} is not UTF-8", name[:80]) from None
    return fields


def _add(fields: dict[str, Any], name: str, value: str) -> None:
    """`a[b]=1` is as `{"a": {"b": "1"}}`, and `a[]=1` as `{"a": ["1"]}`."""
    found = re.fullmatch(r"([^\[\]]+)\[([^\[\]]*)\]", name)
    base, inner = (found[1], found[2]) if found else (name, None)
    if inner is None and base not in fields:
        fields[base] = value
    elif inner == "" and isinstance(fields.setdefault(base, []), list):
        fields[base].append(value)
    elif inner and isinstance(fields.setdefault(base, {}), dict) and inner not in fields[base]:
        fields[base][inner] = value
    else:
        raise invalid("invalid_body", f"'{name[:80]}' is given twice", name[:80])


def remixed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The request again, with what `changes` says."""
    fields = dict(base)
    for group in _GROUPS:
        if any(name in changes for name in group):
            if not (group[0] == "size" and group[0] not in changes and len(set(group) & set(changes)) == 1):
                for name in group:
                    fields.pop(name, None)
            elif "size" in fields:
                # One side changes, the other one stays.
                width, height = _sides(fields.pop("size")) or (None, None)
                if width is not None:
                    fields.setdefault("width", width)
                    fields.setdefault("height", height)
    fields.update(changes)
    return fields


def drawn(fields: dict[str, Any]) -> dict[str, Any]:
    """With a seed, so that a run which begins again makes the same video."""
    if str(fields.get("seed", "-1")).strip() in ("", "-1"):
        fields = {**fields, "seed": random.SystemRandom().randrange(1 << 32)}
    return fields


def fingerprint(fields: dict[str, Any], base: str | None) -> str:
    """Equal for equal requests."""
    return hashlib.sha256(json.dumps([base, fields], sort_keys=True).encode()).hexdigest()


def picture_of(fields: dict[str, Any]) -> tuple[bytes | None, dict[str, Any]]:
    """The picture's bytes, and the other fields. Raises APIError."""
    value = fields.get("input_reference")
    if value is None:
        return None, fields
    others = {name: other for name, other in fields.items() if name != "input_reference"}
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            pass
    if isinstance(value, dict):
        value = value.get("image_url")
        value = value.get("url") if isinstance(value, dict) else value
    if not isinstance(value, str) or not re.match(r"data:[^,]*;base64,", value):
        raise invalid(
            "invalid_value", "input_reference must be a file, or a URL that begins with data:image/…;base64,", "input_reference"
        )
    try:
        data = base64.b64decode(value.split(",", 1)[1])
    except ValueError:
        data = b""
    if not data:
        raise invalid("invalid_value", "input_reference must be a picture in base64, not damaged", "input_reference")
    return data, others


def with_picture(fields: dict[str, Any], data: bytes) -> dict[str, Any]:
    return {**fields, "input_reference": f"data:image/png;base64,{base64.b64encode(data).decode()}"}


# Objects


def video_object(job: Job, model: dict[str, Any], live: dict[str, Any], position: int | None) -> dict[str, Any]:
    """A *video*. `live` is what its worker last said; `model` the model's object, {} where nobody said yet what it is.

    What only a model knows, such as the size where none is asked for, is exact once the video has been begun."""
    made = job.video or live.get("video") or {}
    defaults, fields = model.get("defaults", {}), job.fields
    width, height = _sides(fields.get("size")) or (defaults.get("width"), defaults.get("height"))
    width, height = _integer(fields.get("width"), width), _integer(fields.get("height"), height)
    fps = _integer(fields.get("fps"), defaults.get("fps"))
    frames = _integer(fields.get("num_frames"), defaults.get("num_frames"))
    if "num_frames" not in fields and "seconds" in fields and fps:
        frames = 1 + max(0, (round(_number(fields["seconds"]) * fps) - 1 + 3) // 4 * 4)
    seconds = f"{round(frames / fps, 2):g}" if frames and fps else None
    progress = {"completed": 100, "in_progress": min(int(live.get("progress") or 0), 99)}.get(job.status, 0)
    files = (job.result or {}).get("files", {})
    return {
        "id": job.id, "object": "video", "model": job.model, "status": job.status, "progress": progress,
        "created_at": int(job.created),
        "completed_at": int(job.completed) if job.completed is not None and job.status == "completed" else None,
        "expires_at": None if job.expires is None else int(job.expires),
        "prompt": fields.get("prompt"),
        "size": made.get("size") or (f"{width}x{height}" if width and height else None),
        "seconds": made.get("seconds") or seconds,
        "remixed_from_video_id": job.remix_of, "error": job.failure,
        "width": made.get("width", width), "height": made.get("height", height),
        "num_frames": made.get("num_frames", frames), "fps": made.get("fps", fps),
        "seed": made.get("seed", _integer(fields.get("seed"), None)),
        "num_inference_steps": made.get(
            "num_inference_steps", _integer(fields.get("num_inference_steps"), defaults.get("num_inference_steps"))
        ),
        "input_reference": job.input is not None, "loras": made.get("loras", []),
        "started_at": None if job.started is None else int(job.started),
        "queue_position": position, "attempts": job.attempts,
        "stage": live.get("stage") if job.status == "in_progress" else None,
        "estimated_seconds": made.get("estimated_seconds", job.estimate),
        "inference_time_s": made.get("inference_time_s"), "stage_durations": made.get("stage_durations", {}),
        "peak_memory_mb": made.get("peak_memory_mb"), "file_bytes": files.get("video.mp4"),
        "request": made.get("request", {}),
    }  # fmt: skip


def model_object(id: str, known: dict[str, Any] | None) -> dict[str, Any]:
    """A *model*; without defaults and limits as long as no replica has had it."""
    return {"id": id, "object": "model", "created": 0, "owned_by": "turbodiffusion", "is_loaded": False, **(known or {})}


def list_object(objects: list[dict[str, Any]], has_more: bool = False) -> dict[str, Any]:
    ids = [object["id"] for object in objects]
    return {
        "object": "list", "data": objects, "first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None,
        "has_more": has_more,
    }  # fmt: skip


def poll_pause(video: dict[str, Any]) -> int:
    """When a client should ask again, in milliseconds."""
    return int(min(max((video["estimated_seconds"] or 5) / 10, 0.1), 5) * 1000)


def parse_query(text: str) -> tuple[str | None, int, bool, tuple[str, ...]]:
    """Of a list: after, limit, newest first, statuses. Raises APIError."""
    after, limit, newest_first = None, 20, True
    statuses: tuple[str, ...] = STATUSES
    for name, value in urllib.parse.parse_qsl(text, keep_blank_values=True):
        if name == "limit":
            if not re.fullmatch(r"[0-9]{1,3}", value) or int(value) > 100:
                raise invalid("invalid_value", f"limit must be 0 to 100, not {value[:80]}", "limit")
            limit = int(value)
        elif name == "order":
            if value not in ("asc", "desc"):
                raise invalid("invalid_value", f"order must be asc or desc, not {value[:80]}", "order")
            newest_first = value == "desc"
        elif name == "status":
            statuses = tuple(word for word in value.split(",") if word)
            if unknown := [word for word in statuses if word not in STATUSES]:
                raise invalid("invalid_value", f"status must be some of {', '.join(STATUSES)}, not {unknown[0][:80]}", "status")
        elif name == "after":
            after = value
        else:
            raise invalid("unknown_field", f"there is no parameter '{name[:80]}'", name[:80])
    return after, limit, newest_first, statuses


def byte_range(header: str | None, size: int) -> tuple[int, int] | None | bool:
    """First byte and the one after the last; None where all is asked for; False where it lies outside of the file."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        count = int(found[2])
        return (max(0, size - count), size) if count and size else False
    first = int(found[1])
    last = int(found[2]) if found[2] else size - 1
    if found[2] and last < first:
        return None
    return (first, min(last, size - 1) + 1) if first < size else False


def is_over(status: str) -> bool:
    return status in OVER


def _sides(value: Any) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", value.lower()) if isinstance(value, str) else None
    return (int(found[1]), int(found[2])) if found else None


def _integer(value: Any, other: Any) -> Any:
    try:
        return int(value)
    except (TypeError, ValueError):
        return other


def _number(value: Any) -> float:
    try:
        return min(max(float(value), 0.0), 1e5)
    except (TypeError, ValueError):
        return 0.0
