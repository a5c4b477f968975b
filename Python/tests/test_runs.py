"""Progress, cancelling, several videos, and what goes wrong."""

import asyncio
import os
import threading
import time
import unittest
from pathlib import Path

import numpy as np

import turbodiffusion_swift as td
from support import PROMPT, SMALL, SMALL_WORDS, ScratchCase, command

# Long enough to be cancelled.
LONG = {"num_frames": 33, "size": (256, 144), "num_steps": 1}


def is_running(run):
    return run._process.poll() is None


class ProgressTests(unittest.TestCase):
    def test_progress_rises_to_one(self):
        seen = []
        td.Pipeline("nano")(PROMPT, progress=seen.append, **SMALL)
        shares = [state.done for state in seen]
        self.assertEqual(shares, sorted(shares))
        self.assertEqual(shares[-1], 1)
        stages = [state.stage.id for state in seen]
        for stage in ("load", "encode-text", "step", "decode", "deliver"):
            self.assertIn(stage, stages)
        self.assertIn("step 1/1", [str(state.stage) for state in seen])

    def test_what_a_callback_raises_ends_the_run(self):
        def fail(progress):
            raise KeyError(progress.stage.id)

        pipe = td.Pipeline("nano")
        with self.assertRaises(KeyError):
            pipe(PROMPT, progress=fail, **LONG)
        self.assertEqual(pipe._runs, set())

    def test_report(self):
        video = td.Pipeline("nano")(PROMPT, seed=11, fps=8, **SMALL)
        self.assertEqual((video.seed, video.fps, video.prompt), (11, 8, PROMPT))
        self.assertEqual(video.run["request"]["frames"], 9)
        self.assertGreater(video.report["totalSeconds"], 0)
        # 64x64 is smaller than what nano has seen, and the program says so.
        self.assertTrue(any("64x64" in text for text in video.notices), video.notices)


class CancelTests(unittest.TestCase):
    def test_cancel_from_another_thread(self):
        for stage in ("load", "step", "decode"):
            with self.subTest(stage=stage):
                pipe = td.Pipeline("nano")
                run = pipe.start(PROMPT, **LONG)
                reached = threading.Event()

                def watch(progress):
                    if progress.stage.id == stage:
                        reached.set()

                def cancel():
                    reached.wait(120)
                    pipe.cancel()

                canceller = threading.Thread(target=cancel)
                canceller.start()
                with self.assertRaises(td.Cancelled):
                    run.result(watch)
                canceller.join()
                self.assertFalse(is_running(run))
                self.assertEqual(pipe._runs, set())

    def test_leaving_the_context_ends_the_run(self):
        with td.Pipeline("nano") as pipe:
            run = pipe.start(PROMPT, **LONG)
        run._process.wait(30)
        with self.assertRaises(td.Cancelled):
            run.result()
        with self.assertRaises(td.ProgramError):
            run.result()

    def test_async(self):
        async def make():
            pipe = td.Pipeline("nano")
            ticks, seen = 0, []

            async def tick():
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0.01)

            ticking = asyncio.create_task(tick())
            video = await pipe.generate(PROMPT, progress=seen.append, **SMALL)
            ticking.cancel()
            self.assertEqual(video.frames.shape[0], 9)
            self.assertGreater(ticks, 5)
            self.assertTrue(seen)
            task = asyncio.create_task(pipe.generate(PROMPT, **LONG))
            await asyncio.sleep(0.5)
            (run,) = pipe._runs
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            self.assertFalse(is_running(run))

        asyncio.run(make())

    def test_a_program_that_dies_is_told(self):
        run = td.Pipeline("nano").start(PROMPT, **LONG)
        run._process.kill()
        with self.assertRaisesRegex(td.ProgramError, "signal 9"):
            run.result()


class ManyTests(unittest.TestCase):
    def test_every_prompt_with_every_seed(self):
        pipe = td.Pipeline("nano", **SMALL)
        prompts = ["A red sphere.", "A blue cube."]
        videos = list(pipe.many(prompts, seeds=[1, 2]))
        self.assertEqual([(video.prompt, video.seed) for video in videos], [(p, s) for p in prompts for s in (1, 2)])
        alone = pipe("A blue cube.", seed=1)
        np.testing.assert_array_equal(videos[2].frames, alone.frames)
        self.assertFalse(np.array_equal(videos[2].frames, videos[3].frames))

    def test_leaving_the_loop_ends_the_run(self):
        pipe = td.Pipeline("nano", **SMALL)
        for video in pipe.many(["A red sphere."] * 1, seeds=range(100)):
            self.assertEqual(video.seed, 0)
            break
        deadline = time.monotonic() + 30
        while pipe._runs and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual(pipe._runs, set())

    def test_prompts_are_lines(self):
        pipe = td.Pipeline("nano")
        for prompt in ("", "a\nb", "# no"):
            with self.assertRaises(ValueError):
                list(pipe.many([prompt]))
        self.assertEqual(list(pipe.many([])), [])


class ErrorTests(ScratchCase):
    def test_codes_become_exceptions(self):
        pipe = td.Pipeline("nano")
        for options, kind, code in [
            ({"num_frames": 6}, td.RequestError, "request.unusable"),
            ({"num_steps": "x"}, td.RequestError, "usage"),
            ({"guidance": 3}, td.RequestError, "request.conflict"),
            ({"memory_limit": "1MiB"}, td.DeviceMemoryError, "run.memory"),
            ({"vae_path": "/nowhere/vae.pth"}, td.ModelError, "model.catalog"),
            ({"latents": __file__}, td.TurboDiffusionError, None),
        ]:
            with self.subTest(options=options), self.assertRaises(kind) as caught:
                pipe(PROMPT, **options)
            if code is not None:
                self.assertEqual(caught.exception.code, code)
            self.assertEqual(len(str(caught.exception).splitlines()), 1)
        with self.assertRaises(td.ModelError):
            td.Pipeline("no such model")(PROMPT)
        with self.assertRaises(td.ProgramError):
            td.Pipeline("nano", program="/bin/false")(PROMPT)
        with self.assertRaises(td.ProgramError):
            td.Pipeline("nano", program="/nowhere/turbodiffusion")(PROMPT)

    def test_files_that_exist_are_refused_before_the_work(self):
        path = self.folder / "video.mp4"
        path.write_bytes(b"mine")
        with self.assertRaises(td.OutputError):
            td.Pipeline("nano")(PROMPT, save_path=path, **LONG)
        self.assertEqual(path.read_bytes(), b"mine")
        td.Pipeline("nano")(PROMPT, save_path=path, force=True, **SMALL)
        self.assertEqual(path.read_bytes()[4:8], b"ftyp")

    def test_pictures_from_memory(self):
        pipe = td.Pipeline("nano")
        with self.assertRaises(TypeError):
            pipe(PROMPT, image_path=np.zeros((4, 4)))
        # nano takes no picture: the program says so, after it has read it.
        with self.assertRaises(td.ModelError):
            pipe(PROMPT, image_path=np.zeros((64, 64, 3), np.uint8))

    def test_plan(self):
        plan = td.Pipeline("nano").plan(num_frames=9, card="4090")
        self.assertEqual(plan["event"], "plan")
        self.assertGreater(plan["plan"]["peakBytes"], 0)
        with self.assertRaises(td.RequestError):
            td.Pipeline("nano").plan(num_frames=6)


class StreamTests(ScratchCase):
    """What the command line says of raw frames."""

    def test_nothing_garbles_them(self):
        both = command("t2v", PROMPT, *SMALL_WORDS, "--json", "--save_path=-", check=False)
        self.assertNotEqual(both.returncode, 0)
        self.assertIn(b"request.conflict", both.stdout)
        loud = command("t2v", PROMPT, *SMALL_WORDS, "--verbose", "--save_path=-")
        self.assertEqual(len(loud.stdout), 9 * 64 * 64 * 3)
        self.assertIn(b"total", loud.stderr)
        two = command("t2v", PROMPT, *SMALL_WORDS, "--num_samples=2", "--save_path=/dev/stdout")
        self.assertEqual(len(two.stdout), 2 * 9 * 64 * 64 * 3)
        self.assertEqual(two.stdout[: len(loud.stdout)], loud.stdout)

    def test_descriptors_that_are_not_there(self):
        for path in ("/dev/fd/77", "/dev/fd/3", "/dev/fd/4", "/dev/fd/5", "/dev/fd/0", "/dev/fd/2"):
            done = command("t2v", PROMPT, *SMALL_WORDS, f"--save_path={path}", check=False)
            self.assertNotEqual(done.returncode, 0, path)
            self.assertEqual(len(done.stderr.decode().strip().splitlines()), 1, done.stderr)
            self.assertIn(path, done.stderr.decode())

    def test_a_reader_that_stops(self):
        reading, writing = os.pipe()
        os.close(reading)
        done = command(
            "t2v", PROMPT, *SMALL_WORDS, "--quiet", f"--save_path=/dev/fd/{writing}", pass_fds=(writing,), check=False
        )
        os.close(writing)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("stopped reading", done.stderr.decode())

    def test_encode_refuses_parts_of_frames(self):
        path = str(self.folder / "a.mp4")
        done = command("encode", "--size=64x64", path, input=bytes(64 * 64 * 3 + 5), check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("within a frame", done.stderr.decode())
        self.assertFalse(Path(path).exists())
        self.assertEqual(list(self.folder.iterdir()), [])


class OverheadTests(unittest.TestCase):
    def test_python_costs_next_to_nothing(self):
        """Processor time here against that of the program: what else runs on the machine does not count."""
        pipe = td.Pipeline("nano", num_frames=33, threads=2)
        before = os.times()
        video = pipe(PROMPT)
        after = os.times()
        here = after.user + after.system - before.user - before.system
        program = after.children_user + after.children_system - before.children_user - before.children_system
        print(f"program {program:.2f} s, Python {here:.3f} s for {video.frames.nbytes} bytes of frames")
        self.assertGreater(program, 0)
        self.assertLess(here, 0.05 * program)


if __name__ == "__main__":
    unittest.main()
