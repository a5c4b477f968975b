"""Batches without Ray: lines, names, and an actor whose service stands in."""
import json
import os
import shutil
import tempfile
import unittest

from support import STANDIN
from turbodiffusion_ray.batch import Maker, Output
from turbodiffusion_ray.prompts import RequestsError, parse_requests


class LineTests(unittest.TestCase):
    def parse(self, *lines, **common):
        return parse_requests([line if isinstance(line, str) else json.dumps(line) for line in lines], common)

    def test_names_follow_requests(self):
        first = self.parse({"prompt": "A ball"}, '"A cube"', "", {"prompt": "A ball", "name": "ball", "seed": 3})
        self.assertEqual([request.fields["prompt"] for request in first], ["A ball", "A cube", "A ball"])
        self.assertEqual((first[2].name, first[2].fields["seed"]), ("ball", 3))
        second = self.parse('"A cube"', {"prompt": "A ball"})
        self.assertEqual([request.name for request in second], [first[1].name, first[0].name])
        self.assertEqual(second[1].fields["seed"], first[0].fields["seed"])
        # Another request is another video.
        self.assertNotEqual(self.parse({"prompt": "A ball"}, num_frames="5")[0].name, first[0].name)
        self.assertEqual(self.parse({"prompt": "A ball", "num_frames": 9}, num_frames="5")[0].fields["num_frames"], 9)

    def test_equal_lines_are_one_video(self):
        self.assertEqual(len(self.parse('"A ball"', '"A ball"')), 1)

    def test_refused(self):
        for lines, place in ((["{"], "line 1"), (['"x"', "[]"], "line 2"), ([{"seed": 1}], "line 1"), ([{"prompt": " "}], "no prompt"),
                             ([{"prompt": "x", "name": "../a"}], "name must be"), ([{"prompt": "x", "name": ".a"}], "name must be"),
                             ([{"prompt": "x", "name": "a"}, {"prompt": "y", "name": "a"}], "lines 1 and 2"),
                             (["[" * 100_000], "line 1")):  # fmt: skip
            with self.assertRaisesRegex(RequestsError, place):
                self.parse(*lines)


class MakerTests(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        Output(self.folder).open()

    def test_made_once(self):
        maker = Maker(STANDIN, "nano", self.folder, 0, ["--seconds", "0.05"])
        self.addCleanup(maker.__del__)

        def make(name, **fields):
            row = maker({"name": name, "fields": json.dumps({"prompt": "A ball", "seed": 1, **fields})})
            return row["outcome"], row["message"]

        self.assertEqual(make("a"), ("made", ""))
        self.assertEqual(make("a"), ("present", ""))
        self.assertEqual(make("b", width=7)[0], "failed")
        self.assertIn("multiple of 16", make("b", width=7)[1])
        self.assertEqual(make("c", prompt="fail not_finite"), ("failed", "asked to fail with not_finite"))
        # A service that dies is started again, three times.
        outcome, message = make("d", prompt="crash")
        self.assertEqual(outcome, "failed")
        self.assertIn("service", message)
        self.assertEqual(make("e"), ("made", ""))
        self.assertEqual(sorted(os.listdir(self.folder)), ["a.json", "a.mp4", "e.json", "e.mp4"])
        with open(os.path.join(self.folder, "a.json")) as file:
            self.assertEqual(json.load(file)["seed"], 1)


if __name__ == "__main__":
    unittest.main()
