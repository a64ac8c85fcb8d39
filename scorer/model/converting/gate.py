"""The parity gate: the ONNX model and the original score the same rows, and no row may differ.

The rows are real ones, and rows on the thresholds of the trees, see edges.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from scorer.display.words import cut, quoted_list, short_number
from scorer.errors import ConversionRefused, ModelError
from scorer.model.converting.original import matrix
from scorer.model.session import RUNTIME_ERRORS, one_line

if TYPE_CHECKING:
    import onnx
    import pandas as pd

    from scorer.model.converting.original import Original

_SMALL_BATCHES = ((1, 64), (7, 700))
"""Sizes of further batches, and how many rows go through them."""
_SHOWN = 3  # of the rows that differ most
_SHOWN_COLUMNS = 6
_KINDS = {1: np.float32, 11: np.float64, 7: np.int64, 8: object}
"""Types of inputs by ONNX's number of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How much two models differ on the same rows."""

    rows: int
    differing: int
    """Rows that differ by more than is allowed."""
    largest: float
    worst: tuple[str, ...] = ()
    """The rows that differ most, in words."""


class Runtime:
    """The ONNX model on the bare runtime, on one thread."""

    def __init__(self, model: onnx.ModelProto) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except RUNTIME_ERRORS as error:
            raise _not_run(str(error)) from error
        self._types = {one.name: one.type.tensor_type.elem_type for one in model.graph.input}
        self._outputs = [one.name for one in self._session.get_outputs()]

    def score(self, rows: pd.DataFrame, batch: int) -> dict[str, np.ndarray]:
        """Return all outputs for these rows, in batches of this size."""
        feeds = self._feeds(rows)
        try:
            parts = [
                self._session.run(None, {name: values[at : at + batch] for name, values in feeds.items()})
                for at in range(0, len(rows), batch)
            ]
        except RUNTIME_ERRORS as error:
            raise _not_run(str(error)) from error
        return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(self._outputs)}

    def _feeds(self, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        """Return the rows as the tensors that a run would feed."""
        with np.errstate(over="ignore"):
            if len(self._types) == 1:
                ((name, kind),) = self._types.items()
                values = rows.to_numpy(object) if kind == _STRING else matrix(rows).astype(_KINDS[kind])
                return {name: values}
            return {
                name: rows[[name]].to_numpy(_KINDS[kind]) if kind != _STRING else rows[[name]].to_numpy(object)
                for name, kind in self._types.items()
            }


_STRING = 8


def _not_run(text: str) -> ModelError:
    return ModelError(
        "the converted model does not run",
        where="ONNX Runtime",
        expected="a model that it loads and runs",
        found=one_line(text),
        hint="install a newer onnxruntime, or pass another --target-opset",
    )


def compare(original: Original, runtime: Runtime, rows: pd.DataFrame, tolerance: float) -> Outcome:
    """Score rows by both, in one batch and in small ones, and compare."""
    if not len(rows):
        return Outcome(rows=0, differing=0, largest=0.0)
    expected = original.score(rows)
    differs = np.zeros(len(rows))
    got: dict[str, np.ndarray] = {}
    for batch, first in ((len(rows), len(rows)), *_SMALL_BATCHES):
        few = rows.iloc[:first]
        found = runtime.score(few, batch)
        got = got or found
        for name, values in found.items():
            differs[:first] = np.maximum(differs[:first], _difference(name, expected, values, tolerance, len(few)))
    wrong = differs > tolerance
    worst = [int(at) for at in np.argsort(-differs, kind="stable")[:_SHOWN] if wrong[at]]
    return Outcome(
        rows=len(rows),
        differing=int(wrong.sum()),
        largest=float(differs.max(initial=0)),
        worst=tuple(_row_words(at, rows, expected, got) for at in worst),
    )


def _difference(
    name: str, expected: dict[str, np.ndarray], got: np.ndarray, tolerance: float, n_rows: int
) -> np.ndarray:
    """Return how much each row of an output differs; the difference of a wrong label is infinite."""
    own = expected[name]
    if name == "label":
        wrong = own[:n_rows].astype(str) != got.reshape(-1).astype(str)
        return np.where(wrong & ~_nearly_equal(expected, n_rows, tolerance), np.inf, 0)
    whole = own.reshape(len(own), -1).astype(np.float64)
    one, other = whole[:n_rows], got.reshape(n_rows, -1).astype(np.float64)
    if one.shape != other.shape:
        return np.full(n_rows, np.inf)
    largest = float(np.abs(whole[np.isfinite(whole)]).max(initial=0)) or 1.0
    scale = 1.0 if name in {"probability", "probabilities"} else largest
    with np.errstate(invalid="ignore"):
        apart = np.abs(one - other) / scale
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    found: np.ndarray = np.where(same, 0, np.where(np.isfinite(apart), apart, np.inf)).max(axis=1, initial=0)
    return found


def _nearly_equal(expected: dict[str, np.ndarray], n_rows: int, tolerance: float) -> np.ndarray:
    """Return the rows whose two best classes have nearly the same score, so that either label is right."""
    scores = next((values[:n_rows] for name, values in expected.items() if name != "label"), None)
    if scores is None:
        return np.zeros(n_rows, bool)
    if scores.shape[1] == 1:
        scores = np.column_stack([-scores, scores])
    top = np.sort(scores, axis=1)
    near: np.ndarray = top[:, -1] - top[:, -2] <= tolerance
    return near


def _row_words(at: int, rows: pd.DataFrame, expected: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> str:
    """Return one row as text: its number, both scores and its first values."""

    def shown(values: np.ndarray) -> str:
        return ", ".join(short_number(float(one)) if np.issubdtype(values.dtype, np.number) else str(one)
                         for one in np.ravel(values)[:4])  # fmt: skip

    name = next(iter(reversed(expected)))
    values = ", ".join(
        f"{column}={_number(value)}"
        for column, value in rows.iloc[at].items()
        if column in rows.columns[:_SHOWN_COLUMNS]
    )
    return f"row {at}: {name} {shown(expected[name][at])} by the library and {shown(got[name][at])} by ONNX ({values})"


def _number(value: Any) -> str:  # noqa: ANN401 - a value of a column
    return f"{value:.9g}" if isinstance(value, float) else cut(str(value), 20)


def refuse(path: str, tolerance: float, real: Outcome, edge: Outcome, hint: str) -> None:
    """Raise if a row differs by more than the tolerance."""
    if not real.differing and not edge.differing:
        return
    counts = [
        f"{one.differing:,} of {one.rows:,} rows{where}"
        for one, where in ((real, ""), (edge, " on thresholds of the trees"))
        if one.rows
    ]
    largest = max(real.largest, edge.largest)
    by = "in their labels or by infinity" if np.isinf(largest) else f"by up to {largest:.2g}"
    first = real if real.differing else edge
    raise ConversionRefused(
        "the converted model does not give the scores of the original",
        where=path,
        expected=f"differences of at most {tolerance:g}",
        found=f"{' and '.join(counts)} differ {by}; {'; '.join(first.worst)}",
        hint=hint,
    )


def not_held(rows: pd.DataFrame) -> dict[str, float]:
    """Return the columns with values that float32 does not hold, and the share of these."""
    shares = {}
    for name, dtype in rows.dtypes.items():
        if not isinstance(dtype, np.dtype) or dtype.kind not in "fiu" or dtype.itemsize < 4:  # noqa: PLR2004 - float32
            continue
        values = rows[name].to_numpy(np.float64)
        with np.errstate(over="ignore"):
            changed = (values.astype(np.float32) != values) & ~np.isnan(values)
        if changed.any():
            shares[str(name)] = float(changed.mean())
    return shares


def rounding(shares: dict[str, float]) -> str:
    """Return which columns float32 rounds, in words; '' if there is none."""
    if not shares:
        return ""
    most = max(shares, key=shares.__getitem__)
    others = f", and values of {len(shares) - 1} other columns" if len(shares) > 1 else ""
    return f"float32 rounds {shares[most]:.0%} of the values of {quoted_list([most])}{others}"
