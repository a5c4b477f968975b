"""The interactive terminal as somebody at a terminal has it: in tmux, on nano. And with lines from a pipe."""
import os
import re
import shutil
import subprocess
import tempfile
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
BINARY = os.environ.get("TURBODIFFUSION", os.path.join(ROOT, ".build/release/turbodiffusion"))
TEXT = "A small red sphere bounces on a checkered floor."


class Terminal:
    """A window of tmux, 100 x 40."""

    def __init__(self, folder, *options):
        self.socket = os.path.join(folder, "tmux")
        self.folder = folder
        environment = dict(os.environ, XDG_STATE_HOME=folder, XDG_CACHE_HOME=folder)
        for name in ("TMUX", "DISPLAY", "WAYLAND_DISPLAY", "COLORTERM"):
            environment.pop(name, None)
        # The status of the program is the last line of the window.
        command = f"cd {ROOT} && {BINARY} interactive --model nano --device cpu {' '.join(options)}; echo status $?; sleep 600"
        subprocess.run(
            ["tmux", "-f", "/dev/null", "-S", self.socket, "new-session", "-d", "-x", "100", "-y", "40", command],
            check=True, env=environment)

    def tmux(self, *words):
        return subprocess.run(["tmux", "-S", self.socket, *words], check=True, capture_output=True, text=True).stdout

    def type(self, text, *keys):
        if text:
            self.tmux("send-keys", "-l", text)
        self.tmux("send-keys", *(keys or ("Enter",)))

    def screen(self, colors=False):
        return self.tmux("capture-pane", "-p", "-S", "-2000", *(["-e"] if colors else []))

    def wait(self, pattern, seconds=180):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            screen = self.screen()
            if re.search(pattern, screen, re.M):
                return screen
            time.sleep(0.05)
        raise SystemExit(f"'{pattern}' never came:\n{self.screen()}")

    def close(self):
        subprocess.run(["tmux", "-S", self.socket, "kill-server"], check=False, capture_output=True)


def typed(folder):
    output = os.path.join(folder, "video.mp4")
    terminal = Terminal(folder, "--num_frames", "9", "--save_path", output)
    try:
        terminal.wait(r"^>")
        terminal.type("/help")
        terminal.wait(r"/vary \[N\]")
        terminal.type("/set num_steps 9")
        terminal.wait(r"num_steps must be 1 to 4 for distilled models, not 9")
        terminal.type("/set seed 7")
        # A word is completed, and one that was typed comes back.
        terminal.type("/set num_st", "Tab")
        terminal.type("2")
        terminal.type("/show")
        terminal.wait(r"^num_steps +2$")
        terminal.wait(r"^seed +7$")
        terminal.type("", "Up", "Up", "BSpace")
        terminal.type("4")
        terminal.type("/show")
        terminal.wait(r"^num_steps +4$")

        # A prompt in two lines, its output, progress, a picture, the file.
        terminal.type("A small red sphere \\")
        terminal.wait(r"^…")
        terminal.type("bounces on a checkered floor.")
        terminal.wait(r"^output \[.*video\.mp4\]:")
        terminal.type("")
        terminal.wait(r"^\[1 .* %")
        terminal.wait(r"^1: wrote .*video\.mp4, seed 7")
        assert "▀" in terminal.screen(), "no picture was shown"
        assert "48;5;" in terminal.screen(colors=True)
        assert os.path.getsize(output) > 1000

        # A long one is ended by Ctrl-C; the model stays, and the session goes on.
        terminal.type("/set num_frames 81")
        terminal.type("/again")
        terminal.wait(r"^\[2 step")
        terminal.type("", "C-c")
        terminal.wait(r"^2: cancelled")
        terminal.type("/set num_frames 5")
        # Ctrl-C at the prompt gives the line up.
        terminal.type("half a prom", "C-c")
        terminal.wait(r"Ctrl-D or /quit ends")
        terminal.type("/vary 2")
        terminal.type("/queue a blue cube")
        terminal.type("/cancel 5")
        terminal.wait(r"^5: cancelled")
        terminal.wait(r"^4: wrote .*video-3\.mp4")
        terminal.type("/history")
        terminal.wait(r"^5: cancelled, seed 7")
        terminal.type("/open")
        terminal.wait(r"^.*video-3\.mp4$")
        terminal.type(f"/load {output}")
        terminal.wait(r"^prompt: A small red sphere bounces")
        terminal.type("/quit")
        terminal.wait(r"^status 0$")
        with open(os.path.join(folder, "turbodiffusion", "history")) as history:
            assert "/set num_frames 81\n" in history.read()
    finally:
        terminal.close()
    # What the session made says how it was made.
    subprocess.run([BINARY, "inspect", output], check=True, stdout=subprocess.DEVNULL)


def piped(folder):
    """The same questions in the same order, from a pipe."""
    lines = f"""/show
/set num_steps 9
/set colour red
/set num_frames 5
/set num_steps 1
{TEXT}

A blue \\
cube

A lamp
{folder}/lamp
/again
/history
"""
    environment = dict(os.environ, XDG_CACHE_HOME=folder)
    done = subprocess.run(
        [BINARY, "t2v", "--serve", "--model", "nano", "--device", "cpu", "--save_path", f"{folder}/piped.mp4"],
        input=lines, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 0, done
    for name in ("piped.mp4", "piped-2.mp4", "lamp.mp4", "lamp-2.mp4"):
        assert os.path.getsize(f"{folder}/{name}") > 500, name
        assert f"wrote {folder}/{name}" in done.stdout, done.stdout
    assert "num_steps must be 1 to 4 for distilled models, not 9" in done.stderr, done.stderr
    assert "there is no setting 'colour'" in done.stderr, done.stderr
    assert "A blue cube" in done.stdout, done.stdout


folder = tempfile.mkdtemp()
try:
    piped(folder)
    typed(folder)
    print("the terminal: all well")
finally:
    shutil.rmtree(folder, ignore_errors=True)
