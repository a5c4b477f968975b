"""A video: its frames, and how they were made."""

from __future__ import annotations

import base64
import html
import importlib
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Union

import numpy as np

from ._errors import MediaError, OutputError, error
from ._program import find_program

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(eq=False, repr=False)
class Video:
    """What a run has made."""

    frames: "npt.NDArray[np.uint8]"
    """RGB as the decoder made it: [frames, height, width, 3]."""
    fps: int
    """Frames per second."""
    seed: int
    run: Dict[str, Any] = field(default_factory=dict)
    """The request as it was resolved, and the files it was made with: `run` of docs/events.md."""
    report: Dict[str, Any] = field(default_factory=dict)
    """Times and memory: `report` of docs/events.md."""
    notices: List[str] = field(default_factory=list)
    """What the program had to say."""
    program: Optional[str] = None
    """The program that writes files; None: the installed one."""

    def __len__(self) -> int:
        return len(self.frames)

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> "npt.NDArray[Any]":
        frames: "npt.NDArray[Any]" = self.frames
        if dtype is not None and frames.dtype != dtype:
            if copy is False:
                raise ValueError("another type needs a copy")
            return frames.astype(dtype)
        return frames.copy() if copy else frames

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        return f"Video({width}x{height}, {count} frames, {self.fps} per second, seed {self.seed})"

    @property
    def prompt(self) -> str:
        return str(self.run.get("request", {}).get("prompt", ""))

    def torch(self) -> Any:
        """The frames as a tensor of PyTorch, which shares their memory."""
        return importlib.import_module("torch").from_numpy(self.frames)

    def save(
        self, path: Union[str, "os.PathLike[str]"], *, crf: Optional[int] = None, force: bool = False
    ) -> str:
        """Writes .mp4, .webm, .gif, .webp, or pictures: frames/%04d.png. The file also tells how the video was made, so
        that `turbodiffusion t2v --from FILE` makes it again.

        crf: quality, lower is better: 0 to 51 for .mp4 (default 12). force: whether files that exist are replaced.
        Returns the path. Raises OutputError where it exists, MediaError where it cannot be written."""
        name = os.fspath(path)
        frames = np.ascontiguousarray(self.frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(
                f"frames: expected uint8 [frames, height, width, 3], found {frames.dtype} {list(frames.shape)}"
            )
        _, height, width, _ = frames.shape
        words = [self.program or find_program(), "encode", f"--size={width}x{height}", f"--fps={self.fps}"]
        if self.run:
            words.append("--run=" + json.dumps(self.run, separators=(",", ":"), ensure_ascii=False))
        if crf is not None:
            words.append(f"--crf={int(crf)}")
        if force:
            words.append("--force")
        # After `--` a name may begin with a dash.
        words += ["--quiet", "--", name]
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            _, told = process.communicate(frames.reshape(-1).data)  # type: ignore[arg-type]
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.returncode != 0:
            lines = told.decode("utf-8", "replace").strip().splitlines()
            message = lines[-1] if lines else f"the program ended with {process.returncode}"
            if message.startswith("Error: "):
                message = message[len("Error: ") :]
            raise error("output" if "exists" in message else "media", message)
        return name

    def _repr_html_(self) -> str:
        """Shows the video in a notebook."""
        count, height, width, _ = self.frames.shape
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "video.mp4")
                self.save(path)
                with open(path, "rb") as file:
                    data = base64.b64encode(file.read()).decode("ascii")
        except (MediaError, OutputError) as problem:
            return f"<pre>{_escaped(repr(self))}: {_escaped(str(problem))}</pre>"
        return (
            f'<video controls loop width="{width}" height="{height}" title="{_escaped(self.prompt)}" '
            f'src="data:video/mp4;base64,{data}"></video>'
        )


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)
