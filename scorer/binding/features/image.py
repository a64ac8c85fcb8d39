"""Convert a column of encoded pictures into a tensor of their pixels; `_picture` decodes each one.

A value is (pixel * scale - mean) / std in float32, with pixels from 0 to 255. It is then cast to the tensor's type,
and rounded to the nearest integer for integer types. mean and std follow the order of the tensor's channels, so for bgr
the first is blue.
"""

from __future__ import annotations

import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.binding.features._picture import PictureSettings, Unreadable, need_pillow, pixels, read, read_from_store
from scorer.binding.features.numeric import numpy_type
from scorer.binding.features.packed import Packed
from scorer.display.words import did_you_mean
from scorer.errors import OptionsError, TypeMismatch
from scorer.locations import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence
    from concurrent.futures import Future

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
    "max_pixels": "100000000",  # 100 megapixels are 300 MB decoded; pictures of usual cameras are smaller
}
_LARGEST_SIDE = 65_535
_AT_ONCE, _AHEAD = 32, 64
"""Pictures of a part that are read from a store at once, and how many are read before their batch."""
ANY = "any"
"""A side of `size` that follows from the proportions of each picture."""
_SIZE = re.compile(rf"([0-9]{{1,5}}|{ANY})(?:x([0-9]{{1,5}}|{ANY}))?")
_AXES = 4


def settings(
    call: Call, tensor: str, shape: tuple[int | str | None, ...] | None, folder: str, dtype: str | None = None
) -> tuple[tuple[str, Setting], ...]:
    """Return all settings of image(...) for a tensor of this shape (batch axis first), defaults included.

    `scale` defaults to 1/255 for float types and 1 for integer types; without a `dtype` it stays None. Strings in the
    column are paths below `folder`. `fill` is the level around padded pictures and `background` the level behind
    transparent pixels, each from 0 to 255.
    """
    need_pillow()
    arguments = _Arguments(call, tensor)
    sides = _axes(arguments, shape)
    layout = arguments.choice("layout", _layout_of(sides))
    if layout is None:
        raise arguments.error(
            "layout", "the tensor's shape does not show which axis holds the channels", _shape_text(shape)
        )
    channels, *space = (sides[1], *sides[2:]) if layout == "NCHW" else (sides[3], *sides[1:3])
    color = arguments.choice("color", {1: "gray", 3: "rgb"}.get(channels or 0))
    if color is None:
        raise arguments.error("color", "the tensor's shape does not say how many channels it has", _shape_text(shape))
    depth = 1 if color == "gray" else 3
    if channels not in (None, depth):
        raise arguments.error(
            "color", f"a {color} picture in {layout} does not fit the tensor's shape", _shape_text(shape)
        )
    height, width = arguments.size(space, shape)
    result: dict[str, Setting] = {
        "size": f"{height or ANY}x{width or ANY}",
        "layout": layout,
        "color": color,
        "mean": arguments.numbers("mean", depth),
        "std": arguments.numbers("std", depth),
        "scale": arguments.scale(dtype),
        "resize": arguments.choice("resize"),
        "filter": arguments.choice("filter"),
        "fill": arguments.whole_number("fill", 0, 255),
        "background": arguments.whole_number("background", 0, 255),
        "rotate": arguments.choice("rotate") == "true",
        "max_pixels": arguments.whole_number("max_pixels", 1, 2**62),
        "folder": folder if is_url(folder) else os.path.abspath(folder),
    }
    if dtype is not None:
        pixel_table(tuple(result.items()), dtype, tensor)
    return tuple(result.items())


def row_shape(settings: Iterable[tuple[str, Setting]]) -> tuple[int | None, int | None, int | None]:
    """Return the shape of one row of the tensor; a side is None if each picture has its own."""
    values = dict(settings)
    height, width = _sides(str(values["size"]))
    depth = 1 if values["color"] == "gray" else 3
    return (depth, height, width) if values["layout"] == "NCHW" else (height, width, depth)


def pixel_table(settings: Iterable[tuple[str, Setting]], dtype: str, tensor: str) -> np.ndarray:
    """Return the tensor value of each pixel level, [channels, 256], by the formula in the module's docstring.

    Raises `OptionsError` if the tensor's type cannot hold the values.
    """
    chosen = dict(settings)
    kind = numpy_type(dtype)
    scale = _default_scale(dtype) if chosen["scale"] is None else float(cast("float", chosen["scale"]))
    mean, std = (np.array(chosen[key], np.float32)[:, None] for key in ("mean", "std"))
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
            raise OptionsError(
                f"pixels of tensor {tensor!r} would become {low:.6g} to {high:.6g}, which {dtype} cannot hold",
                where=f"image(...) for tensor {tensor!r}",
                expected=f"{dtype} values",
                hint="set scale, mean or std of image(...)",
            )
        return values.astype(kind)


class Images(Packed):
    """A picture column. Each picture is decoded with its batch, because a part may hold thousands.

    Pictures of any size are scored one by one. In a batch of several, zeros follow the smaller ones.
    """

    def __init__(self, feed: Feed, table: pa.Table) -> None:
        super().__init__()
        need_pillow()
        self._where = f"in column {feed.columns[0]!r} (tensor {feed.tensor!r})"
        self._dtype = numpy_type(feed.dtype)
        self._shape = row_shape(feed.settings)
        self._channels_first = feed.setting("layout") == "NCHW"
        self._lookup = pixel_table(feed.settings, feed.dtype, feed.tensor)
        self._channels = (2, 1, 0) if feed.setting("color") == "bgr" else (0, 1, 2)[: len(self._lookup)]
        self._picture_settings = _picture_settings(feed)
        root = str(feed.setting("folder"))
        self._remote = is_url(root)
        self._root = root if self._remote else os.path.realpath(root)
        self._rows = table.num_rows
        self._bytes, self._paths = _bytes_and_paths(table[feed.columns[0]], self._where)
        for row in np.flatnonzero(_null_mask(self._bytes) & _null_mask(self._paths)):
            self.bad[int(row)] = f"null {self._where}"
        fetched = self._remote and self._paths is not None
        self._ahead = Ahead(self._encoded, self._rows, self.bad) if fetched else None

    def batch(self, rows: Rows) -> np.ndarray:
        """Return the tensor of these rows. A row that cannot be decoded is added to `bad` and filled with zeros."""
        numbers = range(self._rows)[rows] if isinstance(rows, slice) else rows.tolist()
        if self._ahead is not None:
            self._ahead.start(numbers, in_order=isinstance(rows, slice))
        if None in self._shape:
            return self._batch_of_any_size(numbers)
        tensor = np.zeros((len(numbers), *(side or 0 for side in self._shape)), self._dtype)
        for place, row in enumerate(numbers):
            decoded = self._decoded(row)
            if decoded is not None:
                self._fill(tensor[place], decoded)
        return tensor

    def _batch_of_any_size(self, rows: Sequence[int]) -> np.ndarray:
        decoded = [self._decoded(row) for row in rows]
        sizes = [picture.shape[:2] for picture in decoded if picture is not None]
        height, width = (max((size[i] for size in sizes), default=1) for i in (0, 1))
        depth = len(self._lookup)
        shape = (depth, height, width) if self._channels_first else (height, width, depth)
        tensor = np.zeros((len(rows), *shape), self._dtype)
        for place, picture in zip(tensor, decoded, strict=True):
            if picture is not None:
                high, wide = picture.shape[:2]
                self._fill(place[:, :high, :wide] if self._channels_first else place[:high, :wide], picture)
        return tensor

    def _fill(self, place: np.ndarray, decoded: np.ndarray) -> None:
        """Write one picture's values into its place in a tensor."""
        target = place if self._channels_first else np.moveaxis(place, -1, 0)
        for plane, values, channel in zip(target, self._lookup, self._channels, strict=True):
            plane[...] = values[decoded[..., channel]]

    def _decoded(self, row: int) -> np.ndarray | None:
        """Return one picture's pixels; None if the row is bad, which is then in `bad`."""
        if row in self.bad:
            return None
        try:
            data = self._encoded(row) if self._ahead is None else self._ahead.get(row)
            return pixels(data, self._picture_settings)
        except Unreadable as error:
            self.bad[row] = f"{error.what} {self._where}" + (f": {error.detail}" if error.detail else "")
            return None

    def _encoded(self, row: int) -> bytes:
        if self._bytes is not None:
            data = self._bytes[row].as_py()
            if data is not None:
                return cast("bytes", data)
        try:
            path = cast("pa.ChunkedArray", self._paths)[row].as_py()
        except UnicodeDecodeError as error:
            raise Unreadable("a path that is not UTF-8") from error
        return read_from_store(path, self._root) if self._remote else read(path, self._root)


class Ahead:
    """Reads the pictures of a part from a store, many at once, before their batch decodes them."""

    def __init__(self, read: Callable[[int], bytes], rows: int, bad: Container[int]) -> None:
        """Read the pictures of the rows up to `rows` by `read`, but not those of `bad` rows."""
        self._read, self._rows, self._bad = read, rows, bad
        self._pool = ThreadPoolExecutor(_AT_ONCE, "scorer-pictures")  # its threads end with this object
        self._waiting: dict[int, Future[bytes]] = {}
        self._started = 0

    def start(self, rows: Sequence[int], *, in_order: bool) -> None:
        """Start to read these rows, and also some that follow if the batches are in the order of the rows."""
        if in_order:
            rows = range(self._started, min(max(rows, default=0) + 1 + _AHEAD, self._rows))
            self._started = max(self._started, rows.stop)
        for row in rows:
            if row not in self._bad and row not in self._waiting:
                self._waiting[row] = self._pool.submit(self._read, row)

    def get(self, row: int) -> bytes:
        """Return one picture; raise what reading it raised."""
        waiting = self._waiting.pop(row, None)
        return self._read(row) if waiting is None else waiting.result()


def _sides(size: str) -> tuple[int | None, int | None]:
    """Return (height, width) of a size; a side is None if it follows from the picture's proportions."""
    height, width = (None if side == ANY else int(side) for side in size.split("x"))
    return height, width


def _picture_settings(feed: Feed) -> PictureSettings:
    chosen = dict(feed.settings)
    height, width = _sides(str(chosen["size"]))
    keys = ("resize", "filter", "fill", "background", "rotate", "max_pixels")
    return PictureSettings(
        height=height,
        width=width,
        gray=chosen["color"] == "gray",
        **{key: chosen[key] for key in keys},  # type: ignore[arg-type]  # checked by `settings`
    )


def _bytes_and_paths(column: pa.ChunkedArray, where: str) -> tuple[pa.ChunkedArray | None, pa.ChunkedArray | None]:
    """Return the columns (bytes, paths); one of them may be None."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _bytes_and_paths(column.cast(kind.storage_type), where)
    if pa.types.is_dictionary(kind):
        return _bytes_and_paths(column.cast(kind.value_type), where)
    if pa.types.is_struct(kind):
        names = {kind.field(i).name for i in range(kind.num_fields)} & {"bytes", "path"}
        fields = {name: _bytes_and_paths(pc.struct_field(column, name), where) for name in sorted(names)}
        if fields:
            return fields.get("bytes", (None, None))[0], fields.get("path", (None, None))[1]
    types = pa.types
    if any(
        test(kind)
        for test in (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    ):
        return column, None
    if any(test(kind) for test in (types.is_string, types.is_large_string, types.is_string_view)):
        return None, column
    raise TypeMismatch(
        f"no pictures {where}",
        expected="encoded bytes, paths, or a struct of bytes and path",
        found=str(kind),
        hint="feed a column that holds encoded pictures",
    )


def _null_mask(column: pa.ChunkedArray | None) -> np.ndarray | np.bool:
    return np.True_ if column is None else column.is_null().to_numpy()


class _Arguments:
    """The arguments of image(...), parsed and checked one by one."""

    def __init__(self, call: Call, tensor: str) -> None:
        self._where = f"image(...) for tensor {tensor!r}"
        self._values: dict[str, str] = {}
        if call.args:
            raise OptionsError(
                "image takes named settings only",
                where=self._where,
                expected="KEY=VALUE",
                found=repr(call.args[0]),
                hint=f"image(size={call.args[0]})",
            )
        for key, value in call.named:
            if key not in KEYS:
                raise OptionsError(
                    f"image has no setting {key!r}",
                    where=self._where,
                    expected="a setting",
                    found=repr(key),
                    hint=did_you_mean(key, KEYS),
                )
            if key in self._values:
                raise self.error(key, "it is given twice", f"{self._values[key]!r} and {value!r}", "one value")
            self._values[key] = value

    def error(self, key: str, why: str, found: str, expected: str = "", hint: str = "") -> OptionsError:
        """Return the error for one setting."""
        expected = expected or (f"one of {', '.join(_CHOICES[key])}" if key in _CHOICES else "")
        hint = hint or (f"image({key}={_CHOICES[key][0]}), or another of these values" if key in _CHOICES else "")
        return OptionsError(
            f"{key} of image cannot be used: {why}", where=self._where, expected=expected, found=found, hint=hint
        )

    def choice(self, key: str, default: str | None = None) -> str | None:
        """Return a setting that is one of a few words."""
        value = self._values.get(key, _DEFAULTS.get(key))
        if value is None:
            return default
        chosen = next((word for word in _CHOICES[key] if word.lower() == value.lower()), None)
        if chosen is None:
            raise self.error(key, "unknown value", repr(value), hint=did_you_mean(value, _CHOICES[key]))
        return chosen

    def whole_number(self, key: str, low: int, high: int) -> int:
        """Return a setting that is a whole number in a range."""
        value = self._values.get(key, _DEFAULTS[key])
        if not re.fullmatch(r"[0-9]{1,19}", value) or not low <= int(value) <= high:
            raise self.error(key, "it is out of range", repr(value), f"a whole number from {low} to {high}")
        return int(value)

    def numbers(self, key: str, depth: int) -> tuple[float, ...]:
        """Return one number per channel; a single number applies to all channels."""
        value = self._values.get(key, _DEFAULTS[key])
        expected = "one number" + (f", or {depth} separated by blanks" if depth > 1 else "")
        try:
            found = [float(word) for word in value.replace("/", " ").split()]
        except ValueError:
            raise self.error(key, "it is not a number", repr(value), expected) from None
        if len(found) not in (1, depth) or not all(map(math.isfinite, found)):
            raise self.error(key, "it does not match the channels", repr(value), expected)
        if key == "std" and not min(found) > 0:
            raise self.error(key, "pixels are divided by it", repr(value), "numbers above 0")
        return tuple(found if len(found) == depth else found * depth)

    def scale(self, dtype: str | None) -> float | None:
        """Return the factor of each pixel; None if it is the default and the tensor's type is not known."""
        value = self._values.get("scale")
        if value is None:
            return None if dtype is None else _default_scale(dtype)
        above, _, below = value.partition("/")
        try:
            found = float(above) / float(below or 1)
        except (ValueError, ZeroDivisionError):
            found = 0.0
        if not 0 < abs(found) < math.inf:
            raise self.error("scale", "it is not a factor", repr(value), "a number or a fraction, such as 1/255")
        return found

    def size(
        self, space: list[int | None], shape: tuple[int | str | None, ...] | None
    ) -> tuple[int | None, int | None]:
        """Return (height, width); both must match the sides that the tensor's shape fixes. One may be None for any."""
        value, expected = self._values.get("size"), "224, or HEIGHTxWIDTH such as 48x192 or 48xany"
        if value is None:
            if space[0] is None or space[1] is None:
                raise self.error(
                    "size",
                    "it is required, because the tensor's shape leaves it open",
                    _shape_text(shape),
                    expected,
                    f"image(size={_size_text(space)})" if any(space) else "image(size=224)",
                )
            value = f"{space[0]}x{space[1]}"
        match = _SIZE.fullmatch(value.lower().replace(" ", ""))
        height, width = _sides(f"{match[1]}x{match[2] or match[1]}") if match else (0, 0)
        if any(side is not None and not 1 <= side <= _LARGEST_SIDE for side in (height, width)):
            raise self.error("size", f"sides must be from 1 to {_LARGEST_SIDE}", repr(value), expected)
        if space[0] not in (None, height) or space[1] not in (None, width):
            fixed = _size_text(space)
            hint = f"image(size={space[0] or height or ANY}x{space[1] or width or ANY})"
            raise self.error("size", f"the tensor's size is {fixed}", repr(value), fixed, hint)
        if height is None and width is None:
            raise self.error("size", "only one side can be any", repr(value), expected, "image(size=48xany)")
        if None in (height, width) and self.choice("resize") != "stretch":
            what = "with a side of any size, a picture keeps its proportions and needs nothing else"
            raise self.error("resize", what, repr(self._values["resize"]), "no resize=", "remove resize=")
        return height, width


def _axes(arguments: _Arguments, shape: tuple[int | str | None, ...] | None) -> tuple[int | None, ...]:
    """Return the four axes; None where any size fits."""
    if shape is None:
        return (None,) * _AXES
    if len(shape) != _AXES:
        raise arguments.error("layout", f"the tensor has {len(shape)} axes instead of {_AXES}", _shape_text(shape))
    return tuple(side if isinstance(side, int) and side > 0 else None for side in shape)


def _layout_of(sides: tuple[int | None, ...]) -> str | None:
    """Return the layout, if exactly one of the two possible channel axes has 1 or 3 channels."""
    first, last = (sides[i] in (1, 3) for i in (1, 3))
    return None if first == last else "NCHW" if first else "NHWC"


def _shape_text(shape: tuple[int | str | None, ...] | None) -> str:
    return "no shape" if shape is None else f"[{', '.join('?' if side is None else str(side) for side in shape)}]"


def _size_text(space: Sequence[int | None]) -> str:
    return "x".join(ANY if side is None else str(side) for side in space)


def _default_scale(dtype: str) -> float:
    return 1.0 if numpy_type(dtype).kind in "iu" else 1 / 255
