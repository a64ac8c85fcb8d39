"""The kinds of frames that `score` takes: pandas, polars and Arrow. A result has the kind of what was given.

polars is not imported: its frames are recognised by their type, and only their own methods are called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from scorer.binding.transform import as_pandas
from scorer.dataset.fields import path_of, select
from scorer.preflight import trial

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self


class Frame(ABC):
    """A frame in memory: its columns as Arrow, and the frame again with scores or with reasons."""

    def __init__(self, frame: Any) -> None:  # noqa: ANN401 - one of several libraries'
        self.frame = frame

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Names of the columns, as text."""

    @property
    def repeated(self) -> list[str]:
        """Names that several columns share."""
        return [name for name, count in Counter(self.names).items() if count > 1]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.frame)

    @abstractmethod
    def schema(self) -> pa.Schema:
        """Return the Arrow types of all columns."""

    @abstractmethod
    def first(self, rows: int) -> Self:
        """Return the first rows."""

    @abstractmethod
    def columns(self, names: Sequence[str]) -> pa.Table:
        """Return these columns as an Arrow table, without copies where the library allows that."""

    def table(self, names: Sequence[str]) -> pa.Table:
        """Return these columns, and fields of structs by their paths, as an Arrow table."""
        return select(self.columns(owners(names, self.names)), names)

    def to_pandas(self) -> pd.DataFrame:
        """Return the frame that a transform gets."""
        return as_pandas(self.table(self.names))

    @abstractmethod
    def with_scores(self, kept: Sequence[str], good: np.ndarray, scores: Mapping[str, pa.Array]) -> Any:  # noqa: ANN401
        """Return the good rows of the kept columns, and the scores beside them."""

    @abstractmethod
    def with_reasons(self, bad: np.ndarray, errors: list[str], stages: list[str]) -> Any:  # noqa: ANN401
        """Return the bad rows with the columns _error and _stage."""

    def place(self, row: int) -> str:
        """Return where a row is, for an error."""
        return f"row {row}"


def owners(names: Sequence[str], there: Sequence[str]) -> list[str]:
    """Return the columns of these names, and those whose fields are named by a path."""
    return list(dict.fromkeys(name if name in there else path_of(name)[0] for name in names))


def frame_of(value: Any) -> Frame | None:  # noqa: ANN401 - whatever was given
    """Return the frame, or None for any other value."""
    if isinstance(value, pd.DataFrame):
        return PandasFrame(value)
    if isinstance(value, pa.Table):
        return ArrowFrame(value)
    kind = type(value)
    if kind.__module__.partition(".")[0] == "polars" and kind.__name__ == "DataFrame":
        return PolarsFrame(value)
    return None


class PandasFrame(Frame):
    """A pandas frame: index and dtypes are kept, and column labels may be of any type."""

    frame: pd.DataFrame

    @property
    def names(self) -> list[str]:
        """Names of the columns, as text."""
        return [str(name) for name in self.frame.columns]

    def schema(self) -> pa.Schema:
        """Return the Arrow types of all columns; those of Python objects are taken from some values."""
        columns = [(str(name), self.frame[name]) for name in self.frame.columns]
        return pa.schema([pa.field(name, _to_arrow(_type_sample(column)).type) for name, column in columns])

    def first(self, rows: int) -> Self:
        """Return the first rows."""
        return type(self)(self.frame.iloc[:rows])

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Return these columns as an Arrow table."""
        labels = {str(name): name for name in self.frame.columns}
        return pa.table({name: _to_arrow(self.frame[labels[name]]) for name in names})

    def to_pandas(self) -> pd.DataFrame:
        """Return the frame itself, as the transform may see it."""
        return self.frame

    def with_scores(self, kept: Sequence[str], good: np.ndarray, scores: Mapping[str, pa.Array]) -> pd.DataFrame:
        """Return the good rows of the kept columns, and the scores beside them."""
        arrow = any(isinstance(dtype, pd.ArrowDtype) for dtype in self.frame.dtypes)  # pandas 3's text does not count
        result = self.frame[[name for name in self.frame.columns if str(name) in kept]]
        result = result if good.all() else result[good]
        outputs = pd.DataFrame({n: _to_pandas(c, arrow=arrow) for n, c in scores.items()}, copy=False)
        outputs.index = self.frame.index[good]
        return pd.concat([result, outputs], axis=1)

    def with_reasons(self, bad: np.ndarray, errors: list[str], stages: list[str]) -> pd.DataFrame:
        """Return the bad rows with the columns _error and _stage."""
        if not errors:
            return self.frame.iloc[:0].assign(_error="", _stage="")
        return self.frame[bad].assign(_error=errors, _stage=stages)

    def place(self, row: int) -> str:
        """Return the label of a row, for an error."""
        return f"index {self.frame.index[row]!r}"


class ArrowFrame(Frame):
    """An Arrow table."""

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self.frame.column_names)

    def schema(self) -> pa.Schema:
        """Return the types of all columns."""
        return _readable(self.frame.schema.empty_table()).schema

    def first(self, rows: int) -> Self:
        """Return the first rows."""
        return type(self)(self.frame.slice(0, rows))

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Return these columns."""
        return _readable(self.frame.select(list(names)))

    def with_scores(self, kept: Sequence[str], good: np.ndarray, scores: Mapping[str, pa.Array]) -> pa.Table:
        """Return the good rows of the kept columns, and the scores beside them."""
        result = self.frame.select([name for name in self.names if name in kept])
        result = result if good.all() else result.filter(pa.array(good))
        if not result.num_columns:
            return pa.table(dict(scores))
        for name, column in scores.items():
            result = result.append_column(name, column)
        return result

    def with_reasons(self, bad: np.ndarray, errors: list[str], stages: list[str]) -> pa.Table:
        """Return the bad rows with the columns _error and _stage."""
        result = self.frame.filter(pa.array(bad))
        for name, texts in (("_error", errors), ("_stage", stages)):
            result = result.append_column(name, pa.array(texts, pa.string()))
        return result


class PolarsFrame(Frame):
    """A polars frame. Only fed columns and scores are converted, so that kept columns stay as they are."""

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self.frame.columns)

    def schema(self) -> pa.Schema:
        """Return the Arrow types of all columns; null for columns of Python objects, which have none."""
        empty = self.frame.clear()
        fields = []
        for name, dtype in self.frame.schema.items():
            readable = str(dtype) != "Object"
            fields.append(_readable(empty.select(name).to_arrow()).field(0) if readable else pa.field(name, pa.null()))
        return pa.schema(fields)

    def first(self, rows: int) -> Self:
        """Return the first rows."""
        return type(self)(self.frame.head(rows))

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Return these columns as an Arrow table."""
        return _readable(self.frame.select(list(names)).to_arrow())

    def with_scores(self, kept: Sequence[str], good: np.ndarray, scores: Mapping[str, pa.Array]) -> Any:  # noqa: ANN401
        """Return the good rows of the kept columns, and the scores beside them."""
        outputs = self._of(pa.table(dict(scores)))
        result = self.frame.select([name for name in self.names if name in kept])
        if not result.width:
            return outputs
        return (result if good.all() else result.filter(good.tolist())).hstack(outputs)

    def with_reasons(self, bad: np.ndarray, errors: list[str], stages: list[str]) -> Any:  # noqa: ANN401
        """Return the bad rows with the columns _error and _stage."""
        text = pa.string()
        reasons = pa.table({"_error": pa.array(errors, text), "_stage": pa.array(stages, text)})
        return self.frame.filter(bad.tolist()).hstack(self._of(reasons))

    def _of(self, table: pa.Table) -> Any:  # noqa: ANN401 - a polars frame
        return type(self.frame)(table)


def _readable(table: pa.Table) -> pa.Table:
    """Return the table without the types that only hold texts in another way: views, and columns without a type."""
    plain = []
    for field in table.schema:
        kind = field.type
        if pa.types.is_null(kind) or kind == pa.string_view():
            kind = pa.string() if pa.types.is_null(kind) else pa.large_string()
        elif kind == pa.binary_view():
            kind = pa.large_binary()
        plain.append(field.with_type(kind))
    schema = pa.schema(plain, metadata=table.schema.metadata)
    return table if schema.equals(table.schema) else table.cast(schema)


def _to_arrow(series: pd.Series) -> pa.ChunkedArray:
    if series.dtype.kind in "fiub" and isinstance(series.dtype, np.dtype):
        return pa.chunked_array([pa.array(series.to_numpy())])
    if isinstance(series.dtype, pd.ArrowDtype):
        return series.array.__arrow_array__()
    array = pa.array(series, from_pandas=True)
    if pa.types.is_null(array.type):  # an empty or all-missing column of Python objects
        array = array.cast(pa.string())
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])


def _type_sample(series: pd.Series) -> pd.Series:
    """Return as few values as show a column's type: of Python objects, some that are not null; else none."""
    return series.dropna().iloc[: trial.SAMPLE_ROWS] if series.dtype == object else series.iloc[:0]


def _to_pandas(column: pa.Array, *, arrow: bool) -> Any:  # noqa: ANN401 - any pandas column
    if arrow:
        return pd.arrays.ArrowExtensionArray(pa.chunked_array([column]))
    if pa.types.is_string(column.type):
        return pd.array(column.to_pylist(), dtype="str")
    if pa.types.is_fixed_size_list(column.type):
        values = np.empty(len(column), dtype=object)
        width = column.type.list_size
        matrix = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        lists = np.empty(len(matrix), dtype=object)
        lists[:] = list(matrix)
        values[column.is_valid().to_numpy(zero_copy_only=False)] = lists
        return values
    return column.to_numpy(zero_copy_only=False)
