"""CatBoost: a model as its library loads it, and its own export without the map of probabilities."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from scorer.display.words import cut
from scorer.model.converting.graphs import INPUT, renamed, without_zipmaps
from scorer.model.converting.original import Thresholds, imported, matrix, refused

if TYPE_CHECKING:
    import pandas as pd

    from scorer.model.converting.request import Settings
    from scorer.model.converting.sources import Source


class CatBoost:
    """A model of CatBoost."""

    def __init__(self, source: Source, loaded: Any = None) -> None:  # noqa: ANN401 - CatBoost's object
        library = imported("catboost", "catboost", source)
        if loaded is None:
            loaded = library.CatBoost()
            loaded.load_model(source.file)
        self._source = source
        self._model = loaded
        self._classes = np.asarray(loaded.classes_) if loaded.classes_ is not None else np.zeros(0)
        self.library = f"catboost {library.__version__}"
        names = loaded.feature_names_
        self.features = () if all(name == str(i) for i, name in enumerate(names)) else tuple(names)
        self.width = len(names)
        self._written = self._export()
        self.thresholds = Thresholds()  # the library gives none beside its export

    def score(self, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        """Return the library's scores."""
        values = matrix(rows).astype(np.float32)  # as the library stores every number
        if not len(self._classes):
            return {"prediction": np.asarray(self._model.predict(values)).reshape(len(rows), -1)}
        chances = np.asarray(self._model.predict(values, prediction_type="Probability"))
        return {"label": self._classes[chances.argmax(axis=1)], "probabilities": chances}

    def write(self, rows: pd.DataFrame, settings: Settings) -> onnx.ModelProto:  # noqa: ARG002 - a tree needs no rows
        """Return the model as ONNX."""
        model = onnx.ModelProto()
        model.CopyFrom(self._written)
        graph = model.graph
        renamed(model, graph.input[0].name, INPUT)
        if settings.double:
            cast = helper.make_node("Cast", [INPUT], ["numbers"], to=TensorProto.FLOAT)
            for node in graph.node:
                node.input[:] = ["numbers" if name == INPUT else name for name in node.input]
            graph.node.insert(0, cast)
            graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
        return model

    def _export(self) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.onnx")
            try:
                self._model.save_model(path, format="onnx")
            except Exception as error:
                raise refused(
                    self._source, cut(str(error)), "CatBoost exports trees of numbers only: train it without categories"
                ) from error
            model = onnx.load(path)
        without_zipmaps(model)
        if not len(self._classes):
            renamed(model, model.graph.output[0].name, "prediction")
        return model
