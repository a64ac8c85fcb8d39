"""Check and build the feed of one tensor: plain columns, or columns through a converter."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scorer.arrow import depth, is_decimal, is_encoded, is_list, is_number, is_text, sizes, values_in, values_type
from scorer.binding.features import codes, constant, image, text
from scorer.binding.features.numeric import cast_keeps, null_constant, numpy_type
from scorer.binding.request import matching_column
from scorer.binding.spec import MAX_LISTED, Feed
from scorer.dataset.fields import fields_of, find, known_names
from scorer.display.words import did_you_mean, quoted_list
from scorer.errors import MissingColumns, OptionsError, ScorerError, ShapeMismatch, TypeMismatch
from scorer.model.copies import readable
from scorer.options.grammar import CONVERTERS, call_text, feed_flag, labels_file, quoted
from scorer.storage.stores import may_be_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from scorer.binding.spec import Binding
    from scorer.model.spec import ModelSpec, TensorSpec
    from scorer.options.grammar import Call, FeedText, Setting

    Ranges = Callable[[Sequence[str]], Mapping[str, tuple[Any, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What building a feed needs besides its tensor and its columns."""

    columns: pa.Schema
    """The columns that can be fed."""
    folder: str
    """The folder that paths in columns are relative to."""
    on_lossy: str
    by_position: bool = False
    """Whether float columns may be fed in the input's order if no name says an order."""
    free_batch: bool = True
    """Whether an input of the model takes any number of rows."""
    fixed_batches: tuple[int, ...] = ()
    """Numbers of rows that inputs of the model require."""


def plain_feed(tensor: TensorSpec, names: Sequence[str], context: Context, on_null: str | None) -> Feed:
    """Return a feed of columns whose values fill the tensor without a converter."""
    types = {name: values_type(context.columns.field(name).type) for name in names}
    where = f"tensor {tensor.name!r}, {tensor}"
    row = row_shape(tensor)
    if len(names) == 1 and is_list(types[names[0]]):
        kind, shape = "nested", _nested_shape(row, names[0], types[names[0]], where)
    else:
        kind = "strings" if tensor.type == "string" else "numeric"
        shape = flat_shape(tensor, row, names, where)
    check_types(types, kind, tensor, where)
    return Feed(
        tensor=tensor.name, kind=kind, dtype=tensor.type, columns=tuple(names), shape=shape,
        on_null=null_policy(on_null, tensor, where), on_lossy=context.on_lossy,
    )  # fmt: skip


def converted_feed(tensor: TensorSpec, call: Call, names: Sequence[str], context: Context, on_null: str | None) -> Feed:
    """Return a feed of columns through a converter."""
    where = f"tensor {tensor.name!r}, {tensor}"
    if call.name not in CONVERTERS:
        raise OptionsError(
            f"there is no converter {call.name!r}",
            where=f"--feed {tensor.name}",
            expected=quoted_list(CONVERTERS),
            found=call.name,
            hint=did_you_mean(call.name, CONVERTERS),
        )
    names = names or _column_for(call, tensor, context.columns)
    types = {name: values_type(context.columns.field(name).type) for name in names}
    check_converted(call.name, types, tensor, where)
    row = row_shape(tensor) or ()
    shape: tuple[int | None, ...] = (
        row
        if call.name in {"text", "const"}
        else flat_shape(tensor, row_shape(tensor), names, where)
        if call.name != "image"
        else row
    )
    settings = converter_settings(call, tensor, row, context)
    if call.name == "image":
        shape = image.row_shape(settings)
    if call.name == "const" and dict(settings)["shared"]:
        shape = tuple(size if isinstance(size, int) else 1 for size in tensor.shape or ())
    if call.name == "text":
        shape = row[-1:] or (None,)
    return Feed(
        tensor=tensor.name, kind=call.name, dtype=tensor.type, columns=tuple(names), shape=shape,
        on_null=_converted_policy(call.name, on_null, tensor, where),
        on_lossy=context.on_lossy, settings=settings,
    )  # fmt: skip


def without_unused(binding: Binding, model: ModelSpec, columns: pa.Schema, ranges: Ranges) -> Binding:
    """Return the binding without reading the columns that the model never looks at; zeros are fed in their place.

    A column is read nevertheless where its values matter otherwise: if a null is a bad row, if the cast to the
    tensor's type may change a value, or if a converter may refuse one. `ranges` returns the smallest and largest value
    of columns, where they are known.
    """
    axes = dict(binding.batch_axes)  # where rows are not on the first axis, the second one has no columns
    plain = [
        () if axes.get(feed.tensor) else _plain_floats(feed, model.unused.get(feed.tensor, ()))
        for feed in binding.feeds
    ]

    def type_of(name: str) -> pa.DataType:
        field = find(columns, name)
        return pa.null() if field is None else values_type(field.type)

    unsure = {
        feed.columns[at]
        for feed, places in zip(binding.feeds, plain, strict=True)
        for at in places
        if not cast_keeps(type_of(feed.columns[at]), numpy_type(feed.dtype), None)
    }
    known = ranges(sorted(unsure)) if unsure else {}
    feeds = tuple(
        replace(
            feed,
            unused=tuple(
                at
                for at in places
                if cast_keeps(type_of(name := feed.columns[at]), numpy_type(feed.dtype), known.get(name))
            ),
        )
        for feed, places in zip(binding.feeds, plain, strict=True)
    )
    found = replace(binding, feeds=feeds)
    return found if found.read else binding  # one column at least shows how many rows there are


def _plain_floats(feed: Feed, never: Sequence[int]) -> tuple[int, ...]:
    """Return those of these columns that fill a tensor of floats without a converter, and may be null."""
    if not never or "float" not in feed.dtype or feed.on_null == "error" or feed.kind not in {"numeric", "mixed"}:
        return ()
    parts = feed.parts if feed.kind == "mixed" else (feed,)
    plain = [part.kind == "numeric" for part in parts for _ in part.columns]
    return tuple(at for at in never if at < len(plain) and plain[at])


def named_files(feeds: Iterable[FeedText], labels: Iterable[str] = ()) -> dict[str, str]:
    """Return the digest of each file that a converter or --labels names: they are part of the request's hash."""
    found: dict[str, str] = {}
    named = [file[1] for text in labels if (file := labels_file(text, is_file=may_be_file)) is not None]
    for path in [*(os.path.expanduser(name) for feed in feeds for name in feed.files), *named]:
        if may_be_file(path):
            with suppress(OSError, ScorerError), open(readable(path), "rb") as opened:  # what uses it reports the error
                found[path] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found


def with_measured_shape(feed: Feed, sample: pa.Table) -> Feed:
    """Return a feed of lists of unknown length with the shape of the first list in `sample` that has values."""
    if feed.kind != "nested" or None not in feed.shape:
        return feed
    column = sample[feed.columns[0]]
    example = next((value for value in column.to_pylist() if value), None)
    if depth(column.type) == 1 and len(feed.shape) > 1:
        known = prod(size for size in feed.shape if size is not None)
        lengths = [len(example) // known if size is None else size for size in feed.shape] if example else feed.shape
    else:
        lengths = _lengths(example, len(feed.shape)) if example else feed.shape
    shape = tuple(found or size or 1 if size is None else size for size, found in zip(feed.shape, lengths, strict=True))
    return replace(feed, shape=shape)


def row_shape(tensor: TensorSpec) -> tuple[int | None, ...] | None:
    """Return the shape of one row of the tensor; None if even its rank is unknown."""
    if tensor.shape is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in tensor.shape[1:])


def converter_settings(
    call: Call, tensor: TensorSpec, row: tuple[int | None, ...], context: Context
) -> tuple[tuple[str, Setting], ...]:
    """Return the settings of a converter, defaults included; raise `OptionsError` if its arguments are not valid."""
    if call.name == "text":
        return text.settings(call, tensor.name, row[-1] if row else None)
    if call.name == "image":
        return image.settings(call, tensor.name, tensor.shape, context.folder, tensor.type)
    if call.name == "vocab":
        return codes.vocab_settings(call, tensor.name)
    if call.name == "epoch":
        return codes.epoch_settings(call, tensor.name)
    first = tensor.shape[0] if tensor.shape else None
    shared = not tensor.shape or (isinstance(first, int) and (context.free_batch or first not in context.fixed_batches))
    size = prod(size or 1 for size in (tensor.shape or () if shared else row) if isinstance(size, int))
    return constant.settings(call, tensor.name, tensor.type, size, shared=shared)


def _column_for(call: Call, tensor: TensorSpec, columns: pa.Schema) -> list[str]:
    """Return the column of a converter that names none: one of the tensor's name, or the only one that fits."""
    name = call.name
    if name == "const":
        return []
    known = known_names(columns)
    by_name = matching_column(tensor.name, list(known))
    if by_name and name in {"vocab", "epoch"}:
        return [known[by_name]]
    fits = {"text": is_text, "image": _is_picture}.get(name)
    found = [field.name for field in columns if fits is not None and fits(values_type(field.type))]
    if len(found) == 1:
        return found
    raise MissingColumns(
        f"it is not clear which column {name}(...) takes",
        where=f"tensor {tensor.name!r}, {tensor}",
        expected="one column that fits",
        found=quoted_list(found) if found else "none",
        hint=feed_flag(
            tensor.name, f"{quoted(found[0]) if found else 'COLUMN'}|{call_text(name, call.args, dict(call.named))}"
        ),
    )


def flat_shape(
    tensor: TensorSpec, row: tuple[int | None, ...] | None, names: Sequence[str], where: str
) -> tuple[int | None, ...]:
    """Return the shape of one row of columns that each hold one value of it."""
    if row is None:
        return (len(names),)
    if len(row) > 1 and prod(size or 0 for size in row) != len(names):
        hint = f"--feed '{tensor.name}=COLUMN' with a list column"
        if looks_like_pictures(tensor):
            hint = f"--feed '{tensor.name}=COLUMN|image(size=...)' for pictures, or a list column"
        raise ShapeMismatch(
            f"{tensor.name!r} has {len(row) + 1} dimensions, so it needs a list column",
            where=where,
            expected="one list column",
            found=quoted_list(names),
            hint=hint,
        )
    width = 1 if not row else prod(size for size in row if size is not None) if None not in row else None
    if width is not None and len(names) != width:
        raise ShapeMismatch(
            f"{counted_columns(len(names))} for {tensor.name!r} instead of {width}",
            where=where,
            expected=counted_columns(width),
            found=f"{len(names)}: {quoted_list(names)}",
            hint=f"--feed '{tensor.name}=COLUMN,...' with {counted_columns(width)} in the model's order",
        )
    return tuple(len(names) if size is None else size for size in row)


def _nested_shape(
    row: tuple[int | None, ...] | None, name: str, kind: pa.DataType, where: str
) -> tuple[int | None, ...]:
    """Return the shape of one row of a list column; a size is None if neither its type nor the tensor fixes it."""
    own, flat = sizes(kind), depth(kind) == 1
    if row is None:
        return own
    if not row or (len(own) != len(row) and not flat):
        raise ShapeMismatch(
            f"the lists of column {name!r} are nested {len(own)} deep",
            where=where,
            expected=f"{len(row)} deep",
            found=f"{kind} in {name!r}",
            hint="feed another column",
        )
    if flat and len(row) > 1:
        if own[0] is not None and None not in row and own[0] != prod(size or 0 for size in row):
            raise _wrong_width(name, prod(size or 0 for size in row), own[0], where)
        if row.count(None) > 1:
            raise ShapeMismatch(
                f"the shape of the lists in {name!r} is unknown",
                where=where,
                expected=f"lists {len(row)} deep",
                found=f"{kind} in {name!r}",
                hint="store nested lists",
            )
        return row
    odd = [(a, b) for a, b in zip(row, own, strict=True) if a is not None and b is not None and a != b]
    if odd:
        raise _wrong_width(name, *odd[0], where)
    return tuple(b if a is None else a for a, b in zip(row, own, strict=True))


def _wrong_width(name: str, expected: int, found: int, where: str) -> ShapeMismatch:
    return ShapeMismatch(
        f"column {name!r} is not as wide as the tensor",
        where=where,
        expected=f"{expected} values in a row",
        found=f"{found} in {name!r}",
        hint="feed another column",
    )


def _lengths(value: object, levels: int) -> list[int]:
    """Return the length of the first list of each level."""
    found = []
    for _ in range(levels):
        found.append(len(value) if isinstance(value, list) else 0)
        value = next((one for one in value if one), None) if isinstance(value, list) else None
    return found


def check_types(
    types: Mapping[str, pa.DataType], kind: str, tensor: TensorSpec, where: str, *, alone: bool = True
) -> None:
    """Raise `TypeMismatch` if a column cannot fill the tensor; `alone` is False if other columns fill it too."""
    for name, column in types.items():
        value = values_in(column) if kind == "nested" else column
        good = is_text(value) if tensor.type == "string" else is_number(value) or is_decimal(value)
        if tensor.type == "bool" and not pa.types.is_boolean(value):
            good = False
        if not good:
            wanted = {"string": "text", "bool": "truth values"}.get(tensor.type, "numbers")
            wanted = f"lists of {wanted}" if kind == "nested" else wanted
            hint = "feed another column, or convert this one first"
            if pa.types.is_struct(value):
                hint = _fields_hint(tensor, name, value)
            converter = _converter_for(value) if kind == "numeric" and tensor.type != "bool" else ""
            if converter:
                piped = f"{quoted(name)}|{converter}"
                hint = f"--feed '{tensor.name}={piped}'{_FITS[converter]}, or feed another column"
                if len(types) > 1 or not alone:
                    hint = f"write {piped} in the list of --feed{_FITS[converter]}, or feed another column"
            raise TypeMismatch(
                f"column {name!r} cannot become {tensor.type}",
                where=where,
                expected=f"{wanted} for {tensor.type}",
                found=f"{column} in {name!r}",
                hint=hint,
            )


def _fields_hint(tensor: TensorSpec, name: str, kind: pa.DataType) -> str:
    """Return a hint that names the fields of a struct by their paths."""
    inner = [field.name for field in fields_of(pa.schema([(name, kind)]))]
    more = ",..." if len(inner) > MAX_LISTED else ""
    return f"feed its fields: {feed_flag(tensor.name, ','.join(inner[:MAX_LISTED]) + more)}"


_FITS = {"vocab(a, b, c)": " for categories, --transform for texts that are numbers", "epoch(s)": ""}
"""Converters into numbers, as a hint shows them, and what they are for."""


def _is_picture(kind: pa.DataType) -> bool:
    encoded = pa.types.is_struct(kind) and {field.name for field in kind} <= {"bytes", "path"}
    return bool(encoded or is_encoded(kind) or is_text(kind))


def _is_category(kind: pa.DataType) -> bool:
    return bool(is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _is_moment(kind: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(kind) and not pa.types.is_interval(kind))


_READS: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "text": (is_text, "text"),
    "image": (_is_picture, "encoded pictures or their paths"),
    "vocab": (_is_category, "text or whole numbers"),
    "epoch": (_is_moment, "dates, times or durations"),
}
"""Which types each converter reads, as a test and in words."""


def _converter_for(kind: pa.DataType) -> str:
    """Return the converter that makes numbers of this type; '' if there is none."""
    if is_text(kind) or pa.types.is_dictionary(kind):
        return "vocab(a, b, c)"
    return "epoch(s)" if _is_moment(kind) else ""


def reads_type(converter: str, kind: pa.DataType) -> bool:
    """Return whether a converter can read values of this type."""
    return converter not in _READS or _READS[converter][0](kind)


def check_converted(name: str, types: Mapping[str, pa.DataType], tensor: TensorSpec, where: str) -> None:
    """Raise if a converter cannot read the columns or cannot fill the tensor."""
    for column, kind in types.items():
        if not reads_type(name, kind):
            raise TypeMismatch(
                f"{name}(...) cannot read column {column!r}",
                where=where,
                expected=_READS[name][1],
                found=f"{kind} in {column!r}",
                hint="feed another column",
            )
    if len(types) > 1 and name in {"text", "image"}:
        raise ShapeMismatch(
            f"{name}(...) takes one column",
            where=where,
            expected="one column",
            found=quoted_list(list(types)),
            hint=f"--feed '{tensor.name}=COLUMN|{name}(...)'",
        )
    masked = name == "text" and tensor.type == "bool" and text.roles([tensor.name]).get(tensor.name) == "mask"
    if tensor.type in {"string", "bool"} and name != "const" and not masked:
        raise TypeMismatch(
            f"{name}(...) returns numbers, and cannot fill this tensor",
            where=where,
            expected="a tensor of numbers",
            found=tensor.type,
            hint="feed the column without a converter",
        )


def null_policy(policy: str | None, tensor: TensorSpec, where: str) -> str:
    """Return the null policy, or its default; raise `OptionsError` for a constant that the tensor cannot hold."""
    if policy is None:
        return "nan" if "float" in tensor.type else "error"
    if policy == "error" or tensor.type == "string":
        return policy
    try:
        null_constant(policy, numpy_type(tensor.type))
    except (ValueError, OverflowError):
        number = "error, nan or a number" if "float" in tensor.type else "error or a whole number"
        raise OptionsError(
            f"the null policy does not fit {tensor.name!r}",
            where=where,
            expected=f"{number} that {tensor.type} holds",
            found=repr(policy),
            hint=f"--on-null '{tensor.name}=0'",
        ) from None
    return policy


def _converted_policy(name: str, policy: str | None, tensor: TensorSpec, where: str) -> str:
    """Return the null policy of a converter: text may replace a null by a constant, image never."""
    if name == "image" or (name == "text" and policy in {None, "nan"}):
        return "error"
    return str(policy) if name == "text" else null_policy(policy, tensor, where)


def counted_columns(count: int) -> str:
    """Return a number of columns as text."""
    return f"{count} column" + ("" if count == 1 else "s")


def looks_like_pictures(tensor: TensorSpec) -> bool:
    """Return whether the tensor looks like pictures: three dimensions in a row, one of them 1 or 3 channels."""
    row = row_shape(tensor) or ()
    return len(row) == len("CHW") and (row[0] in {1, 3} or row[-1] in {1, 3})
