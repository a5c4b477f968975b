"""ComfyUI's nodes for TurboDiffusion."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
WEB_DIRECTORY = "web"
