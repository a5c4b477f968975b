"""Makes one video and tells how far it is: one_video.py [PROMPT]"""

import sys

import turbodiffusion_swift as td


def show(progress: td.Progress) -> None:
    left = "" if progress.seconds_left is None else f", {progress.seconds_left:.0f} s left"
    print(f"\r{progress.done:4.0%}  {progress.stage}{left}\033[K", end="", file=sys.stderr)


prompt = sys.argv[1] if len(sys.argv) > 1 else "A small red sphere bounces on a checkered floor."
# 33 frames are what nano was made for; fewer take less time.
video = td.Pipeline("nano", num_frames=9)(prompt, seed=3, progress=show)
print(file=sys.stderr)
print(video, "->", video.save("video.mp4", force=True))
