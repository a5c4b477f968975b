"""The jobs of the fleet in one SQLite file: what was accepted, who works on it, what became of it.

A job is worked on under a lease. Each lease has a token that is greater than all before it; what comes with another token than
that of the job's present lease is refused, so a worker that was taken for dead and was not changes nothing. Tokens are on the
disk, the ends of leases in memory: a heartbeat costs no write, and where the store itself was away all leases begin anew."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
import uuid
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Sequence

STATUSES = ("queued", "in_progress", "completed", "failed", "cancelled")
OVER = ("completed", "failed", "cancelled")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    model TEXT NOT NULL,
    status TEXT NOT NULL,
    fields TEXT NOT NULL,
    input TEXT,
    estimate REAL,
    created REAL NOT NULL,
    started REAL,
    completed REAL,
    expires REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    token INTEGER,
    owner TEXT,
    remix_of TEXT,
    key TEXT UNIQUE,
    key_hash TEXT,
    result TEXT,
    video TEXT,
    failure TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, model, number);
CREATE TABLE IF NOT EXISTS transitions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL,
    before TEXT,
    after TEXT NOT NULL,
    token INTEGER,
    at REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS transitions_by_job ON transitions (job, number);
CREATE TABLE IF NOT EXISTS models (id TEXT PRIMARY KEY, object TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT OR IGNORE INTO numbers VALUES ('token', 0);
"""


@dataclass
class Job:
    """A row. Times are in seconds since 1970."""

    number: int
    id: str
    model: str
    status: str
    fields: dict[str, Any]
    """The request, without its picture."""
    input: str | None
    """Name of the picture among the results."""
    estimate: float | None
    """Seconds that it takes, as planned."""
    created: float
    started: float | None
    completed: float | None
    expires: float | None
    attempts: int
    token: int | None
    owner: str | None
    remix_of: str | None
    key: str | None
    key_hash: str | None
    result: dict[str, Any] | None
    """`name`, and of each file its size: `files`; `sha256` of the video."""
    video: dict[str, Any] | None
    """How the service that made it describes it."""
    failure: dict[str, str] | None

    @property
    def is_over(self) -> bool:
        return self.status in OVER


@dataclass
class Lease:
    """The right to work on a job until it lapses."""

    job: Job
    token: int
    seconds: float
    """How long it holds without a heartbeat."""


class StoreInUse(RuntimeError):
    """Another process has the file."""


class JobStore:
    """Opens the file, or makes it. Not for use from several threads at once.

    Parameters: `path`, on a disk of this machine (SQLite's write-ahead log needs shared memory, which network file systems do not
    have); `lease_seconds` without a heartbeat after which a job is given to another worker; `max_attempts` that a job gets before
    it counts as failed. Raises `StoreInUse`, and `sqlite3.Error` for a damaged file."""

    def __init__(
        self,
        path: str,
        lease_seconds: float = 30,
        max_attempts: int = 5,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lease_seconds = lease_seconds
        self.max_attempts = max_attempts
        self._clock = clock
        # Leases are counted by a clock that nobody sets.
        self._ticks = ticks
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        self._lock = open(path + ".lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise StoreInUse(f"{path} is in use by another process: one store at a time has it") from None
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._database.row_factory = sqlite3.Row
            self._database.execute("PRAGMA journal_mode=WAL")
            # Each commit is on the disk before it is told to anybody.
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_SCHEMA)
        except sqlite3.Error:
            self.close()
            raise
        now = self._ticks()
        self._ends = {row["id"]: now + lease_seconds for row in self._rows("SELECT id FROM jobs WHERE status = 'in_progress'")}
        self.lapsed = 0
        """Leases that ended without a word, since the store was opened."""
        self.refused = 0
        """What came from workers whose lease was over."""

    def close(self) -> None:
        self._database.close()
        self._lock.close()

    # Coming

    def add(
        self,
        model: str,
        fields: dict[str, Any],
        id: str | None = None,
        input: str | None = None,
        estimate: float | None = None,
        remix_of: str | None = None,
        key: str | None = None,
        key_hash: str | None = None,
        limit: int | None = None,
    ) -> Job | None:
        """Puts a job into the queue; where the key is known, that job, whatever it asks for. None where `limit` wait already."""
        id = id or new_id()
        with self._transaction():
            # Said twice because an answer was lost.
            if (same := self.job(id)) is not None:
                return same
            if key is not None:
                known = self._one("SELECT * FROM jobs WHERE key = ?", key)
                if known is not None:
                    return known
            if limit is not None and self._count("SELECT COUNT(*) FROM jobs WHERE status = 'queued'") >= limit:
                return None
            self._database.execute(
                "INSERT INTO jobs (id, model, status, fields, input, estimate, created, remix_of, key, key_hash)"
                " VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?)",
                (id, model, json.dumps(fields), input, estimate, self._clock(), remix_of, key, key_hash),
            )
            self._note(id, None, "queued", None)
        return self.job(id)

    # Looking

    def job(self, id: str) -> Job | None:
        return self._one("SELECT * FROM jobs WHERE id = ?", id)

    def known(self, key: str) -> Job | None:
        return self._one("SELECT * FROM jobs WHERE key = ?", key)

    def page(
        self, after: str | None = None, limit: int = 20, newest_first: bool = True, statuses: Sequence[str] = STATUSES
    ) -> tuple[list[Job], bool] | None:
        """A page, and whether there is more. None where there is no job `after`."""
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        words = f"SELECT * FROM jobs WHERE status IN ({','.join('?' * len(statuses))})"
        values: list[Any] = [*statuses]
        if after is not None:
            start = self.job(after)
            if start is None:
                return None
            words += f" AND number {sign} ?"
            values.append(start.number)
        jobs = [_job(row) for row in self._rows(f"{words} ORDER BY number {order} LIMIT ?", *values, limit + 1)]
        return jobs[:limit], len(jobs) > limit

    def open_jobs(self) -> list[Job]:
        """Those that wait or run, oldest first."""
        return [_job(row) for row in self._rows("SELECT * FROM jobs WHERE status IN ('queued', 'in_progress') ORDER BY number")]

    def position(self, job: Job) -> int | None:
        """1 is next of those that wait for the same model."""
        if job.status != "queued":
            return None
        return 1 + self._count(
            "SELECT COUNT(*) FROM jobs WHERE status = 'queued' AND model = ? AND number < ?", job.model, job.number
        )

    def counts(self) -> dict[str, dict[str, int]]:
        """Jobs that wait or run, by model and status."""
        found: dict[str, dict[str, int]] = {}
        for row in self._rows("SELECT model, status, COUNT(*) AS count FROM jobs WHERE status IN ('queued', 'in_progress') GROUP BY model, status"):
            found.setdefault(row["model"], {})[row["status"]] = row["count"]
        return found

    def transitions(self, id: str) -> list[tuple[str | None, str, int | None]]:
        """From, to, token, in the order in which they happened."""
        rows = self._rows("SELECT before, after, token FROM transitions WHERE job = ? ORDER BY number", id)
        return [(row["before"], row["after"], row["token"]) for row in rows]

    # Working

    def claim(self, models: Sequence[str], owner: str) -> Lease | None:
        """The oldest job that waits for one of the models. The same `owner` asking again, because an answer was lost, gets the
        same lease: every run needs a name of its own."""
        self.lapse()
        with self._transaction():
            held = self._one("SELECT * FROM jobs WHERE status = 'in_progress' AND owner = ?", owner)
            if held is not None and held.token is not None:
                self._ends[held.id] = self._ticks() + self.lease_seconds
                return Lease(held, held.token, self.lease_seconds)
            job = self._one(
                f"SELECT * FROM jobs WHERE status = 'queued' AND model IN ({','.join('?' * len(models))}) ORDER BY number LIMIT 1",
                *models,
            )
            if job is None:
                return None
            token = self._count("SELECT value FROM numbers WHERE name = 'token'") + 1
            self._database.execute("UPDATE numbers SET value = ? WHERE name = 'token'", (token,))
            self._database.execute(
                "UPDATE jobs SET status = 'in_progress', owner = ?, token = ?, started = ?, attempts = attempts + 1 WHERE id = ?",
                (owner, token, self._clock(), job.id),
            )
            self._note(job.id, "queued", "in_progress", token)
        self._ends[job.id] = self._ticks() + self.lease_seconds
        claimed = self.job(job.id)
        assert claimed is not None
        return Lease(claimed, token, self.lease_seconds)

    def beat(self, id: str, token: int) -> bool:
        """The worker lives. False where the lease is no longer its own: whatever it does is for nothing."""
        if not self._holds(id, token):
            return False
        self._ends[id] = self._ticks() + self.lease_seconds
        return True

    def finish(self, id: str, token: int, result: dict[str, Any], video: dict[str, Any], expires: float | None = None) -> bool:
        """The result is whole. False where another one has the job, or nobody wants it any more: the result is to be removed.
        Saying it twice is the same as once."""
        return self._end(id, token, "completed", result=json.dumps(result), video=json.dumps(video), expires=expires)

    def fail(self, id: str, token: int, code: str, message: str, expires: float | None = None) -> bool:
        return self._end(id, token, "failed", failure=json.dumps({"code": code, "message": message}), expires=expires)

    def release(self, id: str, token: int) -> bool:
        """Back into the queue, at its old place: the worker can go no further."""
        return self._requeue(id, token)

    def lapse(self) -> list[Job]:
        """Takes back leases without heartbeats. → those jobs, as they are now"""
        now = self._ticks()
        found = []
        for id in [id for id, end in self._ends.items() if end <= now]:
            job = self.job(id)
            if job is None or job.status != "in_progress" or job.token is None:
                self._ends.pop(id, None)
                continue
            self.lapsed += 1
            self._requeue(id, job.token)
            changed = self.job(id)
            if changed is not None:
                found.append(changed)
        return found

    def _requeue(self, id: str, token: int) -> bool:
        job = self.job(id)
        if job is not None and job.attempts >= self.max_attempts:
            return self.fail(
                id, token, "interrupted", f"it was running each of the {job.attempts} times that its worker went away"
            )
        with self._transaction():
            changed = self._database.execute(
                "UPDATE jobs SET status = 'queued', token = NULL, owner = NULL WHERE id = ? AND status = 'in_progress' AND token = ?",
                (id, token),
            ).rowcount
            if changed:
                self._note(id, "in_progress", "queued", token)
        if changed:
            self._ends.pop(id, None)
        return bool(changed)

    def _holds(self, id: str, token: int) -> bool:
        row = self._database.execute(
            "SELECT 1 FROM jobs WHERE id = ? AND status = 'in_progress' AND token = ?", (id, token)
        ).fetchone()
        return row is not None

    def _end(self, id: str, token: int, status: str, **values: Any) -> bool:
        names = ", ".join(f"{name} = ?" for name in values)
        with self._transaction():
            changed = self._database.execute(
                f"UPDATE jobs SET status = ?, completed = ?, {names} WHERE id = ? AND status = 'in_progress' AND token = ?",
                (status, self._clock(), *values.values(), id, token),
            ).rowcount
            if changed:
                self._note(id, "in_progress", status, token)
        if changed:
            self._ends.pop(id, None)
            return True
        job = self.job(id)
        if job is not None and job.status == status and job.token == token:
            return True
        self.refused += 1
        return False

    # Going

    def cancel(self, id: str, expires: float | None = None) -> bool:
        """False where it is over already, or is not there."""
        with self._transaction():
            job = self.job(id)
            if job is None or job.is_over:
                return False
            self._database.execute(
                "UPDATE jobs SET status = 'cancelled', completed = ?, expires = ?, token = NULL, owner = NULL WHERE id = ?",
                (self._clock(), expires, id),
            )
            self._note(id, job.status, "cancelled", job.token)
        self._ends.pop(id, None)
        return True

    def remove(self, id: str) -> Job | None:
        """Forgets a job, whatever it is doing. → what it was; its files are the caller's to remove"""
        with self._transaction():
            job = self.job(id)
            if job is None:
                return None
            self._database.execute("DELETE FROM jobs WHERE id = ?", (id,))
            self._database.execute("DELETE FROM transitions WHERE job = ?", (id,))
        self._ends.pop(id, None)
        return job

    def outdated(self, disk_limit: int | None = None) -> list[Job]:
        """Jobs that are over and have expired, then the oldest ones whose videos take more than `disk_limit` bytes together."""
        now = self._clock()
        jobs = [_job(row) for row in self._rows("SELECT * FROM jobs WHERE expires IS NOT NULL AND expires <= ?", now)]
        if disk_limit is not None:
            gone, room = {job.id for job in jobs}, disk_limit
            for row in self._rows("SELECT * FROM jobs WHERE result IS NOT NULL ORDER BY number DESC"):
                job = _job(row)
                if job.id in gone:
                    continue
                room -= sum((job.result or {}).get("files", {}).values())
                if room < 0:
                    jobs.append(job)
        return jobs

    def wants(self, names: Iterable[str]) -> set[str]:
        """Of names of results those that are a job's result, or may become it: ID.TOKEN. Of pictures, ID, those of a job."""
        wanted = set()
        for name in names:
            id, _, token = name.partition(".")
            job = self.job(id)
            if job is None:
                continue
            if not token:
                wanted.add(name)
                continue
            is_result = job.result is not None and job.result.get("name") == name
            if is_result or (job.status == "in_progress" and str(job.token) == token):
                wanted.add(name)
        return wanted

    # Models

    def keep_models(self, objects: Sequence[dict[str, Any]]) -> None:
        """What workers say of the models that they have; it stays known while no worker runs."""
        with self._transaction():
            for object in objects:
                self._database.execute("INSERT OR REPLACE INTO models VALUES (?, ?)", (object["id"], json.dumps(object)))

    def models(self) -> dict[str, dict[str, Any]]:
        return {row["id"]: json.loads(row["object"]) for row in self._rows("SELECT id, object FROM models")}

    # SQL

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._database)

    def _rows(self, words: str, *values: Any) -> list[sqlite3.Row]:
        return self._database.execute(words, values).fetchall()

    def _one(self, words: str, *values: Any) -> Job | None:
        row = self._database.execute(words, values).fetchone()
        return None if row is None else _job(row)

    def _count(self, words: str, *values: Any) -> int:
        return int(self._database.execute(words, values).fetchone()[0])

    def _note(self, id: str, before: str | None, after: str, token: int | None) -> None:
        self._database.execute(
            "INSERT INTO transitions (job, before, after, token, at) VALUES (?, ?, ?, ?, ?)", (id, before, after, token, self._clock())
        )


class _Transaction:
    """All of it or nothing."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._database.execute("COMMIT" if kind is None else "ROLLBACK")


def new_id() -> str:
    return "video_" + uuid.uuid4().hex


def _job(row: sqlite3.Row) -> Job:
    values = dict(row)
    for name in ("fields", "result", "video", "failure"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return Job(**values)
