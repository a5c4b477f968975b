"""Video from text or from a picture with distilled Wan models, made by the program `turbodiffusion`.

    import turbodiffusion_swift as td

    pipe = td.Pipeline("nano")
    video = pipe("A small red sphere bounces on a checkered floor.", seed=3)
    video.frames                # numpy, uint8 [frames, height, width, 3]
    video.save("sphere.mp4")
"""

from ._errors import (
    Cancelled,
    CheckpointError,
    DeviceMemoryError,
    MediaError,
    ModelError,
    OutputError,
    ProgramError,
    RequestError,
    TurboDiffusionError,
)
from ._options import Options
from ._pipeline import Pipeline, Run
from ._program import find_program
from ._progress import Progress, Stage
from ._version import __version__
from ._video import Video

__all__ = [
    "Cancelled",
    "CheckpointError",
    "DeviceMemoryError",
    "MediaError",
    "ModelError",
    "Options",
    "OutputError",
    "Pipeline",
    "ProgramError",
    "Progress",
    "RequestError",
    "Run",
    "Stage",
    "TurboDiffusionError",
    "Video",
    "__version__",
    "find_program",
]
