"""The oracle of random jobs: what a job must write, computed with pyarrow, numpy and ONNX Runtime. No scorer in here.

It reads each file at once, converts value by value in Python, and calls the bare runtime.
"""

from __future__ import annotations

import math
import operator
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
from support.random_tables import File, natural

if TYPE_CHECKING:
    from pathlib import Path

    from support.random_models import Input, Model

DEFAULT_BATCH = 4096
ROUGH = ("softmax", "sigmoid", "normalize")
"""Steps whose last bits depend on the order of additions."""
EXACT = {"float16": 2**11, "float32": 2**24, "float64": 2**53}
"""The largest magnitude up to which a float type holds every whole number."""
ARROW = {int: pa.int64(), str: pa.string()}
PLAIN = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary(), pa.large_string(): pa.string()}
COMPARE = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt}
COMPARE |= {">=": operator.ge, "in": lambda x, ys: x in ys, "not in": lambda x, ys: x not in ys}


@dataclass
class Job:
    """What a run is asked to do, in plain terms; `options` in tests/faults/random_jobs.py spells it as flags."""

    files: list[File]
    model: Model
    feeds: dict[str, list[str]]
    keep: list[str] | None = None
    where: list[tuple] = field(default_factory=list)
    """(column, op, value or values, the literal as it is spelled)."""
    limit: int | None = None
    fetches: list[tuple[str, str, str]] = field(default_factory=list)
    """(output, step, column name); all outputs if there are none."""
    prefix: str = ""
    row_id: bool = False
    on_null: dict[str, str] = field(default_factory=dict)
    on_lossy: str = "error"
    max_bad_rows: str = "0"
    max_nan_rows: str | None = None
    batch_rows: int | None = None
    more: dict = field(default_factory=dict)
    """Options that must not change the rows of the output."""
    spelling: dict = field(default_factory=dict)
    """How feeds, keep and input are written."""


@dataclass
class Expected:
    """What must come out: the reasons to refuse the job, or the rows and counts."""

    refusals: set[str]
    """Names of the error classes that are right; empty if the job must succeed."""
    schema: list[tuple[str, pa.DataType]] = field(default_factory=list)
    columns: dict[str, list[pa.Array]] = field(default_factory=dict)
    rough: set[str] = field(default_factory=set)
    """Columns whose last bits may differ, because a step computes them."""
    folders: list[str] = field(default_factory=list)
    """The folder of each row inside the output."""
    bad: list[tuple[str, int, str]] = field(default_factory=list)
    """(file, row, stage) of each row in quarantine."""
    aside: list[pa.Table] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, kind: pa.DataType, pieces: list[pa.Array]) -> None:
        """Add a column of the output."""
        self.schema.append((name, kind))
        self.columns[name] = pieces


@dataclass
class Source:
    """One file as pyarrow reads it, with the rows of the job."""

    path: str
    folder: str
    keys: dict[str, str | None]
    table: pa.Table
    groups: list[int]
    chosen: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    """Rows within the limit that meet the conditions."""


class UnreadableInput(Exception):
    """pyarrow cannot read a file that it wrote, such as some lists in very small pages."""


def values_of(column: pa.ChunkedArray | pa.Array) -> list:
    """Return a column as Python values; dictionaries are decoded by that."""
    return column.to_pylist()


def read_sources(folder: Path, job: Job) -> list[Source]:
    """Read the files in natural order, and stop at the limit."""
    sources, left = [], math.inf if job.limit is None else job.limit
    for file in sorted(job.files, key=lambda file: natural(file.path)):
        with pq.ParquetFile(folder / file.path) as parquet:
            try:
                table = parquet.read()
            except (OSError, pa.ArrowException) as error:
                raise UnreadableInput(str(error)) from error
            groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        source = Source(str(folder / file.path), os.path.dirname(file.path), keys_of(file.path), table, groups)
        source.chosen = np.arange(len(table)) < left
        left -= min(left, len(table))
        sources.append(source)
    return sources


def keys_of(path: str) -> dict[str, str | None]:
    """Return the keys in the folder names of a path, with their values."""
    pairs = [part.partition("=")[::2] for part in os.path.dirname(path).split("/") if "=" in part]
    return {key: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for key, value in pairs}


def key_types(paths: list[str]) -> dict[str, type]:
    """Return int for keys of folder names whose values are all whole numbers, and str for the others."""
    found = {}
    for key in keys_of(paths[0]):
        texts = [value for path in paths if (value := keys_of(path)[key]) is not None]
        whole = texts and all(re.fullmatch("-?(0|[1-9][0-9]{0,17})", text) for text in texts)
        found[key] = int if whole else str
    return found


def cells(source: Source, name: str, keys: dict[str, type]) -> list:
    """Return the values of a column, or of a key of the file's path."""
    if name in keys and name not in source.table.column_names:
        text = source.keys[name]
        return [None if text is None else keys[name](text)] * len(source.table)
    return values_of(source.table[name])


def meets(value, op: str, literal) -> bool:
    """Return whether a value meets a condition; null never does, except `null`."""
    if op == "null":
        return value is None
    return value is not None and (op == "not null" or bool(COMPARE[op](value, literal)))


def is_list(kind: pa.DataType) -> bool:
    """Return whether the values are lists; a tensor is one."""
    tensor = isinstance(kind, pa.FixedShapeTensorType)
    return tensor or pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def decoded(kind: pa.DataType) -> pa.DataType:
    """Return the type of a dictionary's values."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def innermost(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values in the innermost lists."""
    return innermost(kind.value_type) if is_list(kind) else decoded(kind)


def fits(kind: pa.DataType, tensor: Input) -> bool:
    """Return whether values of this type can fill the tensor."""
    if tensor.type == "string":
        return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if tensor.type == "bool":
        return pa.types.is_boolean(kind)
    exact = pa.types.is_integer(kind) or pa.types.is_decimal(kind)
    return exact or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


class Converter:
    """Converts single values to a tensor's type, with the policies for nulls and for values that change."""

    def __init__(self, tensor: Input, policy: str | None, on_lossy: str) -> None:
        self.kind = tensor.type
        self.is_float = tensor.type.startswith("float")
        self.policy = ("nan" if self.is_float else "error") if policy is None else policy
        self.warn = on_lossy == "warn"

    def policy_fits(self) -> bool:
        """Return whether the tensor can hold the constant that replaces nulls."""
        if self.policy == "error" or self.kind == "string":
            return True
        if self.is_float:
            try:
                number = float(self.policy)
            except ValueError:
                return False
            with np.errstate(over="ignore"):
                cast = float(np.float64(number).astype(self.kind))
            whole = re.fullmatch(r"[+-]?\d+", self.policy)
            return math.isinf(cast) <= math.isinf(number) and not (whole and cast != int(self.policy))
        try:
            number = Fraction(self.policy)
        except ValueError:
            return False
        return number.denominator == 1 and self.limits()[0] <= number <= self.limits()[1]

    def limits(self) -> tuple[int, int]:
        """Return the smallest and the largest value of an integer tensor."""
        return (0, 1) if self.kind == "bool" else (np.iinfo(self.kind).min, np.iinfo(self.kind).max)

    def null(self):
        """Return what replaces a null; None if it makes a bad row."""
        if self.policy == "error":
            return None
        if self.kind == "string":
            return self.policy
        return float(self.policy) if self.is_float else int(Fraction(self.policy))

    def as_float(self, value, source: pa.DataType):
        """Return (the number in the tensor's float type, whether that is more than the rounding of a fraction)."""
        wide = np.float64 if isinstance(value, Decimal) else source.to_pandas_dtype()
        with np.errstate(over="ignore"):
            cast = np.array([value], wide).astype(self.kind)[0]
        if isinstance(value, float):
            return cast, bool(np.isinf(cast)) and math.isfinite(value)
        if isinstance(value, Decimal) and abs(float(value)) <= EXACT[self.kind]:
            return cast, False
        return cast, not math.isfinite(cast) or Fraction(float(cast)) != Fraction(value)

    def value(self, value, source: pa.DataType):
        """Return (the value in the tensor, whether it changed); the value is None if it makes a bad row."""
        if value is None:
            return self.null(), False
        if self.kind in {"string", "bool"} or isinstance(value, bool):
            return value, False
        if self.is_float:
            cast, changed = self.as_float(value, source)
            return (None if changed and not self.warn else cast), changed
        low, high = self.limits()
        if isinstance(value, int) or (math.isfinite(value) and value == int(value)):
            cast = min(high, max(low, int(value)))
            changed = cast != value
        else:
            changed, fill = True, int(Fraction(self.policy)) if self.policy != "error" else 0
            cast = fill if math.isnan(value) else high if value > high else low if value < low else int(value)
        return (None if changed and not self.warn else cast), changed


def flatten(value, shape: tuple[int, ...]) -> list | None:
    """Return the innermost values of nested lists of this shape; None if a list is null or of another length."""
    if not shape:
        return [value]
    if value is None or len(value) != shape[0]:
        return None
    pieces = [flatten(one, shape[1:]) for one in value]
    return None if any(piece is None for piece in pieces) else [one for piece in pieces for one in piece]


def depth(kind: pa.DataType) -> int:
    """Return how deep lists are nested."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return len(kind.shape)
    return 1 + depth(kind.value_type) if is_list(kind) else 0


def tensor_rows(tensor: Input, names: list[str], source: Source, keys: dict, converter: Converter):
    """Return (the tensor's values for each row, or None for a bad row; the number of changed values in each row)."""
    kinds = [source.table.schema.field(n).type if n in source.table.column_names else None for n in names]
    columns = [cells(source, name, keys) for name in names]
    rows, lossy = [], []
    for at in range(len(source.table)):
        raw = [(column[at], kind) for column, kind in zip(columns, kinds, strict=True)]
        if kinds[0] is not None and is_list(kinds[0]):
            shape = tensor.shape if depth(kinds[0]) == len(tensor.shape) else (tensor.width,)
            found = flatten(raw[0][0], shape)
            raw = None if found is None else [(one, innermost(kinds[0])) for one in found]
        cast = [converter.value(x, decoded(k) if k is not None else pa.int64()) for x, k in raw or []]
        lossy.append(sum(changed for _, changed in cast) if converter.warn else 0)
        rows.append(None if raw is None or any(x is None for x, _ in cast) else [x for x, _ in cast])
    return rows, lossy


def as_array(rows: list[list], tensor: Input) -> np.ndarray:
    """Return rows of values as the tensor."""
    kind = object if tensor.type == "string" else tensor.type
    flat = np.empty(len(rows) * tensor.width, kind)
    for i, value in enumerate(value for row in rows for value in row):
        flat[i] = value
    return flat.reshape(len(rows), *tensor.shape)


class Runtime:
    """The bare runtime with one thread."""

    def __init__(self, model: Model) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.model = model
        self.session = ort.InferenceSession(model.data, options, providers=["CPUExecutionProvider"])

    def run(self, feeds: dict[str, np.ndarray]) -> list:
        """Return all outputs for some rows; with a fixed batch, rows are padded with the last one."""
        rows, fixed = len(next(iter(feeds.values()))), self.model.fixed
        if not fixed:
            return self.session.run(self.model.outputs, feeds)
        pieces = []
        for at in range(0, rows, fixed):
            part = {name: array[at : at + fixed] for name, array in feeds.items()}
            n = len(next(iter(part.values())))
            part = {k: np.concatenate([v, np.repeat(v[-1:], fixed - n, axis=0)]) for k, v in part.items()}
            pieces.append([values[:n] for values in self.session.run(self.model.outputs, part)])
        return joined(pieces)

    def accepts(self, feeds: dict[str, np.ndarray]) -> bool:
        """Return whether the model accepts these rows."""
        try:
            self.run(feeds)
        except ort.capi.onnxruntime_pybind11_state.InvalidArgument:
            return False
        except ort.capi.onnxruntime_pybind11_state.Fail:
            return False
        return True


def joined(pieces: list[list]) -> list:
    """Return the results of batches as one result."""
    return [
        [row for piece in column for row in piece] if isinstance(column[0], list) else np.concatenate(column)
        for column in zip(*pieces, strict=True)
    ]


def expected(job: Job, folder: Path) -> Expected:
    """Return what scorer must do with the job, whose files and model are in the folder."""
    sources = read_sources(folder, job)
    keys = key_types([file.path for file in job.files])
    if job.limit is None:  # files that the keys of their paths rule out are not read
        sources = [source for source in sources if matches_keys(job, source, keys)] or sources[:1]
    refusals = wrong_names(job, sources, keys)
    if refusals:
        return Expected(refusals)
    for source in sources:
        for name, op, literal, _ in job.where:
            source.chosen &= np.array([meets(v, op, literal) for v in cells(source, name, keys)], bool)
    return scored(job, sources, keys)


def matches_keys(job: Job, source: Source, keys: dict[str, type]) -> bool:
    """Return whether the keys of a file's path meet the conditions on them."""
    values = {name: None if text is None else keys[name](text) for name, text in source.keys.items()}
    return all(meets(values[name], op, literal) for name, op, literal, _ in job.where if name in keys)


def wrong_names(job: Job, sources: list[Source], keys: dict[str, type]) -> set[str]:
    """Return the errors in names, types and widths, which the schema alone shows."""
    schema = sources[0].table.schema
    count, found = Counter(schema.names), set()
    named = [*(n for names in job.feeds.values() for n in names), *(job.keep or []), *(c for c, *_ in job.where)]
    if any(name not in count and name not in keys for name in named):
        found.add("MissingColumns")
    if any(n > 1 for name, n in count.items() if job.keep is None or name in named):
        found.add("InputError")
    if found:
        return found
    for tensor in job.model.inputs:
        names = job.feeds[tensor.name]
        kinds = [schema.field(n).type if n in count else ARROW[keys[n]] for n in names]
        lists = len(kinds) == 1 and is_list(kinds[0])
        if not lists and len(names) != tensor.width:
            found.add("ShapeMismatch")
        elif not all(fits(innermost(k) if lists else decoded(k), tensor) for k in kinds):
            found.add("TypeMismatch")
        if not Converter(tensor, job.on_null.get(tensor.name), job.on_lossy).policy_fits():
            found.add("OptionsError")
    return found


@dataclass
class Rows:
    """The rows of one source after feeding and scoring."""

    good: np.ndarray
    stages: dict[int, str]
    """The stage at which each bad row fails."""
    results: list[list]
    """All outputs of each batch."""
    lossy: int


def score_source(job: Job, source: Source, keys: dict[str, type], runtime: Runtime) -> Rows:
    """Feed the rows of one file to the model, batch by batch, and find the bad ones."""
    tensors = job.model.inputs
    converters = {t.name: Converter(t, job.on_null.get(t.name), job.on_lossy) for t in tensors}
    fed = {t.name: tensor_rows(t, job.feeds[t.name], source, keys, converters[t.name]) for t in tensors}

    def feeds_of(rows: list[int]) -> dict[str, np.ndarray]:
        return {t.name: as_array([fed[t.name][0][i] for i in rows], t) for t in tensors}

    chosen = np.flatnonzero(source.chosen).tolist()
    lossy = sum(counts[row] for _, counts in fed.values() for row in chosen)
    good = source.chosen.copy()
    stages = {row: "feed" for row in chosen if any(rows[row] is None for rows, _ in fed.values())}
    good[list(stages)] = False
    for row in np.flatnonzero(good).tolist() if job.model.indices else ():
        if not runtime.accepts(feeds_of([row])):
            stages[row], good[row] = "infer", False
    return Rows(good, stages, [runtime.run(feeds_of(batch)) for batch in batches(job, source, good)], lossy)


def scored(job: Job, sources: list[Source], keys: dict[str, type]) -> Expected:
    """Score all sources; return the columns, the quarantine and the counts."""
    runtime = Runtime(job.model)
    every = [score_source(job, source, keys, runtime) for source in sources]
    result = Expected(set())
    for source, rows in zip(sources, every, strict=True):
        bad = sorted(rows.stages)
        result.bad += [(source.path, row, rows.stages[row]) for row in bad]
        aside = [plain(column).take(pa.array(bad, pa.int64())) for column in source.table.columns]
        result.aside.append(pa.table(aside, names=source.table.column_names))
        result.folders += [source.folder] * int(rows.good.sum())
    limit = math.inf if job.limit is None else job.limit
    total = min(limit, sum(len(source.table) for source in sources))
    chosen = sum(int(source.chosen.sum()) for source in sources)
    result.counts = {"rows": total, "scored": len(result.folders), "quarantined": len(result.bad)}
    result.counts |= {"filtered": total - chosen, "lossy": sum(rows.lossy for rows in every)}
    kept_columns(job, sources, every, result)
    score_columns(job, every, runtime, result)
    if job.row_id:
        counted = [(source.path, np.flatnonzero(rows.good)) for source, rows in zip(sources, every, strict=True)]
        result.add("_file", pa.string(), [pa.array([path] * len(rows), pa.string()) for path, rows in counted])
        result.add("_row", pa.int64(), [pa.array(rows, pa.int64()) for _, rows in counted])
    result.refusals |= wrong_outcome(job, keys, result)
    return result


def wrong_outcome(job: Job, keys: dict[str, type], result: Expected) -> set[str]:
    """Return the errors in the names of output columns, and those because of too many bad or NaN rows."""
    names, counts = [name for name, _ in result.schema], result.counts
    if len(set(names)) < len(names) or set(names) & set(keys):
        return {"BindingError"}
    if not within(job.max_bad_rows, counts["quarantined"], counts["rows"]):
        return {"RunFailed", "BindingError"}  # before the run, if the first rows or the footers show it
    if job.max_nan_rows is not None and not within(job.max_nan_rows, counts["nan"], counts["scored"]):
        return {"RunFailed"}
    return set()


def within(budget: str, count: int, rows: int) -> bool:
    """Return whether a count is within N or P%."""
    return count <= (float(budget[:-1]) / 100 * rows if budget.endswith("%") else int(budget))


def batches(job: Job, source: Source, good: np.ndarray) -> list[list[int]]:
    """Return the rows of each batch: all at once if that gives the same bits, else as cut from the row groups."""
    if job.model.exact:
        rows = np.flatnonzero(good).tolist()
        return [rows] if rows else []
    found, start, step = [], 0, job.batch_rows or DEFAULT_BATCH
    for size in source.groups:
        for at in range(start, start + size, step):
            rows = [row for row in range(at, min(at + step, start + size)) if good[row]]
            found += [rows] if rows else []
        start += size
    return found


def placeholder(model: Model) -> dict[str, np.ndarray]:
    """Return one row (or the fixed number) of zeros and empty texts, to learn the outputs without a row."""
    n = model.fixed or 1
    return {
        t.name: np.full((n, *t.shape), "", object) if t.type == "string" else np.zeros((n, *t.shape), t.type)
        for t in model.inputs
    }


def common_type(kinds: list[pa.DataType]) -> pa.DataType:
    """Return the type for a column that the files store in these layouts: the plain one, if they differ."""
    if all(kind == kinds[0] for kind in kinds):
        return kinds[0]
    return pa.large_string() if pa.large_string() in [decoded(kind) for kind in kinds] else pa.string()


def kept_columns(job: Job, sources: list[Source], every: list[Rows], result: Expected) -> None:
    """Add the kept columns, in the input's order."""
    for field_ in sources[0].table.schema:
        if job.keep is None or field_.name in job.keep:
            pieces = zip(sources, every, strict=True)
            rows = [plain(source.table[field_.name]).filter(pa.array(found.good)) for source, found in pieces]
            result.add(field_.name, common_type([s.table.schema.field(field_.name).type for s in sources]), rows)


def score_columns(job: Job, every: list[Rows], runtime: Runtime, result: Expected) -> None:
    """Add the columns of the outputs, and count the rows with a NaN."""
    results = [batch for rows in every for batch in rows.results]
    nan = np.zeros(result.counts["scored"], bool)
    raw = dict(zip(job.model.outputs, joined(results or [runtime.run(placeholder(job.model))]), strict=True))
    for output, step, name in job.fetches or [(output, "", "") for output in job.model.outputs]:
        if step.startswith("topk") and int(step[5:-1]) > raw[output].shape[1]:
            result.refusals.add("ShapeMismatch")
        for label, values in columns_of(raw[output], step, job.prefix + (name or output), job.model):
            column = values if results else values.slice(0, 0)
            result.add(label, column.type, [column])
            result.rough |= {label} if step in ROUGH else set()
            nan |= np.array([has_nan(value) for value in column.to_pylist()], bool)
    result.counts["nan"] = int(nan.sum())


def has_nan(value) -> bool:
    """Return whether a score is NaN or null, at any depth."""
    if isinstance(value, list):
        return any(has_nan(one) for one in value)
    return value is None or (isinstance(value, float) and math.isnan(value))


def columns_of(values, step: str, base: str, model: Model) -> list[tuple[str, pa.Array]]:
    """Return the columns of an output after its step, with their names."""
    if isinstance(values, list):  # maps
        return [(f"{base}_{key}", pa.array([row[key] for row in values], pa.float32())) for key in model.keys]
    if step.startswith("topk"):
        return top_classes(values, int(step[5:-1]), base, model)
    values = apply(step, values, model)
    kind = {"float16": "float", "float32": "float", "float64": "double", "object": "string"}.get(values.dtype.name)
    kind = pa.type_for_alias(kind or values.dtype.name)
    if kind == pa.float32():
        values = values.astype(np.float32)
    rows = len(values)
    flat = values.reshape(rows, -1)
    width = flat.shape[1]
    if step in {"argmax", "label"}:
        return [(base, pa.array(list(values), pa.int64() if step == "argmax" else pa.string()))]
    if width == 1:
        return [(base, pa.array(flat[:, 0], kind, from_pandas=False))]
    if values.ndim > 2 or width > 16:
        one = pa.field("item", kind, nullable=False)
        items = pa.array(flat.reshape(-1), kind, from_pandas=False)
        return [(base, pa.FixedSizeListArray.from_arrays(items, type=pa.list_(one, width)))]
    labels = model.labels if len(model.labels) == width else range(width)
    return [(f"{base}_{n}", pa.array(flat[:, i], kind, from_pandas=False)) for i, n in enumerate(labels)]


def apply(step: str, values: np.ndarray, model: Model) -> np.ndarray:
    """Return the values after a step, computed in double precision where it rounds."""
    wide = values.astype(np.float64) if values.dtype.kind == "f" else values
    out = np.float64 if values.dtype == np.float64 else np.float32
    with np.errstate(all="ignore"):
        if step == "softmax":
            shifted = np.exp(wide - wide.max(axis=1, keepdims=True))
            return (shifted / shifted.sum(axis=1, keepdims=True)).astype(out)
        if step == "sigmoid":
            return (1 / (1 + np.exp(-wide))).astype(out)
        if step == "normalize":
            largest = np.abs(wide).max(axis=1, keepdims=True)
            scale = np.where((largest == 0) | np.isinf(largest), 1, largest)  # a number / inf is 0, inf / inf is NaN
            length = np.sqrt(np.square(wide / scale).sum(axis=1, keepdims=True))
            return (wide / scale / np.where(length == 0, 1, length)).astype(out)
        if step.startswith("round"):
            digits = int(step[6:-1])
            rounded = np.round(wide, digits)
            return np.where(np.isfinite(rounded), rounded, wide).astype(out)
    if step in {"argmax", "label"}:
        best = [None if np.isnan(row).any() else int(row.argmax()) for row in wide]
        found = np.empty(len(best), object)
        found[:] = [None if b is None else model.labels[b] for b in best] if step == "label" else best
        return found
    return values


def top_classes(values: np.ndarray, count: int, base: str, model: Model) -> list[tuple[str, pa.Array]]:
    """Return class and score of the best classes, best first; equal scores keep their order."""
    named = len(model.labels) == values.shape[1]
    labels = model.labels if named else range(values.shape[1])
    columns = [[] for _ in range(2 * min(count, values.shape[1]))]
    for row in values.astype(np.float64):
        order = sorted(range(len(row)), key=lambda i, row=row: -row[i])
        for i in range(len(columns) // 2):
            unknown = bool(np.isnan(row).any())
            columns[2 * i].append(None if unknown else labels[order[i]])
            columns[2 * i + 1].append(None if unknown else float(row[order[i]]))
    names = [f"{base}_{i // 2 + 1}{'_score' if i % 2 else ''}" for i in range(len(columns))]
    kinds = [pa.string() if named else pa.int64(), pa.float64()] * len(columns)
    return [(n, pa.array(c, k)) for n, c, k in zip(names, columns, kinds, strict=False)]


def plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as one array without dictionaries, views and extension types, which can be compared."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    return array.cast(PLAIN[array.type]) if array.type in PLAIN else array


def same(one: pa.Array, other: pa.Array) -> bool:
    """Return whether two arrays hold the same values, bit for bit: -0.0 is not 0.0, and NaN is itself."""
    one, other = plain(one), plain(other)
    if len(one) != len(other) or one.null_count != other.null_count:
        return False
    if one.is_valid().to_pylist() != other.is_valid().to_pylist():
        return False
    one, other = one.drop_null(), other.drop_null()
    kind = one.type
    if pa.types.is_struct(kind):
        return all(same(a, b) for a, b in zip(one.flatten(), other.flatten(), strict=True))
    if is_list(kind):
        lengths = [[len(x) for x in array] for array in (one, other)]
        return lengths[0] == lengths[1] and same(one.flatten(), other.flatten())
    if pa.types.is_floating(kind):
        bits = f"u{kind.bit_width // 8}"
        return np.array_equal(*(a.to_numpy(zero_copy_only=False).view(bits) for a in (one, other)))
    return one.to_pylist() == other.to_pylist()


def close(one: pa.Array, other: pa.Array) -> bool:
    """Return whether two arrays of floats are equal up to rounding."""
    a, b = (np.array([math.nan if v is None else v for v in leaves(x.to_pylist())], float) for x in (one, other))
    return len(one) == len(other) and len(a) == len(b) and np.allclose(a, b, rtol=2e-6, atol=1e-7, equal_nan=True)


def leaves(value) -> list:
    """Return the innermost values of nested lists."""
    return [x for one in value for x in leaves(one)] if isinstance(value, list) else [value]
