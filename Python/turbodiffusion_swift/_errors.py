"""What goes wrong, as exceptions. `code` is the program's, and stays the same between versions (docs/events.md)."""

from __future__ import annotations


class TurboDiffusionError(Exception):
    """A run that failed. Its text is one line: what was expected, what was found, what to do."""

    def __init__(self, message: str, code: str = "other") -> None:
        super().__init__(message)
        self.code = code


class RequestError(TurboDiffusionError, ValueError):
    """What was asked for cannot be made: `usage`, `request.*`, `repeat`, `run.vocabulary`, `run.unsupported`."""


class ModelError(TurboDiffusionError):
    """A model that is not here, or whose parts do not fit: `model.*`."""


class CheckpointError(ModelError):
    """A file that is no checkpoint, or a damaged one: `checkpoint`."""


class MediaError(TurboDiffusionError):
    """A picture or a video that cannot be read or written, an FFmpeg that is missing: `media`."""


class OutputError(TurboDiffusionError, OSError):
    """A file that cannot be written, or exists: `output`."""

    def __init__(self, message: str, code: str = "output") -> None:
        TurboDiffusionError.__init__(self, message, code)

    def __str__(self) -> str:
        return str(self.args[0])


class DeviceMemoryError(TurboDiffusionError, MemoryError):
    """More memory than there is: `run.memory`, `device.memory`."""


class Cancelled(TurboDiffusionError):
    """The run was cancelled."""

    def __init__(self, message: str = "cancelled", code: str = "cancelled") -> None:
        super().__init__(message, code)


class ProgramError(TurboDiffusionError):
    """The program is missing, or ended without saying why."""


_BY_CODE: "tuple[tuple[str, type[TurboDiffusionError]], ...]" = (
    ("usage", RequestError),
    ("request.", RequestError),
    ("repeat", RequestError),
    ("run.vocabulary", RequestError),
    ("run.unsupported", RequestError),
    ("model.", ModelError),
    ("checkpoint", CheckpointError),
    ("media", MediaError),
    ("output", OutputError),
    ("run.memory", DeviceMemoryError),
    ("device.memory", DeviceMemoryError),
    ("cancelled", Cancelled),
)


def error(code: str, message: str) -> TurboDiffusionError:
    """The exception for a code of the program."""
    for start, kind in _BY_CODE:
        if code == start or (start.endswith(".") and code.startswith(start)):
            return kind(message, code)
    return TurboDiffusionError(message, code)
