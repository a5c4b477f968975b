"""The nodes against stand-ins for ComfyUI's modules and the real service with nano. What the stand-ins do is what ComfyUI 0.33
does: `real.py` beside this file looks at that."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import types
import unittest
from pathlib import Path

import numpy as np

PACK = Path(__file__).resolve().parent.parent
FOLDER = tempfile.TemporaryDirectory()


class Interrupted(BaseException):
    """What ComfyUI raises: not an Exception."""


class State:
    """What happens in ComfyUI."""

    graph = {}
    executing = None
    # Called with the progress that a node tells; answers whether somebody interrupts now.
    watch = staticmethod(lambda progress: False)
    is_interrupted = False
    progress = []
    previews = 0


def module(name, **names):
    made = types.ModuleType(name)
    made.__dict__.update(names)
    sys.modules[name] = made
    return made


def comfyui():
    """What the nodes use of ComfyUI, with its names and arguments."""

    class Part:
        def __init__(self, *words, **named):
            self.id = words[0] if words else None
            self.named = named

    def kind():
        return type("Kind", (), {"Input": type("Input", (Part,), {}), "Output": type("Output", (Part,), {})})

    class Schema:
        def __init__(self, node_id, display_name, category, description, inputs, outputs, search_aliases=()):
            self.node_id, self.inputs, self.outputs = node_id, inputs, outputs

    class NodeOutput:
        def __init__(self, *values):
            self.args = values

    io = types.SimpleNamespace(
        ComfyNode=type("ComfyNode", (), {}), Schema=Schema, NodeOutput=NodeOutput, Custom=lambda name: kind(),
        **{name: kind() for name in ("Combo", "Float", "Int", "String", "Boolean", "Image", "Video")},
    )

    class Execution:
        async def set_progress(self, value, max_value, node_id=None, preview_image=None):
            if node_id is None and State.executing is None:
                raise ValueError("node_id must be provided if not in executing context")
            State.progress.append(value)
            State.previews += preview_image is not None
            if State.watch(value):
                State.is_interrupted = True

    class NodeReplace:
        def __init__(self, new_node_id, old_node_id, old_widget_ids=None, input_mapping=None, output_mapping=None):
            self.new_node_id, self.old_node_id, self.input_mapping = new_node_id, old_node_id, input_mapping

    io.NodeReplace = NodeReplace

    class Replacements:
        def __init__(self):
            self.known = {}

        async def register(self, replacement):
            self.known[replacement.old_node_id] = replacement

    class VideoFromFile:
        def __init__(self, file):
            self.data = file.getvalue()

        def get_components(self):
            return types.SimpleNamespace(images=len(self.data))

    api = types.SimpleNamespace(execution=Execution(), node_replacement=Replacements())
    module(
        "comfy_api.latest", io=io, ComfyAPI=lambda: api,
        ComfyExtension=type("ComfyExtension", (), {}), InputImpl=types.SimpleNamespace(VideoFromFile=VideoFromFile),
    )
    module("comfy_api")

    class Graph:
        def all_node_ids(self):
            return set(State.graph)

        def get_node(self, node):
            return State.graph[node]

    module("comfy_execution")
    module("comfy_execution.progress", get_progress_state=lambda: types.SimpleNamespace(dynprompt=Graph()))
    module("comfy_execution.utils", get_executing_context=lambda: State.executing)

    def check():
        # Whoever asks first takes the interruption away from everybody else.
        if State.is_interrupted:
            State.is_interrupted = False
            raise Interrupted

    management = module("comfy.model_management", throw_exception_if_processing_interrupted=check)
    module("comfy", model_management=management)
    known = {kind: [os.path.join(FOLDER.name, kind)] for kind in ("loras", "diffusion_models", "text_encoders", "vae")}

    def files(kind):
        found = []
        for folder in known[kind]:
            for at, _, names in os.walk(folder):
                found += [os.path.relpath(os.path.join(at, name), folder) for name in names]
        return sorted(found)

    def full(kind, name):
        paths = [os.path.join(folder, name) for folder in known[kind]]
        return next((path for path in paths if os.path.isfile(path)), None)

    module(
        "folder_paths", models_dir=FOLDER.name, get_folder_paths=lambda kind: list(known[kind]), get_filename_list=files,
        get_full_path=full, add_model_folder_path=lambda kind, folder: known.setdefault(kind, []).append(folder),
    )

    class Picture:
        Resampling = types.SimpleNamespace(BILINEAR=2)

    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        module("PIL", Image=Picture)
        Picture.open = staticmethod(lambda file: types.SimpleNamespace(
            convert=lambda mode: types.SimpleNamespace(width=1, height=1, resize=lambda size, how: "picture")))


comfyui()
sys.path.insert(0, str(PACK.parent))
nodes = __import__(f"{PACK.name}.nodes", fromlist=["nodes"])
service_module = __import__(f"{PACK.name}.service", fromlist=["service"])

SMALL = {"prompt": "A red sphere.", "width": 64, "height": 64, "num_frames": 9, "num_steps": 1, "seed": 3,
         "sigma_max": 0.0, "ode": False, "boundary": 0.0, "crf": 12}
# Long enough to be interrupted.
LONG = {**SMALL, "width": 256, "height": 144, "num_frames": 33, "num_steps": 4}


def is_alive(process):
    """A zombie is not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def executed(node, model, watch=lambda progress: False, graph=None, **fields):
    """Runs a node as ComfyUI does: with a loop of its own, whose other tasks are cancelled at the end."""
    State.graph = {"1": {"inputs": {}}} if graph is None else graph
    State.executing = types.SimpleNamespace(prompt_id="prompt", node_id="1", list_index=0)
    State.watch, State.is_interrupted, State.progress, State.previews = watch, False, [], 0
    try:
        return asyncio.run(node.execute(model, **fields))
    finally:
        State.executing = None


def videos():
    """What the service knows."""
    return nodes.service._json("GET", "/v1/videos")["data"]


def metric(name):
    for line in nodes.service._ask("GET", "/metrics").decode().splitlines():
        if line.startswith(name):
            return float(line.split()[-1])
    return 0.0


class NodeTests(unittest.TestCase):
    def setUp(self):
        nodes.last = (None, None)

    @classmethod
    def tearDownClass(cls):
        nodes.service.stop()
        FOLDER.cleanup()

    def test_text_to_video(self):
        model = nodes.Model.execute("nano", "default", 0.0, "default").args[0]
        self.assertEqual(model, {"model": "nano"})
        video, frames = executed(nodes.TextToVideo, model, **SMALL).args
        self.assertEqual(video.data[4:8], b"ftyp")
        # Nobody takes the frames: they are not decoded.
        self.assertIsNone(frames)
        self.assertEqual(State.progress, sorted(State.progress))
        self.assertEqual(State.progress[-1], 100)
        # What is done leaves nothing with the service.
        self.assertEqual(videos(), [])

    def test_frames_are_decoded_for_who_takes_them(self):
        alone = {"1": {"inputs": {}}, "2": {"inputs": {"video": ["1", 0]}}}
        linked = {**alone, "3": {"inputs": {"images": ["1", 1]}}}
        first, nothing = executed(nodes.TextToVideo, {"model": "nano"}, graph=alone, **SMALL).args
        made = metric('turbodiffusion_videos_total{status="completed"}')
        second, frames = executed(nodes.TextToVideo, {"model": "nano"}, graph=linked, **SMALL).args
        self.assertIsNone(nothing)
        self.assertEqual(frames, len(second.data))
        # The same request is not made again.
        self.assertEqual(second.data, first.data)
        self.assertEqual(metric('turbodiffusion_videos_total{status="completed"}'), made)
        # ComfyUI's cache tells both graphs from each other.
        State.executing = types.SimpleNamespace(prompt_id="prompt", node_id="1", list_index=0)
        State.graph = alone
        one = nodes.TextToVideo.fingerprint_inputs(**SMALL)
        State.graph = linked
        self.assertNotEqual(nodes.TextToVideo.fingerprint_inputs(**SMALL), one)
        State.executing = None

    def test_interruption_ends_the_run(self):
        for share in (0, 1, 40, 90):
            with self.subTest(share=share):
                before = metric('turbodiffusion_videos_total{status="cancelled"}')
                with self.assertRaises(Interrupted):
                    executed(nodes.TextToVideo, {"model": "nano"}, watch=lambda progress: progress >= share, **LONG)
                self.assertLess(State.progress[-1], 100)
                self.assertEqual(videos(), [])
                self.assertEqual(metric('turbodiffusion_videos_total{status="cancelled"}'), before + 1)
                deadline = time.monotonic() + 5
                while metric("turbodiffusion_running") and time.monotonic() < deadline:
                    time.sleep(0.05)
                self.assertEqual(metric("turbodiffusion_running"), 0)

    def test_a_node_that_is_left_behind_ends_its_run(self):
        """Of two nodes only one sees the interruption; ComfyUI cancels the other one's task, whatever it waits for."""
        create = nodes.service.create

        def slowly(fields):
            time.sleep(1)
            return create(fields)

        async def left(seconds):
            task = asyncio.create_task(nodes.TextToVideo.execute({"model": "nano"}, **LONG))
            await asyncio.sleep(seconds)
            task.cancel()
            await asyncio.wait([task])

        State.executing = types.SimpleNamespace(prompt_id="prompt", node_id="1", list_index=0)
        State.graph, State.watch, State.is_interrupted = {"1": {"inputs": {}}}, lambda progress: False, False
        videos()
        nodes.service.create = slowly
        try:
            for seconds in (0.3, 2):
                asyncio.run(left(seconds))
                self.assertEqual(videos(), [])
        finally:
            nodes.service.create = create
            State.executing = None

    def test_two_graphs(self):
        one = executed(nodes.TextToVideo, {"model": "nano"}, **SMALL)
        two = executed(nodes.TextToVideo, {"model": "nano"}, **{**SMALL, "seed": 4})
        self.assertNotEqual(one.args[0].data, two.args[0].data)

    def test_the_service_ends_with_comfyui(self):
        """However that ends."""
        text = textwrap.dedent(f"""
            import sys, types
            sys.path[:0] = [{str(PACK.parent)!r}]
            package = types.ModuleType("pack"); package.__path__ = [{str(PACK)!r}]; sys.modules["pack"] = package
            from pack.library import Library
            from pack.service import Service
            paths = types.SimpleNamespace(models_dir={FOLDER.name!r}, get_folder_paths=lambda kind: [],
                get_filename_list=lambda kind: [], add_model_folder_path=lambda kind, folder: None)
            service = Service(Library(paths))
            service._address()
            print(service._process.pid, flush=True)
            sys.stdin.read()
            """)
        for how in (signal.SIGTERM, signal.SIGKILL, None):
            with self.subTest(how=how):
                with subprocess.Popen(
                    [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                ) as comfyui:
                    process = int(comfyui.stdout.readline())
                    self.assertTrue(is_alive(process))
                    if how is not None:
                        comfyui.send_signal(how)
                deadline = time.monotonic() + 10
                while is_alive(process) and time.monotonic() < deadline:
                    time.sleep(0.05)
                self.assertFalse(is_alive(process))

    def test_what_the_service_refuses_is_told(self):
        with self.assertRaisesRegex(nodes.ServiceError, "there is no model '../../etc'; there are: nano"):
            executed(nodes.TextToVideo, {"model": "../../etc"}, **SMALL)
        with self.assertRaisesRegex(nodes.ServiceError, "there is no LoRA"):
            executed(nodes.TextToVideo, {"model": "nano", "lora": [{"name": "/etc/passwd"}]}, **SMALL)
        for fields in ({"height": 0}, {"prompt": " "}):
            with self.assertRaises(ValueError):
                executed(nodes.TextToVideo, {"model": "nano"}, **{**SMALL, **fields})

    def test_loras_are_those_of_comfyui(self):
        folder = Path(FOLDER.name, "loras/styles")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "one.safetensors").write_bytes(b"no LoRA")
        self.assertEqual(nodes.service.loras(), ["styles/one.safetensors"])
        lora = nodes.LoRA.execute({"model": "nano"}, "styles/one.safetensors", 0.5, "low_noise").args[0]
        self.assertEqual(lora["lora"], [{"name": "styles--one", "scale": 0.5, "expert": "low_noise"}])
        with self.assertRaisesRegex(nodes.ServiceError, "there is no LoRA"):
            nodes.LoRA.execute({"model": "nano"}, "../loras/styles/one.safetensors", 0.5, "both")
        # The service finds it: what it says is about the file.
        plain = nodes.LoRA.execute({"model": "nano"}, "styles/one.safetensors", 0.5, "both").args[0]
        with self.assertRaisesRegex(nodes.ServiceError, "one.safetensors|styles--one"):
            executed(nodes.TextToVideo, plain, **SMALL)

    def test_files_of_comfyuis_folders_are_found(self):
        """By the names of the published files, wherever ComfyUI keeps them."""
        for name in ("diffusion_models/wan/TurboWan2.1-T2V-1.3B-480P-quant.pth", "vae/Wan2.1_VAE.pth",
                     "turbodiffusion/checkpoints/google/umt5-xxl/tokenizer.json"):
            path = Path(FOLDER.name, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        with tempfile.TemporaryDirectory() as root:
            nodes.service.library.link_models(root)
            found = sorted(os.listdir(os.path.join(root, "checkpoints")))
            self.assertEqual(found, ["TurboWan2.1-T2V-1.3B-480P-quant.pth", "Wan2.1_VAE.pth", "google"])
            self.assertTrue(os.path.isfile(os.path.join(root, "checkpoints/google/umt5-xxl/tokenizer.json")))

    def test_models_of_the_catalogue(self):
        """The names that are offered are those that the program knows."""
        said = subprocess.run(
            [service_module._program(), "t2v", "--model=no such model", "x", "--json"], capture_output=True, text=True, check=False
        ).stdout
        (failed,) = [json.loads(line) for line in said.splitlines() if "run.failed" in line]
        for name in ("nano", *service_module.PUBLISHED):
            self.assertIn(name, failed["message"])

    def test_requests(self):
        request = nodes._request({"model": "a"}, {**SMALL, "boundary": 0.9, "num_frames": 0, "high_noise_model": {}})
        self.assertNotIn("high_noise_model", request)
        self.assertEqual(request["boundary_ratio"], 0.9)
        self.assertEqual(request["num_inference_steps"], 1)
        self.assertEqual(request["seed"], 3)
        for name in ("num_frames", "ode", "sigma_max", "boundary", "num_steps"):
            self.assertNotIn(name, request)

    def test_schemas(self):
        (extension,) = [asyncio.run(nodes.comfy_entrypoint())]
        made = asyncio.run(extension.get_node_list())
        schemas = {node.define_schema().node_id: node.define_schema() for node in made}
        self.assertEqual(len(schemas), 4)
        names = [part.id for part in schemas["TurboDiffusionTextToVideo"].inputs]
        # Saved graphs keep widgets by their place.
        self.assertEqual(names, ["model", "prompt", "width", "height", "num_frames", "num_steps", "seed",
                                 "sigma_max", "ode", "boundary", "crf"])
        # Replacements name inputs that exist; those of the other pack are as it has them.
        asyncio.run(extension.on_load())
        known = nodes.api.node_replacement.known
        self.assertEqual(sorted(known), ["TurboDiffusionI2VSampler", "TurboWanModelLoader"])
        for replacement in known.values():
            given = {entry["new_id"] for entry in replacement.input_mapping} - {"high_noise_model", "low_noise_model"}
            self.assertEqual(given, {part.id for part in schemas[replacement.new_node_id].inputs})
        for name in schemas:
            self.assertTrue((PACK / "web/docs" / f"{name}.md").is_file(), name)

    def test_example_graphs(self):
        """Their widgets are those of the nodes, by name over HTTP and by place in the interface."""
        made = asyncio.run(asyncio.run(nodes.comfy_entrypoint()).get_node_list())
        inputs = {node.define_schema().node_id: [part.id for part in node.define_schema().inputs] for node in made}
        for name in ("text_to_video", "image_to_video"):
            graph = json.loads((PACK / f"example_workflows/api/{name}.json").read_text())
            ours = {node["class_type"]: set(node["inputs"]) for node in graph.values() if node["class_type"] in inputs}
            self.assertEqual(len(ours), 2)
            for kind, names in ours.items():
                self.assertEqual(names, set(inputs[kind]))
            shown = json.loads((PACK / f"example_workflows/{name}.json").read_text())
            for node in shown["nodes"]:
                if node["type"] in inputs:
                    linked = {entry["name"] for entry in node["inputs"] if entry.get("link") is not None}
                    # The interface adds what becomes of the seed.
                    widgets = [part for part in inputs[node["type"]] if part not in linked]
                    self.assertEqual(len(node["widgets_values"]), len(widgets) + ("seed" in widgets))

    def test_pictures_are_encoded(self):
        try:
            import PIL.Image  # noqa: F401
            PIL_is_here = hasattr(PIL.Image, "fromarray")
        except (ImportError, AttributeError):
            PIL_is_here = False
        if not PIL_is_here:
            self.skipTest("PIL comes with ComfyUI")
        url = nodes._data_url(np.ones((1, 4, 4, 3), np.float32))
        self.assertTrue(url.startswith("data:image/png;base64,"))


if __name__ == "__main__":
    unittest.main()
