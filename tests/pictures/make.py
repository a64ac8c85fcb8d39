"""Create the pictures of docs/watching.md from a real run.

    PYTHONPATH=tests python tests/pictures/make.py

Needs tmux, chromium and pillow.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import scenes
from PIL import Image
from support import headless_browser

HERE = Path(__file__).parent.parent.parent / "examples" / "flights"
WIDE, HIGH, COLOURS = 1100, 1330, 48
SCENE = scenes.Scene(
    "run", "scorer run many.parquet --model dense.onnx " + scenes.SLOW.replace("96KiB", "192KiB"), scenes.BUSY
)


def terminal(folder):
    """Write the picture of a run in progress."""
    scenes.prepare(folder)
    shown = scenes.staged(SCENE, folder, 80)
    (HERE / "terminal.svg").write_text(scenes.terminal_svg.svg(shown, 80), "utf-8")


def report(folder):
    """Write the first screen of the flights' report.html, with a small palette."""
    for name in ("flights.parquet", "late.onnx"):
        shutil.copy(HERE / name, folder)
    asked = ["run", "flights.parquet", "--model", "late.onnx", "--part-bytes", "512KiB", "--output", "scores"]
    subprocess.run([sys.executable, "-m", "scorer", *asked, "--overwrite", "--quiet"], cwd=folder, check=True)
    page, shot = folder / "scores.scorer" / "report.html", folder / "shot.png"
    flags = ["--headless", "--hide-scrollbars", f"--window-size={WIDE},{HIGH}", f"--screenshot={shot}"]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []
    subprocess.run([headless_browser.chromium(), *flags, page.as_uri()], check=True, capture_output=True)
    few = Image.open(shot).convert("RGB").quantize(COLOURS)
    into = io.BytesIO()
    few.save(into, "PNG", optimize=True)
    (HERE / "report.png").write_bytes(into.getvalue())


def main():
    """Write both pictures."""
    with tempfile.TemporaryDirectory(prefix="s") as folder:
        terminal(Path(folder))
    with tempfile.TemporaryDirectory(prefix="s") as folder:
        report(Path(folder))
    for name in ("terminal.svg", "report.png"):
        print(f"{name} {(HERE / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
