"""Every example and every cell of the notebook runs."""

import ast
import asyncio
import inspect
import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

from support import ScratchCase

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


class ExampleTests(ScratchCase):
    def test_scripts(self):
        scripts = sorted(EXAMPLES.glob("*.py"))
        self.assertGreaterEqual(len(scripts), 4)
        for script in scripts:
            with self.subTest(script=script.name):
                done = subprocess.run([sys.executable, script], cwd=self.folder, capture_output=True, text=True, check=False)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertTrue(done.stdout.strip())
        files = {path.name for path in self.folder.iterdir()}
        for name in ("video.mp4", "most-motion.mp4", "most-motion-0009.png", "framed.webm"):
            self.assertIn(name, files)

    def test_notebook(self):
        """As Jupyter does it: the last expression of a cell is shown, and cells may wait."""
        cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
        names = {}
        shown = []
        folder = os.getcwd()
        os.chdir(self.folder)
        try:
            for cell in cells:
                if cell["cell_type"] == "code":
                    self.assertEqual(cell["outputs"], [])
                    shown.append(asyncio.run(self.executed("".join(cell["source"]), names)))
        finally:
            os.chdir(folder)
        videos = [value for value in shown if hasattr(value, "_repr_html_")]
        self.assertEqual(len(videos), 2)
        for video in videos:
            self.assertIn("<video", video._repr_html_())
        self.assertTrue((self.folder / "sphere.mp4").is_file())

    async def executed(self, text, names):
        tree = ast.parse(text)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        value = eval(compile(tree, "cell", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        if inspect.isawaitable(value):
            await value
        if last is None:
            return None
        value = eval(compile(ast.Expression(last.value), "cell", "eval", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        return await value if inspect.isawaitable(value) else value


if __name__ == "__main__":
    unittest.main()
