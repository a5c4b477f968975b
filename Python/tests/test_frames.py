"""Frames are those of the command line, bit for bit; files are what was saved."""

import unittest

import numpy as np

import turbodiffusion_swift as td
from support import PROMPT, SMALL, SMALL_WORDS, ScratchCase, command


class FrameTests(ScratchCase):
    def test_frames_are_those_of_the_command(self):
        video = td.Pipeline("nano")(PROMPT, seed=3, **SMALL)
        self.assertEqual(video.frames.shape, (9, 64, 64, 3))
        self.assertEqual(video.frames.dtype, np.uint8)
        self.assertGreater(len(np.unique(video.frames)), 50)
        raw = command("t2v", PROMPT, "--seed=3", *SMALL_WORDS, "--save_path=-").stdout
        self.assertEqual(raw, video.frames.tobytes())
        # The pictures that the command writes, and those that are saved, are equal to the byte.
        (self.folder / "command").mkdir()
        (self.folder / "saved").mkdir()
        command("t2v", PROMPT, "--seed=3", *SMALL_WORDS, f"--save_path={self.folder}/command/%04d.png")
        video.save(self.folder / "saved/%04d.png")
        expected = sorted((self.folder / "command").iterdir())
        saved = sorted((self.folder / "saved").iterdir())
        self.assertEqual(len(expected), 9)
        self.assertEqual([path.name for path in expected], [path.name for path in saved])
        for one, other in zip(expected, saved):
            self.assertEqual(one.read_bytes(), other.read_bytes(), one.name)

    def test_pictures_hold_the_frames(self):
        """A decoder that is not ours: PNG's filters undone by hand."""
        import struct
        import zlib

        video = td.Pipeline("nano")(PROMPT, **{**SMALL, "num_frames": 1})
        path = self.folder / "frame.png"
        video.save(path)
        data, at, pixels = path.read_bytes(), 8, b""
        while at < len(data):
            (length,) = struct.unpack(">I", data[at : at + 4])
            if data[at + 4 : at + 8] == b"IDAT":
                pixels += data[at + 8 : at + 8 + length]
            at += 12 + length
        rows = np.frombuffer(zlib.decompress(pixels), np.uint8).reshape(64, 1 + 64 * 3)
        image = np.zeros((64, 64, 3), np.int64)
        for y, row in enumerate(rows):
            for x, pixel in enumerate(row[1:].reshape(64, 3).astype(np.int64)):
                left = image[y, x - 1] if x else np.zeros(3, np.int64)
                above = image[y - 1, x] if y else np.zeros(3, np.int64)
                corner = image[y - 1, x - 1] if x and y else np.zeros(3, np.int64)
                estimate = left + above - corner
                near = [abs(estimate - one) for one in (left, above, corner)]
                paeth = np.where(
                    (near[0] <= near[1]) & (near[0] <= near[2]), left, np.where(near[1] <= near[2], above, corner)
                )
                filters = [np.zeros(3, np.int64), left, above, (left + above) // 2, paeth]
                image[y, x] = (pixel + filters[row[0]]) % 256
        np.testing.assert_array_equal(image.astype(np.uint8), video.frames[0])

    def test_saved_files_can_be_made_again(self):
        video = td.Pipeline("nano")(PROMPT, seed=5, **SMALL)
        path = self.folder / "-video.mp4"
        self.assertEqual(video.save(path, crf=20), str(path))
        told = command("inspect", str(path)).stdout.decode()
        self.assertIn(PROMPT, told)
        again = command("t2v", f"--from={path}", "--save_path=-").stdout
        self.assertEqual(again, video.frames.tobytes())
        with self.assertRaises(td.OutputError):
            video.save(path)
        video.save(path, force=True)
        with self.assertRaises(td.MediaError):
            video.save(self.folder / "video.xyz")

    def test_notebooks_show_the_video(self):
        video = td.Pipeline("nano")('A "red" sphere.', **SMALL)
        html = video._repr_html_()
        self.assertTrue(html.startswith("<video controls"))
        self.assertIn("data:video/mp4;base64,", html)
        self.assertIn("A &quot;red&quot; sphere.", html)

    def test_arrays_share_memory(self):
        video = td.Video(np.zeros((1, 16, 16, 3), np.uint8), fps=16, seed=0)
        self.assertTrue(np.shares_memory(np.asarray(video), video.frames))
        self.assertEqual(np.asarray(video, np.float32).dtype, np.float32)
        self.assertEqual(len(video), 1)


if __name__ == "__main__":
    unittest.main()
