"""Convert one model: load it with its library, write it as ONNX, and let the gate compare the two.

This runs in a process of its own, because a pickle runs code and the libraries are heavy.
"""

from __future__ import annotations

import importlib
import os
import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from scorer.display.words import cut, plural, quoted_list, without_secrets
from scorer.errors import InputError, MissingColumns, ModelError, ModelLoadError, ScorerError, TypeMismatch
from scorer.model.converting import gate, onnx_inside
from scorer.model.converting.edges import on_thresholds
from scorer.model.converting.graphs import FEATURES, describe
from scorer.model.converting.original import BOOSTERS, imported, refused, wrapped
from scorer.model.converting.request import Converted
from scorer.model.spec import CONVERSION
from scorer.storage.files import file_digest

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import onnx
    import pandas as pd

    from scorer.model.converting.original import Original
    from scorer.model.converting.request import Request
    from scorer.model.converting.sources import Source

_FEW = 10  # rows are enough to see shapes
_TEXTS = {"object", "str", "string"}
_DOUBLE_HINT = "pass --double, which feeds doubles"
_EXACT_HINT = "try --double, which computes with doubles; otherwise do not use this conversion"
_TOLERANCE_HINT = "do not use this conversion; if differences of this size do not matter, pass a larger --tolerance"


def convert(request: Request) -> Converted:
    """Convert a model, or raise the reason why it must not be used."""
    if request.source.kind == "onnx":
        return onnx_inside.taken(request)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = _original(request)
        features, rows = _rows(original, request)
        rows, dropped = _accepted(original, rows, request)
        model = _written(original, rows, request)
        left_out = _without_unlike(model, original, rows)
        real, edge, rounding = _compared(original, model, rows, request)
    record = {
        "model": os.path.basename(request.source.path.rstrip("/")), "format": request.source.words,
        "library": original.library, "digest": file_digest(Path(request.source.file)),
        "data": without_secrets(request.data),
        "rows": real.rows, "threshold_rows": edge.rows, "largest_difference": max(real.largest, edge.largest),
        "tolerance": request.tolerance, "onnxruntime": ort.__version__,
    }  # fmt: skip
    describe(model, {FEATURES: list(features), CONVERSION: record})
    notes = [note for note in (dropped, left_out) if note]
    notes += [f"{rounding}; the scores do not show it. {_DOUBLE_HINT}"] if rounding else []
    return Converted(model=model.SerializeToString(), record=record, features=features, notes=tuple(notes))


def _original(request: Request) -> Original:
    try:
        return _loaded(request.source, trust=request.trust)
    except ScorerError:
        raise
    except Exception as error:
        raise _not_loaded(request.source, error) from error


def _written(original: Original, rows: pd.DataFrame, request: Request) -> onnx.ModelProto:
    try:
        return original.write(rows, request.settings)
    except ScorerError:
        raise
    except Exception as error:
        raise refused(request.source, _error_words(error), "export it another way") from error


def _compared(
    original: Original, model: onnx.ModelProto, rows: pd.DataFrame, request: Request
) -> tuple[gate.Outcome, gate.Outcome, str]:
    """Return how real rows and rows on thresholds compare, and what float32 rounds; raise if they differ."""
    double = request.settings.double
    runtime = gate.Runtime(model)
    real = gate.compare(original, runtime, rows, request.tolerance)
    edge = gate.compare(
        original, runtime, on_thresholds(rows, original.thresholds, model, double=double), request.tolerance
    )
    rounding = gate.rounding({} if double else gate.not_held(rows))
    hint = f"{rounding}: {_DOUBLE_HINT}" if rounding else _TOLERANCE_HINT if double else _EXACT_HINT
    gate.refuse(request.source.path, request.tolerance, real, edge, hint)
    return real, edge, rounding


def _loaded(source: Source, *, trust: bool) -> Original:
    """Load the model with its library."""
    if source.kind in BOOSTERS:
        return wrapped(source.kind, source, None)
    loaded = _from_skops(source, trust=trust) if source.kind == "skops" else _unpickled(source)
    package = type(loaded).__module__.partition(".")[0]
    if package in BOOSTERS:
        return wrapped(package, source, loaded)
    if hasattr(loaded, "get_params") and (hasattr(loaded, "predict") or hasattr(loaded, "transform")):
        return wrapped("sklearn", source, loaded)
    raise refused(
        source,
        f"an object of {type(loaded).__module__}.{type(loaded).__name__}",
        "write the fitted model itself into the file",
    )


def _unpickled(source: Source) -> Any:  # noqa: ANN401 - any object
    """Load a pickle, which runs its code: the user trusts it."""
    try:
        joblib = importlib.import_module("joblib")  # reads plain pickles too, and compressed ones
    except ModuleNotFoundError:
        if source.kind == "joblib":
            joblib = imported("joblib", "joblib", source)
        with open(source.file, "rb") as file:
            return pickle.load(file)  # noqa: S301 - --trust was passed
    return joblib.load(source.file)


_KNOWN_TYPES = {
    "collections.OrderedDict", "lightgbm.basic.Booster", "lightgbm.sklearn.LGBMClassifier",
    "lightgbm.sklearn.LGBMRegressor", "lightgbm.sklearn.LGBMRanker", "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier", "xgboost.sklearn.XGBRegressor", "xgboost.sklearn.XGBRanker",
}  # fmt: skip
"""Types that skops does not trust, but which read only a model's text, as their libraries do for any file."""


def _from_skops(source: Source, *, trust: bool) -> Any:  # noqa: ANN401 - any object
    """Load a file of skops; types that it does not know need trust."""
    skops = imported("skops.io", "skops", source)
    unknown = skops.get_untrusted_types(file=source.file)
    strange = [name for name in unknown if name not in _KNOWN_TYPES]
    if strange and not trust:
        raise ModelError(
            "the model has types that skops does not trust",
            where=source.path,
            expected="types that cannot run code or damage memory",
            found=quoted_list(strange),
            hint="add --trust if you trust whoever wrote the file",
        )
    return skops.load(source.file, trusted=unknown)


def _not_loaded(source: Source, error: Exception) -> ScorerError:
    """Return the error for a model that its library does not load."""
    if isinstance(error, ModuleNotFoundError):
        missing = str(error.name).partition(".")[0]
        return ModelError(
            "a package that the model needs is missing", where=source.path, expected=f"the package {missing}",
            found=_error_words(error),
            hint=f"pip install {missing}, or set PYTHONPATH to the folder that the model's own classes are in",
        )  # fmt: skip
    return ModelLoadError(
        "the model does not load",
        where=source.path,
        expected=f"{source.words} that its library can read",
        found=_error_words(error),
        hint="install the version of the library that wrote it, or write it again",
    )


def _rows(original: Original, request: Request) -> tuple[tuple[str, ...], pd.DataFrame]:
    """Return the columns that feed the model, and the rows."""
    source, known = request.source, request.table.column_names
    features = request.features or original.features or source.columns
    where = f"{source.path}, a model of {plural(original.width, 'column')}"
    if not features:
        raise MissingColumns(
            "the model does not know the names of its columns", where=where,
            expected="their names in the model's order", found=f"columns of the data: {quoted_list(known)}",
            hint="--features COLUMN,... with the columns in the model's order; ranges are written f0..f27",
        )  # fmt: skip
    if original.features and source.columns and original.features != source.columns and not request.features:
        raise MissingColumns(
            "the signature lists other columns than the model, or in another order", where=where,
            expected=quoted_list(original.features), found=quoted_list(source.columns),
            hint="pass --features with the columns in the model's order",
        )  # fmt: skip
    if len(features) != original.width:
        raise MissingColumns(
            "the number of columns is not the model's", where=where, expected=f"{original.width}",
            found=f"{len(features)}: {quoted_list(features)}",
            hint="pass --features with the columns in the model's order",
        )  # fmt: skip
    unusable = [name for name in features if name in request.unusable]
    if unusable:
        raise TypeMismatch(
            "the model's columns have types that no model takes", where=request.data, expected="numbers or text",
            found=", ".join(f"{name}: {request.unusable[name]}" for name in unusable), hint="convert them in the data",
        )  # fmt: skip
    missing = [name for name in features if name not in known]
    if missing:
        raise MissingColumns(
            "the data lacks columns that the model needs", where=request.data, expected=quoted_list(missing),
            found=quoted_list(known), hint="pass other data, or --features with the columns in the model's order",
        )  # fmt: skip
    frame = request.table.select(list(features)).to_pandas(ignore_metadata=True)
    if original.features:
        frame.columns = list(original.features)
    return features, frame


def _accepted(original: Original, rows: pd.DataFrame, request: Request) -> tuple[pd.DataFrame, str]:
    """Return the rows that the library scores and a tensor holds, and how many were left out."""
    texts = [name for name, dtype in rows.dtypes.items() if str(dtype) in _TEXTS]
    full = rows[rows[texts].notna().all(axis=1)]
    note = f"{plural(len(rows) - len(full), 'row')} with missing texts left out, which no tensor holds"
    problem = _failure(original.score, full) if len(full) else None
    if problem is not None and full.notna().all(axis=1).any():
        full = full[full.notna().all(axis=1)]
        note = f"{plural(len(rows) - len(full), 'row')} with missing values left out, which the library refuses"
        problem = _failure(original.score, full)
    if isinstance(problem, ScorerError):
        raise problem
    if problem is None and len(full):
        return full, note if len(full) < len(rows) else ""
    kind = TypeMismatch if texts and problem is not None else InputError
    raise kind(
        "the original does not score these rows", where=request.data,
        expected=f"rows that {original.library} accepts",
        found=(f"text in {quoted_list(texts)}; " if texts else "")
        + ("a missing text in every row" if problem is None else _error_words(problem)),
        hint="pass data as the model was trained on, or --features with its columns in their order",
    ) from problem  # fmt: skip


def _without_unlike(model: onnx.ModelProto, original: Original, rows: pd.DataFrame) -> str:
    """Leave out outputs beside the first that the converter wrote in another shape than the library's, and say so."""
    few = rows.iloc[:_FEW]
    found, expected = gate.Runtime(model).score(few, len(few)), original.score(few)
    unlike = [
        name for name, values in found.items() if values.size != expected[name].size and name != next(iter(found))
    ]
    for output in [one for one in model.graph.output if one.name in unlike]:
        model.graph.output.remove(output)
    return f"the output {quoted_list(unlike)} is left out: it has another shape than the library's" if unlike else ""


def _failure(score: Callable[[pd.DataFrame], dict[str, np.ndarray]], rows: pd.DataFrame) -> Exception | None:
    try:
        score(rows)
    except Exception as error:  # noqa: BLE001 - libraries raise anything
        return error
    return None


def _error_words(error: Exception) -> str:
    """Return an exception of another library on one line."""
    return f"{type(error).__name__}: {cut(' '.join(str(error).split()))}"
