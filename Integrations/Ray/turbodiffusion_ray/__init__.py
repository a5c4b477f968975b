"""A fleet of `turbodiffusion serve` on Ray: docs/ray.md.

    serve run turbodiffusion_ray.fleet:build fleet.yaml         the service, with the protocol of docs/service.md
    python -m turbodiffusion_ray.batch prompts.jsonl …          many videos into a folder

Only `fleet` and `batch` need Ray."""

from .config import ConfigError, Fleet, Pool

__all__ = ["ConfigError", "Fleet", "Pool"]
