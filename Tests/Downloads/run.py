#!/usr/bin/env python3
# Downloads of the real program from a hub on this machine that fails in every way: named cases, then many by chance.
"""Usage: run.py [--program FILE] [--transfers 200] [--seed N] [--only NAME]

Shows that every file arrives whole, that none is fetched twice, and how many bytes came more than once.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from server import Hub  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
MIB = 1 << 20
SHARED = {"t5.pth": 300_000, "vae.pth": 200_000, "spiece.model": 50_000}


class Case:
    """A hub, an empty folder, and the program between them."""

    def __init__(self, program, token=None):
        self.program = program
        self.hub = Hub(token)
        self.folder = tempfile.TemporaryDirectory(prefix="downloads-")
        self.root = pathlib.Path(self.folder.name)
        self.models = self.root / "models"
        self.config = self.root / "config.toml"
        self.config.write_text("")
        for name, size in SHARED.items():
            self.hub.add("test/shared", name, size)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.hub.close()
        self.folder.cleanup()

    def model(self, name, repository="test/models", path=None, extra=""):
        """Adds a model to the user's configuration."""
        with self.config.open("a") as file:
            file.write(
                f'[models.{name}]\nlike = "Wan2.1-1.3B"\nlicence = "none"\n'
                f'transformer = "{repository}:{path or name + ".pth"}"\n'
                f'text_encoder = "test/shared:t5.pth"\nvae = "test/shared:vae.pth"\n'
                f'tokenizer = "test/shared:spiece.model"\n{extra}\n')

    def environment(self, **more):
        kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
        return kept | {
            "HOME": str(self.root), "HF_ENDPOINT": self.hub.endpoint, "no_proxy": "*",
            "TURBODIFFUSION_MODELS": str(self.models), "TURBODIFFUSION_CONFIG": str(self.config)} | more

    def start(self, *words, **more):
        # Shells make what runs in the background ignore Ctrl-C, and the program keeps to that.
        return subprocess.Popen(
            [self.program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.root,
            env=self.environment(**more), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    def run(self, *words, timeout=120, **more):
        process = self.start(*words, **more)
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{words} hangs: {process.communicate()}")
        return process.returncode, output, errors

    def get(self, name, *words, **more):
        return self.run("get", name, "--stall-seconds", "1", "--quiet", *words, **more)

    def place(self, path, repository="test/models"):
        return self.models / repository / path

    def is_whole(self, file):
        place = self.models / file.name
        return place.exists() and hashlib.sha256(place.read_bytes()).hexdigest() == file.sha256

    def leftovers(self):
        return [str(path) for path in self.models.rglob("*") if ".part" in path.name]


def expect(condition, text):
    if not condition:
        raise AssertionError(text)


def expect_line(result, *parts, code=1):
    """An error of one line, which says all of this."""
    status, _, errors = result
    lines = [line for line in errors.splitlines() if line]
    expect(status == code, f"exit {status}, not {code}: {errors}")
    expect(len(lines) == 1, f"one line was expected: {errors}")
    for part in parts:
        expect(part in lines[0], f"'{part}' is not in: {lines[0]}")


# Cases with a name. Each is given a fresh hub and folder.

def whole_without_faults(case):
    """Four files, each once; the second time and for another model nothing is asked."""
    file = case.hub.add("test/models", "a.pth", 5 * MIB + 7)
    case.hub.add("test/models", "b.pth", MIB)
    case.model("a"), case.model("b")
    expect(case.get("a")[0] == 0, "get a")
    expect(case.is_whole(file) and not case.leftovers(), "a is not whole")
    requests = {name: (one.requests, one.heads) for name, one in case.hub.files.items()}
    expect(case.get("a")[0] == 0, "get a again")
    expect(requests == {name: (one.requests, one.heads) for name, one in case.hub.files.items()},
           "what is here was asked for again")
    expect(case.get("b")[0] == 0, "get b")
    for name in SHARED:
        expect(case.hub.files[f"test/shared/{name}"].total()[1] == 0, f"{name} was sent twice")


def small_without_hash(case):
    file = case.hub.add("test/models", "a.pth", 3 * MIB, is_large=False, faults=[("drop", 0.5)])
    case.model("a")
    expect(case.get("a")[0] == 0 and case.is_whole(file), "a is not whole")


def fault(*faults, head=(), size=3 * MIB, **keywords):
    def test(case):
        file = case.hub.add("test/models", "a.pth", size, faults=faults, head_faults=head, **keywords)
        case.model("a")
        status, _, errors = case.get("a")
        expect(status == 0, errors)
        expect(case.is_whole(file) and not case.leftovers(), f"not whole: {errors}")
    return test


def changed_meanwhile(case):
    file = case.hub.add("test/models", "a.pth", 4 * MIB, changes_after=2)
    case.model("a")
    status, _, errors = case.get("a")
    expect(status == 0 and file.version == 1 and case.is_whole(file), errors)


def small_changed_meanwhile(case):
    file = case.hub.add("test/models", "a.pth", 4 * MIB, is_large=False, changes_after=2)
    case.model("a")
    status, _, errors = case.get("a")
    expect(status == 0 and file.version == 1 and case.is_whole(file), errors)


def small_changed_after_a_whole_answer(case):
    """What makes the program doubt that parts are given must not let two versions mix."""
    file = case.hub.add("test/models", "a.pth", 8 * MIB, is_large=False, faults=[("whole",), ("whole",)], changes_after=4)
    case.model("a")
    status, _, errors = case.get("a")
    expect(status == 0 and file.version == 1 and case.is_whole(file), errors)


def changed_before_the_first_byte(case):
    """Between the question and the bytes: what came is the new file, and is not fetched again."""
    file = case.hub.add("test/models", "a.pth", 8 * MIB, changes_after=0)
    case.model("a")
    status, _, errors = case.get("a")
    expect(status == 0 and file.version == 1 and case.is_whole(file), errors)
    expect(file.total()[1] == 0, f"bytes came twice: {file.total()}")


def changed_between(case):
    """What an interrupted transfer has left of another version is not used."""
    file = case.hub.add("test/models", "a.pth", 4 * MIB, faults=[("drop", 0.5)] * 40)
    case.model("a")
    case.get("a", "--tries", "2")
    file.change(5 * MIB)
    file.faults = []
    expect(case.get("a")[0] == 0 and case.is_whole(file), "not whole")
    expect(file.total()[1] == 0, "bytes came twice")


def token_stays(case):
    """The token goes to the hub, and not with the redirection to another host."""
    case.hub.private.add("test/models")
    file = case.hub.add("test/models", "a.pth", 2 * MIB)
    case.model("a")
    expect_line(case.get("a"), "HF_TOKEN", "does not give test/models:a.pth to everybody")
    expect_line(case.get("a", HF_TOKEN="hf_wrong"), "does not accept HF_TOKEN")
    expect_line(case.get("a", HF_TOKEN="two words"), "HF_TOKEN is no token")
    expect(case.get("a", HF_TOKEN="hf_secret")[0] == 0 and case.is_whole(file), "with the token")
    expect(not case.hub.leaked, f"the token went to another host: {case.hub.leaked}")


def terms(case):
    case.hub.terms.add("test/models")
    case.model("a")
    expect_line(case.get("a"), "accept the terms", "/test/models", "Access to model is restricted")


def nothing_there(case):
    case.model("a")
    expect_line(case.get("a"), "has no test/models:a.pth")


def never_any_bytes(case):
    case.hub.add("test/models", "a.pth", MIB, faults=[("status", 416, [])] * 99)
    case.model("a")
    expect_line(case.get("a", "--tries", "3"), "416", "the same command goes on")


def always_too_short(case):
    case.hub.add("test/models", "a.pth", MIB, head_faults=[("lie", MIB + 10)] * 99)
    case.model("a")
    expect_line(case.get("a", "--tries", "3"), "were promised")


def always_damaged(case):
    case.hub.add("test/models", "a.pth", MIB, faults=[("damage",)] * 99)
    case.model("a")
    expect_line(case.get("a"), "came damaged twice", "SHA-256")
    expect(not case.leftovers(), "damaged bytes were kept")


def nobody_there(case):
    case.hub.add("test/models", "a.pth", MIB)
    case.model("a")
    result = case.get("a", "--tries", "2", HF_ENDPOINT="http://127.0.0.1:9")
    expect_line(result, "http://127.0.0.1:9", "cannot be asked")


def through_a_proxy(case):
    """Proxies are those of the environment."""
    file = case.hub.add("test/models", "a.pth", 2 * MIB)
    case.model("a")
    status, _, errors = case.get(
        "a", HF_ENDPOINT="http://hub.invalid", http_proxy=case.hub.endpoint, no_proxy="", HF_TOKEN="hf_secret")
    expect(status == 0 and case.is_whole(file) and not case.hub.leaked, errors)
    expect("hub.invalid" in case.hub.proxied and len(set(case.hub.proxied)) == 2, f"{case.hub.proxied}")


def asked_to_wait(case):
    file = case.hub.add("test/models", "a.pth", MIB // 2, faults=[("status", 429, [("Retry-After", "2")])])
    case.model("a")
    case.get("a")
    started = time.monotonic()
    file = case.hub.add("test/models", "b.pth", MIB // 2, faults=[("status", 503, [("Retry-After", "2")])])
    case.model("b")
    expect(case.get("b")[0] == 0 and case.is_whole(file), "not whole")
    expect(time.monotonic() - started >= 2, "it did not wait as long as it was asked to")


def two_at_once(case):
    """Two processes with one name: one fetches, the other waits."""
    file = case.hub.add("test/models", "a.pth", 6 * MIB, faults=[("stall", 0.9)])
    case.model("a")
    words = ("get", "a", "--stall-seconds", "1")
    both = [case.start(*words) for _ in range(3)]
    for process in both:
        output, errors = process.communicate(timeout=60)
        expect(process.returncode == 0, errors)
    expect(case.is_whole(file) and not case.leftovers(), "not whole")
    expect(file.total()[1] <= file.size // 50, "bytes came twice")


def stopped_by_hand(case):
    """Ctrl-C keeps what came; the same command goes on with it."""
    file = case.hub.add("test/models", "a.pth", 8 * MIB, faults=[("stall", 0.5, 20)] * 4)
    case.model("a")
    process = case.start("get", "a", "--stall-seconds", "30")
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    expect(process.returncode not in (0, None) and "goes on" in errors, f"{process.returncode} {errors}")
    file.faults = []
    expect(case.get("a")[0] == 0 and case.is_whole(file), "not whole")
    expect(file.total()[1] <= file.size // 50, f"bytes came twice: {file.total()}")


def killed(case):
    file = case.hub.add("test/models", "a.pth", 8 * MIB, faults=[("stall", 0.5, 20)] * 4)
    case.model("a")
    process = case.start("get", "a", "--stall-seconds", "30")
    time.sleep(1.5)
    process.kill()
    process.communicate()
    file.faults = []
    expect(case.get("a")[0] == 0 and case.is_whole(file), "not whole")
    expect(file.total()[1] <= file.size // 10, f"bytes came twice: {file.total()}")


def removed(case):
    """What two models share stays until the last is removed; other files are not touched."""
    for name in "ab":
        case.hub.add("test/models", f"{name}.pth", MIB)
        case.model(name)
        expect(case.get(name)[0] == 0, f"get {name}")
    own = case.place("own.pth")
    own.write_bytes(b"mine")
    expect_line(case.run("remove", "a"), "--yes")
    expect(case.run("remove", "a", "--yes")[0] == 0 and not case.place("a.pth").exists(), "a is still here")
    expect(case.place("t5.pth", "test/shared").exists(), "what b needs was removed")
    case.place("b.pth").write_bytes(b"changed by hand")
    status, output, errors = case.run("remove", "b", "--yes")
    expect(case.place("b.pth").exists() and own.exists(), "files were removed that are not ours")
    expect(not case.place("t5.pth", "test/shared").exists(), f"shared files are still here: {output}{errors}")


def listed(case):
    case.hub.add("test/models", "a.pth", MIB)
    case.model("a")
    status, output, _ = case.run("models", "--json")
    rows = {row["name"]: row for row in map(json.loads, output.splitlines())}
    expect(status == 0 and not rows["a"]["here"] and rows["a"]["missing"], f"{rows['a']}")
    expect(case.get("a")[0] == 0, "get a")
    rows = {row["name"]: row for row in map(json.loads, case.run("models", "--json")[1].splitlines())}
    expect(rows["a"]["here"] and rows["a"]["licence"] == "none", f"{rows['a']}")
    expect("Wan2.1-1.3B" in rows and not rows["Wan2.1-1.3B"]["here"], f"{rows}")
    expect("a" in case.run("models")[1], "the table")


def said_what_to_type(case):
    expect_line(case.run("t2v", "a cat", "--model", "Wan2.1-1.3B"), "turbodiffusion get Wan2.1-1.3B")
    result = case.run("get", "Wan9")
    expect_line(result, "Wan9", "turbodiffusion models")


def in_pieces(case):
    """An index names the pieces, and is here only when they are."""
    pieces = [f"w-{index}.safetensors" for index in range(3)]
    index = json.dumps({"weight_map": {f"tensor{n}": pieces[n % 3] for n in range(9)}}).encode()
    case.hub.put("test/models", "dir/w.index.json", index, is_large=False)
    files = [case.hub.add("test/models", f"dir/{name}", MIB, faults=[("drop", 0.5)]) for name in pieces]
    case.model("a", path="dir/w.index.json")
    files[2].permanent = 404
    expect(case.get("a")[0] != 0 and not case.place("dir/w.index.json").exists(), "the index came before its pieces")
    files[2].permanent = None
    expect(case.get("a")[0] == 0 and all(map(case.is_whole, files)), "not whole")
    expect(case.place("dir/w.index.json").read_bytes() == index, "the index")
    expect(all(file.total()[1] == 0 for file in files), "pieces came twice")
    expect(case.run("remove", "a", "--yes")[0] == 0 and not case.place("dir").exists(), "pieces are left")
    expect(not (case.models / "test").exists(), f"left: {list(case.models.rglob('*'))}")


def no_room(case):
    case.hub.add("test/models", "a.pth", MIB, head_faults=[("lie", 1 << 60)] * 9)
    case.model("a")
    expect_line(case.get("a"), "a needs", "are free", "TURBODIFFUSION_MODELS")


def bad_configuration(case):
    case.config.write_text("[folders]\nmodels = [1]\n")
    expect_line(case.run("models"), "config.toml:2: arrays are not supported", code=64)
    expect("arrays are not supported" in case.run("doctor", "--quick")[1], "doctor says it")
    case.config.write_text('[defaults]\nmemory_limit = "lots"\n')
    expect_line(case.run("t2v", "a cat"), "config.toml:2", "lots", code=64)


def used_where_it_is(case):
    """Files of Hugging Face's cache, of ComfyUI and of the original's folder are not fetched."""
    file = case.hub.add("test/models", "a.pth", MIB)
    cache = case.root / "hub/models--test--models"
    (cache / "snapshots/abc").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("abc")
    (cache / "snapshots/abc/a.pth").write_bytes(file.bytes)
    wan, vae, text = "Wan-AI/Wan2.1-T2V-1.3B", "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"
    names = [f"{wan}/{vae}", f"{wan}/{text}", "test/models/a.pth"]
    case.hub.add(wan, vae, MIB), case.hub.add(wan, text, MIB)
    tokenizer = case.hub.add("google/umt5-xxl", "spiece.model", MIB)
    comfy, checkpoints = case.root / "comfy", case.root / "checkpoints"
    (comfy / "vae").mkdir(parents=True)
    nano = ROOT / "Models/nano"
    (comfy / "vae/wan_2.1_vae.safetensors").write_bytes((nano / "vae.safetensors").read_bytes())
    checkpoints.mkdir()
    encoder = (nano / "text_encoder.safetensors").read_bytes()
    # Fetched by half by another program: told, not used.
    (checkpoints / text).write_bytes(encoder[:len(encoder) // 2])
    # A name that says nothing is not taken for another's file.
    (checkpoints / "a.pth").write_bytes(b"something else")
    case.config.write_text('[models.a]\nlike = "Wan2.1-1.3B"\ntransformer = "test/models:a.pth"\n')
    more = {"HF_HUB_CACHE": str(case.root / "hub"), "TURBODIFFUSION_COMFYUI": str(comfy)}
    expect_line(case.run("get", "a", **more), text, "move it away")
    (checkpoints / text).write_bytes(encoder)
    status, output, errors = case.run("get", "a", **more)
    expect(status == 0, errors)
    for name in names:
        expect(case.hub.files[name].requests == 0, f"{name} was fetched though it is here")
    expect(tokenizer.requests > 0, "the tokenizer was not fetched")
    rows = {row["name"]: row for row in map(json.loads, case.run("models", "--json", **more)[1].splitlines())}
    expect(rows["a"]["here"] and rows["a"]["paths"]["transformer"].startswith(str(cache)), f"{rows['a']}")


def by_name(case):
    """A real model from the hub: fetched by name, and a video made with it by name."""
    nano = ROOT / "Models/nano"
    for path in nano.iterdir():
        case.hub.put("test/tiny", path.name, path.read_bytes(), is_large=path.suffix != ".json")
    with case.config.open("a") as config:
        config.write('[models.tiny]\nfolder = "test/tiny"\nlicence = "Apache-2.0"\n')
    expect_line(case.run("t2v", "a ball", "--model", "tiny"), "turbodiffusion get tiny")
    status, _, errors = case.get("tiny")
    expect(status == 0, errors)
    words = ("--num_frames", "5", "--quiet", "--device", "cpu", "--save_path")
    status, _, errors = case.run("t2v", "a ball", "--model", "tiny", *words, "a.mp4", PATH=os.environ["PATH"])
    expect(status == 0 and (case.root / "a.mp4").stat().st_size > 1000, errors)


def recipe(case):
    """base + 2 (target - diff base), quantised, of nano's own weights: equal to what the commands make."""
    nano = ROOT / "Models/nano"
    program = case.program
    plain = case.root / "plain.safetensors"
    run = lambda *words: subprocess.run([program, *map(str, words)], check=True, capture_output=True, env=case.environment())
    run("convert", nano / "student_sla_quant.pth", plain, "--dequantize", "--quiet")
    for name in ("base", "from", "to"):
        case.hub.put("test/parts", f"{name}.safetensors", plain.read_bytes())
    with case.config.open("a") as config:
        config.write(
            '[recipes.mixed]\nlike = "Wan2.1-1.3B"\nlicence = "none"\nbase = "test/parts:base.safetensors"\n'
            'from = "test/parts:from.safetensors"\nto = "test/parts:to.safetensors"\nweight = "2.0"\n'
            'text_encoder = "test/shared:t5.pth"\nvae = "test/shared:vae.pth"\n'
            'tokenizer = "test/shared:spiece.model"\n')
    status, _, errors = case.run("get", "--recipe", "mixed", "--stall-seconds", "1")
    expect(status == 0 and "untested" in errors, errors)
    merged, quantised = case.root / "merged.safetensors", case.root / "quantised.safetensors"
    run("merge", "--base", plain, "--diff-base", plain, "--diff-target", plain, "--w", "2", "--output", merged)
    run("quantize", merged, quantised)
    made = case.models / "recipes/mixed/transformer.safetensors"
    status, output, errors = case.run("compare", str(made), str(quantised))
    expect(status == 0, output + errors)
    requests = sum(file.requests for file in case.hub.files.values())
    expect(case.run("get", "--recipe", "mixed")[0] == 0, "a second time")
    expect(requests == sum(file.requests for file in case.hub.files.values()), "parts were fetched again")
    rows = {row["name"]: row for row in map(json.loads, case.run("models", "--json")[1].splitlines())}
    expect(rows["mixed"]["here"], f"{rows['mixed']}")


CASES = {
    "whole without faults": whole_without_faults,
    "a small file without a hash": small_without_hash,
    "connections dropped": fault(("drop", 0.5), ("drop", 0), ("drop-reset", 0.9)),
    "reset before the answer": fault(("reset",), ("reset",)),
    "stalls": fault(("stall", 0.3), ("stall", 0)),
    "questions dropped and stalled": fault(head=["drop", "stall", ("status", 503, [])]),
    "truncated answers": fault(("short", 0.5), ("short", 0.01), ("drop", 0.99)),
    "more promised than sent": fault(("lie-more", 1000), ("lie-more", 1)),
    "less promised than sent": fault(("lie-less", 0.5)),
    "more sent than asked for": fault(("extra",)),
    "another part than asked for": fault(("wrong-start",)),
    "another size in the answer": fault(("wrong-total", 5), ("wrong-total", -5)),
    "another size at the hub, once": fault(head=[("lie", 3 * MIB - 9)]),
    "the whole file where a part was asked for": fault(("whole",)),
    "no parts at all": fault(*[("whole",)] * 99),
    "damaged once": fault(("damage",)),
    "416 once": fault(("status", 416, [])),
    "403 of an address that has expired": fault(("status", 403, [])),
    "429 and 503": fault(("status", 429, [("Retry-After", "1")]), ("status", 503, []), ("status", 500, [])),
    "an empty file": fault(size=0),
    "one byte": fault(size=1),
    "through a proxy": through_a_proxy,
    "waits as long as it is asked to": asked_to_wait,
    "changed meanwhile": changed_meanwhile,
    "a small file changed meanwhile": small_changed_meanwhile,
    "changed after a whole answer": small_changed_after_a_whole_answer,
    "changed before the first byte": changed_before_the_first_byte,
    "changed between two calls": changed_between,
    "the token stays with the hub (401)": token_stays,
    "terms not accepted (403)": terms,
    "no such file (404)": nothing_there,
    "416 for ever": never_any_bytes,
    "the hub lies about the size": always_too_short,
    "damaged for ever": always_damaged,
    "nobody answers": nobody_there,
    "two processes at once": two_at_once,
    "Ctrl-C, and again": stopped_by_hand,
    "killed, and again": killed,
    "removed": removed,
    "listed": listed,
    "what to type": said_what_to_type,
    "a file in pieces": in_pieces,
    "no room on the disk": no_room,
    "a configuration that cannot be used": bad_configuration,
    "used where it is": used_where_it_is,
    "a video by name": by_name,
    "a recipe": recipe,
}


def random_fault(chance, is_large):
    share = chance.random()
    # What the hub itself refuses is not asked for again; a signed address may have expired.
    refusals = [403, 404] if is_large else []
    return chance.choice([
        ("drop", share), ("drop", share), ("drop-reset", share), ("reset",), ("stall", share),
        ("short", max(0.01, share)), ("lie-more", chance.randrange(1, 5000)), ("lie-less", max(0.1, share)),
        ("extra",), ("wrong-start",), ("wrong-total", chance.choice([-1, 1, 4096])), ("whole",),
        ("status", chance.choice(refusals + [416, 429, 500, 502, 503]), [("Retry-After", "0")]),
    ])


def transfers(program, count, seed):
    """Many transfers with faults by chance. Prints the figures that matter."""
    chance = random.Random(seed)
    wanted = sent = again = received = faults = kills = waits = 0
    started = time.monotonic()
    with Case(program) as case:
        for index in range(count):
            name = f"m{index}"
            size = int(MIB * 2 ** chance.uniform(0, 4))
            is_large = chance.random() < 0.8
            own = [random_fault(chance, is_large) for _ in range(chance.choice([0, 1, 2, 3, 5, 8]))]
            head = chance.choice([[], [], [], ["drop"], [("status", 503, [])], [("status", 429, [("Retry-After", "0")])]])
            changes = chance.randrange(1, 6) if chance.random() < 0.1 else None
            file = case.hub.add("test/models", f"{name}.pth", size, is_large, own, head, changes)
            case.model(name)
            if chance.random() < 0.2:
                process = case.start("get", name, "--stall-seconds", "1", "--quiet")
                time.sleep(chance.uniform(0.02, 0.4))
                process.send_signal(chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL]))
                process.communicate()
                kills += 1
            if chance.random() < 0.1:
                both = [case.start("get", name, "--stall-seconds", "1", "--quiet") for _ in range(2)]
                ends = [(process.communicate(timeout=120), process.returncode) for process in both]
                expect(all(code == 0 for _, code in ends), f"{name} (seed {seed}): {ends}")
                waits += 1
            status, _, errors = case.get(name)
            expect(status == 0, f"{name} (seed {seed}, {own}, {head}): {errors}")
            expect(case.is_whole(file), f"{name} (seed {seed}) is not whole")
            expect(not case.leftovers(), f"{name} (seed {seed}): {case.leftovers()}")
            requests = file.requests
            expect(case.get(name)[0] == 0 and file.requests == requests, f"{name} was fetched twice")
            one = file.total()
            wanted, sent, again = wanted + one[0] - one[1], sent + one[0], again + one[1]
            faults += len(own) - len(file.faults) + len(head) - len(file.head_faults)
            del case.hub.files[f"test/models/{name}.pth"]
            (case.models / file.name).unlink()
        for name in SHARED:
            one = case.hub.files[f"test/shared/{name}"].total()
            expect(one[1] == 0, f"{name} was sent twice")
        expect(not case.hub.leaked, "a token went to another host")
    share = 100 * again / max(1, wanted)
    print(f"{count} transfers, seed {seed}: {count} whole and verified, none fetched twice; {faults} faults, {kills} "
          f"kills, {waits} pairs of processes; {wanted / 1e6:.0f} MB wanted, {again / 1e6:.2f} MB sent again: "
          f"{share:.2f} %; {time.monotonic() - started:.0f} s")
    expect(share < 2, "more than 2 % of the bytes were sent again")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", default=str(ROOT / ".build/release/turbodiffusion"))
    parser.add_argument("--transfers", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="cases whose name has this; - for none")
    options = parser.parse_args()
    program = str(pathlib.Path(options.program).resolve())
    failed = 0
    for name, test in CASES.items():
        if options.only not in name:
            continue
        started = time.monotonic()
        try:
            with Case(program, token="hf_secret") as case:
                test(case)
            print(f"ok      {name} ({time.monotonic() - started:.1f} s)", flush=True)
        except (AssertionError, subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            failed += 1
            print(f"FAILED  {name}: {error}", flush=True)
    if options.transfers:
        try:
            transfers(program, options.transfers, options.seed)
        except AssertionError as error:
            failed += 1
            print(f"FAILED  transfers: {error}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
