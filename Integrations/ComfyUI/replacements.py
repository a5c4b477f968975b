"""Nodes of Comfyui_turbodiffusion as ours, so that its graphs can be carried over: ComfyUI offers to replace those that are missing."""


def replacements(io):
    """ComfyUI's descriptions of the replacements."""
    return [
        # Both experts are one model here: that of the first loader is taken, the second one is left without a link.
        io.NodeReplace(
            old_node_id="TurboWanModelLoader",
            new_node_id="TurboDiffusionModel",
            old_widget_ids=["model_name", "attention_type", "sla_topk", "offload_mode"],
            input_mapping=[
                {"new_id": "model_name", "set_value": "Wan2.2-A14B"},
                {"new_id": "attention_type", "old_id": "attention_type"},
                {"new_id": "sla_topk", "old_id": "sla_topk"},
                {"new_id": "linears", "set_value": "default"},
            ],
            output_mapping=[{"old_idx": 0, "new_idx": 0}],
        ),
        # A prompt that was encoded elsewhere cannot be read back: it is typed again.
        io.NodeReplace(
            old_node_id="TurboDiffusionI2VSampler",
            new_node_id="TurboDiffusionImageToVideo",
            old_widget_ids=[
                "num_frames", "num_steps", "resolution", "aspect_ratio", "boundary", "sigma_max", "seed", "control_after_generate",
                "use_ode", "width", "height",
            ],
            input_mapping=[
                {"new_id": "model", "old_id": "high_noise_model"},
                {"new_id": "image", "old_id": "image"},
                {"new_id": "prompt", "set_value": ""},
                {"new_id": "width", "set_value": 0},
                {"new_id": "height", "set_value": 0},
                {"new_id": "num_frames", "old_id": "num_frames"},
                {"new_id": "num_steps", "old_id": "num_steps"},
                {"new_id": "seed", "old_id": "seed"},
                {"new_id": "sigma_max", "old_id": "sigma_max"},
                {"new_id": "ode", "old_id": "use_ode"},
                {"new_id": "boundary", "old_id": "boundary"},
                {"new_id": "crf", "set_value": 12},
                # Nobody reads these two. ComfyUI 0.33 wants to find them when it renumbers the outputs of the loaders, and fails where
                # it does not; for that reason the other pack's TurboDiffusionSaveVideo, which has them too, is not replaced.
                {"new_id": "high_noise_model", "old_id": "high_noise_model"},
                {"new_id": "low_noise_model", "old_id": "low_noise_model"},
            ],
            output_mapping=[{"old_idx": 0, "new_idx": 1}],
        ),
    ]
