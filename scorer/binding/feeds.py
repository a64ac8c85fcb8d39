"""The checked feed of one tensor: plain columns, or a converter's."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from scorer.arrow import depth, is_encoded, is_list, is_number, is_text, sizes, values_in, values_type
from scorer.binding.features import codes, constant, image, text
from scorer.binding.request import same_name
from scorer.binding.spec import CONVERTERS, Feed
from scorer.display.words import did_you_mean, quoted_list
from scorer.errors import MissingColumns, OptionsError, ShapeMismatch, TypeMismatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scorer.model.spec import TensorSpec
    from scorer.options.grammar import Call, FeedText, Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a feed is made from, besides its tensor and columns."""

    columns: pa.Schema
    folder: str
    """Paths in columns are relative to it."""
    on_lossy: str
    free: bool = True
    """Whether the model takes any number of rows."""
    fixed: tuple[int, ...] = ()
    """Numbers of rows that it insists on."""


def plain_feed(tensor: TensorSpec, names: Sequence[str], context: Context, on_null: str | None) -> Feed:
    """Columns that are the tensor's values as they stand."""
    types = {name: values_type(context.columns.field(name).type) for name in names}
    where = f"tensor {tensor.name!r}, {tensor}"
    row = row_shape(tensor)
    if len(names) == 1 and is_list(types[names[0]]):
        kind, shape = "nested", _nested_shape(row, names[0], types[names[0]], where)
    else:
        kind = "strings" if tensor.type == "string" else "numeric"
        shape = _flat_shape(tensor, row, names, where)
    _check_types(types, kind, tensor, where)
    return Feed(
        tensor=tensor.name, kind=kind, dtype=tensor.type, columns=tuple(names), shape=shape,
        on_null=_policy(on_null, tensor, where), on_lossy=context.on_lossy,
    )  # fmt: skip


def converted_feed(tensor: TensorSpec, call: Call, names: Sequence[str], context: Context, on_null: str | None) -> Feed:
    """Columns through a converter."""
    where = f"tensor {tensor.name!r}, {tensor}"
    if call.name not in CONVERTERS:
        what = f"there is no converter {call.name!r}"
        raise OptionsError(
            what, f"--feed {tensor.name}", quoted_list(CONVERTERS), call.name, did_you_mean(call.name, CONVERTERS)
        )
    names = names or _column_for(call.name, tensor, context.columns)
    types = {name: values_type(context.columns.field(name).type) for name in names}
    _check_converted(call.name, types, tensor, where)
    row = row_shape(tensor) or ()
    shape: tuple[int | None, ...] = (
        row
        if call.name in {"text", "const"}
        else _flat_shape(tensor, row_shape(tensor), names, where)
        if call.name != "image"
        else row
    )
    settings = _settings(call, tensor, row, context)
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


def named_files(feeds: Iterable[FeedText]) -> dict[str, str]:
    """Files that converters name, with what they hold: part of what was asked."""
    found = {}
    for feed in feeds:
        for name in feed.call.args if feed.call is not None and feed.file is not None else ():
            path = os.path.expanduser(name)
            if os.path.isfile(path):
                with suppress(OSError), open(path, "rb") as file:  # the converter that uses it reports the error
                    found[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def measured(feed: Feed, sample: pa.Table) -> Feed:
    """A feed whose lists may be of any length, as wide as the first row that has one."""
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
    """One row of the tensor; None when even its rank is unknown."""
    if tensor.shape is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in tensor.shape[1:])


def _settings(
    call: Call, tensor: TensorSpec, row: tuple[int | None, ...], context: Context
) -> tuple[tuple[str, Setting], ...]:
    if call.name == "text":
        return text.settings(call, tensor.name, row[-1] if row else None)
    if call.name == "image":
        return image.settings(call, tensor.name, tensor.shape, context.folder, tensor.type)
    if call.name == "vocab":
        return codes.vocab_settings(call, tensor.name)
    if call.name == "epoch":
        return codes.epoch_settings(call, tensor.name)
    first = tensor.shape[0] if tensor.shape else None
    shared = not tensor.shape or (isinstance(first, int) and (context.free or first not in context.fixed))
    size = prod(size or 1 for size in (tensor.shape or () if shared else row) if isinstance(size, int))
    return constant.settings(call, tensor.name, tensor.type, size, shared=shared)


def _column_for(name: str, tensor: TensorSpec, columns: pa.Schema) -> list[str]:
    """The column that is meant where a converter names none."""
    if name == "const":
        return []
    by_name = same_name(tensor.name, columns.names)
    if by_name and name in {"vocab", "epoch"}:
        return [by_name]
    fits = {"text": is_text, "image": _is_picture}.get(name)
    found = [field.name for field in columns if fits is not None and fits(values_type(field.type))]
    if len(found) == 1:
        return found
    what = f"it is not certain which column {name}(...) shall take"
    hint = f"--feed '{tensor.name}=COLUMN|{name}(...)'"
    raise MissingColumns(
        what, f"tensor {tensor.name!r}, {tensor}", "one column that fits", quoted_list(found) if found else "none", hint
    )


def _flat_shape(
    tensor: TensorSpec, row: tuple[int | None, ...] | None, names: Sequence[str], where: str
) -> tuple[int | None, ...]:
    """Several columns, or one, as the values of a row."""
    if row is None:
        return (len(names),)
    if len(row) > 1 and prod(size or 0 for size in row) != len(names):
        what, hint = (
            f"{tensor.name!r} has {len(row) + 1} dimensions",
            f"--feed '{tensor.name}=COLUMN' with a list column",
        )
        if pictured(tensor):
            hint = f"--feed '{tensor.name}=COLUMN|image(size=...)' for pictures, or a list column"
        raise ShapeMismatch(what, where, "one list column", quoted_list(names), hint)
    width = 1 if not row else prod(size for size in row if size is not None) if None not in row else None
    if width is not None and len(names) != width:
        what = f"{columns_(len(names))} for {tensor.name!r} instead of {width}"
        hint = f"--feed '{tensor.name}=COLUMN,...' with {columns_(width)} in the model's order"
        raise ShapeMismatch(what, where, columns_(width), f"{len(names)}: {quoted_list(names)}", hint)
    return tuple(len(names) if size is None else size for size in row)


def _nested_shape(
    row: tuple[int | None, ...] | None, name: str, kind: pa.DataType, where: str
) -> tuple[int | None, ...]:
    """A list column's shape, as far as its type or the tensor tells."""
    own, flat = sizes(kind), depth(kind) == 1
    if row is None:
        return own
    if not row or (len(own) != len(row) and not flat):
        what, hint = f"column {name!r} has lists {len(own)} deep", "feed another column"
        raise ShapeMismatch(what, where, f"{len(row)} deep", f"{kind} in {name!r}", hint)
    if flat and len(row) > 1:
        if own[0] is not None and None not in row and own[0] != prod(size or 0 for size in row):
            what, hint = f"column {name!r} is not as wide as the tensor", "feed another column"
            raise ShapeMismatch(
                what, where, f"{prod(size or 0 for size in row)} values in a row", f"{own[0]} in {name!r}", hint
            )
        if row.count(None) > 1:
            what, hint = f"the lists of {name!r} do not say their shape", "store nested lists"
            raise ShapeMismatch(what, where, f"lists {len(row)} deep", f"{kind} in {name!r}", hint)
        return row
    odd = [(a, b) for a, b in zip(row, own, strict=True) if a is not None and b is not None and a != b]
    if odd:
        what, hint = f"column {name!r} is not as wide as the tensor", "feed another column"
        raise ShapeMismatch(what, where, f"{odd[0][0]} values in a row", f"{odd[0][1]} in {name!r}", hint)
    return tuple(b if a is None else a for a, b in zip(row, own, strict=True))


def _lengths(value: object, levels: int) -> list[int]:
    """Lengths of the first list of each level."""
    found = []
    for _ in range(levels):
        found.append(len(value) if isinstance(value, list) else 0)
        value = next((one for one in value if one), None) if isinstance(value, list) else None
    return found


def _check_types(types: Mapping[str, pa.DataType], kind: str, tensor: TensorSpec, where: str) -> None:
    for name, column in types.items():
        value = values_in(column) if kind == "nested" else column
        good = is_text(value) if tensor.type == "string" else is_number(value)
        if tensor.type == "bool" and not pa.types.is_boolean(value):
            good = False
        if not good:
            wanted = {"string": "text", "bool": "truth values"}.get(tensor.type, "numbers")
            wanted = f"lists of {wanted}" if kind == "nested" else wanted
            what = f"column {name!r} cannot become {tensor.type}"
            hint = "feed another column, or convert this one before"
            if len(types) > 1 and kind == "numeric":  # a converter fills a tensor by itself
                hint = "feed another column, or make numbers of this one with --transform"
            elif kind == "numeric" and (is_text(value) or pa.types.is_dictionary(value)):
                hint = f"--feed '{tensor.name}={name}|vocab(a, b, c)' for categories, or feed another column"
            elif kind == "numeric" and pa.types.is_temporal(value):
                hint = f"--feed '{tensor.name}={name}|epoch(s)', or feed another column"
            raise TypeMismatch(what, where, f"{wanted} for {tensor.type}", f"{column} in {name!r}", hint)


def _check_converted(name: str, types: Mapping[str, pa.DataType], tensor: TensorSpec, where: str) -> None:
    """Refuse columns that a converter cannot read, and tensors that it cannot fill."""
    fits, wanted = {
        "text": (is_text, "text"),
        "image": (_is_picture, "encoded pictures or their paths"),
        "vocab": (
            lambda kind: is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind),
            "text or whole numbers",
        ),
        "epoch": (lambda kind: pa.types.is_timestamp(kind) or pa.types.is_date(kind), "dates or times"),
    }.get(name, (None, ""))
    for column, kind in types.items():
        if fits is not None and not fits(kind):
            what = f"{name}(...) cannot read column {column!r}"
            raise TypeMismatch(what, where, wanted, f"{kind} in {column!r}", "feed another column")
    if len(types) > 1 and name in {"text", "image"}:
        what, hint = f"{name}(...) takes one column", f"--feed '{tensor.name}=COLUMN|{name}(...)'"
        raise ShapeMismatch(what, where, "one column", quoted_list(list(types)), hint)
    masked = name == "text" and tensor.type == "bool" and text.roles([tensor.name]).get(tensor.name) == "mask"
    if tensor.type in {"string", "bool"} and name != "const" and not masked:
        what, hint = f"{name}(...) gives numbers", "feed the column as it is"
        raise TypeMismatch(what, where, "a tensor of numbers", tensor.type, hint)


def _policy(policy: str | None, tensor: TensorSpec, where: str) -> str:
    """What a null becomes; refuses a constant that the tensor cannot hold."""
    if policy is None:
        return "nan" if "float" in tensor.type else "error"
    if policy == "error" or tensor.type == "string":
        return policy
    floats = "float" in tensor.type
    try:
        number = float(policy)
        fits = floats or (number.is_integer() and _holds(tensor.type, int(number)))
    except (ValueError, OverflowError):
        fits = False
    if not fits:
        what, hint = f"the null policy does not fit {tensor.name!r}", f"--on-null '{tensor.name}=0'"
        expected = "error, nan or a number" if floats else f"error or a whole number that {tensor.type} holds"
        raise OptionsError(what, where, expected, repr(policy), hint)
    return policy


def _converted_policy(name: str, policy: str | None, tensor: TensorSpec, where: str) -> str:
    """A text in its place, for text; nothing stands for a picture."""
    if name == "image" or (name == "text" and policy in {None, "nan"}):
        return "error"
    return str(policy) if name == "text" else _policy(policy, tensor, where)


def _holds(kind: str, number: int) -> bool:
    if kind == "bool":
        return number in {0, 1}
    info = np.iinfo(kind)
    return bool(info.min <= number <= info.max)


def columns_(count: int) -> str:
    """A number of columns in words."""
    return f"{count} column" + ("" if count == 1 else "s")


def _is_picture(kind: pa.DataType) -> bool:
    faced = pa.types.is_struct(kind) and {field.name for field in kind} <= {"bytes", "path"}
    return bool(faced or is_encoded(kind) or is_text(kind))


def pictured(tensor: TensorSpec) -> bool:
    """Whether the tensor looks like pictures: three dimensions a row, one of them 1 or 3 channels."""
    row = row_shape(tensor) or ()
    return len(row) == len("CHW") and (row[0] in {1, 3} or row[-1] in {1, 3})
