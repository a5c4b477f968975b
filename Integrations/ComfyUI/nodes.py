"""The nodes. Saved graphs keep widgets by their place: inputs are only ever added at the end, and ids stay."""

import asyncio
import base64
import json
from io import BytesIO

import comfy.model_management
import folder_paths
import numpy as np
from comfy_api.latest import ComfyAPI, ComfyExtension, InputImpl, io
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from PIL import Image

from .library import Library
from .replacements import replacements
from .service import Job, Service, ServiceError

CATEGORY = "TurboDiffusion"
PAUSE = 0.2

ModelType = io.Custom("TURBODIFFUSION_MODEL")
service = Service(Library(folder_paths))
api = ComfyAPI()
# The last request and its MP4: linking another output of the same node makes nothing anew.
last = (None, None)


class Model(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        names = list(dict.fromkeys(["default", *service.models()]))
        return io.Schema(
            node_id="TurboDiffusionModel",
            display_name="TurboDiffusion Model",
            category=CATEGORY,
            description="Which model makes the video. The service loads it when it is first needed, and keeps it.",
            search_aliases=["TurboWanModelLoader", "Wan", "TurboWan"],
            inputs=[
                io.Combo.Input("model_name", options=names, tooltip="default: the first one that is there and fits."),
                io.Combo.Input("attention_type", options=["default", "sagesla", "sla", "original"]),
                io.Float.Input("sla_topk", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of key blocks that are attended exactly; 0: the model's own."),
                io.Combo.Input("linears", options=["default", "stored", "int8", "fp8"]),
            ],
            outputs=[ModelType.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model_name, attention_type, sla_topk, linears) -> io.NodeOutput:
        fields = {"model": model_name, "attention_type": attention_type, "sla_topk": sla_topk or "default", "linears": linears}
        return io.NodeOutput({name: value for name, value in fields.items() if value != "default"})


class LoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TurboDiffusionLoRA",
            display_name="TurboDiffusion LoRA",
            category=CATEGORY,
            description="Adds a LoRA of models/loras. Several may follow each other.",
            inputs=[
                ModelType.Input("model"),
                io.Combo.Input("lora_name", options=["none", *service.loras()]),
                io.Float.Input("strength", default=1.0, min=-4.0, max=4.0, step=0.05),
                io.Combo.Input("expert", options=["both", "high_noise", "low_noise"],
                               tooltip="Of a model with two experts, which one is changed."),
            ],
            outputs=[ModelType.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model, lora_name, strength, expert) -> io.NodeOutput:
        if lora_name == "none":
            return io.NodeOutput(model)
        lora = {"name": service.lora(lora_name), "scale": strength}
        if expert != "both":
            lora["expert"] = expert
        return io.NodeOutput({**model, "lora": [*model.get("lora", []), lora]})


def _request_inputs():
    return [
        io.String.Input("prompt", multiline=True, dynamic_prompts=True),
        io.Int.Input("width", default=0, min=0, max=4096, step=16, tooltip="0: the model's own."),
        io.Int.Input("height", default=0, min=0, max=4096, step=16, tooltip="0: the model's own."),
        io.Int.Input("num_frames", default=0, min=0, max=1025, tooltip="4n + 1; 0: the model's own."),
        io.Int.Input("num_steps", default=4, min=1, max=100, tooltip="1 to 4 for distilled models."),
        io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True),
    ]


def _sampling_inputs(boundary):
    return [
        io.Float.Input("sigma_max", default=0.0, min=0.0, max=1e4, step=1.0, advanced=True,
                       tooltip="Noise level of the first step; 0: the model's own."),
        io.Boolean.Input("ode", default=False, advanced=True, tooltip="Without fresh noise: sharper, less robust."),
        io.Float.Input("boundary", default=0.0, min=0.0, max=1.0, step=0.005, advanced=True,
                       tooltip=f"Noise level at which the second expert takes over; 0: the model's own ({boundary})."),
        io.Int.Input("crf", default=12, min=0, max=51, advanced=True, tooltip="Quality of the MP4, lower is better."),
    ]


class Maker(io.ComfyNode):
    """What both makers of videos share."""

    OUTPUTS = (io.Video.Output(display_name="video"), io.Image.Output(display_name="frames"))

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        """Frames that nobody takes are not decoded; who takes them later must not be given nothing from the cache."""
        return _are_frames_wanted()


class TextToVideo(Maker):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TurboDiffusionTextToVideo",
            display_name="TurboDiffusion Text to Video",
            category=CATEGORY,
            description="Makes a video of a sentence in four steps or fewer.",
            search_aliases=["TurboWanSampler", "text to video", "t2v"],
            inputs=[ModelType.Input("model"), *_request_inputs(), *_sampling_inputs(0.875)],
            outputs=list(cls.OUTPUTS),
        )

    @classmethod
    async def execute(cls, model, **fields) -> io.NodeOutput:
        return await _make(_request(model, fields))


class ImageToVideo(Maker):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TurboDiffusionImageToVideo",
            display_name="TurboDiffusion Image to Video",
            category=CATEGORY,
            description="Makes a video that begins with a picture, the first one of a batch.",
            search_aliases=["TurboDiffusionI2VSampler", "image to video", "i2v"],
            inputs=[ModelType.Input("model"), io.Image.Input("image"), *_request_inputs(), *_sampling_inputs(0.9)],
            outputs=list(cls.OUTPUTS),
        )

    @classmethod
    async def execute(cls, model, image, **fields) -> io.NodeOutput:
        request = _request(model, fields)
        request["input_reference"] = _data_url(image)
        return await _make(request)


def _request(model, fields):
    """Fields of the service's request; those that are 0 or False are the model's own. Graphs may have inputs that no node declares."""
    names = {part.id for part in (*_request_inputs(), *_sampling_inputs(0))}
    other = {"num_steps": "num_inference_steps", "boundary": "boundary_ratio"}
    kept = ("prompt", "seed", "crf")
    request = {other.get(name, name): value for name, value in fields.items() if name in names and (value or name in kept)}
    if ("width" in request) != ("height" in request):
        raise ValueError("width and height: give both, or 0 for both")
    if not request["prompt"].strip():
        raise ValueError("prompt: expected a text that says what the video shows")
    return {**model, **request}


def _are_frames_wanted():
    """Whether something takes the second output of the node that is being asked."""
    context = get_executing_context()
    if context is None:
        return True
    graph = get_progress_state().dynprompt
    return any(
        value == [context.node_id, 1] for node in graph.all_node_ids() for value in graph.get_node(node)["inputs"].values()
    )


def _data_url(image):
    """The first picture of a batch [n, height, width, channels], 0 to 1, as a PNG."""
    pixels = np.asarray(image[0].cpu() if hasattr(image[0], "cpu") else image[0], np.float32)[..., :3]
    file = BytesIO()
    Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


async def _make(request):
    """Waits for the video. Interrupting the graph ends the run."""
    global last
    key = json.dumps(request, sort_keys=True)
    made, data = last
    if made != key:
        data = await _made(request)
        last = (key, data)
    await api.execution.set_progress(100, 100)
    video = InputImpl.VideoFromFile(BytesIO(data))
    return io.NodeOutput(video, video.get_components().images if _are_frames_wanted() else None)


async def _made(request):
    """The bytes of the MP4."""
    job, stage = Job(service, request), None
    try:
        video = await _attentively(job.start)
        while video["status"] in ("queued", "in_progress"):
            preview = None
            if video.get("stage") != stage:
                stage = video.get("stage")
                preview = _picture(await _attentively(job.preview))
            await api.execution.set_progress(video.get("progress") or 0, 100, preview_image=preview)
            await asyncio.sleep(PAUSE)
            video = await _attentively(job.video)
        if video["status"] != "completed":
            error = video.get("error") or {}
            raise ServiceError(error.get("message") or f"the video was {video['status']}")
        return await _attentively(job.content)
    finally:
        # Also where ComfyUI ends the task itself.
        await asyncio.get_running_loop().run_in_executor(None, job.close)


async def _attentively(call):
    """Waits for what the service answers, and looks meanwhile whether the graph was interrupted."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    answer = asyncio.get_running_loop().run_in_executor(None, call)
    while not (await asyncio.wait([answer], timeout=PAUSE))[0]:
        comfy.model_management.throw_exception_if_processing_interrupted()
    return answer.result()


def _picture(data):
    """A preview as ComfyUI takes it; None where there is none."""
    if not data:
        return None
    image = Image.open(BytesIO(data)).convert("RGB")
    # A pixel for each latent: shown as large as the video is.
    return image.resize((image.width * 8, image.height * 8), Image.Resampling.BILINEAR)


class Extension(ComfyExtension):
    async def on_load(self):
        for replacement in replacements(io):
            await api.node_replacement.register(replacement)

    async def get_node_list(self):
        return [Model, LoRA, TextToVideo, ImageToVideo]


async def comfy_entrypoint():
    return Extension()
