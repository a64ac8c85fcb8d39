"""A column of encoded pictures becomes a tensor of their pixels; `picture` says how each one is read.

A value is (pixel * scale - mean) / std, the pixel from 0 to 255, in float32; the result is cast to the tensor's type,
rounded to the nearest for whole numbers. mean and std stand in the order of the tensor's channels: blue first for bgr.
"""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.binding.features._picture import PictureSettings, Unreadable, need_pillow, pixels, read
from scorer.binding.features.numeric import numpy_type
from scorer.binding.features.packed import Packed
from scorer.display.words import did_you_mean
from scorer.errors import OptionsError, TypeMismatch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scorer.binding.features.packed import Rows
    from scorer.binding.spec import Feed
    from scorer.options.grammar import Call, Setting


KEYS = (
    "size", "layout", "color", "mean", "std", "scale", "resize", "filter", "fill", "background", "rotate", "max_pixels",
)  # fmt: skip
_CHOICES = {
    "layout": ("NCHW", "NHWC"),
    "color": ("rgb", "bgr", "gray"),
    "resize": ("stretch", "crop", "pad"),
    "filter": ("bilinear", "bicubic", "nearest", "lanczos"),
    "rotate": ("true", "false"),
}
_DEFAULTS = {
    "mean": "0",
    "std": "1",
    "resize": "stretch",
    "filter": "bilinear",
    "fill": "0",
    "background": "255",
    "rotate": "true",
    "max_pixels": "100000000",  # 100 megapixels: 300 MB decoded, more than any camera's picture
}
_LARGEST_SIDE = 65_535
_AXES = 4


def settings(
    call: Call, tensor: str, shape: tuple[int | str | None, ...] | None, folder: str, dtype: str | None = None
) -> tuple[tuple[str, Setting], ...]:
    """What image(...) says about a tensor of that shape, batch first, the defaults filled in.

    `scale` stays None while no `dtype` is told: 1/255 for floats, 1 for whole numbers. Strings in the column are paths
    below `folder`. `fill` surrounds padded pictures and `background` lies behind transparent ones, each from 0 to 255.
    """
    need_pillow()
    asked = _Asked(call, tensor)
    sides = _sides(asked, shape)
    layout = asked.choice("layout", _layout(sides))
    if layout is None:
        raise asked.wrong("layout", "the tensor's shape does not show where the channels stand", _text(shape))
    channels, *space = (sides[1], *sides[2:]) if layout == "NCHW" else (sides[3], *sides[1:3])
    color = asked.choice("color", {1: "gray", 3: "rgb"}.get(channels or 0))
    if color is None:
        raise asked.wrong("color", "the tensor's shape does not say how many channels it has", _text(shape))
    depth = 1 if color == "gray" else 3
    if channels not in (None, depth):
        raise asked.wrong("color", f"a {color} picture in {layout} does not fit the tensor's shape", _text(shape))
    height, width = asked.size(space, shape)
    result: dict[str, Setting] = {
        "size": f"{height}x{width}",
        "layout": layout,
        "color": color,
        "mean": asked.numbers("mean", depth),
        "std": asked.numbers("std", depth),
        "scale": asked.scale(dtype),
        "resize": asked.choice("resize"),
        "filter": asked.choice("filter"),
        "fill": asked.whole("fill", 0, 255),
        "background": asked.whole("background", 0, 255),
        "rotate": asked.choice("rotate") == "true",
        "max_pixels": asked.whole("max_pixels", 1, 2**62),
        "folder": os.path.abspath(folder),
    }
    if dtype is not None:
        pixel_table(tuple(result.items()), dtype, tensor)
    return tuple(result.items())


def row_shape(settings: Iterable[tuple[str, Setting]]) -> tuple[int, int, int]:
    """The shape of one row of the tensor."""
    told = dict(settings)
    height, width = (int(side) for side in str(told["size"]).split("x"))
    depth = 1 if told["color"] == "gray" else 3
    return (depth, height, width) if told["layout"] == "NCHW" else (height, width, depth)


def pixel_table(settings: Iterable[tuple[str, Setting]], dtype: str, tensor: str) -> np.ndarray:
    """[channels, 256]: what each pixel becomes, by the formula on top; refused when the type cannot hold it."""
    told = dict(settings)
    kind = numpy_type(dtype)
    scale = _scale(dtype) if told["scale"] is None else float(cast("float", told["scale"]))
    mean, std = (np.array(told[key], np.float32)[:, None] for key in ("mean", "std"))
    with np.errstate(over="ignore", invalid="ignore"):
        values = (np.arange(256, dtype=np.float32) * np.float32(scale) - mean) / std
        low, high = float(values.min()), float(values.max())
        if kind.kind in "iu":
            values = np.rint(values)
            limits = np.iinfo(kind)
            fits = bool((values >= float(limits.min)).all() and (values < float(limits.max) + 1).all())
        else:
            fits = bool(np.isfinite(values.astype(kind).astype(np.float32)).all())
        if kind.kind == "b" or not fits:
            what = f"pixels of tensor {tensor!r} would become {low:.6g} to {high:.6g}, which {dtype} cannot hold"
            raise OptionsError(what, f"image(...) for tensor {tensor!r}", f"{dtype} values", "", "set scale, mean, std")
        return values.astype(kind)


class Images(Packed):
    """Pictures, each decoded when its batch is asked for: a part may hold thousands."""

    def __init__(self, feed: Feed, table: pa.Table) -> None:
        super().__init__()
        need_pillow()
        self._where = f"in column {feed.columns[0]!r} (tensor {feed.tensor!r})"
        self._dtype = numpy_type(feed.dtype)
        self._shape = row_shape(feed.settings)
        self._first = feed.setting("layout") == "NCHW"
        self._lookup = pixel_table(feed.settings, feed.dtype, feed.tensor)
        self._channels = (2, 1, 0) if feed.setting("color") == "bgr" else (0, 1, 2)[: len(self._lookup)]
        self._wanted = _wanted(feed)
        self._root = os.path.realpath(str(feed.setting("folder")))
        self._rows = table.num_rows
        self._bytes, self._paths = _sources(table[feed.columns[0]], self._where)
        for row in np.flatnonzero(_nulls(self._bytes) & _nulls(self._paths)):
            self.bad[int(row)] = f"null {self._where}"

    def batch(self, rows: Rows) -> np.ndarray:
        """Those rows as the tensor; a row that cannot be decoded is zeros and is added to `bad`."""
        numbers = range(self._rows)[rows] if isinstance(rows, slice) else rows.tolist()
        tensor = np.zeros((len(numbers), *self._shape), self._dtype)
        for place, row in enumerate(numbers):
            if row in self.bad:
                continue
            try:
                found = pixels(self._encoded(row), self._wanted)
            except Unreadable as error:
                self.bad[row] = f"{error.what} {self._where}" + (f": {error.detail}" if error.detail else "")
                continue
            target = tensor[place] if self._first else np.moveaxis(tensor[place], -1, 0)
            for plane, values, channel in zip(target, self._lookup, self._channels, strict=True):
                plane[...] = values[found[..., channel]]
        return tensor

    def _encoded(self, row: int) -> bytes:
        if self._bytes is not None:
            data = self._bytes[row].as_py()
            if data is not None:
                return cast("bytes", data)
        try:
            path = cast("pa.ChunkedArray", self._paths)[row].as_py()
        except UnicodeDecodeError as error:
            raise Unreadable("a path that is no UTF-8") from error
        return read(path, self._root)


def _wanted(feed: Feed) -> PictureSettings:
    told = dict(feed.settings)
    height, width = (int(side) for side in str(told["size"]).split("x"))
    keys = ("resize", "filter", "fill", "background", "rotate", "max_pixels")
    return PictureSettings(height=height, width=width, gray=told["color"] == "gray", **{key: told[key] for key in keys})  # type: ignore[arg-type]  # made by `settings`


def _sources(column: pa.ChunkedArray, where: str) -> tuple[pa.ChunkedArray | None, pa.ChunkedArray | None]:
    """(bytes, paths), of which one may be missing."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _sources(column.cast(kind.storage_type), where)
    if pa.types.is_dictionary(kind):
        return _sources(column.cast(kind.value_type), where)
    if pa.types.is_struct(kind):
        names = {kind.field(i).name for i in range(kind.num_fields)} & {"bytes", "path"}
        fields = {name: _sources(pc.struct_field(column, name), where) for name in sorted(names)}
        if fields:
            return fields.get("bytes", (None, None))[0], fields.get("path", (None, None))[1]
    is_ = pa.types
    if any(test(kind) for test in (is_.is_binary, is_.is_large_binary, is_.is_fixed_size_binary, is_.is_binary_view)):
        return column, None
    if any(test(kind) for test in (is_.is_string, is_.is_large_string, is_.is_string_view)):
        return None, column
    expected = "encoded bytes, paths, or a struct of bytes and path"
    raise TypeMismatch(f"no pictures {where}", "", expected, str(kind), "feed a column that holds encoded pictures")


def _nulls(column: pa.ChunkedArray | None) -> np.ndarray | np.bool:
    return np.True_ if column is None else column.is_null().to_numpy()


class _Asked:
    """The arguments of image(...), each read by its rule."""

    def __init__(self, call: Call, tensor: str) -> None:
        self._where = f"image(...) for tensor {tensor!r}"
        self._told: dict[str, str] = {}
        if call.args:
            what = f"image does not know what {call.args[0]!r} is"
            raise OptionsError(what, self._where, "KEY=VALUE", repr(call.args[0]), f"image(size={call.args[0]})")
        for key, value in call.named:
            if key not in KEYS:
                hint = did_you_mean(key, KEYS)
                raise OptionsError(f"image has no setting {key!r}", self._where, "a setting", repr(key), hint)
            if key in self._told:
                raise self.wrong(key, "it is given twice", f"{self._told[key]!r} and {value!r}", "one value")
            self._told[key] = value

    def wrong(self, key: str, why: str, found: str, expected: str = "", hint: str = "") -> OptionsError:
        """The refusal of one setting."""
        expected = expected or (f"one of {', '.join(_CHOICES[key])}" if key in _CHOICES else "")
        hint = hint or (f"image({key}={_CHOICES[key][0]}), or another of them" if key in _CHOICES else "")
        return OptionsError(f"{key} of image cannot be used: {why}", self._where, expected, found, hint)

    def choice(self, key: str, default: str | None = None) -> str | None:
        """One of a few words."""
        value = self._told.get(key, _DEFAULTS.get(key))
        if value is None:
            return default
        chosen = next((word for word in _CHOICES[key] if word.lower() == value.lower()), None)
        if chosen is None:
            raise self.wrong(key, "there is no such choice", repr(value), hint=did_you_mean(value, _CHOICES[key]))
        return chosen

    def whole(self, key: str, low: int, high: int) -> int:
        """A whole number."""
        value = self._told.get(key, _DEFAULTS[key])
        if not re.fullmatch(r"[0-9]{1,19}", value) or not low <= int(value) <= high:
            raise self.wrong(key, "it is out of range", repr(value), f"a whole number from {low} to {high}")
        return int(value)

    def numbers(self, key: str, depth: int) -> tuple[float, ...]:
        """One number per channel, of which one may stand for all."""
        value = self._told.get(key, _DEFAULTS[key])
        expected = "one number" + (f", or {depth} with blanks between" if depth > 1 else "")
        try:
            found = [float(word) for word in value.replace("/", " ").split()]
        except ValueError:
            raise self.wrong(key, "it is no number", repr(value), expected) from None
        if len(found) not in (1, depth) or not all(map(math.isfinite, found)):
            raise self.wrong(key, "it does not fit the channels", repr(value), expected)
        if key == "std" and not min(found) > 0:
            raise self.wrong(key, "it divides", repr(value), "numbers above 0")
        return tuple(found if len(found) == depth else found * depth)

    def scale(self, dtype: str | None) -> float | None:
        """The factor of each pixel; without a type, None for its default."""
        value = self._told.get("scale")
        if value is None:
            return None if dtype is None else _scale(dtype)
        above, _, below = value.partition("/")
        try:
            found = float(above) / float(below or 1)
        except (ValueError, ZeroDivisionError):
            found = 0.0
        if not 0 < abs(found) < math.inf:
            raise self.wrong("scale", "it is no factor", repr(value), "a number or a fraction, such as 1/255")
        return found

    def size(self, space: list[int | None], shape: tuple[int | str | None, ...] | None) -> tuple[int, int]:
        """(height, width), which must be those of the tensor where it has any."""
        value, expected = self._told.get("size"), "224, or HEIGHTxWIDTH such as 48x192"
        if value is None:
            if space[0] is None or space[1] is None:
                why = "it is needed, for the tensor's shape leaves it open"
                raise self.wrong("size", why, _text(shape), expected, "image(size=224)")
            value = f"{space[0]}x{space[1]}"
        match = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", value.lower().replace(" ", ""))
        height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not (1 <= height <= _LARGEST_SIDE and 1 <= width <= _LARGEST_SIDE):
            raise self.wrong("size", f"sides are from 1 to {_LARGEST_SIDE}", repr(value), expected)
        if space[0] not in (None, height) or space[1] not in (None, width):
            fixed = "x".join("any" if side is None else str(side) for side in space)
            hint = f"image(size={space[0] or height}x{space[1] or width})"
            raise self.wrong("size", f"the tensor's is {fixed}", repr(value), fixed, hint)
        return height, width


def _sides(asked: _Asked, shape: tuple[int | str | None, ...] | None) -> tuple[int | None, ...]:
    """The four axes, None where anything fits."""
    if shape is None:
        return (None,) * _AXES
    if len(shape) != _AXES:
        raise asked.wrong("layout", f"the tensor has {len(shape)} axes instead of {_AXES}", _text(shape))
    return tuple(side if isinstance(side, int) and side > 0 else None for side in shape)


def _layout(sides: tuple[int | None, ...]) -> str | None:
    """Where 1 or 3 channels stand, when that is one place only."""
    first, last = (sides[i] in (1, 3) for i in (1, 3))
    return None if first == last else "NCHW" if first else "NHWC"


def _text(shape: tuple[int | str | None, ...] | None) -> str:
    return "no shape" if shape is None else f"[{', '.join('?' if side is None else str(side) for side in shape)}]"


def _scale(dtype: str) -> float:
    return 1.0 if numpy_type(dtype).kind in "iu" else 1 / 255
