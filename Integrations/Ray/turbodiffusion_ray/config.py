"""What a fleet consists of, as `serve run` and a RayService hand it over: plain values, checked before anything starts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, get_type_hints


class ConfigError(ValueError):
    """What was expected, what was found, what to do: one line."""


@dataclass
class Pool:
    """Replicas that are alike: the same models on the same kind of node."""

    name: str
    models: list[str]
    """Names of published models, or folders on the nodes; a folder is asked for by its last name."""
    gpus: int = 0
    """Of each replica; it runs as many requests beside each other. 0: on the CPU."""
    cpus: float = 1
    memory_gib: float = 0
    """Of the node's memory that Ray sets aside for a replica; 0: not counted."""
    resources: dict[str, float] = field(default_factory=dict)
    """Custom resources of the nodes that have these models, such as `{"wan_a14b": 1}`."""
    labels: dict[str, str] = field(default_factory=dict)
    """Labels of such nodes; as Ray's label selectors are written."""
    min_replicas: int = 0
    max_replicas: int = 1
    upscale_delay_s: float = 5
    downscale_delay_s: float = 300
    options: list[str] = field(default_factory=list)
    """Further options of `turbodiffusion serve`, such as `["--memory-limit", "40GiB"]`."""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> int:
        """Requests that a replica makes beside each other."""
        return max(1, self.gpus)

    @property
    def ids(self) -> list[str]:
        return [model.rstrip("/").rsplit("/", 1)[-1] for model in self.models]

    def check(self) -> None:
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"a pool's name must be of letters, digits, - and _, not '{self.name}'")
        if not self.models:
            raise ConfigError(f"pool {self.name} has no models: name at least one")
        if self.gpus < 0:
            raise ConfigError(f"pool {self.name}: gpus must be 0 or more, not {self.gpus}")
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ConfigError(
                f"pool {self.name}: expected 0 <= min_replicas <= max_replicas and max_replicas of 1 or more, "
                f"not {self.min_replicas} and {self.max_replicas}"
            )


@dataclass
class Fleet:
    """All of it."""

    pools: list[Pool]
    results: str
    """A folder that every node sees, or a URL for fsspec."""
    database: str
    """The jobs' file on the head, on a volume that outlives it."""
    program: str = ""
    """Path of `turbodiffusion` on the nodes; empty: that of the installed package."""
    name: str = "turbodiffusion"
    lease_seconds: float = 30
    beat_seconds: float = 2
    max_attempts: int = 5
    queue_limit: int = 10_000
    body_limit: int = 32 << 20
    """Bytes of a request."""
    expire_hours: float = 168
    disk_limit_gib: float = 0
    """Of all videos together; 0: no limit."""
    check_seconds: float = 5
    """How long a new request may wait for a replica to look at it; then it is accepted unseen."""
    api_key_file: str = ""
    """Keys, one a line; on every node with a front. Empty: whoever reaches the port may ask."""
    front_replicas: int = 1
    front_cpus: float = 0.5
    front_resources: dict[str, float] = field(default_factory=dict)
    store_resources: dict[str, float] = field(default_factory=lambda: {"node:__internal_head__": 0.001})
    drain_seconds: float = 900
    """How long a replica that goes may take to end what it makes."""
    variants: list[str] = field(default_factory=lambda: ["thumbnail", "spritesheet", "preview"])
    """Pictures that are kept beside a video."""

    def check(self) -> None:
        if not self.pools:
            raise ConfigError("the fleet has no pools: name at least one, with its models")
        names = [pool.name for pool in self.pools]
        if len(set(names)) < len(names):
            raise ConfigError(f"two pools have one name: {', '.join(names)}")
        for pool in self.pools:
            pool.check()
        if not 0 < self.beat_seconds <= self.lease_seconds / 3:
            raise ConfigError(
                f"beat_seconds must be at most a third of lease_seconds ({self.lease_seconds:g}), not {self.beat_seconds:g}: "
                "two heartbeats may get lost"
            )
        if self.max_attempts < 1:
            raise ConfigError(f"max_attempts must be 1 or more, not {self.max_attempts}")
        if unknown := set(self.variants) - {"thumbnail", "spritesheet", "preview"}:
            raise ConfigError(f"variants can be thumbnail, spritesheet and preview, not {', '.join(sorted(unknown))}")

    @property
    def ids(self) -> list[str]:
        """Of all models, in the order of the pools."""
        return list(dict.fromkeys(id for pool in self.pools for id in pool.ids))

    @staticmethod
    def parse(values: dict[str, Any]) -> Fleet:
        """Raises ConfigError."""
        fleet: Fleet = _parse(Fleet, values, "the fleet")
        fleet.check()
        return fleet

    def plain(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _parse(kind: Any, values: Any, place: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{place} must be an object of fields, not {values!r}")
    hints = get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise ConfigError(f"{place} has no field '{name}'; fields: {', '.join(hints)}")
        arguments[name] = _value(hints[name], value, f"{name} of {place}")
    for entry in dataclasses.fields(kind):
        needed = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if needed and entry.name not in arguments:
            raise ConfigError(f"{place} has no '{entry.name}', which it needs")
    return kind(**arguments)


def _value(hint: Any, value: Any, place: str) -> Any:
    kind = getattr(hint, "__origin__", hint)
    if kind is list and hint.__args__[0] is Pool:
        if not isinstance(value, list):
            raise ConfigError(f"{place} must be a list")
        return [_parse(Pool, entry, f"pool {index + 1}") for index, entry in enumerate(value)]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{place} must be of type {kind.__name__}, not {value!r}")
    if kind is list:
        return [_value(hint.__args__[0], entry, place) for entry in value]
    if kind is dict:
        return {_value(str, key, place): _value(hint.__args__[1], entry, place) for key, entry in value.items()}
    return value
