"""Decide which columns the output has: the kept ones, and those that output tensors become."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.binding.axes import axis_advice
from scorer.binding.features import steps as steps_
from scorer.binding.features.unpack import arrow_name, column_types
from scorer.binding.labels import requested_labels, unused_texts
from scorer.binding.request import expand
from scorer.binding.spec import Fetch
from scorer.dataset.fields import find, is_joined, known_names, path_of
from scorer.dataset.quarantine import PLACE, WHY, from_quarantine
from scorer.display.words import did_you_mean, quoted_list
from scorer.errors import BindingError, MissingColumns, OptionsError, ScorerError, ShapeMismatch, UnsupportedTensor
from scorer.options.grammar import quoted, split_fetch, split_pipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from scorer.binding.labels import Labels
    from scorer.model.spec import ModelSpec
    from scorer.options.fields import BindingOptions


FLAT = 16  # wider outputs become one list column, which is read two to ten times faster than as many columns
_MATRIX = 2
_FETCH_OTHERS = "select other outputs with --fetch"


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """An output tensor that --fetch requests."""

    tensor: str
    steps: tuple[str, ...] = ()
    column: str = ""
    """The requested column name; '' if none is given."""
    labels: tuple[str, ...] = ()
    """The class names of --labels for this output."""
    named: bool = False
    """Whether --labels names this output."""


def requested_fetches(options: BindingOptions, model: ModelSpec) -> tuple[tuple[FetchRequest, ...], list[ScorerError]]:
    """Parse --fetch TENSOR[element]|step=COLUMN; without it, request all outputs. Returns the requests and problems."""
    names = [tensor.name for tensor in model.outputs]
    labels, problems = requested_labels(options.labels, model)
    if not options.fetch:
        problems += unused_texts(labels, names)
        return tuple(FetchRequest(name, (), "", *labels.of(name)) for name in names), problems
    requests: list[FetchRequest] = []
    for text in options.fetch:
        try:
            requests.append(_parse_fetch(text, names, model, labels))
        except ScorerError as error:
            problems.append(error)
    if not problems:
        problems += unused_texts(labels, [request.tensor for request in requests])
    return tuple(dict.fromkeys(requests)), problems


def _parse_fetch(text: str, names: list[str], model: ModelSpec, labels: Labels) -> FetchRequest:
    tensor, pieces, column = split_fetch(text, names)
    if tensor is None:
        raise OptionsError(
            f"--fetch names an output that the model does not have: {text!r}",
            where=f"--fetch {text}",
            expected=f"one of {quoted_list(names)}",
            found=repr(text),
            hint=did_you_mean(re.split(r"[=|[]", text)[0], names),
        )
    if column is None:
        raise OptionsError(
            f"--fetch {text!r} cannot be understood",
            where=f"--fetch {text}",
            expected="TENSOR[element]|step=COLUMN",
            found=repr(text),
            hint=f'close every bracket and quote, as in --fetch "{tensor}[1]=COLUMN" or "{tensor}[\'late\']=COLUMN"',
        )
    if len(split_pipe(column)) > 1:
        raise OptionsError(
            "steps must come before the column name",
            where=f"--fetch {text}",
            expected="TENSOR|step=COLUMN",
            found=repr(text),
            hint=f"--fetch '{tensor}|step=COLUMN'",
        )
    _check_label(tensor, pieces, model)
    inputs = [given.name for given in model.inputs]
    own, named = labels.of(tensor)
    steps = tuple(steps_.parse_step(step, own or model.class_labels, inputs) for step in pieces)
    return FetchRequest(tensor, steps, column, own, named)


def _check_label(tensor: str, pieces: Sequence[str], model: ModelSpec) -> None:
    """Raise `OptionsError` if the step `label` is requested for an output that may already hold class labels."""
    kind = next(output.type for output in model.outputs if output.name == tensor)
    numbered = model.class_labels == tuple(map(str, range(len(model.class_labels))))
    if "int" in kind and pieces[:1] == ["label"] and model.class_labels and not numbered:
        raise OptionsError(
            f"output {tensor!r} may already hold class labels",
            where=f"--fetch {tensor}|label",
            expected="scores, or class numbers from 0",
            found=kind,
            hint="remove |label, or name the classes: |label(cat, dog)",
        )


def fetch_of(
    request: FetchRequest, values: object, rows: int, model: ModelSpec, prefix: str, *, ragged: bool = False
) -> Fetch:
    """Decide how an output becomes columns, from the values that the model returned for `rows` rows."""
    tensor = request.tensor
    base = request.column or tensor
    if values is None:
        raise UnsupportedTensor(
            f"output {tensor!r} is optional, and the model did not return it",
            where=model.path,
            expected="a tensor",
            found="nothing",
            hint=_FETCH_OTHERS,
        )
    if isinstance(values, list):
        return _fetch_of_maps(request, base, values, rows, model, prefix)
    array: np.ndarray = values  # type: ignore[assignment]
    kind = _checked_type(tensor, array, rows, model)
    if request.steps and request.steps[-1].startswith("topk"):
        names = [f"{prefix}{base}_{i}" for i in range(1, array.shape[1] + 1)]
        columns = tuple(name + more for name in names for more in ("", "_score"))
        named = "topk" if steps_.labels_of(request.steps[-1]) else "topk_numbers"
        return Fetch(tensor=tensor, kind=named, columns=columns, type="double", steps=request.steps)
    if ragged:
        width = prod(array.shape[2:])
        return Fetch(
            tensor=tensor, kind="ragged", columns=(prefix + base,), type=kind, width=width, steps=request.steps
        )
    width = array.size // rows if rows else 1
    if width == 1:
        return Fetch(tensor=tensor, kind="flat", columns=(prefix + base,), type=kind, steps=request.steps)
    if array.ndim > _MATRIX or width > FLAT:
        shape = array.shape[1:] if array.ndim > _MATRIX else ()
        return Fetch(
            tensor=tensor,
            kind="list",
            columns=(prefix + base,),
            type=kind,
            width=width,
            steps=request.steps,
            shape=shape,
        )
    known = request.labels or model.class_labels
    labels = known if len(known) == width else tuple(map(str, range(width)))
    flat = tuple(f"{prefix}{base}_{label}" for label in labels)
    return Fetch(tensor=tensor, kind="flat", columns=flat, type=kind, width=width, steps=request.steps)


def _checked_type(tensor: str, array: np.ndarray, rows: int, model: ModelSpec) -> str:
    """Return Arrow's name of an output's type; raise if the output cannot become columns."""
    kind = arrow_name(array.dtype)
    if kind is None:
        raise UnsupportedTensor(
            f"output {tensor!r} has a type that cannot be written as a column",
            where=model.path,
            expected="numbers, truth values or text",
            found=str(array.dtype),
            hint=_FETCH_OTHERS,
        )
    if array.ndim == 0 or len(array) != rows:
        raise ShapeMismatch(
            f"output {tensor!r} does not have one row per input row",
            where=model.path,
            expected=f"{rows} rows for {rows} rows",
            found=f"shape {list(array.shape)}",
            hint=axis_advice(tensor, array.shape, rows)
            + f"export the model without the reduction over rows, or {_FETCH_OTHERS}",
        )
    if rows and not array.size:
        raise UnsupportedTensor(
            f"output {tensor!r} has no values in a row",
            where=model.path,
            expected="at least one value in a row",
            found=f"shape {list(array.shape)}",
            hint=_FETCH_OTHERS,
        )
    return kind


def output_schema(
    kept: Kept, fetches: Sequence[Fetch], columns: pa.Schema, where: str, keys: Sequence[str] = ()
) -> tuple[pa.Schema, list[ScorerError]]:
    """Return the schema of every part of the output, and problems if column names clash.

    `keys` are those of the output's folder names (key=value), which readers turn into columns.
    """
    fields = [columns.field(name) for name in kept.columns]
    fields = [field.remove_metadata() if is_joined(columns, field.name) else field for field in fields]
    for fetch in fetches:
        fields += [pa.field(name, kind) for name, kind in zip(fetch.columns, column_types(fetch), strict=True)]
    added = [name for fetch in fetches for name in fetch.columns]
    outputs = set(added)
    if kept.row_id:
        fields += [pa.field("_file", pa.string()), pa.field("_row", pa.int64())]
    names = [field.name for field in fields]
    clashes = sorted({name for name in names if names.count(name) > 1})
    problems: list[ScorerError] = []
    if clashes:
        hint = (
            "rename the model's columns with --prefix score_, or change one column with --fetch TENSOR=NAME or --keep"
        )
        if any(added.count(name) > 1 for name in clashes):  # a prefix would leave them alike
            hint = "give one of these columns another name with --fetch TENSOR=NAME, or one of several models another"
        elif not set(clashes) & outputs:
            hint = f"leave {quoted_list(clashes)} out with --keep, or remove --row-id"
        problems.append(
            BindingError(
                f"output columns would share a name: {quoted_list(clashes)}",
                where=where,
                expected="each name once",
                found=quoted_list(names, 40),
                hint=hint,
            )
        )
    in_path = [name for name in names if name in keys]
    if in_path:
        scores = set(in_path) & outputs
        hint = "rename the model's columns with --prefix score_, or one of them with --fetch TENSOR=NAME"
        problems.append(
            BindingError(
                f"output columns would have the names of keys in the folder names: {quoted_list(in_path)}",
                where=where,
                expected=f"other names than {quoted_list(keys)}, because readers take these from the folder names",
                found=quoted_list(names, 40),
                hint=hint if scores else "remove --row-id",
            )
        )
    return pa.schema(fields, metadata=columns.metadata), problems


def _fetch_of_maps(
    request: FetchRequest, base: str, values: list[object], rows: int, model: ModelSpec, prefix: str
) -> Fetch:
    tensor = request.tensor
    maps = [value for value in values if isinstance(value, dict)]
    if len(maps) != rows or not maps:
        raise UnsupportedTensor(
            f"output {tensor!r} is a sequence that is not one map per row",
            where=model.path,
            expected=f"{rows} maps",
            found=f"{len(values)} values",
            hint=_FETCH_OTHERS,
        )
    labels = model.zipmaps.get(tensor) or tuple(str(key) for key in maps[0])
    shown = request.labels if len(request.labels) == len(labels) else labels
    names = tuple(f"{prefix}{base}_{label}" for label in shown)
    return Fetch(tensor=tensor, kind="zipmap", columns=names, type="float", labels=labels, width=len(labels))


@dataclass(frozen=True, slots=True)
class Kept:
    """What the output has besides scores."""

    columns: tuple[str, ...] = ()
    """Input columns."""
    row_id: bool = False
    """Whether it has the columns _file and _row."""


def kept_of(options: BindingOptions, columns: pa.Schema) -> tuple[Kept, list[ScorerError]]:
    """Return what the output has besides scores, and the problems; `columns` is the input's schema."""
    names, problems = _kept_columns(options.keep, columns)
    return Kept(*_kept_of_quarantine(options, columns, names)), problems


def _kept_columns(tokens: Sequence[str], columns: pa.Schema) -> tuple[tuple[str, ...], list[ScorerError]]:
    """Return the columns that --keep selects, in the input's order, and the problems; `all` are those of the input."""
    problems: list[ScorerError] = []
    names, known = list(dict.fromkeys(columns.names)), known_names(columns)
    if tuple(tokens) == ("all",) or (tuple(tokens) == ("none",) and "none" not in names):
        # `all` is the default, so it keeps all columns even if one has this name
        own = (name for name in names if "." not in name or not is_joined(columns, name))
        return (tuple(own) if tokens[0] == "all" else ()), problems
    found, unknown = expand([known.get(token, token) for token in tokens], names)
    if unknown:
        problems.append(
            MissingColumns(
                f"--keep names columns that the input does not have: {quoted_list(unknown)}",
                where=f"--keep {','.join(tokens)}",
                expected="columns of the input",
                found=quoted_list(names),
                hint=_keep_hint(unknown[0], columns),
            )
        )
    return tuple(name for name in names if name in set(found)), problems


def _keep_hint(name: str, columns: pa.Schema) -> str:
    if find(columns, name) is None:
        return did_you_mean(name, columns.names)
    column = quoted(path_of(name)[0])
    return f"--keep {column} keeps the column with all its fields; a single field of it cannot be kept"


def _kept_of_quarantine(
    options: BindingOptions, columns: pa.Schema, kept: tuple[str, ...]
) -> tuple[tuple[str, ...], bool]:
    """Return the kept columns, and whether to add row ids, if the input may be a quarantine folder.

    A quarantine has its own `_file` and `_row`, which replace new row ids. Its old `_error` and `_stage` are not kept
    unless --keep names them.
    """
    if not from_quarantine(columns):
        return kept, options.row_id
    names = set(kept) - set(WHY.names if options.keep == ("all",) else ())
    names |= set(PLACE.names if options.row_id else ())
    return tuple(name for name in dict.fromkeys(columns.names) if name in names), False
