"""Keywords are the options of the command line: all of them, and no others."""

import re
import unittest

import turbodiffusion_swift as td
from turbodiffusion_swift import _options
from support import PROMPT, command


class OptionTests(unittest.TestCase):
    def test_keywords_are_the_options(self):
        options = set()
        for name in ("t2v", "i2v"):
            text = command(name, "--help").stdout.decode()
            # An option's line begins with it; the prose of others may name it too.
            for line in re.findall(r"^  (--[^<\n]*)", text, re.MULTILINE):
                options.update(word.replace("-", "_") for word in re.findall(r"--([a-z0-9-]+)", line.split("  ")[0]))
        options -= {"version", "help"}
        keywords = set(td.Options.__annotations__)
        self.assertEqual(options, keywords | set(_options.OTHERWISE))
        self.assertEqual(keywords & set(_options.OTHERWISE), set())

    def test_words(self):
        self.assertEqual(
            _options.words(
                {"size": (64, 32), "ode": True, "quant_linear": False, "seed": None, "lora": ["a:1", "b"], "shift": 5}
            ),
            ["--size=64x32", "--ode", "--lora=a:1", "--lora=b", "--shift=5"],
        )
        with self.assertRaises(TypeError):
            _options.words({"seed": object()})
        with self.assertRaises(ValueError):
            _options.words({"dit_path": "a\0b"})

    def test_unknown_keywords_are_refused(self):
        pipe = td.Pipeline("nano")
        with self.assertRaisesRegex(TypeError, "did you mean num_frames"):
            pipe(PROMPT, num_frame=9)
        with self.assertRaisesRegex(TypeError, "Pipeline.many"):
            pipe(PROMPT, seeds="1-3")
        with self.assertRaises(TypeError):
            td.Pipeline("nano", colour="red")


if __name__ == "__main__":
    unittest.main()
