"""Decide which columns feed which tensor.

Columns are matched automatically if there is only one safe match. Otherwise the error shows a --feed to paste.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.arrow import as_lists, is_list, is_number, sizes, values_in, values_type
from scorer.binding.axes import BATCH_NAME, axis_line, input_axes, is_next_state, requested_axes, with_rows_first
from scorer.binding.features import text as text_
from scorer.binding.feeds import (
    Context,
    converted_feed,
    counted_columns,
    looks_like_pictures,
    plain_feed,
    row_shape,
    with_measured_shape,
)
from scorer.binding.mixed import mixed_feed, with_one_reading
from scorer.binding.order import by_numbers, of_glob
from scorer.binding.request import FeedRequest, expand, matching_column, null_policies, requested_feeds, with_fields
from scorer.binding.spec import ASKED, BY_FEATURES, BY_GLOB, BY_LIST, BY_NAME, BY_POSITION, UNCONFIRMED, Binding, Feed
from scorer.dataset.fields import fields_of, known_names
from scorer.display.words import did_you_mean, plural, quoted_list
from scorer.errors import BindingError, MissingColumns, ScorerError, ShapeMismatch, UnsupportedTensor
from scorer.options.grammar import feed_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scorer.model.spec import ModelSpec, TensorSpec
    from scorer.options.fields import BindingOptions


_NUMBERS = {"bfloat16", "float16", "float32", "float64", "bool"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
_MATRIX = 2
_WIDE = 64  # a tensor of so many values a row is rarely filled from single columns


def bind(
    options: BindingOptions, model: ModelSpec, columns: pa.Schema, folder: str = "", given: pa.Schema | None = None
) -> tuple[Binding, list[ScorerError]]:
    """Return the binding of the model's inputs, and all problems.

    `columns` is the input's schema, and `given` that of the transform's result, which is fed instead. Paths in columns
    are relative to `folder`.
    """
    columns = pa.schema([field.with_type(as_lists(field.type)) for field in columns])
    requests, unclear, problems = requested_feeds(options.feed, model)
    nulls, null_problems = null_policies(options.on_null, requests, model)
    problems += null_problems
    requested, axis_problems = requested_axes(options.batch_axis, model)
    axes = input_axes(requested, model)
    model, misplaced = with_rows_first(model, axes)
    problems += [*axis_problems, *misplaced]
    constant = {name for name, request in requests.items() if _is_constant(request)}
    fixed = {
        t.shape[0]: t.name for t in model.inputs if t.shape and isinstance(t.shape[0], int) and t.name not in constant
    }
    free = any(t.shape and not isinstance(t.shape[0], int) for t in model.inputs if t.name not in constant)
    context = Context(
        columns=columns if given is None else given,
        folder=folder,
        on_lossy=options.on_lossy,
        by_position=options.by_position,
        free_batch=free,
        fixed_batches=tuple(fixed),
    )
    feeds, failed = [], dict[FeedRequest, ScorerError]()  # tensors of one text fail for one reason
    for tensor in model.inputs:
        if tensor.name in unclear:
            continue
        try:
            request = requests.get(tensor.name)
            _check_tensor(tensor, request)
            feeds.append(_feed(tensor, request, model, context, nulls.get(tensor.name)))
        except ScorerError as error:
            first = failed.setdefault(request, error) if request is not None and request.call else error
            _add_once(problems, type(error)(error.what, error.where, error.expected, error.found, first.hint))
    problems += _model_problems(model, requests, fixed, context.columns)
    binding = Binding(
        feeds=tuple(feeds),
        fixed_batch=next(iter(fixed)) if len(fixed) == 1 else None,
        batch_axes=tuple(axes.items()),
    )
    if binding.any_size:
        problems += [_one_by_one(model, rows) for rows in fixed if rows != 1]
        binding = replace(binding, fixed_batch=1)
    return binding, problems


def _add_once(problems: list[ScorerError], error: ScorerError) -> None:
    """Append an error; one that was found for another tensor already only gets a second place."""
    for i, other in enumerate(problems):
        same = type(other) is type(error) and all(
            getattr(other, name) == getattr(error, name) for name in ("what", "expected", "found", "hint")
        )
        if same:
            where = other.where if error.where in other.where else f"{other.where}, {error.where}"
            problems[i] = type(error)(error.what, where, error.expected, error.found, error.hint)
            return
    problems.append(error)


def shapes(binding: Binding, sample: pa.Table) -> Binding:
    """Return the binding with the shapes of list columns of unknown length, as in the first rows."""
    return replace(binding, feeds=tuple(with_measured_shape(feed, sample) for feed in binding.feeds))


def _feed(
    tensor: TensorSpec, request: FeedRequest | None, model: ModelSpec, context: Context, on_null: str | None
) -> Feed:
    if request is None:
        names, rule = _automatic(tensor, model, context)
    else:
        request, columns = with_fields(request, context.columns)
        context = replace(context, columns=columns)
        request = with_one_reading(request, tensor, columns)
        if request.items:
            return _mixed(tensor, request, model, context, on_null)
        names, rule = _requested_columns(request.tokens, tensor, model, context.columns)
    if request is None or request.call is None:
        return replace(plain_feed(tensor, names, context, on_null), rule=rule)
    return replace(converted_feed(tensor, request.call, names, context, on_null), rule=rule)


def _mixed(tensor: TensorSpec, request: FeedRequest, model: ModelSpec, context: Context, on_null: str | None) -> Feed:
    """Return a feed of columns that are each converted by a converter of their own."""
    parts, rules = [], []
    for item in request.items:
        names, rule = _requested_columns(item.tokens, tensor, model, context.columns)
        parts.append((names, item.call))
        rules.append(rule)
    rule = next((rule for rule in rules if rule in UNCONFIRMED), rules[0])
    return replace(mixed_feed(tensor, parts, context, on_null), rule=rule)


def _is_constant(request: FeedRequest | None) -> bool:
    return request is not None and request.call is not None and request.call.name == "const"


def _model_problems(
    model: ModelSpec, requests: Mapping[str, FeedRequest], fixed: Mapping[int, str], columns: pa.Schema
) -> list[ScorerError]:
    """Return why the model cannot be fed row by row, whatever the columns are."""
    problems: list[ScorerError] = []
    if len(fixed) > 1:
        problems.append(
            UnsupportedTensor(
                "the model's inputs need different numbers of rows",
                where=model.path,
                expected="one number of rows",
                found=", ".join(f"{rows} for {name!r}" for rows, name in fixed.items()),
                hint=_one_size_hint(model, fixed),
            )
        )
    if model.inputs and sum(map(_is_constant, requests.values())) == len(model.inputs):
        problems.append(
            BindingError(
                "no column is fed: every input is a constant",
                where=model.path,
                expected="at least one column",
                found="none",
                hint="feed a column to at least one input",
            )
        )
    if not model.inputs:
        problems.append(
            UnsupportedTensor(
                "the model has no inputs",
                where=model.path,
                expected="at least one input",
                found="none",
                hint="use a model that has inputs",
            )
        )
    found = (_row_problem(tensor, model, requests, columns) for tensor in model.inputs)
    return [*problems, *(problem for problem in found if problem is not None)]


def _one_by_one(model: ModelSpec, rows: int) -> ShapeMismatch:
    return ShapeMismatch(
        "pictures of any size are scored one at a time, but the model takes another number of rows",
        where=model.path,
        expected="a model that takes 1 row",
        found=f"{rows} rows",
        hint="scale all pictures to one size, such as image(size=48x320)",
    )


def _one_size_hint(model: ModelSpec, fixed: Mapping[int, str]) -> str:
    """Return how to give all inputs one number of rows: by the axis of one of them that fits another one."""
    for tensor in model.inputs:
        shape = tensor.shape or ()
        axis = next((i for i, size in enumerate(shape) if i and size in fixed and size != shape[0]), None)
        if axis is not None and tensor.name in fixed.values() and len(shape) > _MATRIX:
            return (
                f"{axis_line(tensor.name, axis)} if its rows are on that axis, or export the model with one batch size"
            )
    return "export the model with one batch size"


def _row_problem(
    tensor: TensorSpec, model: ModelSpec, requests: Mapping[str, FeedRequest], columns: pa.Schema
) -> UnsupportedTensor | None:
    """Return why an input has no independent rows on its first axis; None if it has."""
    request = requests.get(tensor.name)
    if _is_constant(request):
        return None
    sizes_ = [size for tensor in model.inputs for size in tensor.shape or () if isinstance(size, str)]
    first = [t.shape[0] for t in model.inputs if t.shape and isinstance(t.shape[0], str)]
    batch = next((size for size in sizes_ if BATCH_NAME.match(size)), next(iter(first), None))
    deep = request is None and len(tensor.shape or ()) > _MATRIX
    state = next((output for output in model.outputs if is_next_state(tensor, output)), None)
    shape = tensor.shape or ()
    misplaced = batch is not None and batch in shape[1:] and shape[0] != batch
    shared = bool(first and shape and isinstance(shape[0], int))
    if deep and state is not None:
        return _keeps_state(tensor, state, model, None if misplaced or shared else columns)
    if misplaced:
        return UnsupportedTensor(
            f"the batch dimension of input {tensor.name!r} is not its first dimension",
            where=model.path,
            expected=f"[{batch}, ...]",
            found=str(tensor),
            hint=f"{axis_line(tensor.name, shape.index(batch))} if its rows are on that axis, "
            "or export the model with the batch dimension first",
        )
    if shared:
        return UnsupportedTensor(
            f"input {tensor.name!r} has no batch dimension, but other inputs have one",
            where=model.path,
            expected=f"[{first[0]}, ...]",
            found=str(tensor),
            hint=f"feed all rows the same value with --feed '{tensor.name}=const(...)', "
            "or export the model with the batch dimension first",
        )
    return None


def _keeps_state(
    tensor: TensorSpec, state: TensorSpec, model: ModelSpec, columns: pa.Schema | None
) -> UnsupportedTensor:
    """Return the error for an input that an output of the call before would fill; `columns` may have its rows."""
    own = None if columns is None else matching_column(tensor.name, columns.names)
    hint = f"export the model for whole sequences, or start each row from --feed '{tensor.name}=const(0)'"
    if columns is not None and own and is_list(columns.field(own).type):
        hint = f"if column {own!r} has the state of its own row: {feed_line(tensor.name, [own])}"
    return UnsupportedTensor(
        f"the model keeps state between calls: output {state.name!r} is the next value of input {tensor.name!r}",
        where=model.path,
        expected="rows that do not depend on each other",
        found=str(tensor),
        hint=hint,
    )


def _check_tensor(tensor: TensorSpec, request: FeedRequest | None) -> None:
    """Raise `UnsupportedTensor` if no column can fill the tensor."""
    if tensor.type not in _NUMBERS | {"string"}:
        raise UnsupportedTensor(
            f"input {tensor.name!r} has a type that columns cannot fill",
            where="the model",
            expected=quoted_list(sorted(_NUMBERS | {"string"}), 20),
            found=str(tensor),
            hint="see `scorer inspect MODEL`",
        )
    if 0 in (tensor.shape or ()):
        raise UnsupportedTensor(
            f"input {tensor.name!r} has a dimension of size 0",
            where="the model",
            expected="[N, ...]",
            found=str(tensor),
            hint="export the model without this input",
        )
    if tensor.shape == () and not _is_constant(request):
        raise UnsupportedTensor(
            f"input {tensor.name!r} is one value for all rows",
            where="the model",
            expected="[N, ...]",
            found=str(tensor),
            hint=f"--feed '{tensor.name}=const(VALUE)'",
        )


def _requested_columns(
    tokens: Sequence[str], tensor: TensorSpec, model: ModelSpec, columns: pa.Schema
) -> tuple[list[str], str]:
    """Return the columns that --feed requests, and the rule that chose their order."""
    rules = set()

    def order(matched: list[str]) -> list[str]:
        ordered, rule = of_glob(matched, model.feature_names if len(model.inputs) == 1 else ())
        rules.add(rule)
        return ordered

    found, unknown = expand(tokens, columns.names, order)
    if unknown:
        known = [*columns.names, *(field.name for field in fields_of(columns) if "." in unknown[0])]
        hint = did_you_mean(unknown[0], known) if len(unknown) < len(tokens) + 1 else ""
        if ".." in unknown[0]:
            hint = (
                "ranges count up through numbered columns, such as f0..f27; for other names use globs, such as 'mean *'"
            )
        hint = (
            hint if hint.startswith(("did", "ranges")) else "names, globs (x_*) and ranges (f0..f27) must match columns"
        )
        raise MissingColumns(
            f"--feed {tensor.name} names columns that the input does not have: {quoted_list(unknown)}",
            where=f"tensor {tensor.name!r}, {tensor}",
            expected="columns of the input",
            found=quoted_list(columns.names),
            hint=hint,
        )
    return found, BY_GLOB if BY_GLOB in rules else next(iter(rules - {ASKED}), ASKED)


def _automatic(tensor: TensorSpec, model: ModelSpec, context: Context) -> tuple[list[str], str]:
    """Return the columns that safely match a tensor, and the rule that chose them; else raise an error with advice."""
    columns, row = context.columns, row_shape(tensor)
    deep = row is not None and len(row) >= _MATRIX
    if len(model.inputs) == 1 and model.feature_names and not deep:
        return _columns_of_features(tensor, model, columns), BY_FEATURES
    known = known_names(columns)
    by_name = matching_column(tensor.name, list(known))
    by_name = None if by_name is None else known[by_name]
    if by_name and (len(model.inputs) > 1 or _width(tensor) == 1 or is_list(columns.field(by_name).type)):
        return [by_name], BY_NAME
    if len(model.inputs) > 1:
        hint = f"--feed '{tensor.name}=COLUMN'"
        if tensor.name in text_.roles([tensor.name]):
            hint = f"--feed '{tensor.name}=COLUMN|text(tokenizer.json)' for text, or a list column of token numbers"
        if len(model.unused.get(tensor.name, ())) == _width(tensor):
            hint = f"--feed '{tensor.name}=const(0)', because the model never looks at it; or name its column"
        raise MissingColumns(
            f"no column has the name of input {tensor.name!r}",
            where=f"tensor {tensor.name!r}, {tensor}",
            expected=f"a column {tensor.name!r} for {tensor}",
            found=quoted_list(columns.names),
            hint=hint,
        )
    lists = [f.name for f in columns if is_list(f.type) and _list_fits(f.type, row)]
    if len(lists) == 1 and _width(tensor) != 1:
        return lists, BY_LIST
    floats = [f.name for f in columns if pa.types.is_floating(values_type(f.type))]
    if not deep and tensor.type != "string" and _width(tensor) is not None and len(floats) == _width(tensor):
        _check_position(tensor, floats, by_position=context.by_position)
        return floats, BY_POSITION
    raise _no_safe_match(tensor, floats, lists, columns)


def _check_position(tensor: TensorSpec, floats: list[str], *, by_position: bool) -> None:
    """Raise `BindingError` if the order of the float columns may not be the model's."""
    ordered, where = by_numbers(floats), f"tensor {tensor.name!r}, {tensor}"
    if ordered is None and len(floats) > 1 and not by_position:
        raise BindingError(
            f"input {tensor.name!r} would be fed by position, but no name says the order of the columns",
            where=where,
            expected=f"{counted_columns(len(floats))} in the model's order",
            found=f"{quoted_list(floats)} in the input's order",
            hint=f"{feed_line(tensor.name, floats)}, with the columns in the model's order; "
            "or --by-position if the input's order is the model's",
        )
    if ordered is not None and ordered != floats:
        raise BindingError(
            f"input {tensor.name!r} would be fed by position, but the columns are not in the order of their numbers",
            where=where,
            expected=f"{quoted_list(ordered)} in the input's order",
            found=quoted_list(floats),
            hint=f"{feed_line(tensor.name, ordered)} for the order of the numbers, "
            f"or {feed_line(tensor.name, floats)} for the input's order",
        )


def _no_safe_match(tensor: TensorSpec, floats: list[str], lists: list[str], columns: pa.Schema) -> BindingError:
    width, row = _width(tensor), row_shape(tensor) or ()
    what = f"it is not clear which columns feed {tensor.name!r}"
    where = f"tensor {tensor.name!r}, {tensor}"
    if len(row) >= _MATRIX:
        hint = f"--feed '{tensor.name}=COLUMN' with a list column" + (
            f", or --feed '{tensor.name}=COLUMN|image(...)'" if looks_like_pictures(tensor) else ""
        )
        return ShapeMismatch(
            what,
            where=where,
            expected="one list column that fits",
            found=quoted_list(lists) if lists else f"none of {quoted_list(columns.names)}",
            hint=hint,
        )
    needed = counted_columns(width) if width else "columns"
    noun, suited = _suited(tensor, floats, columns)
    numbers = suited if tensor.type == "string" else [f.name for f in columns if is_number(values_type(f.type))]
    fits = bool(width) and len(numbers) == width and noun == "float"
    shown = numbers if fits else (suited or numbers)[: width or 3]
    shown = by_numbers(shown) or shown
    found = (
        f"{plural(len(suited), f'{noun} column')}{f' ({quoted_list(suited)})' if suited else ''}, "
        f"{len(lists)} lists that fit, of {counted_columns(len(columns))}"
    )
    hint = f"{feed_line(tensor.name, shown)}, with the columns in the model's order"
    if not fits and len(shown) != width:
        hint = f"--feed '{tensor.name}=COLUMN,...' with {needed} in the model's order; ranges are written f0..f27"
        if (width or 0) >= _WIDE and tensor.type != "string":
            hint = f"--feed '{tensor.name}=COLUMN' with one list column, or with {needed} as a range, such as f0..f27; "
            hint += "or compute the values with --transform"
    if fits:
        advice = "if no float column is missing, and all of these are features, in the model's order"
        hint = f"{advice}: {feed_line(tensor.name, shown)}"
    return ShapeMismatch(what, where=where, expected=needed, found=found, hint=hint)


def _suited(tensor: TensorSpec, floats: list[str], columns: pa.Schema) -> tuple[str, list[str]]:
    """Return what kind of columns suits a tensor's type, and those columns."""
    for noun, of_tensor, of_column in (
        ("text", "string", lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind)),
        ("boolean", "bool", pa.types.is_boolean),
        ("integer", ("int", "uint"), pa.types.is_integer),
    ):
        if tensor.type.startswith(of_tensor):
            return noun, [field.name for field in columns if of_column(values_type(field.type))]
    return "float", floats


def _columns_of_features(tensor: TensorSpec, model: ModelSpec, columns: pa.Schema) -> list[str]:
    known = known_names(columns)
    missing = [name for name in model.feature_names if name not in known]
    if missing:
        needed = counted_columns(len(model.feature_names))
        hint = f"rename the columns, or --feed '{tensor.name}=COLUMN,...' with {needed} in the model's order"
        never = {model.feature_names[at] for at in model.unused.get(tensor.name, ()) if at < len(model.feature_names)}
        other = next((name for name in model.feature_names if name in known), "")
        if other and never.issuperset(missing):
            filled = [name if name in known else other for name in model.feature_names]
            hint = f"the model never looks at them; feed any column instead: {feed_line(tensor.name, filled)}"
        raise MissingColumns(
            f"the model names features that are not columns of the input: {quoted_list(missing)}",
            where=f"tensor {tensor.name!r}, {tensor}",
            expected=quoted_list(missing),
            found=quoted_list(columns.names),
            hint=hint,
        )
    return [known[name] for name in model.feature_names]


def _width(tensor: TensorSpec) -> int | None:
    """Return the number of values in a row of a vector or matrix; None if it is free, or if rows are matrices."""
    row = row_shape(tensor)
    if row is None or len(row) >= _MATRIX:
        return None
    return row[0] if row else 1


def _list_fits(kind: pa.DataType, row: tuple[int | None, ...] | None) -> bool:
    """Return whether lists of this type can be rows of that shape."""
    if not is_number(values_in(kind)):
        return False
    own = sizes(kind)
    if row is None or len(own) != len(row):
        return row is None or (len(own) == 1 and None not in row and own[0] in {None, prod(size or 0 for size in row)})
    return all(a is None or b is None or a == b for a, b in zip(own, row, strict=True))
