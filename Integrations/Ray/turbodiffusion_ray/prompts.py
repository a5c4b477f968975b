"""The lines of `prompts.jsonl`: which requests they are, and under which names their videos are kept."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Iterable


class RequestsError(ValueError):
    """What is wrong with which line, and what to do."""


@dataclass
class Request:
    name: str
    """Of the files: NAME.mp4, NAME.json."""
    fields: dict[str, Any]
    """Of `POST /v1/videos`; `seed` is among them."""


def parse_requests(lines: Iterable[str], common: dict[str, Any]) -> list[Request]:
    """One JSON object a line: fields of `POST /v1/videos`, and `name` where the video shall have one; or a text: the prompt.

    What a line does not say is as `common` has it. A video without a name is called by its request, so that names stay where
    lines come or go; a line without a seed gets one that follows from the line. Empty lines are passed over; equal lines are one
    video. Raises RequestsError."""
    found: dict[str, Request] = {}
    places: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            raise RequestsError(f"line {number} is not JSON: one object or one text in quotes a line is expected") from None
        if isinstance(said, str):
            said = {"prompt": said}
        if not isinstance(said, dict):
            raise RequestsError(f"line {number} must be an object of fields or a text, not {line.strip()[:40]}")
        fields = {**common, **said}
        name = fields.pop("name", None)
        prompt = fields.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise RequestsError(f"line {number} has no prompt: what the video shows, as a text")
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
        if str(fields.get("seed", "-1")) == "-1":
            fields["seed"] = int(digest[:8], 16)
        if name is None:
            name = digest[:16]
        elif not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}", name):
            raise RequestsError(f"line {number}: name must be of letters, digits, '.', '-' and '_', not {json.dumps(name)[:60]}")
        if name in found and found[name].fields != fields:
            raise RequestsError(f"lines {places[name]} and {number} have one name '{name}' and are different: rename one of them")
        if name not in found:
            found[name], places[name] = Request(name, fields), number
    return list(found.values())
