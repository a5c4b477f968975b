"""Frames are an array: changes every frame of a video, writes it, and reads back how it was made."""

import json
import subprocess

import turbodiffusion_swift as td

video = td.Pipeline("nano", num_frames=5, num_steps=1, size=(128, 80))("A yellow ball rolls to the right on green grass.", seed=1)
# A frame of twelve pixels, black.
video.frames[:, :12] = video.frames[:, -12:] = 0
video.frames[:, :, :12] = video.frames[:, :, -12:] = 0
video.save("framed.webm", force=True)
told = subprocess.run([td.find_program(), "inspect", "framed.webm"], check=True, capture_output=True, text=True).stdout
print(json.dumps(video.run["request"]["prompt"]), "is in the file:", video.prompt in told)
