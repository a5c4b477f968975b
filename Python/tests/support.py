"""What the tests share: a small request, and the command line to compare with."""

import subprocess
import tempfile
import unittest
from pathlib import Path

import turbodiffusion_swift as td

PROGRAM = td.find_program()
PROMPT = "A small red sphere bounces on a checkered floor."
# As little as the model makes: tests are of the way to it and back.
SMALL = {"num_frames": 9, "size": (64, 64), "num_steps": 1, "threads": 2}
SMALL_WORDS = ["--num_frames=9", "--size=64x64", "--num_steps=1", "--threads=2"]


def command(*words, check=True, **options):
    return subprocess.run([PROGRAM, *words], check=check, capture_output=True, **options)


class ScratchCase(unittest.TestCase):
    """A test with a folder that goes with it."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
