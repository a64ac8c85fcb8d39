"""Screens of a real terminal: python tests/pictures/scenes.py FOLDER [SCENE...] [COLUMNS...], with tmux installed.

Each scene is typed into a window of each width; the screen is written to FOLDER/SCENE-COLUMNS.txt and .svg.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import terminal_svg

MODELS = Path(__file__).parent.parent / "models"
FLIGHTS = Path(__file__).parent.parent.parent / "examples" / "flights"
ROWS = 40
DONE = "that was all"
SLOW = "--batch-rows 8 --part-bytes 96KiB --no-tune --threads 2"
BUSY = r"[2-9]\d of \d+ committed"


@dataclass(frozen=True)
class Scene:
    """A command to type, and when to capture the screen."""

    name: str
    typed: str
    until: str = DONE
    before: str = ""
    """A command to run first, outside the window."""
    keys: tuple[str, ...] = ()
    """Keys to press once `until` is seen; the scene then waits for the prompt."""
    narrower: int = 0
    """Columns by which the window shrinks once `until` is seen."""
    beside: str = field(default="", kw_only=True)
    """A command that runs at the same time, outside the window."""


SCENES = [
    Scene("plan", "scorer plan flights.parquet --model late.onnx"),
    Scene(
        "plan-wide-names",
        "scorer plan wide.parquet --model m.onnx --by-position --where '航班 > 3' --keep '航班,métro'",
    ),
    Scene("inspect", "scorer inspect late.onnx --input flights.parquet"),
    Scene("inspect-model-only", "scorer inspect late.onnx"),
    Scene("refusal", "scorer run few.parquet --model dense.onnx --device cuda"),
    Scene("run-in-progress", f"scorer run many.parquet --model dense.onnx --output a {SLOW}", BUSY),
    Scene("run-end", f"scorer run many.parquet --model dense.onnx --output b {SLOW}"),
    Scene("run-end-plain", "scorer run flights.parquet --model late.onnx --output f"),
    Scene("run-quarantine", "scorer run bad.parquet --model gather.onnx --output c --max-bad-rows 10%"),
    Scene("run-beyond-the-budget", "scorer run bad.parquet --model gather.onnx --output d"),
    Scene("run-interrupted", f"scorer run many.parquet --model dense.onnx --output e {SLOW}", BUSY, keys=("C-c",)),
    Scene("run-resized", f"scorer run many.parquet --model dense.onnx --output g {SLOW}", BUSY, narrower=25),
    Scene(
        "status", "scorer status h", beside=f"scorer run many.parquet --model dense.onnx --output h {SLOW}",
    ),
    Scene(
        "status-watch", "scorer status i --watch", r"[1-9]\d* of \d+ committed",
        beside=f"scorer run many.parquet --model dense.onnx --output i {SLOW}",
    ),
    Scene("status-done", "scorer status j", before="scorer run flights.parquet --model late.onnx --output j --quiet"),
]  # fmt: skip


def prepare(folder):
    """Write the files that the scenes use."""
    rng = np.random.default_rng(7)
    shutil.copy(FLIGHTS / "flights.parquet", folder)
    shutil.copy(FLIGHTS / "late.onnx", folder)
    shutil.copy(MODELS / "dense28.onnx", folder / "dense.onnx")
    shutil.copy(MODELS / "gather.onnx", folder)
    shutil.copy(MODELS / "lying.onnx", folder / "m.onnx")
    many = {"id": np.arange(150_000)} | {f"f{i}": rng.standard_normal(150_000).astype(np.float32) for i in range(28)}
    pq.write_table(pa.table(many), folder / "many.parquet", row_group_size=30_000)
    pq.write_table(pa.table({f"f{i}": np.ones(9, np.float32) for i in range(27)}), folder / "few.parquet")
    bad = np.arange(1000) % 3
    bad[::40] = 999
    pq.write_table(pa.table({"客户编号": np.arange(1000), "idx": bad}), folder / "bad.parquet")
    wide = {
        "航班": np.arange(9),
        "出発の遅れ": np.ones(9, np.float32),
        "도착": np.ones(9, np.float32),
        "me\u0301tro": ["é"] * 9,
    }
    pq.write_table(
        pa.table({("métro" if k.startswith("me") else k): v for k, v in wide.items()}), folder / "wide.parquet"
    )


class Tmux:
    """A separate tmux server with one window."""

    def __init__(self, folder, columns):
        self.name = f"scorer-screens-{os.getpid()}"
        environment = os.environ | {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.folder, self.environment = folder, environment
        shell = "env PS1='$ ' bash --norc --noprofile"
        self("new-session", "-d", "-x", str(columns), "-y", str(ROWS), "-c", str(folder), shell)
        self("set-option", "-g", "window-size", "manual")
        self("set-option", "-g", "status", "off")
        self("resize-window", "-x", str(columns), "-y", str(ROWS))

    def __call__(self, *arguments):
        done = subprocess.run(
            ["tmux", "-L", self.name, "-u", *arguments],
            capture_output=True,
            text=True,
            env=self.environment,
            check=True,
        )
        return done.stdout

    def type(self, text):
        self("send-keys", "-l", text)
        self("send-keys", "Enter")

    def screen(self):
        return self("capture-pane", "-p").rstrip("\n")

    def coloured(self):
        return self("capture-pane", "-e", "-p").rstrip("\n")

    def until(self, pattern, timeout=120):
        ends = time.monotonic() + timeout
        while not re.search(pattern, self.screen()):
            if time.monotonic() > ends:
                raise TimeoutError(self.screen())
            time.sleep(0.1)
        return self.screen()


def staged(scene, folder, columns):
    """Return the screen of one scene, with its colour codes."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    if scene.before:
        subprocess.run(scene.before.split(), cwd=folder, check=True, capture_output=True, env=environment)
    beside = None
    if scene.beside:
        beside = subprocess.Popen(
            scene.beside.split(), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        work = folder / f"{scene.typed.split()[2]}.scorer"
        while not list(work.glob("work-*/parts/*.parquet")) and beside.poll() is None:
            time.sleep(0.1)
    tmux = Tmux(folder, columns)
    try:
        tmux.until(r"\$")
        tmux.type(f"clear; {scene.typed}; : {DONE}" if scene.until != DONE else f"clear; {scene.typed}; echo {DONE}")
        tmux.until(rf"(?m)^{scene.until}$" if scene.until == DONE else scene.until)
        if scene.narrower:
            tmux("resize-window", "-x", str(columns - scene.narrower), "-y", str(ROWS))
            time.sleep(1)
        if scene.keys:
            tmux("send-keys", *scene.keys)
            tmux.until(r"(?m)^\$ ?$")
        return tmux.coloured().replace(f"\n{DONE}", "").replace(str(folder), "/data").removesuffix("\n$")
    finally:
        tmux("kill-server")
        if beside is not None:
            beside.wait()


def main(out, *wanted):
    """Capture every scene at every width."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    names = [one for one in wanted if not one.isdigit()]
    for columns in [int(one) for one in wanted if one.isdigit()] or [60, 80, 160]:
        for scene in SCENES:
            if names and scene.name not in names:
                continue
            with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder:
                prepare(Path(folder))
                shown = staged(scene, Path(folder), columns)
            plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
            (out / f"{scene.name}-{columns}.txt").write_text(plain + "\n", "utf-8")
            (out / f"{scene.name}-{columns}.svg").write_text(terminal_svg.svg(shown, columns), "utf-8")
            print(f"{scene.name}-{columns}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
