"""Compare the memory forecast of a plan with the measured peak of its run, for jobs of different kinds.

    PYTHONPATH=tests python tests/benchmarks/memory_forecasts.py FOLDER [SCALE [NAME...]]

Each job is planned twice, first without and then with cached tuning, and run once. The peak of each process is read
from /proc, independently of scorer, and the largest one counts. SCALE makes the inputs and the large model smaller or
larger; 1 needs 6 GB of memory. Prints one line for each job: both forecasts, the peak, and forecast/peak.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

MODELS = Path(__file__).parent.parent / "models"
COLUMNS = 28
_POLL_S = 0.02
_TRANSFORM = """
import pandas as pd

def total(frame):
    words = frame["text"].str.split().str.len()
    values = frame.drop(columns="text").rank(pct=True).fillna(0.0).astype("float32")
    return values.assign(words=words.astype("float32"))
"""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What two plans forecast and what the run needed, in bytes."""

    name: str
    first: float
    """The middle of the range that the first plan gave, without cached tuning."""
    again: float
    """The same with cached tuning."""
    peak: float
    """The peak of the largest process."""
    reported: float
    """The peak that the report has."""
    words: str

    @property
    def ratio(self) -> float:
        """The forecast relative to the peak."""
        return self.again / self.peak


def floats(rows: int) -> dict[str, np.ndarray]:
    """Return columns of random floats."""
    rng = np.random.default_rng(0)
    return {f"f{i}": rng.standard_normal(rows, dtype=np.float32) for i in range(COLUMNS)}


def texts(rows: int) -> pa.Array:
    """Return texts of about 60 characters."""
    numbers = np.random.default_rng(1).integers(0, 10**9, (rows, 3)).tolist()
    return pa.array([f"customer {a} bought product {b} in region number {c}" for a, b, c in numbers])


def _save(path: Path, nodes: list, inputs: list, outputs: list, weights: list, *, ml: bool = False) -> Path:
    opsets = [make_opsetid("", 21), *([make_opsetid("ai.onnx.ml", 3)] if ml else [])]
    onnx.save(make_model(make_graph(nodes, "g", inputs, outputs, weights), opset_imports=opsets, ir_version=10), path)
    return path


def tfidf(path: Path) -> Path:
    """Write a model that splits texts into words and weighs the words it knows."""
    pool = ["customer", "bought", "product", "region", "number", *map(str, range(1000))]
    tensor = onnx.TensorProto
    nodes = [
        make_node("StringSplit", ["text"], ["words", "count"], delimiter=" "),
        make_node(
            "TfIdfVectorizer", ["words"], ["weights"], mode="TFIDF", min_gram_length=1, max_gram_length=1,
            max_skip_count=0, ngram_counts=[0], ngram_indexes=list(range(len(pool))), pool_strings=pool,
            weights=[1.0] * len(pool),
        ),
        make_node("ReduceSum", ["weights", "axis"], ["score"], keepdims=1),
    ]  # fmt: skip
    text = make_tensor_value_info("text", tensor.STRING, ["N"])
    score = make_tensor_value_info("score", tensor.FLOAT, ["N", 1])
    return _save(path, nodes, [text], [score], [from_array(np.array([1]), "axis")])


def net(path: Path, width: int, layers: int, inputs: int = COLUMNS) -> Path:
    """Write a net of so many square layers of this width."""
    rng = np.random.default_rng(0)
    nodes, weights, name = [], [], "x"
    for i, (a, b) in enumerate([(inputs, width), *[(width, width)] * layers, (width, 1)]):
        weights.append(from_array(rng.standard_normal((a, b), dtype=np.float32) / np.float32(a**0.5), f"w{i}"))
        nodes.append(make_node("MatMul", [name, f"w{i}"], [f"g{i}"]))
        nodes.append(make_node("Tanh", [f"g{i}"], ["score" if b == 1 else f"h{i}"]))
        name = f"h{i}"
    tensor = onnx.TensorProto.FLOAT
    return _save(path, nodes, [make_tensor_value_info("x", tensor, ["N", inputs])],
                 [make_tensor_value_info("score", tensor, ["N", 1])], weights)  # fmt: skip


def pictures_net(path: Path) -> Path:
    """Write a small convolution net on pictures of 224 x 224."""
    rng = np.random.default_rng(0)
    weights = [from_array(rng.standard_normal((16, 3, 3, 3), dtype=np.float32), "a"),
               from_array(rng.standard_normal((32, 16, 3, 3), dtype=np.float32), "b")]  # fmt: skip
    nodes = [
        make_node("Conv", ["x", "a"], ["c"], pads=[1, 1, 1, 1]), make_node("Relu", ["c"], ["d"]),
        make_node("Conv", ["d", "b"], ["e"], strides=[2, 2]), make_node("GlobalAveragePool", ["e"], ["f"]),
        make_node("Flatten", ["f"], ["vector"]),
    ]  # fmt: skip
    tensor = onnx.TensorProto.FLOAT
    return _save(path, nodes, [make_tensor_value_info("x", tensor, ["N", 3, 224, 224])],
                 [make_tensor_value_info("vector", tensor, ["N", 32])], weights)  # fmt: skip


def pictures(rows: int) -> pa.Array:
    """Return encoded pictures of 640 x 480 with noise, about 150 kB each."""
    from PIL import Image

    rng, made = np.random.default_rng(0), []
    for _ in range(32):
        small = Image.fromarray(rng.integers(0, 255, (120, 160, 3), dtype=np.uint8))
        stored = io.BytesIO()
        small.resize((640, 480)).save(stored, "JPEG", quality=95)
        made.append(stored.getvalue())
    return pa.array([made[i % 32] for i in range(rows)], pa.binary())


def _input(folder: Path, columns: dict, group_rows: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "in.parquet", row_group_size=group_rows)
    return folder / "in.parquet"


def job(name: str, at: Path, scale: float = 1.0) -> list[str]:
    """Write the input and the model of a job; return the arguments of `scorer run` without the output."""
    rows = int(400_000 * scale)
    if name in {"strings", "strings in processes"}:
        source = _input(at / "texts", {"id": np.arange(rows), "text": texts(rows)}, rows // 4)
        words = [source, "--model", tfidf(at / "tfidf.onnx"), "--feed", "text=text"]
    elif name == "pictures":
        few = max(64, rows // 400)
        source = _input(at / "pictures", {"id": np.arange(few), "picture": pictures(few)}, few // 2)
        words = [source, "--model", pictures_net(at / "pictures.onnx"), "--feed", "x=picture|image(scale=1/255)"]
    elif name in {"transform", "transform in processes"}:
        source = _input(at / "mixed", {**floats(rows), "text": texts(rows)}, rows // 4)
        (at / "made_up.py").write_text(_TRANSFORM, "utf-8")
        model = net(at / "words.onnx", 64, 1, COLUMNS + 1)
        feed = f"x=f0..f{COLUMNS - 1},words"
        words = [source, "--model", model, "--transform", "made_up:total", "--feed", feed, "--keep", "none"]
    elif name == "large model":
        source = _input(at / "few", floats(600), 600)
        words = [source, "--model", net(at / "large.onnx", int(8192 * scale**0.5), 7)]
    elif name in {"one value", "one list"}:
        size = int(500e6 * scale)
        cells = [b"x" * size if i == 30 else b"small" for i in range(2000)]
        column = pa.array(cells, pa.large_binary())
        if name == "one list":
            lists = [np.arange(size // 8) if i == 30 else np.arange(2) for i in range(2000)]
            column = pa.array(lists, pa.large_list(pa.int64()))
        source = _input(at / name.replace(" ", "_"), {**floats(2000), "value": column}, 2000)
        words = [source, "--model", MODELS / "dense28.onnx", "--feed", f"input=f0..f{COLUMNS - 1}", "--keep", "all"]
    else:
        source = _input(at / "floats", {"id": np.arange(3 * rows), **floats(3 * rows)}, rows // 2)
        words = [source, "--model", MODELS / "dense28.onnx", "--feed", f"input=f0..f{COLUMNS - 1}"]
    workers = ["--cluster", "processes", "--workers", "2"] if "processes" in name else []
    return [*map(str, words), *workers]


JOBS = (
    "floats", "processes", "strings", "strings in processes", "pictures", "transform", "transform in processes",
    "large model", "one value", "one list",
)  # fmt: skip


def measure(name: str, at: Path, scale: float = 1.0) -> Forecast:
    """Plan a job twice, run it, and return forecasts and peak."""
    shutil.rmtree(at, ignore_errors=True)
    at.mkdir(parents=True)
    words = job(name, at, scale)
    output = ["--output", str(at / "out")]
    environment = os.environ | {"XDG_CACHE_HOME": str(at / "cache")}
    root = Path(__file__).parent.parent.parent
    environment["PYTHONPATH"] = os.pathsep.join([str(root), environment.get("PYTHONPATH", "")])
    found = []
    for _ in range(2):
        command = [sys.executable, "-m", "scorer", "plan", *words, *output, "--json"]
        planned = subprocess.run(command, cwd=at, env=environment, check=False, capture_output=True, text=True)
        assert planned.returncode == 0, planned.stdout + planned.stderr
        plan = json.loads(planned.stdout)
        found.append(plan["forecast"]["memory_bytes"])
    command = [sys.executable, "-m", "scorer", "run", *words, *output, "--json", "--quiet"]
    peaks, report = _peaks(command, at, environment)
    reported = max([report["peak_memory_bytes"], *report["worker_peak_bytes"].values()])
    first, again = (sum(ends) / 2 for ends in found)
    return Forecast(name, first, again, max(peaks.values()), reported, plan["forecast"]["memory"])


def _peaks(command: list[str], at: Path, environment: dict[str, str]) -> tuple[dict[int, int], dict]:
    """Run a command; return the peak memory of each of its processes, and its JSON."""
    peaks: dict[int, int] = {}
    with subprocess.Popen(command, cwd=at, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        written: list[bytes] = []
        reader = threading.Thread(target=lambda: written.extend(run.communicate()))
        reader.start()
        whole = psutil.Process(run.pid)
        while run.poll() is None and reader.is_alive():
            for pid in [run.pid, *(child.pid for child in _children(whole))]:
                peaks[pid] = max(peaks.get(pid, 0), _peak_of(pid))
            time.sleep(_POLL_S)
        reader.join()
        assert run.returncode == 0, written[1].decode()
    return peaks, json.loads(written[0])


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)  # type: ignore[no-any-return]
    except psutil.Error:
        return []


def _peak_of(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text("ascii")
    except (OSError, ValueError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM:")), 0)


def main() -> None:
    """Print a table."""
    folder, scale = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    print(f"{'job':<24}{'forecast':>10}{'again':>8}{'peak':>8}{'report':>8}{'ratio':>7}   MB")
    for name in sys.argv[3:] or JOBS:
        one = measure(name, folder / name.replace(" ", "_"), scale)
        mb = [round(n / 1e6) for n in (one.first, one.again, one.peak, one.reported)]
        print(f"{name:<24}{mb[0]:>10,}{mb[1]:>8,}{mb[2]:>8,}{mb[3]:>8,}{one.ratio:>7.2f}   {one.words}", flush=True)


if __name__ == "__main__":
    main()
