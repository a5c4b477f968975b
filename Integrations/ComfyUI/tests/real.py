"""Runs the nodes in a real ComfyUI and looks at what its HTTP interface says: real.py PYTHON COMFYUI [FOLDER].

PYTHON is the interpreter of ComfyUI's environment, COMFYUI its `main.py` (or what starts it), whose `custom_nodes` holds this pack as
`turbodiffusion`. FOLDER gets what ComfyUI writes (default: a temporary one). Needs no card; nano and a small model made of
Tests/Golden are what it runs. Takes some minutes on two cores."""

import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
GOLDEN = PACK.parent.parent / "Tests/Golden"
PORT = 8288
ADDRESS = f"http://127.0.0.1:{PORT}"
PROMPT = "A small red sphere bounces on a checkered floor."
FIELDS = {"prompt": PROMPT, "width": 0, "height": 0, "num_frames": 5, "num_steps": 2, "seed": 3, "sigma_max": 0.0, "ode": False,
          "boundary": 0.0, "crf": 12}


def ask(method, path, fields=None):
    body = json.dumps(fields).encode() if fields is not None else None
    request = urllib.request.Request(ADDRESS + path, body, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            data = answer.read()
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from None
    return json.loads(data) if data else None


def model(name="nano", **widgets):
    return {"class_type": "TurboDiffusionModel",
            "inputs": {"model_name": name, "attention_type": "default", "sla_topk": 0.0, "linears": "default", **widgets}}


def saved(source, prefix):
    return {"class_type": "SaveVideo",
            "inputs": {"video": source, "filename_prefix": prefix, "format": "auto", "format.codec": "auto"}}


def text_graph(prefix="video/t", lora=None, frames=False, **fields):
    graph = {"1": model(), "2": {"class_type": "TurboDiffusionTextToVideo", "inputs": {"model": ["1", 0], **FIELDS, **fields}},
             "3": saved(["2", 0], prefix)}
    if lora:
        graph["4"] = {"class_type": "TurboDiffusionLoRA",
                      "inputs": {"model": ["1", 0], "lora_name": lora, "strength": 1.0, "expert": "both"}}
        graph["2"]["inputs"]["model"] = ["4", 0]
    if frames:
        graph["5"] = {"class_type": "SaveImage", "inputs": {"images": ["2", 1], "filename_prefix": prefix}}
    return graph


def image_graph(**fields):
    return {"1": model("small-i2v", attention_type="original"), "2": {"class_type": "LoadImage", "inputs": {"image": "ball.png"}},
            "3": {"class_type": "TurboDiffusionImageToVideo",
                  "inputs": {"model": ["1", 0], "image": ["2", 0], **FIELDS, "width": 64, "height": 48, **fields}},
            "4": saved(["3", 0], "video/i")}


def other_pack_graph():
    """As a graph of Comfyui_turbodiffusion comes over HTTP, with all but the sampler and its loaders cut away."""
    def loader(which):
        return {"class_type": "TurboWanModelLoader", "_meta": {"title": "loader"},
                "inputs": {"model_name": f"TurboWan2.2-I2V-A14B-{which}-720P-quant.pth", "attention_type": "sla", "sla_topk": 0.1}}
    return {"1": loader("high"), "2": loader("low"), "6": {"class_type": "LoadImage", "inputs": {"image": "ball.png"}},
            "7": {"class_type": "TurboDiffusionI2VSampler", "_meta": {"title": "sampler"},
                  "inputs": {"high_noise_model": ["1", 0], "low_noise_model": ["2", 0], "image": ["6", 0], "num_frames": 33,
                             "num_steps": 4, "resolution": "480", "aspect_ratio": "1:1", "boundary": 0.9, "sigma_max": 200.0,
                             "seed": 42, "use_ode": False, "width": 480, "height": 480}},
            "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}}}


class ComfyUI:
    """A process of ComfyUI with folders of its own, and what it said over its WebSocket."""

    def __init__(self, python, main, folder, **environment):
        self.folder = folder
        for name in ("input", "output", "temp", "user", "models/loras/styles", "models/turbodiffusion"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        small_model(folder / "models/turbodiffusion/small-i2v")
        subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", PACK.parent.parent / "docs/nano.png", "-vf", "crop=64:48:40:40",
                        folder / "input/ball.png"], check=True)
        self.log = open(folder / "comfyui.log", "w+")
        custom = folder / "custom_nodes"
        custom.mkdir(exist_ok=True)
        if not (custom / "turbodiffusion").exists():
            (custom / "turbodiffusion").symlink_to(PACK)
        self.process = subprocess.Popen(
            [python, main, "--cpu", "--port", str(PORT), "--base-directory", folder, "--disable-api-nodes", "--preview-size", "512",
             "--disable-all-custom-nodes", "--whitelist-custom-nodes", "turbodiffusion", "--database-url", "sqlite:///:memory:"],
            stdout=self.log, stderr=subprocess.STDOUT, env={**os.environ, **environment},
        )
        for _ in range(600):
            try:
                ask("GET", "/system_stats")
                return
            except OSError:
                assert self.process.poll() is None, self.said()
                time.sleep(0.5)
        self.stop()
        raise AssertionError(f"ComfyUI does not answer: {self.said()[-2000:]}")

    def said(self):
        return Path(self.log.name).read_text()

    def queue(self, graph):
        return ask("POST", "/prompt", {"prompt": graph, "client_id": "real"})["prompt_id"]

    def ended(self, identity, seconds=600):
        """How a graph ended: its status, its messages, its outputs."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            entry = ask("GET", f"/history/{identity}").get(identity)
            if entry and entry["status"].get("completed") is not None:
                messages = {name: data for name, data in entry["status"]["messages"]}
                return entry["status"]["status_str"], messages, entry["outputs"]
            time.sleep(0.1)
        raise AssertionError(f"a graph did not end: {self.said()[-2000:]}")

    def run(self, graph, seconds=600):
        status, messages, outputs = self.ended(self.queue(graph), seconds)
        assert status == "success", messages
        return outputs

    def memory(self, key="VmRSS"):
        """Bytes of this process."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{key}:\s+(\d+) kB", text)[1]) * 1024

    def service(self):
        """The process of the service, which is a child of ComfyUI's; None where there is none."""
        for path in Path("/proc").glob("[0-9]*/status"):
            try:
                text = path.read_text()
                if f"PPid:\t{self.process.pid}\n" in text and "Name:\tturbodiffusion" in text:
                    return int(path.parent.name)
            except OSError:
                pass
        return None

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait(30)


def small_model(folder):
    """Two experts that take a picture, from the fixtures."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"transformer": "weights/wan22_i2v_d128h64.safetensors", "low_noise_transformer": "weights/wan22_i2v_d128h64.safetensors",
             "text_encoder": "umt5/models_t5_tiny-enc-bf16.pth", "tokenizer": "tokenizer/umt5/tokenizer.json",
             "vae": "vae/Wan2.1_VAE_tiny.pth"}
    files = {}
    for part, source in parts.items():
        files[part] = part + Path(source).suffix if part != "low_noise_transformer" else "low.safetensors"
        shutil.copyfile(GOLDEN / source, folder / files[part])
    (folder / "config.json").write_text(json.dumps({
        "name": "small-i2v", "model": {"dit": {"num_heads": 2, "in_dim": 36}}, "files": files, "num_frames": 5, "width": 64, "height": 48,
    }))


def small_lora(path):
    """A LoRA of rank 4 for nano's self attention."""
    generator, made, data = random.Random(0), {}, b""
    for block in range(10):
        for part, shape in (("lora_A", [4, 256]), ("lora_B", [256, 4])):
            values = struct.pack("<1024f", *(generator.gauss(0, 0.2) for _ in range(1024)))
            made[f"diffusion_model.blocks.{block}.self_attn.q.{part}.weight"] = {
                "dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
            data += values
    text = json.dumps(made).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


class Listener(threading.Thread):
    """What comes over ComfyUI's WebSocket, in a process of ComfyUI's environment, which has a client for it."""

    PROGRAM = """
import asyncio, aiohttp, json, sys
async def main():
    async with aiohttp.ClientSession() as session, session.ws_connect(sys.argv[1], max_msg_size=0) as socket:
        await socket.send_str(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                print(json.dumps({"type": "preview", "bytes": len(message.data)}), flush=True)
            elif message.type == aiohttp.WSMsgType.TEXT:
                print(message.data, flush=True)
asyncio.run(main())
"""

    def __init__(self, python):
        super().__init__(daemon=True)
        self.messages = []
        self.process = subprocess.Popen(
            [python, "-c", self.PROGRAM, f"ws://127.0.0.1:{PORT}/ws?clientId=real"], stdout=subprocess.PIPE, text=True
        )
        self.start()

    def run(self):
        for line in self.process.stdout:
            self.messages.append(json.loads(line))

    def count(self, kind):
        return sum(message["type"] == kind for message in self.messages)

    def wait(self, test, seconds=300):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if any(test(message) for message in list(self.messages)):
                return
            time.sleep(0.02)
        raise AssertionError("what was waited for did not come")


def share(node, prompt):
    """Of progress messages of a node of a graph: how far it is."""
    def told(message, least):
        data = message.get("data", {})
        state = data.get("nodes", {}).get(node) if message["type"] == "progress_state" and data.get("prompt_id") == prompt else None
        return state is not None and state["max"] == 100 and state["value"] >= least
    return told


def file_of(comfyui, outputs, node, kind="images"):
    entry = outputs[node][kind][0]
    return comfyui.folder / "output" / entry["subfolder"] / entry["filename"]


def cpu_seconds(process):
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class OwnService:
    """A service that runs beside ComfyUI, of which everything is known."""

    def __init__(self, folder):
        folder.mkdir()
        self.key = uuid.uuid4().hex
        keys = folder / "keys"
        keys.write_text(self.key)
        keys.chmod(0o600)
        program = os.environ["TURBODIFFUSION_PROGRAM"]
        self.process = subprocess.Popen(
            [program, "serve", "--port", "0", "--api-key-file", keys, "--output", folder / "videos", "--model", "nano", "--model",
             slow_model(folder / "slow-text")], cwd=folder, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            found = re.search(r"listening on (http://\S+)", line)
            if found:
                self.address = found[1]
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def videos(self):
        request = urllib.request.Request(self.address + "/v1/videos", headers={"Authorization": f"Bearer {self.key}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def stop(self):
        self.process.terminate()
        self.process.wait(20)


def slow_model(folder):
    """nano with a text encoder that is so large that its stage can be seen: its weights are zeros, which take no disk."""
    shutil.copytree(PACK.parent.parent / "Models/nano", folder)
    source = folder / "text_encoder.safetensors"
    data = source.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    layers, width, made, at = 24, 8192, {}, 0
    for layer in range(layers):
        for name, entry in header.items():
            if not name.startswith("blocks.0.") and (layer > 0 or name.startswith("blocks.") or name == "__metadata__"):
                continue
            shape = [width if size == 640 else size for size in entry["shape"]]
            count = 2
            for size in shape:
                count *= size
            made[name.replace("blocks.0.", f"blocks.{layer}.")] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + count]}
            at += count
    text = json.dumps(made).encode()
    text += b" " * (-len(text) % 8)
    with open(source, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return folder


def check_interruption(comfyui, service):
    """In each stage: ComfyUI says so, and the service computes nothing any more."""
    for number, stage in enumerate(("text encoder", "step 2/4", "VAE decode")):
        graph = text_graph("video/x", num_frames=33, num_steps=4, seed=20 + number, prompt=f"{PROMPT} {number}")
        graph["1"] = model("slow-text")
        identity = comfyui.queue(graph)
        end = time.monotonic() + 300
        while True:
            running = [video["stage"] or "" for video in service.videos() if video["status"] == "in_progress"]
            if stage in running:
                break
            assert time.monotonic() < end, f"the stage {stage} did not come: {running}"
            time.sleep(0.02)
        at = time.monotonic()
        ask("POST", "/interrupt", {"prompt_id": identity})
        status, messages, outputs = comfyui.ended(identity)
        took = time.monotonic() - at
        assert status == "error" and "execution_interrupted" in messages and not outputs, (status, messages)
        assert service.videos() == [], service.videos()
        time.sleep(0.5)
        before = cpu_seconds(service.process.pid)
        time.sleep(1)
        used = cpu_seconds(service.process.pid) - before
        assert used < 0.1, f"the service computes on: {used} s in a second"
        print(f"interrupted in '{running[0]}': over after {took * 1000:.0f} ms; {used:.2f} s of processor time in a second after it")


def check_memory(comfyui):
    """Peak memory of ComfyUI's process against the frames that it does not decode."""
    frames = 33 * 144 * 256 * 3
    comfyui.run(text_graph("video/warm", num_steps=1, seed=31))
    Path(f"/proc/{comfyui.process.pid}/clear_refs").write_text("5")
    before = comfyui.memory("VmHWM")
    comfyui.run(text_graph("video/memory", num_frames=33, num_steps=1, seed=32))
    grown = comfyui.memory("VmHWM") - before
    print(f"peak memory grows by {grown / 1e6:.2f} MB for a video of {frames / 1e6:.2f} MB (8-bit frames)")
    assert grown < frames
    Path(f"/proc/{comfyui.process.pid}/clear_refs").write_text("5")
    before = comfyui.memory("VmHWM")
    comfyui.run(text_graph("video/memory", frames=True, num_frames=33, num_steps=1, seed=33))
    print(f"with frames for other nodes: by {(comfyui.memory('VmHWM') - before) / 1e6:.2f} MB, {4 * frames / 1e6:.2f} MB of which are the frames")


def check_own_service(python, start, folder):
    comfyui = ComfyUI(python, start, folder)
    try:
        listener = Listener(python)
        assert comfyui.service() is None, "a service that nobody has asked for"

        outputs = comfyui.run(text_graph(frames=True))
        assert file_of(comfyui, outputs, "3").read_bytes()[4:8] == b"ftyp", outputs
        assert len(outputs["5"]["images"]) == 5, outputs
        values = [m["data"]["nodes"]["2"]["value"] for m in listener.messages
                  if m["type"] == "progress_state" and m["data"]["nodes"].get("2", {}).get("max") == 100]
        assert values == sorted(values) and values[-1] == 100, values
        assert listener.count("preview") >= 2
        print(f"text to video: {len(values)} messages of progress, {listener.count('preview')} previews; frames and file are there")

        outputs = comfyui.run(image_graph())
        assert file_of(comfyui, outputs, "4").read_bytes()[4:8] == b"ftyp"
        print("image to video with two experts: done")

        one, two = (comfyui.queue(text_graph(f"video/q{seed}", seed=seed)) for seed in (40, 41))
        ends = [comfyui.ended(identity) for identity in (one, two)]
        assert [status for status, _, _ in ends] == ["success"] * 2
        first, second = (file_of(comfyui, outputs, "3").read_bytes() for _, _, outputs in ends)
        assert first != second
        both = text_graph("video/b1", seed=42)
        both.update({"12": {"class_type": "TurboDiffusionTextToVideo", "inputs": {"model": ["1", 0], **FIELDS, "seed": 43}},
                     "13": saved(["12", 0], "video/b2")})
        outputs = comfyui.run(both)
        assert set(outputs) == {"3", "13"}
        print("two graphs queued, and one with two makers: done")

        # The one that is left behind of two makers in a graph.
        for seed, key in ((44, "2"), (45, "12")):
            both[key]["inputs"].update(num_frames=33, num_steps=4, seed=seed)
        identity = comfyui.queue(both)
        told = share("2", identity)
        listener.wait(lambda message: told(message, 1))
        ask("POST", "/interrupt", {"prompt_id": identity})
        status, messages, _ = comfyui.ended(identity)
        assert "execution_interrupted" in messages
        time.sleep(1)
        before = cpu_seconds(comfyui.service())
        time.sleep(1)
        assert cpu_seconds(comfyui.service()) - before < 0.1, "the other one goes on"
        print("two makers in one graph, interrupted: both end")

        refused = ask_refused(text_graph(lora="../../etc/passwd"))
        assert "not in list" in refused, refused
        refused = ask_refused({"1": model("/etc"), **{key: node for key, node in text_graph().items() if key != "1"}})
        assert "not in list" in refused, refused
        print("names that are not in a list are refused before anything runs")

        check_memory(comfyui)
        small_lora(folder / "models/loras/styles/small.safetensors")
        plain = comfyui.run(text_graph("video/plain", frames=True, seed=50))
        changed = comfyui.run(text_graph("video/lora", frames=True, lora="styles/small.safetensors", seed=50))
        assert file_of(comfyui, plain, "5").read_bytes() != file_of(comfyui, changed, "5").read_bytes()
        print("LoRA in a subfolder: other frames")

        # Its nodes became ours; the model that they mean is not here.
        refused = ask_refused(other_pack_graph())
        assert "model_name: 'Wan2.2-A14B' not in" in refused and "TurboWan" not in refused, refused
        print("a graph of the other pack is understood")

        service = comfyui.service()
        comfyui.stop(signal.SIGKILL)
        time.sleep(2)
        assert not Path(f"/proc/{service}").exists(), "the service outlives ComfyUI"
        listener.process.kill()
        print("killed: its service ends too")
    finally:
        if comfyui.process.poll() is None:
            comfyui.stop()


def check_running_service(python, start, folder):
    service = OwnService(folder / "service")
    comfyui = ComfyUI(python, start, folder, TURBODIFFUSION_URL=service.address, TURBODIFFUSION_API_KEY=service.key)
    try:
        options = ask("GET", "/object_info/TurboDiffusionModel")["TurboDiffusionModel"]["input"]["required"]["model_name"][1]["options"]
        assert options == ["default", "nano", "slow-text"], options
        comfyui.run(text_graph("video/other"))
        assert comfyui.service() is None
        print("a service that runs already: used")
        check_interruption(comfyui, service)
    finally:
        comfyui.stop()
        service.stop()


def ask_refused(graph):
    """What ComfyUI says of a graph that it does not take."""
    try:
        ask("POST", "/prompt", {"prompt": graph, "client_id": "real"})
    except AssertionError as error:
        return str(error)
    raise AssertionError("the graph was taken")


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    folder = Path(sys.argv[3] if len(sys.argv) == 4 else tempfile.mkdtemp(prefix="comfyui-")).resolve()
    check_own_service(*sys.argv[1:3], folder)
    check_running_service(*sys.argv[1:3], folder)
    print("everything holds")


if __name__ == "__main__":
    main()
