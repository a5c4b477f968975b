"""Runs of the program: requests go in as options, events and raw frames come out through pipes."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import selectors
import subprocess
import tempfile
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Dict, Iterable, Iterator, List, Mapping, Optional, Type, Union

import numpy as np

from . import _options
from ._errors import Cancelled, OutputError, ProgramError, error
from ._options import Options
from ._program import find_program
from ._progress import Progress, ProgressCallback, progress as progress_of
from ._video import Video

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Linux's F_SETPIPE_SZ, which Python has a name for since 3.10.
_SET_PIPE_SIZE = 1031
_PIPE_BYTES = 1 << 20
_TAIL_BYTES = 1 << 14


class Pipeline:
    """Makes videos with one model.

        pipe = Pipeline("nano", device="cpu")
        video = pipe("A small red sphere bounces on a checkered floor.", seed=3, num_frames=33)

    Keywords are the command's options (`Options`); those that are given here hold for every call that does not say
    otherwise. Each call is a process of its own, which gives all memory back when it is done; `many` makes several
    videos with a model that is loaded once. Calls may be made from several threads. As a context manager it cancels what still
    runs at its end."""

    def __init__(
        self, model: Optional[_options.Path] = None, *, program: Optional[str] = None, **options: Unpack[Options]
    ) -> None:
        """model: the name of a published one, or a folder; None: nano. program: the file of `turbodiffusion`; None: the
        installed one."""
        _options.check(options)
        self._options: Dict[str, Any] = dict(options)
        if model is not None:
            self._options["model"] = model
        self.program = program or find_program()
        self._runs: "set[Run]" = set()
        self._lock = threading.Lock()

    def __call__(
        self,
        prompt: str,
        *,
        progress: Optional[ProgressCallback] = None,
        save_path: Optional[_options.Path] = None,
        crf: Optional[int] = None,
        force: bool = False,
        **options: Unpack[Options],
    ) -> Video:
        """Makes a video and waits for it.

        progress: called with a `Progress` as it comes, on this thread; what it raises cancels the run. save_path: where the
        video is written too, with crf and force as in `Video.save`.
        Raises a TurboDiffusionError; `Cancelled` where `cancel` was called."""
        if save_path is not None and not force and os.path.exists(save_path):
            raise OutputError(f"{os.fspath(save_path)} already exists; force=True replaces it")
        with self.start(prompt, **options) as run:
            video = run.result(progress)
        if save_path is not None:
            video.save(save_path, crf=crf, force=force)
        return video

    def start(self, prompt: str, **options: Unpack[Options]) -> Run:
        """Begins a video. `Run.result` waits for it, `Run.cancel` ends it."""
        return self._start(prompt, self._merged(options), [], None)

    async def generate(
        self, prompt: str, *, progress: Optional[ProgressCallback] = None, **options: Unpack[Options]
    ) -> Video:
        """Makes a video while the event loop goes on. Cancelling the task cancels the run. `progress` is called on the
        loop's thread."""
        loop = asyncio.get_running_loop()

        def tell(state: Progress) -> None:
            if progress is not None:
                loop.call_soon_threadsafe(progress, state)

        run = self.start(prompt, **options)
        waiting = loop.run_in_executor(None, run.result, tell)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            run.cancel()
            await asyncio.wait([waiting])
            waiting.exception()
            raise

    def many(
        self,
        prompts: Union[str, Iterable[str]],
        seeds: Optional[Iterable[int]] = None,
        *,
        progress: Optional[ProgressCallback] = None,
        **options: Unpack[Options],
    ) -> Iterator[Video]:
        """A video of every prompt, for every seed, with a model that is loaded once: they come one after the other, as they
        are done. Ending the loop early ends the run."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            return
        for prompt in prompts:
            if not prompt.strip() or prompt.lstrip().startswith("#") or len(prompt.splitlines()) > 1:
                raise ValueError(f"prompts are lines that do not begin with '#': {prompt!r}")
        merged = self._merged(options)
        words = ["--prompts=-"]
        if seeds is not None:
            merged.pop("seed", None)
            words.append("--seeds=" + ",".join(str(int(seed)) for seed in seeds))
        text = "\n".join(prompts) + "\n"
        with self._start(None, merged, words, text) as run:
            yield from run.videos(progress)

    def plan(self, prompt: Optional[str] = None, *, card: _options.Names = (), **options: Unpack[Options]) -> Dict[str, Any]:
        """What a video would take: memory, time, missing files; `plan` of docs/events.md. Nothing is loaded.

        card: estimate the time on these cards too, such as "4090"; "all" for all."""
        merged = self._merged(options)
        merged["card"] = list(card) if isinstance(card, (list, tuple)) else [card]
        with _Inputs(merged) as inputs:
            words = [self.program, _options.command(merged), *_options.words(inputs), "--dry_run", "--json"]
            if prompt is not None:
                words.append(f"--prompt={prompt}")
            done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        for event in _events(done.stdout.splitlines()):
            if event.get("event") == "plan":
                return event
            if event.get("event") == "run.failed":
                raise error(event["code"], event["message"])
        raise _unexplained(done.returncode, done.stderr)

    def cancel(self) -> None:
        """Ends all runs of this pipeline; whoever waits for them gets `Cancelled`."""
        with self._lock:
            runs = list(self._runs)
        for run in runs:
            run.cancel()

    close = cancel

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def _merged(self, options: Mapping[str, Any]) -> Dict[str, Any]:
        _options.check(options)
        return {**self._options, **options}

    def _start(self, prompt: Optional[str], options: Mapping[str, Any], more: List[str], text: Optional[str]) -> Run:
        if prompt is not None and "\0" in prompt:
            raise ValueError("the prompt contains a NUL character")
        words = more if prompt is None else [*more, f"--prompt={prompt}"]
        run = Run(self, options, words, text)
        with self._lock:
            self._runs.add(run)
        return run

    def _forget(self, run: Run) -> None:
        with self._lock:
            self._runs.discard(run)


class Run:
    """A run that has begun. As a context manager it is cancelled where it is left early."""

    def __init__(self, pipeline: Pipeline, options: Mapping[str, Any], words: List[str], text: Optional[str]) -> None:
        self._pipeline = pipeline
        self._cancelled = False
        self._open = True
        self._inputs = _Inputs(options)
        reading, writing = os.pipe()
        try:
            _enlarge(reading)
            line = [
                pipeline.program, _options.command(options), *_options.words(self._inputs.__enter__()), *words,
                "--json", f"--save_path=/dev/fd/{writing}",
            ]
            self._process = subprocess.Popen(
                line, stdin=subprocess.PIPE if text is not None else subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, pass_fds=(writing,),
            )
        except BaseException as problem:
            os.close(reading)
            self._inputs.__exit__(None, None, None)
            if isinstance(problem, OSError):
                raise ProgramError(f"{pipeline.program} cannot be started: {problem.strerror}") from problem
            raise
        finally:
            os.close(writing)
        self._frames = reading
        if text is not None:
            self._feeder = threading.Thread(target=self._feed, args=(text.encode(),), daemon=True)
            self._feeder.start()

    def result(self, progress: Optional[ProgressCallback] = None) -> Video:
        """Waits for the video. Raises a TurboDiffusionError."""
        result: Optional[Video] = None
        for video in self.videos(progress):
            result = video
        if result is None:
            raise ProgramError("the program made no video")
        return result

    def videos(self, progress: Optional[ProgressCallback] = None) -> Iterator[Video]:
        """The videos of the run as they are done."""
        if not self._open:
            raise ProgramError("the run is over")
        try:
            yield from self._read(progress)
        finally:
            self.close()

    def cancel(self) -> None:
        """Ends the run; from any thread."""
        self._cancelled = True
        if self._process.poll() is None:
            self._process.terminate()

    def close(self) -> None:
        """Cancels what still runs and frees what it has."""
        if not self._open:
            return
        self._open = False
        if self._process.poll() is None:
            self.cancel()
        os.close(self._frames)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._inputs.__exit__(None, None, None)
        self._pipeline._forget(self)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def _feed(self, text: bytes) -> None:
        assert self._process.stdin is not None
        try:
            with self._process.stdin as stream:
                stream.write(text)
        except BrokenPipeError:
            # What ended the program is told by itself.
            pass

    def _read(self, progress: Optional[ProgressCallback]) -> Iterator[Video]:
        """Reads events, messages and frames as they come, on the caller's thread."""
        assert self._process.stdout is not None and self._process.stderr is not None
        events, messages = self._process.stdout.fileno(), self._process.stderr.fileno()
        failure: Optional[Mapping[str, Any]] = None
        making: Optional[_Making] = None
        rest, tail = b"", b""
        with selectors.DefaultSelector() as selector:
            selector.register(events, selectors.EVENT_READ)
            selector.register(messages, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    if key.fd == self._frames:
                        # Frames of the next video wait until it is announced.
                        if making is None or making.read(self._frames):
                            _forget(selector, self._frames)
                        continue
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        selector.unregister(key.fd)
                    if key.fd == messages:
                        tail = (tail + data)[-_TAIL_BYTES:]
                        continue
                    *lines, rest = (rest + data).split(b"\n")
                    for event in _events(lines):
                        name = event.get("event")
                        if name == "run.started":
                            making = _Making(event)
                            selector.register(self._frames, selectors.EVENT_READ)
                        elif name == "run.failed":
                            failure = event
                        elif name == "notice" and making is not None:
                            making.notices.append(str(event["message"]))
                        elif name == "run.finished" and making is not None:
                            # All frames are in the pipe by now, if they have not been read.
                            making.finish(self._frames)
                            _forget(selector, self._frames)
                            yield making.video(event, self._pipeline.program)
                            making = None
                        elif progress is not None:
                            state = progress_of(event)
                            if state is not None:
                                progress(state)
                if not {events, messages} & set(selector.get_map()):
                    break
        code = self._process.wait()
        if self._cancelled and code != 0:
            raise Cancelled()
        if failure is not None:
            raise error(str(failure["code"]), str(failure["message"]))
        if code != 0:
            raise _unexplained(code, tail)


class _Making:
    """A video whose frames are being read, straight into its array."""

    def __init__(self, started: Mapping[str, Any]) -> None:
        self.run: Dict[str, Any] = started["run"]
        request = self.run["request"]
        self.shape = (int(request["frames"]), int(request["height"]), int(request["width"]), 3)
        self.frames = np.empty(self.shape, np.uint8)
        self.notices: List[str] = []
        self._room = self.frames.reshape(-1).data
        self._filled = 0

    def read(self, descriptor: int) -> bool:
        """Reads what is there. Returns whether that was all, or no more will come."""
        count = os.readv(descriptor, [self._room[self._filled :]])
        self._filled += count
        return count == 0 or self._filled == len(self._room)

    def finish(self, descriptor: int) -> None:
        while self._filled < len(self._room):
            if self.read(descriptor) and self._filled < len(self._room):
                raise ProgramError(f"the program wrote {self._filled} bytes of frames, expected {len(self._room)}")

    def video(self, finished: Mapping[str, Any], program: str) -> Video:
        return Video(
            frames=self.frames, fps=int(self.run["request"]["framesPerSecond"]), seed=int(self.run["request"]["seed"]), run=self.run,
            report=dict(finished["report"]), notices=self.notices, program=program,
        )


class _Inputs:
    """Options with pictures from memory written to a file, as long as they are needed."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)
        self._file: Optional[str] = None

    def __enter__(self) -> Mapping[str, Any]:
        image = self._options.get("image_path")
        if image is None or isinstance(image, (str, os.PathLike)):
            return self._options
        pixels = np.ascontiguousarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or 0 in pixels.shape:
            raise TypeError(
                f"image_path: expected a file, or uint8 [height, width, 3], not {pixels.dtype} {list(pixels.shape)}"
            )
        height, width, _ = pixels.shape
        with tempfile.NamedTemporaryFile(suffix=".ppm", delete=False) as file:
            self._file = file.name
            file.write(b"P6 %d %d 255\n" % (width, height))
            file.write(np.ascontiguousarray(pixels[:, :, :3]).tobytes())
        self._options["image_path"] = self._file
        return self._options

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.unlink(self._file)
            self._file = None


def _forget(selector: selectors.BaseSelector, descriptor: int) -> None:
    if descriptor in selector.get_map():
        selector.unregister(descriptor)


def _enlarge(descriptor: int) -> None:
    """A larger pipe takes fewer turns; where it is not allowed the usual one does."""
    try:
        fcntl.fcntl(descriptor, _SET_PIPE_SIZE, _PIPE_BYTES)
    except OSError:
        pass


def _events(lines: Iterable[bytes]) -> Iterator[Dict[str, Any]]:
    for line in lines:
        if line.strip():
            event = json.loads(line)
            if isinstance(event, dict):
                yield event


def _unexplained(code: int, tail: bytes) -> ProgramError:
    """A program that has ended without an event that says why."""
    lines = [line.strip() for line in tail.decode("utf-8", "replace").splitlines() if line.strip()]
    how = f"the program was ended by signal {-code}" if code < 0 else f"the program ended with {code}"
    return ProgramError(how + (": " + lines[-1] if lines else ""))
