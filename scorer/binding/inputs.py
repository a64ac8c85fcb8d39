"""Which columns feed which tensor.

Automatic where it is certain; an error with a line to paste where it is not.
"""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.arrow import as_lists, is_list, is_number, sizes, values_in, values_type
from scorer.binding.features import text as text_
from scorer.binding.feeds import Context, columns_, converted_feed, measured, pictured, plain_feed, row_shape
from scorer.binding.request import FeedRequest, expand, null_policies, requested_feeds, same_name
from scorer.binding.spec import BY_FEATURES, BY_LIST, BY_NAME, BY_POSITION, Binding, Feed
from scorer.dataset.quarantine import PLACE, WHY, from_quarantine
from scorer.display.words import did_you_mean, quoted_list
from scorer.errors import BindingError, MissingColumns, ScorerError, ShapeMismatch, UnsupportedTensor
from scorer.options.grammar import feed_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scorer.model.spec import ModelSpec, TensorSpec
    from scorer.options.request import BindingOptions


_NUMBERS = {"bfloat16", "float16", "float32", "float64", "bool"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
_MATRIX = 2
_STATE = re.compile(r"past|state|hidden|cache|mem|(^|_)(h|c|hx|cx)(_|\d|$)", re.IGNORECASE)
"""Names that exporters give to what a model remembers."""
_BATCH = re.compile(r"(n|batch([_ ]?size)?|batch[_ ]?dim|unk__batch)$", re.IGNORECASE)
"""Names that exporters give to the dimension of rows."""


def bind(
    options: BindingOptions, model: ModelSpec, columns: pa.Schema, folder: str = "", given: pa.Schema | None = None
) -> tuple[Binding, list[ScorerError]]:
    """The input side, and everything that is wrong with it.

    Paths in columns are relative to `folder`; after a transform, what it gives is fed instead of the input's columns.
    """
    columns = pa.schema([field.with_type(as_lists(field.type)) for field in columns])
    asked, unclear, problems = requested_feeds(options.feed, model)
    nulls, null_problems = null_policies(options.on_null, asked, model)
    problems += null_problems
    constant = {name for name, wish in asked.items() if wish.call is not None and wish.call.name == "const"}
    fixed = {
        t.shape[0]: t.name for t in model.inputs if t.shape and isinstance(t.shape[0], int) and t.name not in constant
    }
    free = any(t.shape and not isinstance(t.shape[0], int) for t in model.inputs if t.name not in constant)
    context = Context(
        columns=columns if given is None else given,
        folder=folder,
        on_lossy=options.on_lossy,
        free=free,
        fixed=tuple(fixed),
    )
    feeds = []
    for tensor in model.inputs:
        if tensor.name in unclear:
            continue
        try:
            _check_tensor(tensor, asked.get(tensor.name))
            feeds.append(_feed(tensor, asked.get(tensor.name), model, context, nulls.get(tensor.name)))
        except ScorerError as error:
            problems.append(error)
    kept, keep_problems = _kept(options.keep, columns)
    kept, row_id = _placed(options, columns, kept)
    problems += [*keep_problems, *_refused(model, asked, fixed)]
    return (
        Binding(
            feeds=tuple(feeds),
            kept=kept,
            row_id=row_id,
            fixed_batch=next(iter(fixed)) if len(fixed) == 1 else None,
        ),
        problems,
    )


def shapes(binding: Binding, sample: pa.Table) -> Binding:
    """List columns of unknown length, measured on the first rows."""
    return replace(binding, feeds=tuple(measured(feed, sample) for feed in binding.feeds))


def _feed(
    tensor: TensorSpec, wish: FeedRequest | None, model: ModelSpec, context: Context, on_null: str | None
) -> Feed:
    if wish is None:
        names, rule = _automatic(tensor, model, context.columns)
        return replace(plain_feed(tensor, names, context, on_null), rule=rule)
    names = _requested_columns(wish.tokens, tensor, context.columns) if wish.tokens else []
    if wish.call is None:
        return plain_feed(tensor, names, context, on_null)
    return converted_feed(tensor, wish.call, names, context, on_null)


def _refused(model: ModelSpec, asked: Mapping[str, FeedRequest], fixed: Mapping[int, str]) -> list[ScorerError]:
    """Models that cannot be fed row by row, whatever the columns."""
    problems: list[ScorerError] = []
    if len(fixed) > 1:
        what, hint = "the model's inputs insist on different numbers of rows", "export it with one batch size"
        found = ", ".join(f"{name!r} on {rows}" for rows, name in fixed.items())
        problems.append(UnsupportedTensor(what, model.path, "one number of rows", found, hint))
    calls = [wish.call.name for wish in asked.values() if wish.call is not None]
    if model.inputs and calls.count("const") == len(model.inputs):
        what, hint = "no column is fed: every input is a constant", "feed a column to at least one input"
        problems.append(BindingError(what, model.path, "at least one column", "none", hint))
    if not model.inputs:
        what, hint = "the model takes no input", "score with a model that does"
        problems.append(UnsupportedTensor(what, model.path, "at least one input", "none", hint))
    sizes_ = [size for tensor in model.inputs for size in tensor.shape or () if isinstance(size, str)]
    first = [t.shape[0] for t in model.inputs if t.shape and isinstance(t.shape[0], str)]
    batch = next((size for size in sizes_ if _BATCH.match(size)), next(iter(first), None))
    for tensor in model.inputs:
        wish = asked.get(tensor.name)
        if wish is not None and wish.call is not None and wish.call.name == "const":
            continue
        deep = wish is None and len(tensor.shape or ()) > _MATRIX
        twin = next((o for o in model.outputs if o.type == tensor.type and _carries(tensor.name, o.name)), None)
        if deep and twin is not None:
            what = f"the model carries state from call to call: {tensor.name!r} comes back as {twin.name!r}"
            hint = f"export it for whole sequences, or start each row from --feed '{tensor.name}=const(0)'"
            problems.append(UnsupportedTensor(what, model.path, "rows that do not depend on others", str(tensor), hint))
        elif batch is not None and tensor.shape and batch in tensor.shape[1:] and tensor.shape[0] != batch:
            what = f"the rows of {tensor.name!r} are not on its first axis"
            hint = "export the model with the batch first"
            problems.append(UnsupportedTensor(what, model.path, f"[{batch}, ...]", str(tensor), hint))
        elif first and tensor.shape and isinstance(tensor.shape[0], int):
            what = f"input {tensor.name!r} has no dimension for rows, as the others have"
            hint = (
                f"--feed '{tensor.name}=const(...)' gives all rows the same, or export the model with the batch first"
            )
            problems.append(UnsupportedTensor(what, model.path, f"[{first[0]}, ...]", str(tensor), hint))
    return problems


def _carries(name: str, output: str) -> bool:
    """Whether an output is an input's next value, by how exporters name them."""
    if not _STATE.search(name):
        return False
    plain, other = (
        re.sub(r"(past|present|new|next|prev|out|in|n|_|\.|\d+$)", "", text.lower()) for text in (name, output)
    )
    return plain == other and name != output


def _check_tensor(tensor: TensorSpec, wish: FeedRequest | None) -> None:
    """Refuse what no column can fill."""
    hint = "see `scorer inspect MODEL`"
    if tensor.type not in _NUMBERS | {"string"}:
        what = f"input {tensor.name!r} is of a type that columns cannot fill"
        raise UnsupportedTensor(what, "the model", quoted_list(sorted(_NUMBERS | {"string"}), 20), str(tensor), hint)
    if 0 in (tensor.shape or ()):
        what = f"input {tensor.name!r} has a dimension of size 0"
        raise UnsupportedTensor(what, "the model", "[N, ...]", str(tensor), "export it without this input")
    constant = wish is not None and wish.call is not None and wish.call.name == "const"
    if tensor.shape == () and not constant:
        what, hint = f"input {tensor.name!r} is one value for all rows", f"--feed '{tensor.name}=const(VALUE)'"
        raise UnsupportedTensor(what, "the model", "[N, ...]", str(tensor), hint)


def _requested_columns(tokens: Sequence[str], tensor: TensorSpec, columns: pa.Schema) -> list[str]:
    found, unknown = expand(tokens, columns.names)
    if unknown:
        what = f"--feed {tensor.name} names columns that the input does not have: {quoted_list(unknown)}"
        hint = did_you_mean(unknown[0], columns.names) if len(unknown) < len(tokens) + 1 else ""
        if ".." in unknown[0]:
            hint = "ranges count up over numbered columns: f0..f27; for others use globs: 'mean *'"
        hint = (
            hint if hint.startswith(("did", "ranges")) else "names, globs (x_*) and ranges (f0..f27) must match columns"
        )
        raise MissingColumns(
            what, f"tensor {tensor.name!r}, {tensor}", "columns of the input", quoted_list(columns.names), hint
        )
    return found


def _automatic(tensor: TensorSpec, model: ModelSpec, columns: pa.Schema) -> tuple[list[str], str]:
    """The columns that are meant and why, or an error that shows the choice."""
    row = row_shape(tensor)
    deep = row is not None and len(row) >= _MATRIX
    if len(model.inputs) == 1 and model.feature_names and not deep:
        return _featured(tensor, model, columns), BY_FEATURES
    by_name = same_name(tensor.name, columns.names)
    if by_name and (len(model.inputs) > 1 or _width(tensor) == 1 or is_list(columns.field(by_name).type)):
        return [by_name], BY_NAME
    if len(model.inputs) > 1:
        what = f"no column has the name of input {tensor.name!r}"
        expected = f"a column {tensor.name!r} for {tensor}"
        hint = f"--feed '{tensor.name}=COLUMN'"
        if tensor.name in text_.roles([tensor.name]):
            hint = f"--feed '{tensor.name}=COLUMN|text(tokenizer.json)' for text, or a list column of token numbers"
        raise MissingColumns(what, f"tensor {tensor.name!r}, {tensor}", expected, quoted_list(columns.names), hint)
    lists = [f.name for f in columns if is_list(f.type) and _list_fits(f.type, row)]
    if len(lists) == 1 and _width(tensor) != 1:
        return lists, BY_LIST
    floats = [f.name for f in columns if pa.types.is_floating(values_type(f.type))]
    if not deep and _width(tensor) is not None and len(floats) == _width(tensor):
        return floats, BY_POSITION
    raise _no_guess(tensor, floats, lists, columns)


def _no_guess(tensor: TensorSpec, floats: list[str], lists: list[str], columns: pa.Schema) -> BindingError:
    width, row = _width(tensor), row_shape(tensor) or ()
    what = f"it is not certain which columns feed {tensor.name!r}"
    where = f"tensor {tensor.name!r}, {tensor}"
    if len(row) >= _MATRIX:
        hint = f"--feed '{tensor.name}=COLUMN' with a list column" + (
            f", or --feed '{tensor.name}=COLUMN|image(...)'" if pictured(tensor) else ""
        )
        return ShapeMismatch(
            what,
            where,
            "one list column that fits",
            quoted_list(lists) if lists else f"none of {quoted_list(columns.names)}",
            hint,
        )
    needed = columns_(width) if width else "columns"
    numbers = [f.name for f in columns if is_number(values_type(f.type))]
    whole = bool(width) and len(numbers) == width
    shown = numbers if whole else (floats or numbers)[: width or 3]
    found = (
        f"{len(floats)} float columns ({quoted_list(floats)}), {len(lists)} lists that fit, of {columns_(len(columns))}"
    )
    hint = f"{feed_line(tensor.name, shown)}, with the columns in the model's order"
    if not whole and len(shown) != width:
        hint = f"--feed '{tensor.name}=COLUMN,...' with {needed} in the model's order; ranges are written f0..f27"
    if whole:
        caution = "is a float column missing? Only if each of these is a feature, in the model's order"
        hint = f"{caution}: {feed_line(tensor.name, shown)}"
    return ShapeMismatch(what, where, needed, found, hint)


def _featured(tensor: TensorSpec, model: ModelSpec, columns: pa.Schema) -> list[str]:
    missing = [name for name in model.feature_names if name not in columns.names]
    if missing:
        what = f"the model's own feature names are not columns of the input: {quoted_list(missing)}"
        needed = columns_(len(model.feature_names))
        hint = f"rename the columns, or --feed '{tensor.name}=COLUMN,...' with {needed} in order"
        raise MissingColumns(
            what, f"tensor {tensor.name!r}, {tensor}", quoted_list(missing), quoted_list(columns.names), hint
        )
    return list(model.feature_names)


def _kept(tokens: Sequence[str], columns: pa.Schema) -> tuple[tuple[str, ...], list[ScorerError]]:
    """Return the columns that --keep selects, in the input's order, and the problems."""
    problems: list[ScorerError] = []
    names = list(dict.fromkeys(columns.names))
    if tuple(tokens) in {("all",), ("none",)} and tokens[0] not in names:
        return (tuple(names) if tokens[0] == "all" else ()), problems
    found, unknown = expand(tokens, names)
    if unknown:
        what = f"--keep names columns that the input does not have: {quoted_list(unknown)}"
        hint = did_you_mean(unknown[0], names)
        problems.append(
            MissingColumns(what, f"--keep {','.join(tokens)}", "columns of the input", quoted_list(names), hint)
        )
    return tuple(name for name in names if name in set(found)), problems


def _placed(options: BindingOptions, columns: pa.Schema, kept: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """Rows of a quarantine say themselves where they came from, and why they failed then is no news."""
    if not from_quarantine(columns):
        return kept, options.row_id
    said = set(kept) - set(WHY.names if options.keep == ("all",) else ())
    said |= set(PLACE.names if options.row_id else ())
    return tuple(name for name in dict.fromkeys(columns.names) if name in said), False


def _width(tensor: TensorSpec) -> int | None:
    """Values in a row of a vector or matrix; None when it is free."""
    row = row_shape(tensor)
    if row is None or len(row) >= _MATRIX:
        return None
    return row[0] if row else 1


def _list_fits(kind: pa.DataType, row: tuple[int | None, ...] | None) -> bool:
    """Whether lists of this type could be rows of that shape."""
    if not is_number(values_in(kind)):
        return False
    own = sizes(kind)
    if row is None or len(own) != len(row):
        return row is None or (len(own) == 1 and None not in row and own[0] in {None, prod(size or 0 for size in row)})
    return all(a is None or b is None or a == b for a, b in zip(own, row, strict=True))
