"""What was installed with the program is found, whether its environment is active or not."""

import os
import shutil
import subprocess
import unittest
from unittest import mock

import turbodiffusion_swift as td
from turbodiffusion_swift import _program
from support import PROGRAM, ScratchCase

# All that the program asks of NVRTC.
FUNCTIONS = ["nvrtcGetErrorString", "nvrtcCreateProgram", "nvrtcDestroyProgram", "nvrtcAddNameExpression", "nvrtcCompileProgram",
             "nvrtcGetLoweredName", "nvrtcGetProgramLogSize", "nvrtcGetProgramLog", "nvrtcGetCUBINSize", "nvrtcGetCUBIN"]
NVRTC = "".join(f"int {name}(void) {{ return 1; }}\n" for name in FUNCTIONS) + """
int nvrtcVersion(int *major, int *minor) { *major = MAJOR; *minor = 7; return 0; }
"""


class InstalledTests(ScratchCase):
    def environment(self, name):
        """A tree as pip, pipx and uv make it; nothing of it is on PATH."""
        prefix = self.folder / name
        (prefix / "bin").mkdir(parents=True)
        shutil.copy2(os.path.realpath(PROGRAM), prefix / "bin/turbodiffusion")
        return prefix

    def said(self, prefix):
        variables = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder)}
        if "LD_LIBRARY_PATH" in os.environ:
            variables["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        return subprocess.run([prefix / "bin/turbodiffusion", "doctor"], capture_output=True, text=True, env=variables, check=False).stdout

    def test_nvrtc_of_an_environment_that_is_not_active(self):
        compiler = shutil.which("cc") or shutil.which("clang")
        if compiler is None:
            self.skipTest("no C compiler")
        source = self.folder / "nvrtc.c"
        source.write_text(NVRTC)
        for major, part, python in ((13, "cu13", "python3.12"), (12, "cuda_nvrtc", "python3.9")):
            prefix = self.environment(f"env{major}")
            library = prefix / f"lib/{python}/site-packages/nvidia/{part}/lib/libnvrtc.so.{major}"
            self.assertNotIn(str(library), self.said(prefix))
            library.parent.mkdir(parents=True)
            subprocess.run([compiler, "-shared", "-fPIC", f"-DMAJOR={major}", "-o", library, source], check=True)
            told = self.said(prefix)
            self.assertIn(f"NVRTC {major}.7 ({library})", told)

    def test_ffmpeg_of_a_package(self):
        """Taken where the system has none."""
        prefix = self.environment("env")
        binaries = prefix / "lib/python3.11/site-packages/imageio_ffmpeg/binaries"
        binaries.mkdir(parents=True)
        program = binaries / "ffmpeg-linux-x86_64-v7.0.2"
        program.symlink_to(shutil.which("ffmpeg"))
        empty = self.folder / "empty"
        empty.mkdir()
        variables = {"PATH": str(empty), "HOME": str(self.folder), "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
        told = subprocess.run(
            [prefix / "bin/turbodiffusion", "doctor"], capture_output=True, text=True, env=variables, check=False
        ).stdout
        self.assertIn(str(program), told)

    def test_the_program_is_found(self):
        prefix = self.environment("env")
        program = str(prefix / "bin/turbodiffusion")
        with mock.patch.dict(os.environ, {"TURBODIFFUSION_PROGRAM": program}):
            self.assertEqual(td.find_program(), program)
        with mock.patch.dict(os.environ, {"TURBODIFFUSION_PROGRAM": "/nowhere"}), self.assertRaises(td.ProgramError):
            td.find_program()
        # `pip install --prefix`: beside the package, wherever Python itself is.
        package = prefix / "lib/python3.11/site-packages/turbodiffusion_swift/_program.py"
        with mock.patch.dict(os.environ), mock.patch.object(_program, "__file__", str(package)), mock.patch.object(
            _program.sysconfig, "get_path", lambda *words, **named: "/nowhere"
        ):
            os.environ.pop("TURBODIFFUSION_PROGRAM", None)
            self.assertEqual(td.find_program(), program)


if __name__ == "__main__":
    unittest.main()
