"""The options of the command line as keywords: the same names, the same meaning."""

from __future__ import annotations

import difflib
import os
from typing import Any, List, Mapping, Sequence, Tuple, TypedDict, Union

Path = Union[str, "os.PathLike[str]"]
Names = Union[Path, Sequence[Path]]


class Options(TypedDict, total=False):
    """Keywords of `Pipeline` and of its calls. Those that are not given are the model's own. `turbodiffusion t2v --help`
    tells what each one does."""

    # What to make
    negative_prompt: str
    resolution: Union[str, Tuple[int, int]]
    """A name, or width and height: "480p", "832x480", (832, 480)."""
    size: Union[str, Tuple[int, int]]
    aspect_ratio: str
    num_frames: int
    fps: int
    seed: Union[int, str]
    """A number, or "random"."""
    # From a picture
    image_path: Any
    """A file; or an array, uint8 [height, width, 3], or what numpy makes one of, such as a PIL image."""
    adaptive_resolution: bool
    # Model
    dit_path: Path
    high_noise_model_path: Path
    low_noise_model_path: Path
    boundary: float
    vae_path: Path
    text_encoder_path: Path
    tokenizer_path: Path
    lora: Names
    """One or several, each with its strength after a colon: "style.safetensors:0.8"."""
    high_noise_lora: Names
    low_noise_lora: Names
    # Sampling
    sampler: str
    num_steps: int
    sigma_max: float
    ode: bool
    guidance: float
    shift: float
    # Arithmetic
    attention_type: str
    sla_topk: float
    linears: str
    quant_linear: bool
    precision: str
    norms: str
    default_norm: bool
    # Files of stages
    text_embedding: Path
    cached_embedding: Path
    skip_t5: bool
    save_text_embedding: Path
    conditioning: Path
    save_conditioning: Path
    latents: Path
    save_latents: Path
    # Machine
    device: str
    devices: str
    threads: int
    memory_limit: Union[str, int]
    """The most memory to use on each device: "16GiB", or bytes."""
    offload_dit: bool


# Options that the calls of a pipeline have in another form, with that form.
OTHERWISE = {
    "model": "Pipeline",
    "prompt": "the first argument of the call",
    "prompts": "Pipeline.many",
    "seeds": "Pipeline.many",
    "num_samples": "Pipeline.many with several seeds",
    "from": "Video.run tells how a video was made",
    "save_path": "Video.save",
    "crf": "Video.save",
    "force": "Video.save",
    "dry_run": "Pipeline.plan",
    "card": "Pipeline.plan",
    "json": "the argument progress",
    "quiet": "the argument progress",
    "verbose": "Video.report",
    "serve": "Pipeline.many, or the program's service",
    "compile": "nothing: nothing needs compiling",
}

# Those that only one of the two commands has.
_OF_PICTURES = {"image_path", "adaptive_resolution", "high_noise_model_path"}
_OF_TEXT = {"dit_path"}


def check(options: Mapping[str, Any]) -> None:
    """Refuses keywords that no option has, before anything is started."""
    known = Options.__annotations__
    for name in options:
        if name in known:
            continue
        if name in OTHERWISE:
            raise TypeError(f"{name} is not a keyword here: use {OTHERWISE[name]}")
        near = difflib.get_close_matches(name, known, n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
        raise TypeError(f"there is no option {name!r}{advice}")


def command(options: Mapping[str, Any]) -> str:
    """Which command makes it: `i2v` where there is a picture."""
    if any(options.get(name) is not None for name in ("image_path", "conditioning")):
        return "i2v"
    return "t2v"


def words(options: Mapping[str, Any]) -> List[str]:
    """The options as words of a command line. None and False leave an option out."""
    words: List[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        if value is True:
            words.append("--" + name)
            continue
        if name in ("resolution", "size") and not isinstance(value, str):
            width, height = value
            value = f"{width}x{height}"
        values = value if isinstance(value, (list, tuple)) else [value]
        words.extend(f"--{name}={_text(name, one)}" for one in values)
    return words


def _text(name: str, value: Any) -> str:
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        if not isinstance(text, str):
            raise TypeError(f"{name}: names are text, not {type(text).__name__}")
        if "\0" in text:
            raise ValueError(f"{name}: a text with a NUL character")
        return text
    # Numbers, numpy's too.
    if hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected text or a number, not {type(value).__name__}")
    return repr(value)
