"""Makes a video for every seed with a model that is loaded once, and keeps the one with the most motion."""

import numpy as np
import turbodiffusion_swift as td

with td.Pipeline("nano", num_frames=9, num_steps=2, size=(128, 80)) as pipe:
    videos = list(pipe.many("A blue cube slides to the left on a grey floor.", seeds=range(3)))


def motion(video: td.Video) -> float:
    """How much a pixel changes from frame to frame, 0 to 255."""
    return float(np.abs(np.diff(video.frames.astype(np.int16), axis=0)).mean())


for video in videos:
    print(f"seed {video.seed}: motion {motion(video):.2f}, {video.report['totalSeconds']:.1f} s")
best = max(videos, key=motion)
best.save("most-motion.mp4", force=True)
best.save("most-motion-%04d.png", force=True)
