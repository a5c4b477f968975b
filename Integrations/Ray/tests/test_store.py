"""The job store: what is accepted stays, and each job has one worker and one result."""
import multiprocessing
import os
import random
import shutil
import sqlite3
import tempfile
import unittest

from support import MEMORY, Time
from turbodiffusion_ray.store import JobStore, StoreInUse


def _add_and_die(path):
    store = JobStore(path)
    for index in range(20):
        store.add("nano", {"prompt": str(index)}, key=f"key-{index}")
    store.claim(["nano"], "gone")
    os._exit(9)


class StoreTests(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(dir=MEMORY)
        self.path = os.path.join(self.folder, "jobs.sqlite")
        self.time = Time()
        self.store = self.open()

    def tearDown(self):
        self.store.close()
        shutil.rmtree(self.folder)

    def open(self, **values):
        return JobStore(self.path, **{"lease_seconds": 10, "max_attempts": 3, "ticks": self.time, **values})

    def add(self, prompt="A red sphere.", model="nano", **values):
        return self.store.add(model, {"prompt": prompt}, **values)

    def claim(self, owner="a", models=("nano",)):
        return self.store.claim(models, owner)

    def test_oldest_first_and_by_model(self):
        first, other, second = self.add("1"), self.add("2", model="big"), self.add("3")
        self.assertEqual([self.store.position(job) for job in (first, other, second)], [1, 1, 2])
        self.assertEqual(self.claim("a").job.id, first.id)
        self.assertEqual(self.claim("b", ["big", "nano"]).job.id, other.id)
        self.assertEqual(self.claim("c").job.id, second.id)
        self.assertIsNone(self.claim("d", ["nano", "big"]))

    def test_a_claim_whose_answer_was_lost_is_the_same_lease(self):
        self.add("1"), self.add("2")
        first, again = self.claim("run-1"), self.claim("run-1")
        self.assertEqual((first.job.id, first.token), (again.job.id, again.token))
        self.assertEqual(again.job.attempts, 1)

    def test_tokens_rise_over_restarts(self):
        self.add("1"), self.add("2")
        token = self.claim("a").token
        self.store.close()
        self.store = self.open()
        self.assertGreater(self.claim("b").token, token)

    def test_a_lease_lapses_without_heartbeats(self):
        job = self.add()
        lease = self.claim("a")
        for _ in range(5):
            self.time.now += 9
            self.assertTrue(self.store.beat(job.id, lease.token))
        self.time.now += 9
        self.assertIsNone(self.claim("b"))
        self.time.now += 2
        second = self.claim("b")
        self.assertEqual(second.job.id, job.id)
        self.assertEqual(second.job.attempts, 2)
        self.assertEqual(self.store.lapsed, 1)

    def test_who_lost_the_lease_changes_nothing(self):
        job = self.add()
        old = self.claim("a")
        self.time.now += 11
        # Nobody else has it yet: it is lost all the same.
        self.store.lapse()
        self.assertFalse(self.store.beat(job.id, old.token))
        self.assertFalse(self.store.finish(job.id, old.token, {"name": "old", "files": {}}, {}))
        new = self.claim("b")
        for refused in (
            self.store.beat(job.id, old.token),
            self.store.finish(job.id, old.token, {"name": "old", "files": {}}, {}),
            self.store.fail(job.id, old.token, "other", "no"),
            self.store.release(job.id, old.token),
        ):
            self.assertFalse(refused)
        self.assertTrue(self.store.finish(job.id, new.token, {"name": "new", "files": {}}, {"seed": 3}))
        self.assertFalse(self.store.finish(job.id, old.token, {"name": "old", "files": {}}, {}))
        found = self.store.job(job.id)
        self.assertEqual((found.status, found.result["name"], found.video), ("completed", "new", {"seed": 3}))
        self.assertEqual(
            self.store.transitions(job.id),
            [(None, "queued", None), ("queued", "in_progress", old.token), ("in_progress", "queued", old.token),
             ("queued", "in_progress", new.token), ("in_progress", "completed", new.token)],
        )
        self.assertEqual(self.store.refused, 4)

    def test_finishing_twice_is_finishing_once(self):
        job = self.add()
        lease = self.claim()
        for _ in range(2):
            self.assertTrue(self.store.finish(job.id, lease.token, {"name": "x", "files": {}}, {}))
        self.assertEqual([after for _, after, _ in self.store.transitions(job.id)], ["queued", "in_progress", "completed"])

    def test_a_released_job_keeps_its_place(self):
        first, _ = self.add("1"), self.add("2")
        lease = self.claim("a")
        self.assertTrue(self.store.release(first.id, lease.token))
        self.assertEqual(self.claim("b").job.id, first.id)

    def test_a_job_that_ends_its_workers_fails(self):
        job = self.add()
        for attempt in range(3):
            self.assertEqual(self.claim(f"run-{attempt}").job.attempts, attempt + 1)
            self.time.now += 11
            self.store.lapse()
        found = self.store.job(job.id)
        self.assertEqual((found.status, found.failure["code"]), ("failed", "interrupted"))
        self.assertIsNone(self.claim("again"))

    def test_leases_begin_anew_where_the_store_was_away(self):
        job = self.add()
        lease = self.claim()
        self.store.close()
        self.time.now += 100
        self.store = self.open()
        self.assertTrue(self.store.beat(job.id, lease.token))
        self.time.now += 11
        self.assertEqual([job.status for job in self.store.lapse()], ["queued"])

    def test_nothing_is_lost_with_the_process(self):
        self.store.close()
        process = multiprocessing.get_context("fork").Process(target=_add_and_die, args=(self.path,))
        process.start()
        process.join()
        self.assertEqual(process.exitcode, 9)
        self.store = self.open()
        self.assertEqual(self.store.counts(), {"nano": {"queued": 19, "in_progress": 1}})
        self.assertEqual(self.store.known("key-7").fields, {"prompt": "7"})

    def test_one_process_has_the_file(self):
        with self.assertRaises(StoreInUse):
            self.open()

    def test_keys_and_ids_are_once(self):
        first = self.add("1", key="k", key_hash="h")
        self.assertEqual(self.add("2", key="k").id, first.id)
        self.assertEqual(self.add("3", id=first.id).fields, {"prompt": "1"})
        self.assertEqual(self.store.counts(), {"nano": {"queued": 1}})
        self.store.remove(first.id)
        self.assertNotEqual(self.add("2", key="k").id, first.id)

    def test_queue_limit(self):
        self.assertIsNotNone(self.add(limit=1))
        self.assertIsNone(self.add(limit=1))

    def test_cancel_and_remove(self):
        waiting, running = self.add("1"), self.add("2")
        lease = self.claim("a")
        self.assertEqual(lease.job.id, waiting.id)
        self.assertTrue(self.store.cancel(waiting.id) and self.store.cancel(running.id))
        self.assertFalse(self.store.cancel(waiting.id))
        self.assertFalse(self.store.beat(waiting.id, lease.token))
        self.assertFalse(self.store.finish(waiting.id, lease.token, {"name": "x", "files": {}}, {}))
        self.assertEqual(self.store.remove(waiting.id).status, "cancelled")
        self.assertIsNone(self.store.remove(waiting.id))

    def test_pages(self):
        ids = [self.add(str(index)).id for index in range(7)]
        jobs, more = self.store.page(limit=3)
        self.assertEqual(([job.id for job in jobs], more), (ids[:3:-1], True))
        jobs, more = self.store.page(after=ids[4], limit=3, newest_first=False)
        self.assertEqual(([job.id for job in jobs], more), (ids[5:], False))
        self.claim()
        self.assertEqual([job.id for job in self.store.page(statuses=["in_progress"])[0]], [ids[0]])
        self.assertEqual(self.store.page(limit=0), ([], True))
        self.assertIsNone(self.store.page(after="video_unknown"))

    def test_outdated(self):
        now = Time()
        self.store.close()
        self.store = self.open(clock=now)
        ids = []
        for index in range(3):
            ids.append(self.add(str(index)).id)
            lease = self.claim(f"run-{index}")
            self.store.finish(ids[-1], lease.token, {"name": ids[-1] + ".1", "files": {"video.mp4": 100}}, {}, expires=2000)
        self.assertEqual(self.store.outdated(), [])
        self.assertEqual([job.id for job in self.store.outdated(disk_limit=250)], [ids[0]])
        now.now = 2001
        self.assertEqual(len(self.store.outdated()), 3)

    def test_which_results_are_wanted(self):
        done, running, waiting = self.add("1"), self.add("2"), self.add("3")
        lease = self.claim("a")
        self.store.finish(done.id, lease.token, {"name": f"{done.id}.{lease.token}", "files": {}}, {})
        token = self.claim("b").token
        names = [f"{done.id}.{lease.token}", f"{done.id}.99", f"{running.id}.{token}", f"{running.id}.0", f"{waiting.id}.4", "video_x.1"]
        self.assertEqual(self.store.wants(names), {names[0], names[2]})
        self.assertEqual(self.store.wants([waiting.id, "video_x"]), {waiting.id})

    def test_many_workers_that_go_at_random(self):
        """Of 200 jobs each has exactly one result, whoever goes away, comes back late or says things twice."""
        chance = random.Random(7)
        self.store.close()
        self.store = self.open(max_attempts=1000)
        ids = [self.add(str(index)).id for index in range(200)]
        results, alive, zombies, serial = {}, {}, [], 0
        while any(not job.is_over for job in map(self.store.job, ids)):
            self.time.now += chance.uniform(0, 3)
            for worker in range(8):
                if worker not in alive:
                    serial += 1
                    lease = self.claim(f"{worker}-{serial}")
                    if lease:
                        alive[worker] = lease
                    continue
                lease, luck = alive[worker], chance.random()
                if luck < 0.2:
                    zombies.append(alive.pop(worker))
                elif luck < 0.6:
                    self.store.beat(lease.job.id, lease.token)
                else:
                    if self.store.finish(lease.job.id, lease.token, {"name": str(lease.token), "files": {}}, {}):
                        results.setdefault(lease.job.id, []).append(lease.token)
                    del alive[worker]
            if zombies and chance.random() < 0.5:
                lease = zombies.pop(chance.randrange(len(zombies)))
                if self.store.finish(lease.job.id, lease.token, {"name": str(lease.token), "files": {}}, {}):
                    results.setdefault(lease.job.id, []).append(lease.token)
        self.assertEqual(sorted(results), sorted(ids))
        self.assertTrue(all(len(tokens) == 1 for tokens in results.values()))
        for id in ids:
            steps = self.store.transitions(id)
            self.assertEqual(sum(after == "completed" for _, after, _ in steps), 1)
            self.assertEqual(steps[-1], ("in_progress", "completed", results[id][0]))
            self.assertTrue(all(step[1] == then[0] for step, then in zip(steps, steps[1:])), steps)
        self.assertGreater(self.store.lapsed, 10)
        self.assertGreater(self.store.refused, 10)

    def test_a_damaged_file_is_refused(self):
        self.store.close()
        with open(self.path, "wb") as file:
            file.write(b"no database" * 1000)
        for name in ("-wal", "-shm"):
            if os.path.exists(self.path + name):
                os.unlink(self.path + name)
        with self.assertRaises(sqlite3.DatabaseError):
            self.open()
        os.unlink(self.path)
        self.store = self.open()


if __name__ == "__main__":
    unittest.main()
