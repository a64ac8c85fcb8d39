"""Create penguins.parquet and species.onnx, the two files of this example.

The data are 344 penguins that were measured near Palmer Station, Antarctica (package
palmerpenguins, CC0).  A scikit-learn pipeline is trained on 2007 and 2008 and saved as
species.onnx, so its predictions for 2009 are out of sample.  The script checks that the
ONNX model agrees with scikit-learn.

    pip install palmerpenguins scikit-learn skl2onnx onnxruntime pyarrow
    python prepare.py

The files are written beside this script.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

HERE = Path(__file__).resolve().parent
LAST_YEAR = 2009
NUMBERS = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
WORDS = ["island", "sex"]
UNKNOWN = "unknown"


def load_penguins() -> pd.DataFrame:
    """Read the penguins without importing the package that contains them."""
    spec = find_spec("palmerpenguins")
    if spec is None or not spec.submodule_search_locations:
        message = "palmerpenguins is not installed"
        raise SystemExit(message)
    penguins: pd.DataFrame = pd.read_csv(Path(spec.submodule_search_locations[0], "data", "penguins.csv"))
    return penguins


def features_of(penguins: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that feed the model; missing texts become "unknown", as in job.toml."""
    types = dict.fromkeys(NUMBERS, np.float32) | dict.fromkeys(WORDS, object)
    return penguins[NUMBERS + WORDS].fillna(dict.fromkeys(WORDS, UNKNOWN)).astype(types)


def train(penguins: pd.DataFrame) -> Pipeline:
    """Fit the pipeline: missing numbers become the mean, and unknown texts are ignored."""
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), NUMBERS),
        (OneHotEncoder(handle_unknown="ignore"), WORDS),
    )
    pipeline = make_pipeline(columns, LogisticRegression(max_iter=1000))
    return pipeline.fit(features_of(penguins), penguins["species"].to_numpy(object))


def to_onnx(pipeline: Pipeline) -> onnx.ModelProto:
    """Convert to ONNX, with one input tensor for each column and the species as text."""
    inputs = [(name, FloatTensorType([None, 1])) for name in NUMBERS]
    inputs += [(name, StringTensorType([None, 1])) for name in WORDS]
    options = {id(pipeline[-1]): {"zipmap": False}}
    proto: onnx.ModelProto = convert_sklearn(
        pipeline,
        name="species",
        initial_types=inputs,
        final_types=[("predicted", StringTensorType([None])), ("chance", FloatTensorType([None, 3]))],
        options=options,
        target_opset=18,
    )
    proto.doc_string = "Which species is the penguin?"
    onnx.checker.check_model(proto)
    return proto


def main() -> None:
    """Write both files and print how good the model is."""
    penguins = load_penguins()
    table = pa.Table.from_pandas(penguins, preserve_index=False).replace_schema_metadata(None)
    pq.write_table(table, HERE / "penguins.parquet", compression="zstd")

    pipeline = train(penguins[penguins["year"] < LAST_YEAR])
    path = HERE / "species.onnx"
    onnx.save(to_onnx(pipeline), path)

    features = features_of(penguins)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    species, chance = session.run(None, {name: features[[name]].to_numpy() for name in NUMBERS + WORDS})
    np.testing.assert_array_equal(species, pipeline.predict(features))
    np.testing.assert_allclose(chance, pipeline.predict_proba(features), atol=1e-5)

    last = (penguins["year"] == LAST_YEAR).to_numpy()
    right = (species == penguins["species"].to_numpy(object))[last]
    print(f"{len(penguins)} penguins; of the {last.sum()} of {LAST_YEAR}, {right.sum()} predicted correctly")


if __name__ == "__main__":
    main()
