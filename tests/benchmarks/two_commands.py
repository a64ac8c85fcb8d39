"""Take models of other libraries from their file to scores in two commands, and compare with the library itself.

    PYTHONPATH=tests python tests/benchmarks/two_commands.py [MODEL ...]

Trains each model on the flights example, then runs the commands that are printed. The largest difference is that of
all rows of the example to what the library predicts from the same columns as float32, the type of the model's input.
Needs the libraries: lightgbm, xgboost, scikit-learn, catboost, mlflow. `hugging-face` needs the packages of
tests/models.txt and takes one command; there the oracle is ONNX Runtime with the tokenizers library and NumPy.
"""

from __future__ import annotations

import pickle
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from support import real_models

FLIGHTS = Path(__file__).parent.parent.parent / "examples" / "flights" / "flights.parquet"
NAMES = ["day", "dep_delay", "distance", "hour"]


def training():
    """Return the columns and the target of the rows that have all of them."""
    rows = pd.read_parquet(FLIGHTS, columns=[*NAMES, "arr_delay"]).dropna()
    return rows[NAMES].astype(np.float32), (rows["arr_delay"] > 15).astype(int)


def lightgbm(folder):
    """Train a classifier; return its file, the flags of its conversion and its probabilities."""
    from lightgbm import LGBMClassifier

    model = LGBMClassifier(n_estimators=100, verbose=-1).fit(*training())
    model.booster_.save_model(folder / "late.txt")
    return "late.txt", [], lambda x: model.predict_proba(x)[:, 1]


def xgboost(folder):
    """Train a classifier; return its file, the flags of its conversion and its probabilities."""
    from xgboost import XGBClassifier

    model = XGBClassifier(n_estimators=100, max_depth=6, n_jobs=2).fit(*training())
    model.save_model(folder / "late.ubj")
    return "late.ubj", [], lambda x: model.predict_proba(x)[:, 1]


def catboost(folder):
    """Train a classifier; return its file, the flags of its conversion and its probabilities."""
    from catboost import CatBoostClassifier

    model = CatBoostClassifier(iterations=100, verbose=False, allow_writing_files=False).fit(*training())
    model.save_model(str(folder / "late.cbm"))
    return "late.cbm", [], lambda x: model.predict_proba(x)[:, 1]


def pipeline():
    """Train a pipeline of scikit-learn."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()).fit(*training())


def scikit_learn(folder):
    """Train a pipeline; return its file, the flags of its conversion and its probabilities."""
    model = pipeline()
    (folder / "late.pkl").write_bytes(pickle.dumps(model))
    return "late.pkl", ["--trust"], lambda x: model.predict_proba(x)[:, 1]


def mlflow(folder):
    """Train a pipeline and write it as MLflow does; return its folder, flags and probabilities."""
    import mlflow.sklearn

    model = pipeline()
    mlflow.sklearn.save_model(model, folder / "late", serialization_format="pickle")
    return "late", ["--trust"], lambda x: model.predict_proba(x)[:, 1]


MODELS = {
    "lightgbm": lightgbm, "xgboost": xgboost, "scikit-learn": scikit_learn, "catboost": catboost, "mlflow": mlflow,
}  # fmt: skip


def typed(folder, *words):
    """Run one command of scorer in a folder; return the command as typed and its seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "scorer", *words]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ran.returncode:
        sys.exit(f"scorer {shlex.join(words)}\n{ran.stdout}{ran.stderr}")
    return f"scorer {shlex.join(words)}", time.perf_counter() - began


def converted(name, folder):
    """Train, convert and score; return what was typed, the seconds and the largest difference."""
    shutil.copy(FLIGHTS, folder)
    path, flags, probabilities = MODELS[name](folder)
    convert = typed(folder, "convert", path, "-o", "late.onnx", "--check", FLIGHTS.name, *flags)
    score = typed(folder, "run", FLIGHTS.name, "--model", "late.onnx", "-o", "scores", "--keep", ",".join(NAMES))
    out = pq.read_table(folder / "scores")
    found = next(n for n in ("probability", "probabilities_1", "probabilities") if n in out.column_names)
    wanted = probabilities(out.select(NAMES).to_pandas().astype(np.float32))
    return [convert, score], float(np.abs(out[found].to_numpy() - wanted).max()), out.num_rows


def hugging_face(folder):
    """Score texts with a folder of a sentence encoder; return the same as `converted`."""
    from tokenizers import Tokenizer

    model, lines = real_models.minilm_folder(folder / "minilm"), list(real_models.LINES)
    pq.write_table(pa.table({"text": lines}), folder / "reviews.parquet")
    score = typed(folder, "run", "reviews.parquet", "--model", "minilm/", "-o", "scores", "--batch-rows", "1")
    out = pq.read_table(folder / "scores")
    name = next(n for n in out.column_names if n != "text")
    session, tokenizer = ort.InferenceSession(str(model / "model.onnx")), Tokenizer.from_file(f"{model}/tokenizer.json")
    tokenizer.no_padding()
    names, worst = {one.name for one in session.get_inputs()}, 0.0
    for text, got in zip(out["text"].to_pylist(), out[name].to_pylist(), strict=True):
        tokens = tokenizer.encode(text)
        feeds = {"input_ids": tokens.ids, "attention_mask": tokens.attention_mask, "token_type_ids": tokens.type_ids}
        feeds = {key: np.array([value], np.int64) for key, value in feeds.items() if key in names}
        mean = session.run(None, feeds)[0][0].mean(axis=0)
        worst = max(worst, float(np.abs(np.array(got) - mean / np.linalg.norm(mean)).max()))
    return [score], worst, out.num_rows


def main():
    """Print a table."""
    print("| model | typed | seconds | rows | largest difference |\n|---|---|---|---|---|")
    for name in sys.argv[1:] or [*MODELS, "hugging-face"]:
        with tempfile.TemporaryDirectory() as folder:
            found = hugging_face(Path(folder)) if name == "hugging-face" else converted(name, Path(folder))
        commands, worst, rows = found
        words = "<br>".join(f"`{command}`" for command, _ in commands)
        seconds = " + ".join(f"{each:.1f}" for _, each in commands)
        print(f"| {name} | {words} | {seconds} | {rows:,} | {worst:.1e} |", flush=True)


if __name__ == "__main__":
    main()
