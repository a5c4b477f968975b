"""Where videos and pictures of the fleet are: a folder that all nodes see, or any store that fsspec opens.

A result is a set of files under the name ID.TOKEN, written by whoever had the lease TOKEN of the job ID. In a folder it appears
by one rename, whole or not at all, and never over another one. Which name is the job's result only the job store says."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from typing import Any, Iterator, Protocol

CHUNK = 1 << 20


class Results(Protocol):
    def write(self, name: str, files: dict[str, bytes]) -> None: ...
    def size(self, name: str, file: str) -> int | None: ...
    def read(self, name: str, file: str, start: int = 0, end: int | None = None) -> Iterator[bytes]: ...
    def remove(self, name: str) -> None: ...
    def names(self, folder: str = "videos", older_than: float = 0) -> list[str]: ...
    def write_input(self, name: str, data: bytes) -> None: ...
    def read_input(self, name: str) -> bytes: ...
    def remove_input(self, name: str) -> None: ...


def open_results(place: str) -> Results:
    """A folder's path, or a URL such as `s3://bucket/videos`, for which fsspec and its driver must be installed."""
    if place.startswith("file://"):
        place = place[len("file://") :]
    return ObjectResults(place) if "://" in place else FolderResults(place)


class FolderResults:
    """`videos/ID.TOKEN/…`, `inputs/NAME`, `unfinished/…`."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        for folder in ("videos", "inputs", "unfinished"):
            os.makedirs(os.path.join(self.root, folder), exist_ok=True)

    def write(self, name: str, files: dict[str, bytes]) -> None:
        """Raises FileExistsError where there is a result of this name."""
        unfinished = os.path.join(self.root, "unfinished", f"{_plain(name)}.{uuid.uuid4().hex}")
        final = os.path.join(self.root, "videos", name)
        os.mkdir(unfinished)
        try:
            for file, data in files.items():
                _write(os.path.join(unfinished, _plain(file)), data)
            _sync(unfinished)
            try:
                # Onto a folder that holds something a rename fails.
                os.rename(unfinished, final)
            except OSError as error:
                if os.path.isdir(final):
                    raise FileExistsError(f"there is a result {name} already") from error
                raise
            _sync(os.path.dirname(final))
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def size(self, name: str, file: str) -> int | None:
        """In bytes; None where there is none."""
        try:
            return os.path.getsize(os.path.join(self.root, "videos", _plain(name), _plain(file)))
        except OSError:
            return None

    def read(self, name: str, file: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Bytes from `start` up to, without, `end`."""
        with open(os.path.join(self.root, "videos", _plain(name), _plain(file)), "rb") as stream:
            stream.seek(start)
            left = None if end is None else end - start
            while left is None or left > 0:
                data = stream.read(CHUNK if left is None else min(CHUNK, left))
                if not data:
                    return
                left = None if left is None else left - len(data)
                yield data

    def remove(self, name: str) -> None:
        # Out of sight first: nobody sees half of it.
        gone = os.path.join(self.root, "unfinished", f"{_plain(name)}.{uuid.uuid4().hex}")
        try:
            os.rename(os.path.join(self.root, "videos", name), gone)
        except OSError:
            return
        shutil.rmtree(gone, ignore_errors=True)

    def names(self, folder: str = "videos", older_than: float = 0) -> list[str]:
        """Of results, or of `inputs`, whose age is at least so many seconds. What was left unfinished as long ago goes."""
        limit = time.time() - older_than
        for entry in os.scandir(os.path.join(self.root, "unfinished")):
            if _age(entry) <= limit:
                shutil.rmtree(entry.path, ignore_errors=True)
        return sorted(entry.name for entry in os.scandir(os.path.join(self.root, folder)) if _age(entry) <= limit)

    def write_input(self, name: str, data: bytes) -> None:
        unfinished = os.path.join(self.root, "unfinished", f"{_plain(name)}.{uuid.uuid4().hex}")
        os.mkdir(unfinished)
        try:
            path = os.path.join(unfinished, "input")
            _write(path, data)
            os.rename(path, os.path.join(self.root, "inputs", name))
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def read_input(self, name: str) -> bytes:
        with open(os.path.join(self.root, "inputs", _plain(name)), "rb") as stream:
            return stream.read()

    def remove_input(self, name: str) -> None:
        try:
            os.unlink(os.path.join(self.root, "inputs", _plain(name)))
        except OSError:
            pass


class ObjectResults:
    """The same in an object store. There is no rename of a folder; an object appears whole, and what no job names is not read."""

    def __init__(self, url: str) -> None:
        import fsspec  # type: ignore[import-untyped]

        self._files: Any
        self._files, self._root = fsspec.core.url_to_fs(url)

    def _path(self, folder: str, *names: str) -> str:
        return "/".join([self._root.rstrip("/"), folder, *map(_plain, names)])

    def write(self, name: str, files: dict[str, bytes]) -> None:
        if self._files.exists(self._path("videos", name)):
            raise FileExistsError(f"there is a result {name} already")
        for file, data in files.items():
            self._files.pipe_file(self._path("videos", name, file), data)

    def size(self, name: str, file: str) -> int | None:
        try:
            return int(self._files.size(self._path("videos", name, file)))
        except FileNotFoundError:
            return None

    def read(self, name: str, file: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        path = self._path("videos", name, file)
        end = int(self._files.size(path)) if end is None else end
        while start < end:
            data = self._files.cat_file(path, start=start, end=min(end, start + CHUNK))
            if not data:
                return
            start += len(data)
            yield data

    def remove(self, name: str) -> None:
        try:
            self._files.rm(self._path("videos", name), recursive=True)
        except FileNotFoundError:
            pass

    def names(self, folder: str = "videos", older_than: float = 0) -> list[str]:
        """Ages of folders are not known here: a name counts as old as its oldest object."""
        try:
            found = self._files.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        limit, names = time.time() - older_than, []
        for path in found:
            try:
                ages = [self._files.modified(file).timestamp() for file in self._files.find(path)]
            except (FileNotFoundError, NotImplementedError):
                continue
            if ages and min(ages) <= limit:
                names.append(path.rstrip("/").rsplit("/", 1)[-1])
        return sorted(names)

    def write_input(self, name: str, data: bytes) -> None:
        self._files.pipe_file(self._path("inputs", name), data)

    def read_input(self, name: str) -> bytes:
        return bytes(self._files.cat_file(self._path("inputs", name)))

    def remove_input(self, name: str) -> None:
        try:
            self._files.rm_file(self._path("inputs", name))
        except FileNotFoundError:
            pass


def _plain(name: str) -> str:
    """Names come from requests too: they never lead elsewhere."""
    if not name or "/" in name or name.startswith("."):
        raise ValueError(f"'{name}' is no name of a file")
    return name


def _age(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat().st_mtime
    except OSError:
        return time.time()


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
