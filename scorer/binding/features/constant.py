"""Fill a tensor with the same value for every row, without a column."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scorer.binding.features.numeric import is_float, numpy_type, parse_float
from scorer.binding.features.packed import Packed
from scorer.errors import OptionsError

if TYPE_CHECKING:
    import pyarrow as pa

    from scorer.binding.features.packed import Rows
    from scorer.binding.spec import Feed
    from scorer.options.grammar import Call, Setting


_TRUTH_VALUES = {"true": True, "false": False, "1": True, "0": False}


class Constant(Packed):
    """One value, or one row of values, for all rows."""

    def __init__(self, feed: Feed, table: pa.Table) -> None:  # noqa: ARG002 - every converter has the same arguments
        super().__init__()
        self.shared = bool(feed.setting("shared"))
        shape = tuple(size or 1 for size in feed.shape)
        kind = np.dtype(object) if feed.dtype == "string" else numpy_type(feed.dtype)
        values = feed.setting("values")
        self._row = np.empty(shape, kind)
        self._row[...] = np.array(values, dtype=kind).reshape(shape if len(values) > 1 else (1,) * len(shape))  # type: ignore[arg-type]

    def batch(self, rows: Rows) -> np.ndarray:
        """Return the shared value itself, or one copy per row."""
        if self.shared:
            return self._row
        n = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        return np.repeat(self._row[np.newaxis], n, axis=0)


def settings(call: Call, tensor: str, dtype: str, size: int, *, shared: bool) -> tuple[tuple[str, Setting], ...]:
    """Return the settings of const(16000): one value, or `size` values for a row; and whether all rows share it."""
    where, hint = f"--feed {tensor}", f"--feed '{tensor}=const(0)'"
    if call.named:
        named = ", ".join(f"{name}={value}" for name, value in call.named)
        raise OptionsError(
            "const(...) takes values without names",
            where=where,
            expected="a value, such as const(0)",
            found=f"const({', '.join([*call.args, named])})",
            hint=f"--feed '{tensor}=const({', '.join([*call.args, *(value for _, value in call.named)])})'",
        )
    if len(call.args) not in {1, size}:
        raise OptionsError(
            "the constant does not fit the tensor",
            where=where,
            expected="one value" if size == 1 else f"one value, or {size}",
            found=f"{len(call.args)}",
            hint=hint,
        )
    try:
        values = tuple(_parse_value(text, dtype) for text in call.args)
    except (ValueError, KeyError, OverflowError):
        raise OptionsError(
            "the constant does not fit the tensor",
            where=where,
            expected=dtype,
            found=", ".join(call.args),
            hint=hint,
        ) from None
    return (("values", values), ("shared", shared))  # type: ignore[return-value]


def _parse_value(text: str, dtype: str) -> str | float | int | bool:
    if dtype == "string":
        return text
    if dtype == "bool":
        return _TRUTH_VALUES[text.lower()]
    kind = numpy_type(dtype)
    if is_float(kind):
        return parse_float(text, kind)
    number = int(text)
    info = np.iinfo(kind)
    if not info.min <= number <= info.max:
        raise OverflowError(text)
    return number
