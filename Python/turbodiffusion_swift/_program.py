"""Finds the program."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from typing import Iterator

from ._errors import ProgramError


def find_program() -> str:
    """The path of `turbodiffusion`: that of TURBODIFFUSION_PROGRAM, or the one that was installed with this package, or
    the one on PATH.

    Raises ProgramError where there is none."""
    named = os.environ.get("TURBODIFFUSION_PROGRAM")
    if named:
        if not os.access(named, os.X_OK):
            raise ProgramError(f"TURBODIFFUSION_PROGRAM is {named}, which is no program")
        return named
    for folder in _script_folders():
        path = os.path.join(folder, "turbodiffusion")
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    found = shutil.which("turbodiffusion")
    if found is None:
        raise ProgramError(
            "the program 'turbodiffusion' was not found: install this package anew, or name it with TURBODIFFUSION_PROGRAM"
        )
    return found


def _script_folders() -> Iterator[str]:
    """Where installers put programs: of this environment, of the user, beside `pip install --target` or `--prefix`."""
    yield sysconfig.get_path("scripts")
    yield sysconfig.get_path("scripts", scheme="posix_user")
    package = os.path.dirname(os.path.realpath(__file__))
    site = os.path.dirname(package)
    yield os.path.join(site, "bin")
    # PREFIX/lib/python3.X/site-packages
    yield os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(site))), "bin")
    yield os.path.join(sys.base_prefix, "bin")
