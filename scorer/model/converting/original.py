"""Original: a model as its own library loaded it, which is what a conversion is compared with."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scorer.display.words import cut
from scorer.errors import ModelError, ScorerError

if TYPE_CHECKING:
    import onnx
    import pandas as pd

    from scorer.model.converting.request import Settings
    from scorer.model.converting.sources import Source


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The numbers that the trees of a model compare columns with."""

    columns: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    numbers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float64))


class Original(Protocol):
    """A model loaded by the library that trained it."""

    library: str
    """The library with its version, such as: lightgbm 4.7.0."""
    features: tuple[str, ...]
    """The names of the columns that it was trained on; () if it knows none."""
    width: int
    """The number of these columns."""
    thresholds: Thresholds

    def score(self, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        """Return what the library computes for these rows, by the names of the outputs of `write`."""

    def write(self, rows: pd.DataFrame, settings: Settings) -> onnx.ModelProto:
        """Return the model as ONNX; `rows` are some that it will be fed."""


BOOSTERS = {"lightgbm": "LightGBM", "xgboost": "XGBoost", "catboost": "CatBoost"}
"""The libraries of boosted trees, and their classes here."""


def wrapped(package: str, source: Source, loaded: Any = None) -> Original:  # noqa: ANN401 - an object of the library
    """Return a model of a library: the object, or what is in the source's file."""
    module = importlib.import_module(f"scorer.model.converting.{package}_model")
    made: Original = getattr(module, BOOSTERS.get(package, "Sklearn"))(source, loaded)
    return made


def imported(name: str, needs: str, source: Source) -> Any:  # noqa: ANN401 - a module
    """Import a library; raise an error with the line that installs it if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]
        raise ModelError(
            f"{source.words} cannot be converted without {name.partition('.')[0]}",
            where=source.path,
            expected=f"{name.partition('.')[0]}, installed beside scorer",
            found="no such package" if absent else cut(str(error)),
            hint=f"pip install {needs}",
        ) from error


def refused(source: Source, why: str, hint: str) -> ScorerError:
    """Return the error for a model that has no exact form in ONNX."""
    return ModelError(
        "the model cannot be converted", where=source.path, expected="a model with the same scores in ONNX", found=why,
        hint=hint,
    )  # fmt: skip


def matrix(rows: pd.DataFrame) -> np.ndarray:
    """Return the rows as a matrix of float64, with NaN for missing values."""
    return rows.to_numpy(np.float64, na_value=np.nan)
