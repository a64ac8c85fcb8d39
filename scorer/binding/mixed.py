"""Check and build the feed of a tensor whose columns have different converters.

A converter belongs to the item before it: a column, a glob or range, or a group in brackets. Only a single converter at
the end of a list can be meant for the whole list. The types of the columns decide it:

    first,last|epoch(d)     dates cannot be fed without a converter: it belongs to both
    age,signup|epoch(d)     a number cannot be converted by epoch: the converter belongs to the last
    floor,room|vocab(1,2)   whole numbers can be fed either way: an error shows both spellings
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pyarrow as pa

from scorer.arrow import is_decimal, is_number, is_text, values_type
from scorer.binding.features import codes
from scorer.binding.feeds import (
    check_converted,
    check_types,
    converter_settings,
    flat_shape,
    null_policy,
    reads_type,
    row_shape,
)
from scorer.binding.request import FeedRequest, expand
from scorer.binding.spec import Feed
from scorer.display.words import did_you_mean, quoted_list
from scorer.errors import OptionsError
from scorer.options.grammar import CONVERTERS, Item, feed_flag, in_brackets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.binding.feeds import Context
    from scorer.model.spec import TensorSpec
    from scorer.options.grammar import Call, PartSettings

_SIDE_BY_SIDE = ("vocab", "epoch")
"""Converters that return one number for each value, so that their columns can stand beside others."""


def with_one_reading(request: FeedRequest, tensor: TensorSpec, columns: pa.Schema) -> FeedRequest:
    """Return the request as one list of items, or as columns with at most one converter for all.

    Raises `OptionsError` if a converter at the end of the list may belong to all columns or to the last.
    """
    names = set(columns.names)
    if request.call is None:
        items = tuple(Item((item.text,)) if item.text in names else item for item in request.items)
        if any(item.call for item in items):
            return FeedRequest(items=items)
        return replace(request, items=())
    for_all = replace(request, items=())
    if any(item.grouped for item in request.items):
        return for_all if names.issuperset(request.tokens) else FeedRequest(items=request.items)
    if len(request.tokens) == 1 or request.call.name not in _SIDE_BY_SIDE or not request.items:
        return for_all
    found, unknown = expand(request.tokens[:-1], columns.names)
    types = [values_type(columns.field(name).type) for name in found]
    if not unknown and not all(_may_convert(request.call, tensor, kind) for kind in types):
        return FeedRequest(items=request.items)
    if unknown or not all(is_number(kind) or is_decimal(kind) for kind in types):
        return for_all
    raise _ambiguous(request.items, tensor)


def mixed_feed(
    tensor: TensorSpec, items: Sequence[tuple[Sequence[str], Call | None]], context: Context, on_null: str | None
) -> Feed:
    """Return a feed of columns side by side: the columns of each item through the item's converter."""
    where = f"tensor {tensor.name!r}, {tensor}"
    every = [name for names, _ in items for name in names]
    parts: list[PartSettings] = []
    for names, call in items:
        types = {name: values_type(context.columns.field(name).type) for name in names}
        if call is None:
            check_types(types, "numeric", tensor, where, alone=False)
            part: PartSettings = ("numeric", len(names), ())
        else:
            _check_side_by_side(call, tensor)
            check_converted(call.name, types, tensor, where)
            part = (call.name, len(names), converter_settings(call, tensor, row_shape(tensor) or (), context))
        if parts and parts[-1][::2] == part[::2]:
            part = (part[0], parts.pop()[1] + part[1], part[2])
        parts.append(part)
    return Feed(
        tensor=tensor.name, kind="mixed", dtype=tensor.type, columns=tuple(every),
        shape=flat_shape(tensor, row_shape(tensor), every, where), on_null=null_policy(on_null, tensor, where),
        on_lossy=context.on_lossy, settings=(("parts", tuple(parts)),),
    )  # fmt: skip


def _check_side_by_side(call: Call, tensor: TensorSpec) -> None:
    if call.name in _SIDE_BY_SIDE:
        return
    known = call.name in CONVERTERS
    raise OptionsError(
        f"{call.name}(...) cannot be one of several columns" if known else f"there is no converter {call.name!r}",
        where=f"--feed {tensor.name}",
        expected=f"{quoted_list(_SIDE_BY_SIDE)} in a list of columns",
        found=call.name,
        hint=f"--feed '{tensor.name}=COLUMN|{call.name}(...)' alone" if known else did_you_mean(call.name, CONVERTERS),
    )


def _may_convert(call: Call, tensor: TensorSpec, kind: pa.DataType) -> bool:
    """Return whether the converter can give values of this type a number.

    A vocabulary of other words cannot do so for whole numbers and booleans, unless `unknown` gives each of them one.
    """
    if not reads_type(call.name, kind):
        return False
    if call.name != "vocab" or is_text(kind):
        return True
    settings = dict(codes.vocab_settings(call, tensor.name))
    words = cast("tuple[str, ...]", settings["words"])
    numbers = {"true", "false"} if pa.types.is_boolean(kind) else {w for w in words if w.lstrip("-").isdecimal()}
    return settings["unknown"] is not None or not numbers.isdisjoint(words)


def _ambiguous(items: Sequence[Item], tensor: TensorSpec) -> OptionsError:
    *before, last = items
    columns = [item.columns for item in before]
    for_all = in_brackets([*columns, last.columns], last)
    for_last = ",".join([*columns, in_brackets([last.columns], last)])
    return OptionsError(
        f"it is not clear whether {last.converter} converts all columns or only the last",
        where=f"--feed {tensor.name}",
        expected="brackets around the columns that it converts",
        found=f"{','.join(item.text for item in items)}, whose columns could be fed either way",
        hint=f"{feed_flag(tensor.name, for_all)} for all, or {feed_flag(tensor.name, for_last)} for the last",
    )
