"""Which columns feed which tensor.

Automatic where it is certain; an error with a line to paste where it is not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from scorer.dataset import values_type
from scorer.errors import (
    BindingError,
    MissingColumns,
    OptionsError,
    ScorerError,
    ShapeMismatch,
    TypeMismatch,
    UnsupportedTensor,
    some,
)
from scorer.features import ASKED, BY_FEATURES, BY_LIST, BY_NAME, BY_POSITION, Feed, Fetch
from scorer.naming import expand, feed_line, parse_feed, split_known
from scorer.options import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scorer.model import ModelSpec, TensorSpec
    from scorer.options import BindingOptions
    from scorer.rules import FeedText

_NUMBERS = {"float16", "float32", "float64", "bool"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
_MATRIX = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Columns to tensors and back."""

    feeds: tuple[Feed, ...]
    fetches: tuple[Fetch, ...] = ()
    kept: tuple[str, ...] = ()
    row_id: bool = False
    fixed_batch: int | None = None
    """Rows that the model insists on; batches are padded to it and cut again."""

    @property
    def fed(self) -> tuple[str, ...]:
        """Columns that any tensor uses, each once."""
        return tuple(dict.fromkeys(name for feed in self.feeds for name in feed.columns))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Columns that the model adds."""
        return tuple(name for fetch in self.fetches for name in fetch.columns)


def bind(options: BindingOptions, model: ModelSpec, columns: pa.Schema) -> tuple[Binding, list[ScorerError]]:
    """The input side, and everything that is wrong with it."""
    problems: list[ScorerError] = []
    asked = _asked(options.feed, model, problems)
    nulls = _policies(options.on_null, model, problems)
    feeds = []
    for tensor in model.inputs:
        try:
            _check_tensor(tensor)
            names, rule = (
                (_named(asked[tensor.name], tensor, columns), ASKED)
                if tensor.name in asked
                else _automatic(tensor, model, columns)
            )
            feed = _feed(tensor, names, columns, nulls.get(tensor.name), options.on_lossy)
            feeds.append(replace(feed, rule=rule))
        except ScorerError as error:
            problems.append(error)
    kept = _kept(options.keep, columns, problems)
    fixed = {t.shape[0]: t.name for t in model.inputs if t.shape and isinstance(t.shape[0], int)}
    if len(fixed) > 1:
        what, hint = "the model's inputs insist on different numbers of rows", "export it with one batch size"
        found = ", ".join(f"{name!r} on {rows}" for rows, name in fixed.items())
        problems.append(UnsupportedTensor(what, model.path, "one number of rows", found, hint))
    if not model.inputs:
        what, hint = "the model takes no input", "score with a model that does"
        problems.append(UnsupportedTensor(what, model.path, "at least one input", "none", hint))
    return (
        Binding(
            feeds=tuple(feeds),
            kept=kept,
            row_id=options.row_id,
            fixed_batch=next(iter(fixed)) if len(fixed) == 1 else None,
        ),
        problems,
    )


def widths(binding: Binding, sample: pa.Table) -> Binding:
    """List columns of unknown length, measured on the first rows."""
    feeds = []
    for feed in binding.feeds:
        if feed.width is None:
            lists = [values for values in sample[feed.columns[0]].to_pylist() if values]
            feeds.append(replace(feed, width=len(lists[0]) if lists else 1))
        else:
            feeds.append(feed)
    return replace(binding, feeds=tuple(feeds))


def _asked(feeds: Sequence[FeedText], model: ModelSpec, problems: list[ScorerError]) -> dict[str, list[str]]:
    """Column tokens by tensor, from --feed."""
    names = [tensor.name for tensor in model.inputs]
    asked: dict[str, list[str]] = {}
    for feed in feeds:
        tensor, tokens = (feed[0], list(feed[1])) if isinstance(feed, tuple) else parse_feed(feed, names)
        text = feed if isinstance(feed, str) else feed[0]
        if tensor not in names:
            what = f"--feed names an input that the model does not have: {text!r}"
            hint = did_you_mean(text.split("=")[0], names)
            if "=" not in text:
                hint = f"--feed '{names[0] if names else 'TENSOR'}={text}'"
            problems.append(OptionsError(what, f"--feed {text}", f"one of {some(names)}", repr(text), hint))
            continue
        if not tokens:
            what, hint = f"--feed {text!r} names no columns", f"--feed '{tensor}=COLUMN,...'"
            found = f"{text!r}, which is not a list of names" if "=" in text else "none"
            problems.append(
                OptionsError(what, f"--feed {text}", "columns: names, globs, ranges, 'quoted, names'", found, hint)
            )
            continue
        asked.setdefault(str(tensor), []).extend(tokens)
    return asked


def _policies(texts: Sequence[str], model: ModelSpec, problems: list[ScorerError]) -> dict[str, str]:
    """Null policy by tensor."""
    names = [tensor.name for tensor in model.inputs]
    common = [text for text in texts if split_known(text, names)[0] is None and "=" not in text]
    policies = dict.fromkeys(names, common[-1]) if common else {}
    for text in texts:
        tensor, policy = split_known(text, names)
        if tensor is not None:
            policies[tensor] = policy
        elif "=" in text:
            what, hint = (
                "--on-null names an input that the model does not have",
                did_you_mean(text.split("=")[0], names),
            )
            problems.append(OptionsError(what, f"--on-null {text}", f"one of {some(names)}", repr(text), hint))
    return policies


def _check_tensor(tensor: TensorSpec) -> None:
    """Refuse what no column can fill."""
    hint = "see `scorer inspect MODEL`"
    if tensor.type not in _NUMBERS | {"string"}:
        what = f"input {tensor.name!r} is of a type that columns cannot fill"
        raise UnsupportedTensor(what, "the model", some(sorted(_NUMBERS | {"string"}), 20), str(tensor), hint)
    if tensor.shape is not None and not 1 <= len(tensor.shape) <= _MATRIX:
        what = f"input {tensor.name!r} has {len(tensor.shape)} dimensions"
        raise UnsupportedTensor(what, "the model", "[N] or [N, k]", str(tensor), hint)


def _named(tokens: Sequence[str], tensor: TensorSpec, columns: pa.Schema) -> list[str]:
    found, unknown = expand(tokens, columns.names)
    if unknown:
        what = f"--feed {tensor.name} names columns that the input does not have: {some(unknown)}"
        hint = did_you_mean(unknown[0], columns.names) if len(unknown) < len(tokens) + 1 else ""
        if ".." in unknown[0]:
            hint = "ranges count up over numbered columns: f0..f27; for others use globs: 'mean *'"
        hint = (
            hint if hint.startswith(("did", "ranges")) else "names, globs (x_*) and ranges (f0..f27) must match columns"
        )
        raise MissingColumns(
            what, f"tensor {tensor.name!r}, {tensor}", "columns of the input", some(columns.names), hint
        )
    return found


def _automatic(tensor: TensorSpec, model: ModelSpec, columns: pa.Schema) -> tuple[list[str], str]:
    """The columns that are meant and why, or an error that shows the choice."""
    if len(model.inputs) == 1 and model.feature_names:
        return _featured(tensor, model, columns), BY_FEATURES
    by_name = _same_name(tensor.name, columns.names)
    if by_name and (len(model.inputs) > 1 or _width(tensor) == 1 or _is_list(columns.field(by_name).type)):
        return [by_name], BY_NAME
    if len(model.inputs) > 1:
        what = f"no column has the name of input {tensor.name!r}"
        expected = f"a column {tensor.name!r} for {tensor}"
        hint = f"--feed '{tensor.name}=COLUMN'"
        raise MissingColumns(what, f"tensor {tensor.name!r}", expected, some(columns.names), hint)
    width = _width(tensor)
    lists = [f.name for f in columns if _is_list(f.type) and _list_fits(f.type, width)]
    if len(lists) == 1 and width != 1:
        return lists, BY_LIST
    floats = [f.name for f in columns if pa.types.is_floating(values_type(f.type))]
    if width is not None and len(floats) == width:
        return floats, BY_POSITION
    raise _no_guess(tensor, width, floats, lists, columns)


def _no_guess(
    tensor: TensorSpec, width: int | None, floats: list[str], lists: list[str], columns: pa.Schema
) -> BindingError:
    needed = _columns(width) if width else "columns"
    numbers = [f.name for f in columns if _is_number(values_type(f.type))]
    whole = bool(width) and len(numbers) == width
    shown = numbers if whole else (floats or numbers)[: width or 3]
    shown = shown if whole or len(shown) == width else [*shown, "..."]
    what = f"it is not certain which columns feed {tensor.name!r}"
    found = f"{len(floats)} float columns ({some(floats)}), {len(lists)} lists that fit, of {_columns(len(columns))}"
    hint = f"{feed_line(tensor.name, shown)}, with the columns in the model's order"
    if whole:
        caution = "is a float column missing? Only if each of these is a feature, in the model's order"
        hint = f"{caution}: {feed_line(tensor.name, shown)}"
    return ShapeMismatch(what, f"tensor {tensor.name!r}, {tensor}", needed, found, hint)


def _featured(tensor: TensorSpec, model: ModelSpec, columns: pa.Schema) -> list[str]:
    missing = [name for name in model.feature_names if name not in columns.names]
    if missing:
        what = f"the model's own feature names are not columns of the input: {some(missing)}"
        needed = _columns(len(model.feature_names))
        hint = f"rename the columns, or --feed '{tensor.name}=COLUMN,...' with {needed} in order"
        raise MissingColumns(what, f"tensor {tensor.name!r}, {tensor}", some(missing), some(columns.names), hint)
    return list(model.feature_names)


def _same_name(name: str, columns: Sequence[str]) -> str | None:
    """Exactly, then without case, then with spaces as underscores, each only if unique."""
    for view in (str, str.lower, _underscored):
        hits = [column for column in columns if view(column) == view(name)]
        if len(hits) == 1:
            return hits[0]
    return None


def _columns(count: int) -> str:
    return f"{count} column" + ("" if count == 1 else "s")


def _underscored(name: str) -> str:
    """As converters name an input after a column."""
    return re.sub(r"\W", "_", name).lower()


def _feed(tensor: TensorSpec, names: Sequence[str], columns: pa.Schema, on_null: str | None, on_lossy: str) -> Feed:
    """The checked feed of one tensor."""
    types = {name: values_type(columns.field(name).type) for name in names}
    width, rank = _width(tensor), 1 if tensor.shape is not None and len(tensor.shape) == 1 else _MATRIX
    default = "nan" if tensor.type.startswith("float") else "error"
    policy = default if on_null is None else on_null
    where = f"tensor {tensor.name!r}, {tensor}"
    kind = "strings" if tensor.type == "string" else "numeric"
    if kind == "numeric" and len(names) == 1 and _is_list(types[names[0]]):
        kind, own = "list", _list_width(types[names[0]])
        if width and own and own != width:
            what, hint = f"column {names[0]!r} is not as wide as the tensor", "feed another column"
            raise ShapeMismatch(what, where, f"{width} values in a row", f"{own} in {names[0]!r}", hint)
        width = width or own
    elif width is not None and len(names) != width:
        what = f"{_columns(len(names))} for {tensor.name!r} instead of {width}"
        hint = f"--feed '{tensor.name}=COLUMN,...' with {_columns(width)} in the model's order"
        raise ShapeMismatch(what, where, _columns(width), f"{len(names)}: {some(names)}", hint)
    else:
        width = len(names)
    _check_types(types, kind, tensor, where)
    _check_policy(policy, tensor, where)
    return Feed(
        tensor=tensor.name, kind=kind, dtype=tensor.type, columns=tuple(names), rank=rank,
        width=width, on_null=policy, on_lossy=on_lossy,
    )  # fmt: skip


def _check_types(types: Mapping[str, pa.DataType], kind: str, tensor: TensorSpec, where: str) -> None:
    for name, column in types.items():
        value = column.value_type if kind == "list" else column
        good = _is_text(value) if kind == "strings" else _is_number(value)
        if tensor.type == "bool" and not pa.types.is_boolean(value):
            good = False
        if not good:
            wanted = {"strings": "text", "list": "lists of numbers"}.get(kind, "numbers")
            wanted = "truth values" if tensor.type == "bool" else wanted
            what = f"column {name!r} cannot become {tensor.type}"
            hint = "feed another column, or convert this one before"
            raise TypeMismatch(what, where, f"{wanted} for {tensor.type}", f"{column} in {name!r}", hint)


def _check_policy(policy: str, tensor: TensorSpec, where: str) -> None:
    """Refuse a constant that the tensor cannot hold."""
    if policy == "error" or tensor.type == "string":
        return
    floats = tensor.type.startswith("float")
    try:
        constant = float(policy)
        fits = floats or (constant.is_integer() and _holds(tensor.type, int(constant)))
    except (ValueError, OverflowError):
        fits = False
    if not fits:
        what, hint = f"the null policy does not fit {tensor.name!r}", f"--on-null '{tensor.name}=0'"
        expected = "error, nan or a number" if floats else f"error or a whole number that {tensor.type} holds"
        raise OptionsError(what, where, expected, repr(policy), hint)


def _holds(kind: str, number: int) -> bool:
    if kind == "bool":
        return number in {0, 1}
    info = np.iinfo(kind)
    return bool(info.min <= number <= info.max)


def _kept(tokens: Sequence[str], columns: pa.Schema, problems: list[ScorerError]) -> tuple[str, ...]:
    """Columns that go to the output, in the input's order."""
    names = list(dict.fromkeys(columns.names))
    if tuple(tokens) in {("all",), ("none",)} and tokens[0] not in names:
        return tuple(names) if tokens[0] == "all" else ()
    found, unknown = expand(tokens, names)
    if unknown:
        what = f"--keep names columns that the input does not have: {some(unknown)}"
        hint = did_you_mean(unknown[0], names)
        problems.append(MissingColumns(what, f"--keep {','.join(tokens)}", "columns of the input", some(names), hint))
    return tuple(name for name in names if name in set(found))


def _width(tensor: TensorSpec) -> int | None:
    """Values in a row of the tensor; None when it is free."""
    if tensor.shape is None:
        return None
    if len(tensor.shape) == 1:
        return 1
    last = tensor.shape[1]
    return last if isinstance(last, int) else None


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _list_width(kind: pa.DataType) -> int | None:
    return kind.list_size if pa.types.is_fixed_size_list(kind) else None


def _list_fits(kind: pa.DataType, width: int | None) -> bool:
    return _is_number(kind.value_type) and (_list_width(kind) or width) == (width or _list_width(kind))
