"""Train tree ensembles of every kind and compare the compiled kernel with one and two threads of ONNX Runtime.

    python tests/benchmarks/trees.py FOLDER [TURNS [NAME...]]
    python tests/benchmarks/trees.py FOLDER rows ROWS

Models are trained once and kept in FOLDER, which needs lightgbm, xgboost, catboost, scikit-learn and their converters.
Each turn scores the same batches by each engine, in a new order. For each model, prints rows/s of one thread of ONNX
Runtime, the median ratio of CPU times by instruction set, the ratio of wall times to two threads, and whether all
outputs have the same bits. `rows` writes a table with these features and other columns, for `scorer bench`.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
from onnxmltools.convert.common.data_types import FloatTensorType

from scorer.model import _kernel, engine
from scorer.model.spec import SessionSpec

FEATURES, TRAINED, SCORED, BATCH = 30, 60_000, 65_536, 4096


def data(classes):
    """Return random rows with some rounded columns, a class for each row, and a number."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((TRAINED, FEATURES), dtype=np.float32)
    rows[:, ::4] = np.round(rows[:, ::4], 1)
    number = rows[:, 0] * rows[:, 1] + np.sin(3 * rows[:, 2]) + rows[:, 3] ** 2 + 0.5 * rng.standard_normal(TRAINED)
    edges = np.quantile(number, np.linspace(0, 1, classes + 1)[1:-1])
    return rows, np.searchsorted(edges, number), number.astype(np.float32)


def lightgbm(trees, leaves, classes=2, *, regress=False):
    """Train with LightGBM."""
    import lightgbm as lgb
    import onnxmltools

    rows, labels, number = data(classes)
    kind = lgb.LGBMRegressor if regress else lgb.LGBMClassifier
    model = kind(
        n_estimators=trees // (classes if classes > 2 else 1), num_leaves=leaves, min_child_samples=5, verbose=-1
    )
    model.fit(rows, number if regress else labels)
    types = [("X", FloatTensorType([None, FEATURES]))]
    return onnxmltools.convert_lightgbm(model, initial_types=types, zipmap=False, target_opset=15)


def xgboost(trees, *, regress=False):
    """Train with XGBoost, depth 6."""
    import onnxmltools
    import xgboost as xgb

    rows, labels, number = data(2)
    kind = xgb.XGBRegressor if regress else xgb.XGBClassifier
    model = kind(n_estimators=trees, max_depth=6).fit(rows, number if regress else labels)
    types = [("X", FloatTensorType([None, FEATURES]))]
    return onnxmltools.convert_xgboost(model, initial_types=types, target_opset=15)


def catboost(trees):
    """Train with CatBoost, depth 6."""
    import catboost as cat

    rows, labels, _ = data(2)
    model = cat.CatBoostClassifier(iterations=trees, depth=6, verbose=0, allow_writing_files=False).fit(rows, labels)
    path = Path(os.environ.get("TMPDIR", "/tmp"), f"catboost-{os.getpid()}.onnx")
    model.save_model(str(path), format="onnx")
    made = onnx.load(path)
    path.unlink()
    return made


def forest(depth, *, regress=False):
    """Train a random forest of 100 trees."""
    import sklearn.ensemble
    from skl2onnx import to_onnx

    rows, labels, number = data(5)
    if regress:
        model = sklearn.ensemble.RandomForestRegressor(100, max_depth=depth, n_jobs=-1, random_state=0).fit(
            rows, number
        )
        return to_onnx(model, rows[:1])
    model = sklearn.ensemble.RandomForestClassifier(100, max_depth=depth, n_jobs=-1, random_state=0)
    return to_onnx(model.fit(rows[:20_000], labels[:20_000]), rows[:1], options={"zipmap": False})


MODELS = {
    "lightgbm-100x31": lambda: lightgbm(100, 31),
    "lightgbm-300x63": lambda: lightgbm(300, 63),
    "lightgbm-regressor-300x63": lambda: lightgbm(300, 63, regress=True),
    "lightgbm-5-classes-500x31": lambda: lightgbm(500, 31, classes=5),
    "lightgbm-1000x255": lambda: lightgbm(1000, 255),
    "xgboost-500": lambda: xgboost(500),
    "xgboost-regressor-500": lambda: xgboost(500, regress=True),
    "catboost-500": lambda: catboost(500),
    "forest-100-depth-20": lambda: forest(20),
    "forest-regressor-100-depth-12": lambda: forest(12, regress=True),
}


def session(path, threads):
    """Return a bare session of ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def scored(run, rows):
    """Return the outputs of all batches, and the seconds of wall and of this process's CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    outputs = [run(rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]
    return outputs, time.perf_counter() - wall, time.process_time() - cpu


def same(left, right):
    """Return whether all outputs have the same bits."""
    return all(
        np.array_equal(
            a.view(np.int32) if a.dtype == np.float32 else a, b.view(np.int32) if b.dtype == np.float32 else b
        )
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
        if isinstance(a, np.ndarray)
    )


def measure(name, path, turns):
    """Print one line of the table."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((SCORED, FEATURES), dtype=np.float32)
    rows[:, ::4] = np.round(rows[:, ::4], 1)
    one, two = session(path, 1), session(path, 2)
    names = [output.name for output in one.get_outputs()]
    tensor = one.get_inputs()[0].name
    ways = {"one": lambda batch: one.run(names, {tensor: batch}), "two": lambda batch: two.run(names, {tensor: batch})}
    for level in _kernel.available():
        os.environ["SCORER_TREES_LEVEL"] = level
        spec = SessionSpec(path=str(path), digest=str(path), files=(), device="cpu")
        loaded = engine.load(spec)
        ways[level] = lambda batch, loaded=loaded: loaded.run(names, {tensor: batch})
    walls, cpus, equal = {way: [] for way in ways}, {way: [] for way in ways}, True
    expected, *_ = scored(ways["one"], rows)
    for _ in range(turns):
        for way in rng.permutation(list(ways)):
            outputs, wall, cpu = scored(ways[way], rows)
            equal = equal and (way == "two" or same(expected, outputs))  # two threads add in another order
            walls[way].append(wall)
            cpus[way].append(cpu)
    middle = {way: statistics.median(cpus[way]) for way in ways}
    levels = " ".join(f"{level} {middle['one'] / middle[level]:5.1f}" for level in _kernel.available())
    two_threads = statistics.median(walls["two"]) / statistics.median(walls[_kernel.available()[0]])
    speed = SCORED / statistics.median(walls["one"])
    bits = "equal" if equal else "DIFFERENT"
    print(f"{name:32} {speed:9,.0f} rows/s   {levels}   two threads {two_threads:5.1f}   {bits}", flush=True)


def table(folder, rows, files=16):
    """Write the features of as many rows among 18 other columns, in row groups of 65,536."""
    rng = np.random.default_rng(2)
    folder.mkdir()
    for i in range(files):
        each = rows // files
        columns = {"id": pa.array(np.arange(i * each, (i + 1) * each))}
        for j in range(FEATURES):
            values = rng.standard_normal(each, dtype=np.float32)
            columns[f"x{j}"] = pa.array(np.round(values, 1) if j % 4 == 0 else values)
        columns |= {f"amount{j}": pa.array(np.round(rng.gamma(2, 50, each), 2)) for j in range(9)}
        columns |= {f"count{j}": pa.array(rng.integers(0, 100, each)) for j in range(4)}
        words = np.array([f"customer of region {n}" for n in range(97)])
        columns |= {f"text{j}": pa.array(words[rng.integers(0, 97, each)]) for j in range(4)}
        pq.write_table(pa.table(columns), folder / f"{i:02}.parquet", row_group_size=1 << 16)


def main():
    """Train what is missing, and print the table; or write a table of ROWS rows into FOLDER/rows."""
    if sys.argv[2:3] == ["rows"]:
        table(Path(sys.argv[1], "rows"), int(sys.argv[3]))
        return
    folder, turns = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5
    folder.mkdir(parents=True, exist_ok=True)
    for name, train in MODELS.items():
        if len(sys.argv) > 3 and name not in sys.argv[3:]:
            continue
        path = folder / f"{name}.onnx"
        if not path.exists():
            onnx.save(train(), path)
        measure(name, path, turns)


if __name__ == "__main__":
    main()
