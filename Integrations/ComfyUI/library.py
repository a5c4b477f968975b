"""ComfyUI's folders of models and LoRAs, as the program looks for them. Graphs name what is listed here; no name becomes a path."""

import os

# Where published files may lie, beside models/turbodiffusion/checkpoints.
KINDS = ("diffusion_models", "text_encoders", "vae")


class Library:
    """What ComfyUI's folders hold. `paths` is ComfyUI's module folder_paths."""

    def __init__(self, paths):
        self._paths = paths
        self._folder = os.path.join(paths.models_dir, "turbodiffusion")
        os.makedirs(self._folder, exist_ok=True)
        # So that extra_model_paths.yaml may name more of them.
        paths.add_model_folder_path("turbodiffusion", self._folder)

    def own_models(self):
        """Name → folder, of models with a `config.json`."""
        found = {}
        for folder in self._paths.get_folder_paths("turbodiffusion"):
            for name in _names(folder):
                if os.path.isfile(os.path.join(folder, name, "config.json")):
                    found.setdefault(name, os.path.join(folder, name))
        return found

    def loras(self):
        """The name that graphs use, which is ComfyUI's → the service's name, the file."""
        found = {}
        for name in self._paths.get_filename_list("loras"):
            path = self._paths.get_full_path("loras", name)
            stem, ending = os.path.splitext(name)
            if path and ending in (".safetensors", ".pth", ".pt"):
                found[name] = (stem.replace(os.sep, "--"), path)
        return found

    def link_models(self, root):
        """Makes `root/checkpoints` of the files that ComfyUI's folders hold: the program knows those it can use by name."""
        target = os.path.join(root, "checkpoints")
        os.makedirs(target, exist_ok=True)
        for folder in self._paths.get_folder_paths("turbodiffusion"):
            for name in _names(os.path.join(folder, "checkpoints")):
                _link(os.path.join(folder, "checkpoints", name), os.path.join(target, name))
        for kind in KINDS:
            for name in self._paths.get_filename_list(kind):
                path = self._paths.get_full_path(kind, name)
                if path:
                    _link(path, os.path.join(target, os.path.basename(name)))

    def link_loras(self, root):
        """Makes `root/loras`, whose names are the service's. Returns its path."""
        target = os.path.join(root, "loras")
        os.makedirs(target, exist_ok=True)
        for name, path in self.loras().values():
            _link(path, os.path.join(target, name + os.path.splitext(path)[1]))
        return target


def _names(folder):
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _link(path, link):
    """The first of several files of one name is taken."""
    try:
        os.symlink(os.path.abspath(path), link)
    except FileExistsError:
        pass
