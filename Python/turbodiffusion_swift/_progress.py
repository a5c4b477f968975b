"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Mapping, Optional


@dataclass(frozen=True)
class Stage:
    """What is being done."""

    id: str
    """`load`, `encode-text`, `encode-image`, `project-text`, `step`, `decode` or `deliver`."""
    part: Optional[str] = None
    """Of which model, where it is of one."""
    number: Optional[int] = None
    """Which step, from 1."""
    of: Optional[int] = None
    """How many steps there are."""

    def __str__(self) -> str:
        if self.id == "step":
            return f"step {self.number}/{self.of}"
        return " ".join(word for word in (self.id.replace("-", " "), self.part) if word)


@dataclass(frozen=True)
class Progress:
    """Comes when a stage begins and ends, and at most ten times a second in between."""

    stage: Stage
    done: float
    """Share of the whole job that is done, 0 to 1, by the work of its plan."""
    seconds_left: Optional[float]
    """Of the whole job, once something has been measured."""


ProgressCallback = Callable[[Progress], object]


def progress(event: Mapping[str, Any]) -> Optional[Progress]:
    """What an event of a stage says; None for other events."""
    if not event.get("event", "").startswith("stage.") or "stage" not in event:
        return None
    stage = event["stage"]
    return Progress(
        stage=Stage(stage["id"], stage.get("part"), stage.get("number"), stage.get("of")),
        done=float(event.get("done", 0.0)),
        seconds_left=event.get("secondsLeft"),
    )
