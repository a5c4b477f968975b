"""The nodes against stand-ins for ComfyUI's modules and the real service with nano."""

import asyncio
import os
import sys
import tempfile
import types
import unittest
from pathlib import Path

import numpy as np

PACK = Path(__file__).resolve().parent.parent
FOLDER = tempfile.TemporaryDirectory()


class Interrupted(Exception):
    """What ComfyUI raises."""


class State:
    interrupted_at = None
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
            State.progress.append(value)
            State.previews += preview_image is not None

    class VideoFromFile:
        def __init__(self, file):
            self.data = file.getvalue()

        def get_components(self):
            return types.SimpleNamespace(images=len(self.data))

    module(
        "comfy_api.latest", io=io, ComfyAPI=lambda: types.SimpleNamespace(execution=Execution()),
        ComfyExtension=type("ComfyExtension", (), {}), InputImpl=types.SimpleNamespace(VideoFromFile=VideoFromFile),
    )
    module("comfy_api")

    def check():
        if State.interrupted_at is not None and State.progress and State.progress[-1] >= State.interrupted_at:
            raise Interrupted

    management = module("comfy.model_management", throw_exception_if_processing_interrupted=check)
    module("comfy", model_management=management)
    module("folder_paths", models_dir=FOLDER.name, get_folder_paths=lambda kind: [os.path.join(FOLDER.name, kind)])

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

SMALL = {"prompt": "A red sphere.", "width": 64, "height": 64, "num_frames": 9, "num_steps": 1, "seed": 3,
         "sigma_max": 0.0, "ode": False, "boundary": 0.0, "crf": 12}


class NodeTests(unittest.TestCase):
    def setUp(self):
        State.interrupted_at, State.progress, State.previews = None, [], 0

    @classmethod
    def tearDownClass(cls):
        nodes.service.stop()
        FOLDER.cleanup()

    def test_text_to_video(self):
        model = nodes.Model.execute("nano", "default", 0.0, "default").args[0]
        self.assertEqual(model, {"model": "nano"})
        video, size = asyncio.run(nodes.TextToVideo.execute(model, **SMALL)).args
        self.assertEqual(video.data[4:8], b"ftyp")
        self.assertEqual(size, len(video.data))
        self.assertEqual(State.progress, sorted(State.progress))
        self.assertEqual(State.progress[-1], 100)
        # What is done leaves nothing with the service.
        self.assertEqual(nodes.service._json("GET", "/v1/videos")["data"], [])

    def test_interruption_ends_the_run(self):
        State.interrupted_at = 1
        long = {**SMALL, "width": 256, "height": 144, "num_frames": 33, "num_steps": 4}
        with self.assertRaises(Interrupted):
            asyncio.run(nodes.TextToVideo.execute({"model": "nano"}, **long))
        self.assertLess(State.progress[-1], 100)
        self.assertEqual(nodes.service._json("GET", "/v1/videos")["data"], [])

    def test_two_graphs(self):
        async def both():
            return await asyncio.gather(
                nodes.TextToVideo.execute({"model": "nano"}, **SMALL),
                nodes.TextToVideo.execute({"model": "nano"}, **{**SMALL, "seed": 4}),
            )

        one, two = asyncio.run(both())
        self.assertNotEqual(one.args[0].data, two.args[0].data)

    def test_what_the_service_refuses_is_told(self):
        with self.assertRaisesRegex(nodes.ServiceError, "no such model|model"):
            asyncio.run(nodes.TextToVideo.execute({"model": "../../etc"}, **SMALL))
        with self.assertRaises(nodes.ServiceError):
            asyncio.run(nodes.TextToVideo.execute({"model": "nano", "lora": [{"name": "/etc/passwd"}]}, **SMALL))
        with self.assertRaises(ValueError):
            asyncio.run(nodes.TextToVideo.execute({"model": "nano"}, **{**SMALL, "height": 0}))

    def test_requests(self):
        request = nodes._request({"model": "a"}, {**SMALL, "boundary": 0.9, "num_frames": 0})
        self.assertEqual(request["boundary_ratio"], 0.9)
        self.assertEqual(request["num_inference_steps"], 1)
        self.assertEqual(request["seed"], 3)
        for name in ("num_frames", "ode", "sigma_max", "boundary", "num_steps"):
            self.assertNotIn(name, request)
        lora = nodes.LoRA.execute({"model": "a"}, "style", 0.5, "low_noise").args[0]
        self.assertEqual(lora["lora"], [{"name": "style", "scale": 0.5, "expert": "low_noise"}])

    def test_schemas(self):
        (extension,) = [asyncio.run(nodes.comfy_entrypoint())]
        made = asyncio.run(extension.get_node_list())
        schemas = {node.define_schema().node_id: node.define_schema() for node in made}
        self.assertEqual(len(schemas), 4)
        names = [part.id for part in schemas["TurboDiffusionTextToVideo"].inputs]
        # Saved graphs keep widgets by their place.
        self.assertEqual(names, ["model", "prompt", "width", "height", "num_frames", "num_steps", "seed",
                                 "sigma_max", "ode", "boundary", "crf"])
        for name in schemas:
            self.assertTrue((PACK / "web/docs" / f"{name}.md").is_file(), name)

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
