"""Which output tensor becomes which column, and what every part of the output looks like."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.binding.features import steps as steps_
from scorer.binding.features.unpack import arrow_name, column_types
from scorer.binding.spec import Fetch
from scorer.display.words import did_you_mean, quoted_list
from scorer.errors import BindingError, OptionsError, ScorerError, ShapeMismatch, UnsupportedTensor
from scorer.options.grammar import split_known, split_pipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from scorer.binding.spec import Binding
    from scorer.model.spec import ModelSpec
    from scorer.options.request import BindingOptions


FLAT = 16  # wider outputs become one list column: two to ten times faster to read than as many columns
_MATRIX = 2


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """An output tensor that was asked for."""

    tensor: str
    steps: tuple[str, ...] = ()
    column: str = ""
    """The name it was given, '' if none."""


def requested_fetches(options: BindingOptions, model: ModelSpec) -> tuple[tuple[FetchRequest, ...], list[ScorerError]]:
    """Output tensors to ask for: TENSOR|step|step=COLUMN."""
    names = [tensor.name for tensor in model.outputs]
    if not options.fetch:
        return tuple(FetchRequest(name) for name in names), []
    wanted: list[FetchRequest] = []
    problems: list[ScorerError] = []
    for text in options.fetch:
        try:
            wanted.append(_wanted(text, names, model))
        except ScorerError as error:
            problems.append(error)
    return tuple(dict.fromkeys(wanted)), problems


def _wanted(text: str, names: list[str], model: ModelSpec) -> FetchRequest:
    tensor, column = split_known(text, names)
    pieces: list[str] = []
    if tensor is None:
        head, *pieces = split_pipe(text)
        tensor = head if head in names else None
        last, equals, name = pieces[-1].rpartition("=") if pieces else ("", "", "")
        if equals and name.strip() and last.count("(") == last.count(")"):
            pieces[-1], column = last.strip(), name.strip()
        else:
            column = ""
    if tensor is None:
        what = f"--fetch names an output that the model does not have: {text!r}"
        hint = did_you_mean(re.split(r"[=|]", text)[0], names)
        raise OptionsError(what, f"--fetch {text}", f"one of {quoted_list(names)}", repr(text), hint)
    if len(split_pipe(column)) > 1:
        what, hint = "steps stand before the column", f"--fetch '{tensor}|step=COLUMN'"
        raise OptionsError(what, f"--fetch {text}", "TENSOR|step=COLUMN", repr(text), hint)
    _check_label(tensor, pieces, model)
    inputs = [given.name for given in model.inputs]
    return FetchRequest(tensor, tuple(steps_.parse_step(step, model.class_labels, inputs) for step in pieces), column)


def _check_label(tensor: str, pieces: Sequence[str], model: ModelSpec) -> None:
    """Refuse to number what holds the classes' own numbers already."""
    kind = next(output.type for output in model.outputs if output.name == tensor)
    numbered = model.class_labels == tuple(map(str, range(len(model.class_labels))))
    if "int" in kind and pieces[:1] == ["label"] and model.class_labels and not numbered:
        what = f"{tensor!r} may hold the classes' own labels already"
        hint = "leave |label out, or name the classes: |label(cat, dog)"
        raise OptionsError(what, f"--fetch {tensor}|label", "scores, or class numbers from 0", kind, hint)


def fetch_of(
    wanted: FetchRequest, values: object, rows: int, model: ModelSpec, prefix: str, *, ragged: bool = False
) -> Fetch:
    """How an output becomes columns, judged by what really came back for `rows` rows."""
    tensor = wanted.tensor
    base = wanted.column or tensor
    if values is None:
        what, hint = f"output {tensor!r} is optional, and the model left it out", "leave it out with --fetch"
        raise UnsupportedTensor(what, model.path, "a tensor", "nothing", hint)
    if isinstance(values, list):
        return _zipmap(tensor, base, values, rows, model, prefix)
    array: np.ndarray = values  # type: ignore[assignment]
    kind = arrow_name(array.dtype)
    if kind is None:
        what, hint = f"output {tensor!r} is of a type that has no column", "leave it out with --fetch"
        raise UnsupportedTensor(what, model.path, "numbers, truth values or text", str(array.dtype), hint)
    if array.ndim == 0 or len(array) != rows:
        what = f"output {tensor!r} does not have one row per input row"
        hint = "such a model mixes its rows; export it without the reduction, or leave the output out with --fetch"
        raise ShapeMismatch(what, model.path, f"{rows} rows for {rows} rows", f"shape {list(array.shape)}", hint)
    if rows and not array.size:
        what, hint = f"output {tensor!r} has no values in a row", "leave it out with --fetch"
        raise UnsupportedTensor(what, model.path, "at least one value in a row", f"shape {list(array.shape)}", hint)
    if wanted.steps and wanted.steps[-1].startswith("topk"):
        names = [f"{prefix}{base}_{i}" for i in range(1, array.shape[1] + 1)]
        columns = tuple(name + more for name in names for more in ("", "_score"))
        return Fetch(tensor=tensor, kind="topk", columns=columns, type="double", steps=wanted.steps)
    if ragged:
        width = prod(array.shape[2:])
        return Fetch(tensor=tensor, kind="ragged", columns=(prefix + base,), type=kind, width=width, steps=wanted.steps)
    width = array.size // rows if rows else 1
    if width == 1:
        return Fetch(tensor=tensor, kind="flat", columns=(prefix + base,), type=kind, steps=wanted.steps)
    if array.ndim > _MATRIX or width > FLAT:
        return Fetch(tensor=tensor, kind="list", columns=(prefix + base,), type=kind, width=width, steps=wanted.steps)
    labels = model.class_labels if len(model.class_labels) == width else tuple(map(str, range(width)))
    flat = tuple(f"{prefix}{base}_{label}" for label in labels)
    return Fetch(tensor=tensor, kind="flat", columns=flat, type=kind, width=width, steps=wanted.steps)


def output_schema(binding: Binding, columns: pa.Schema, where: str) -> tuple[pa.Schema, list[ScorerError]]:
    """What every part of the output looks like, and names that clash."""
    fields = [columns.field(name) for name in binding.kept]
    for fetch in binding.fetches:
        fields += [pa.field(name, kind) for name, kind in zip(fetch.columns, column_types(fetch), strict=True)]
    if binding.row_id:
        fields += [pa.field("_file", pa.string()), pa.field("_row", pa.int64())]
    names = [field.name for field in fields]
    clashes = sorted({name for name in names if names.count(name) > 1})
    problems: list[ScorerError] = []
    if clashes:
        what = f"output columns would share a name: {quoted_list(clashes)}"
        hint = "--prefix score_ renames what the model adds; --keep or --fetch TENSOR=NAME change one column"
        if not set(clashes) & set(binding.outputs):
            hint = f"leave {quoted_list(clashes)} out with --keep, or do without --row-id"
        problems.append(BindingError(what, where, "each name once", quoted_list(names, 40), hint))
    return pa.schema(fields, metadata=columns.metadata), problems


def _zipmap(tensor: str, base: str, values: list[object], rows: int, model: ModelSpec, prefix: str) -> Fetch:
    maps = [value for value in values if isinstance(value, dict)]
    if len(maps) != rows or not maps:
        what, hint = f"output {tensor!r} is a sequence that is not one map per row", "leave it out with --fetch"
        raise UnsupportedTensor(what, model.path, f"{rows} maps", f"{len(values)} values", hint)
    labels = model.zipmaps.get(tensor) or tuple(str(key) for key in maps[0])
    names = tuple(f"{prefix}{base}_{label}" for label in labels)
    return Fetch(tensor=tensor, kind="zipmap", columns=names, type="float", labels=labels, width=len(labels))
