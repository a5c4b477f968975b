"""Results: whole or not there, once, never elsewhere; configurations: refused by name."""
import os
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

from support import STANDIN, Fleet
from turbodiffusion_ray.child import Service
from turbodiffusion_ray.config import ConfigError
from turbodiffusion_ray.config import Fleet as Description
from turbodiffusion_ray.results import FolderResults, open_results

try:
    import fsspec
except ImportError:
    fsspec = None


class FolderTests(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.results = open_results("file://" + self.folder)

    def test_written_once(self):
        self.assertIsInstance(self.results, FolderResults)
        self.results.write("video_1.1", {"video.mp4": b"0123456789", "preview.png": b"x"})
        with self.assertRaises(FileExistsError):
            self.results.write("video_1.1", {"video.mp4": b"other"})
        self.assertEqual(b"".join(self.results.read("video_1.1", "video.mp4")), b"0123456789")
        self.assertEqual(b"".join(self.results.read("video_1.1", "video.mp4", 3, 5)), b"34")
        self.assertEqual((self.results.size("video_1.1", "video.mp4"), self.results.size("video_1.1", "none")), (10, None))
        self.assertEqual(os.listdir(os.path.join(self.folder, "unfinished")), [])
        self.assertEqual((self.results.names(), self.results.names(older_than=60)), (["video_1.1"], []))
        self.results.remove("video_1.1"), self.results.remove("video_1.1")
        self.assertEqual(self.results.names(), [])

    def test_never_elsewhere(self):
        for name in ("../x", "", ".x", "a/b"):
            with self.assertRaises(ValueError):
                self.results.write(name, {"video.mp4": b""})
            with self.assertRaises(ValueError):
                self.results.read_input(name)
        with self.assertRaises(ValueError):
            self.results.write("a", {"../x": b""})
        self.assertEqual((self.results.names(), os.listdir(os.path.join(self.folder, "unfinished"))), ([], []))

    def test_leftovers_go(self):
        os.mkdir(os.path.join(self.folder, "unfinished/video_1.1.abc"))
        self.results.names(older_than=60)
        self.assertEqual(len(os.listdir(os.path.join(self.folder, "unfinished"))), 1)
        self.results.names()
        self.assertEqual(os.listdir(os.path.join(self.folder, "unfinished")), [])

    @unittest.skipIf(fsspec is None, "fsspec is not installed: make ray has it")
    def test_objects(self):
        results = open_results(f"memory://{os.path.basename(self.folder)}")
        self.assertEqual(results.names(), [])
        results.write("video_1.1", {"video.mp4": b"0123456789"})
        with self.assertRaises(FileExistsError):
            results.write("video_1.1", {"video.mp4": b"other"})
        self.assertEqual(b"".join(results.read("video_1.1", "video.mp4")), b"0123456789")
        self.assertEqual(b"".join(results.read("video_1.1", "video.mp4", 3, 5)), b"34")
        self.assertEqual((results.size("video_1.1", "video.mp4"), results.size("video_1.1", "none")), (10, None))
        self.assertEqual((results.names(), results.names(older_than=60)), (["video_1.1"], []))
        results.remove("video_1.1"), results.remove("video_1.1")
        results.write_input("video_1", b"picture")
        self.assertEqual((results.read_input("video_1"), results.names("inputs"), results.names()), (b"picture", ["video_1"], []))
        results.remove_input("video_1")
        with self.assertRaises(FileNotFoundError):
            results.read_input("video_1")

    def test_orphans(self):
        with Fleet() as fleet:
            kept = fleet.create(input_reference="data:image/png;base64,AAAA")
            lease = fleet.call("claim", ["nano"], "a")
            for name in (f"{kept}.{lease['token']}", f"{kept}.0", "video_gone.4"):
                fleet.results.write(name, {"video.mp4": b"x"})
            fleet.results.write_input("video_gone", b"x")
            wanted = fleet.call("wants", fleet.results.names())
            self.assertEqual(wanted, [f"{kept}.{lease['token']}"])
            self.assertEqual(fleet.call("wants", fleet.results.names("inputs")), [kept])


class DescriptionTests(unittest.TestCase):
    VALUES = {"results": "/r", "database": "/d", "pools": [{"name": "a", "models": ["/models/Wan2.2-A14B/", "nano"], "gpus": 2}]}

    def test_plain_and_back(self):
        fleet = Description.parse(self.VALUES)
        self.assertEqual((fleet.ids, fleet.pools[0].runs), (["Wan2.2-A14B", "nano"], 2))
        self.assertEqual(Description.parse(fleet.plain()), fleet)

    def test_refused(self):
        pool = self.VALUES["pools"][0]
        for change, words in (({"result": "/r"}, "no field 'result'"), ({"pools": []}, "no pools"), ({"pools": "a"}, "must be a list"),
                              ({"pools": [{"models": ["a"]}]}, "no 'name'"), ({"pools": [pool, pool]}, "one name"),
                              ({"pools": [{**pool, "gpus": 0.5}]}, "of type int"), ({"pools": [{**pool, "gpus": -1}]}, "0 or more"),
                              ({"pools": [{**pool, "models": []}]}, "no models"), ({"pools": [{**pool, "max_replicas": 0}]}, "max_replicas"),
                              ({"beat_seconds": 20}, "a third"), ({"variants": ["audio"]}, "not audio"),
                              ({"lease_seconds": True}, "of type float"), ({"name": 3}, "of type str")):  # fmt: skip
            with self.assertRaisesRegex(ConfigError, words):
                Description.parse({**self.VALUES, **change})


STARTER = """
import sys, time
sys.path.insert(0, {package!r})
from turbodiffusion_ray.child import Service
service = Service({program!r}, ["nano"], scratch={scratch!r})
service.start()
print(service.pid, flush=True)
time.sleep(60)
"""


class ChildTests(unittest.TestCase):
    def test_it_ends_with_whoever_started_it(self):
        scratch = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, scratch)
        package = os.path.dirname(os.path.dirname(STANDIN))
        text = STARTER.format(package=package, program=STANDIN, scratch=scratch)
        parent = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.addCleanup(parent.stdout.close)
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 10
        while os.path.exists(f"/proc/{pid}") and "Z" not in open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0]:
            self.assertLess(time.monotonic(), deadline, "the service outlived its parent")
            time.sleep(0.05)
        # Its folder goes when the next one starts there.
        (left,) = os.listdir(scratch)
        with Service(STANDIN, ["nano"], scratch=scratch) as service:
            service.start()
            self.assertNotIn(left, os.listdir(scratch))
            self.assertEqual(len(os.listdir(scratch)), 1)
        self.assertEqual(os.listdir(scratch), [])


if __name__ == "__main__":
    unittest.main()
