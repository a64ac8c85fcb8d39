"""Decode one encoded picture into pixels of one size and colour; knows no columns and no tensors.

The formats are JPEG, PNG, WebP, GIF, BMP and TIFF, recognised by their first bytes. Of several frames or pages, the
first is used. All pixels become 8-bit:

- 16-bit gray is divided by 257 and rounded. Of 16-bit colour, Pillow returns the high byte.
- Transparent pixels are blended with `background`.
- CMYK is multiplied out. In a JPEG it is inverted, as Adobe writes it.
- Gray is 0.299 R + 0.587 G + 0.114 B.

Colour profiles are not applied. JPEG has no checksums, so damage that its decoder conceals is not detected.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import struct
import threading
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from scorer.display.words import visible
from scorer.errors import OptionsError, UnreadableFile
from scorer.locations import beside, is_below, is_url, normal, split
from scorer.storage import stores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image
    from PIL.ImageFile import ImageFile


_FORMATS = {
    b"\xff\xd8\xff": "Jpeg",
    b"\x89PNG\r\n\x1a\n": "Png",
    b"GIF87a": "Gif",
    b"GIF89a": "Gif",
    b"BM": "Bmp",
    b"II*\0": "Tiff",
    b"MM\0*": "Tiff",
    b"II+\0": "Tiff",
    b"MM\0+": "Tiff",
}
"""Pillow's name of the format, by the first bytes of a file. WebP is missing: its marker starts at byte 8."""

_TRUNCATION_ERRORS = (IndexError, EOFError, struct.error)
_ORIENTATION, _PHOTOMETRIC, _BITS = 274, 262, 258
_LONGEST_REASON = 200


class Unreadable(Exception):
    """A picture that cannot be decoded: what was found instead, and the decoder's message."""

    def __init__(self, what: str, detail: str = "") -> None:
        super().__init__(what, detail)
        self.what = what
        self.detail = visible(detail)[:_LONGEST_REASON]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSettings:
    """The size, colour and treatment that every picture of a column gets."""

    height: int | None
    """None if it follows from the width and the picture's proportions; then `width` is a number."""
    width: int | None
    gray: bool
    resize: str
    """stretch, crop or pad."""
    filter: str
    """bilinear, bicubic, nearest or lanczos."""
    fill: int
    """Gray level around a padded picture, 0 to 255."""
    background: int
    """Gray level behind transparent pixels, 0 to 255."""
    rotate: bool
    """Whether the EXIF orientation is applied. The orientation tag of a TIFF always is."""
    max_pixels: int


def need_pillow() -> None:
    """Raise `OptionsError` if Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise OptionsError(
            "pictures need Pillow, which is not installed",
            where="image(...)",
            expected="Pillow",
            found=str(error),
            hint="pip install 'dask-scorer[image]'",
        ) from error


def read(path: str, root: str) -> bytes:
    """Return the bytes of a picture's file below `root`, a resolved folder.

    Links are followed. No file outside `root` is opened.
    """
    if is_url(path):
        raise Unreadable(f"the URL {path!r} instead of a path")
    if os.path.isabs(path):
        raise Unreadable(f"the absolute path {path!r}")
    try:
        real = os.path.realpath(os.path.join(root, path))
        if os.path.commonpath((real, root)) != root:
            raise Unreadable(f"the path {path!r}, which is outside the allowed folder,")
        if not os.path.isfile(real):
            raise Unreadable(f"no file {path!r}")
        with open(real, "rb") as file:
            return file.read()
    except OSError as error:
        raise Unreadable(f"unreadable file {path!r}", error.strerror or "") from error
    except ValueError as error:
        raise Unreadable(f"the path {path!r}", str(error)) from error


def read_from_store(path: str, root: str) -> bytes:
    """Return the bytes of a picture on a store: below `root`, or under its own URL on the same store.

    Raises `UnreadableFile` if the store does not answer, since that says nothing about the picture.
    """
    location = normal(path) if is_url(path) else beside(f"{root}/-", path)
    if split(location)[0] != split(root)[0]:
        raise Unreadable(f"the URL {path!r}, which is on another store,")
    if not is_url(path) and (path.startswith("/") or not is_below(location, root)):
        raise Unreadable(f"the path {path!r}, which is outside the allowed folder,")
    try:
        return stores.of(location).read(location)
    except FileNotFoundError as error:
        raise Unreadable(f"no file {path!r}") from error
    except OSError as error:
        raise UnreadableFile(
            "a picture cannot be read",
            where=location,
            expected="a store that answers",
            found=error.strerror or str(error),
            hint="repeat the command; if it fails again, check the server, the network and the credentials",
        ) from error


def pixels(data: bytes, settings: PictureSettings) -> np.ndarray:
    """Return the picture as uint8 [height, width, 1 or 3], red first.

    Raises `Unreadable` if the bytes are not one complete picture.
    """
    if not data:
        raise Unreadable("empty bytes")
    file_format = _format_of(data)
    if file_format is None:
        raise Unreadable("not a JPEG, PNG, WebP, GIF, BMP or TIFF picture")
    with _mute_pillow(file_format):
        try:
            decoded = np.asarray(_resize(_decode(file_format, data, settings), settings))
        except Unreadable:
            raise
        except Exception as error:
            raise _decoding_error(file_format, data, error) from error
    return decoded.reshape(*decoded.shape[:2], -1)


def _decoding_error(file_format: str, data: bytes, error: Exception) -> Unreadable:
    """Return the error for bytes that a decoder rejects: truncated or broken, and the decoder's message."""
    text = str(error)
    truncated = (
        isinstance(error, _TRUNCATION_ERRORS)
        or isinstance(error.__cause__, _TRUNCATION_ERRORS)
        or "truncated" in text.lower()
    )
    if file_format == "WebP":  # the decoder does not say whether bytes are missing, but the header holds the length
        truncated = len(data) < 8 + int.from_bytes(data[4:8], "little")
    detail = text if " " in text else f"{type(error).__name__} {text}".strip()
    return Unreadable(
        f"{'truncated' if truncated else 'broken'} {file_format if file_format == 'WebP' else file_format.upper()}",
        detail,
    )


def _format_of(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return next((file_format for start, file_format in _FORMATS.items() if data.startswith(start)), None)


class _PillowFilter(threading.local):
    """Mutes Pillow's warnings and log lines in the threads that decode here, and in no other thread."""

    muted = False

    def match(self, module: str) -> bool:
        """Act as the module pattern of a warnings filter."""
        return self.muted and module.startswith("PIL.")

    def filter(self, _record: logging.LogRecord) -> bool:
        """Act as the filter of a logger."""
        return not self.muted


class _LibtiffMute:
    """Mutes libtiff, which also writes damage to stderr, while at least one thread decodes a TIFF."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._previous: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._previous = [(setter, setter(None)) for setter in _handler_setters()]

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for setter, previous in self._previous:
                    setter(previous)


def _handler_setters() -> list[Any]:
    """Return libtiff's functions that set a message handler and return the previous one.

    The list is empty where libtiff is linked statically and its symbols are hidden.
    """
    try:
        library = ctypes.CDLL(import_module("PIL._imaging").__file__)
        setters = [library.TIFFSetErrorHandler, library.TIFFSetWarningHandler]
    except (AttributeError, OSError):
        return []
    for setter in setters:
        setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
    return setters


_LIBTIFF_MUTE = _LibtiffMute()
_PILLOW_FILTER = _PillowFilter()
_WARNING_FILTER = ("ignore", None, Warning, _PILLOW_FILTER, 0)


@contextmanager
def _mute_pillow(file_format: str) -> Iterator[None]:
    """Keep Pillow from writing to stderr in this thread.

    `warnings.catch_warnings` cannot be used: it changes the filters of all threads.
    """
    filters: list[Any] = warnings.filters  # type: ignore[assignment]  # typed as read-only
    if _WARNING_FILTER not in filters:
        filters.insert(0, _WARNING_FILTER)
    logging.getLogger("PIL.TiffImagePlugin").addFilter(_PILLOW_FILTER)
    _PILLOW_FILTER.muted = True
    try:
        with _LIBTIFF_MUTE if file_format == "Tiff" else nullcontext():
            yield
    finally:
        _PILLOW_FILTER.muted = False


def _decode(file_format: str, data: bytes, settings: PictureSettings) -> Image.Image:
    """Return the upright picture in mode L or RGB.

    Pillow's format classes are used directly: `Image.open` tries one format after another and has its own pixel limit.
    """
    image: ImageFile = getattr(import_module(f"PIL.{file_format}ImagePlugin"), f"{file_format}ImageFile")(
        io.BytesIO(data)
    )
    width, height = image.size
    if width * height > settings.max_pixels:
        raise Unreadable(f"a picture of {width} x {height} pixels, more than max_pixels={settings.max_pixels},")
    image.load()
    operation = _upright_operation(image) if settings.rotate else None
    plain = _to_8_bits(image, "L" if settings.gray else "RGB", settings.background)
    return plain if operation is None else plain.transpose(operation)


def _upright_operation(image: Image.Image) -> Image.Transpose | None:
    """Return the operation that puts the picture upright; None if it has no orientation or unreadable EXIF bytes."""
    from PIL.Image import Transpose  # noqa: PLC0415 - an extra

    operations = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        return operations.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - damaged EXIF bytes can raise anything
        return None


def _to_8_bits(image: Image.Image, mode: str, background: int) -> Image.Image:
    """Convert to 8 bits without palette and transparency."""
    from PIL import Image  # noqa: PLC0415 - an extra

    if image.mode in ("I", "F"):
        raise Unreadable("a picture of 32-bit values, whose white level is unknown,")
    if image.mode.startswith("I;16"):
        image = _scale_to_8_bits(image)
    if image.has_transparency_data:
        clear = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        image = Image.new("RGBA", clear.size, (background, background, background, 255))
        image.alpha_composite(clear)
    return image if image.mode == mode else image.convert(mode)


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray (12-bit in some TIFFs) to 8 bits; Pillow would clip it."""
    from PIL import Image  # noqa: PLC0415 - an extra

    tags = getattr(image, "tag_v2", {})
    white = 2 ** tags.get(_BITS, (16,))[0] - 1
    values = np.asarray(image).astype(np.int64)
    scaled = (values * 255 + white // 2) // white
    if tags.get(_PHOTOMETRIC) == 0:  # zero is white; Pillow inverts such pictures up to 8 bits only
        scaled = 255 - scaled
    gray = Image.fromarray(scaled.clip(0, 255).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        gray.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return gray


def _resize(image: Image.Image, settings: PictureSettings) -> Image.Image:
    """Return the picture in the requested size.

    stretch: scale both sides, which changes the proportions.
    crop: scale until both sides are filled, then cut out the centre, rounded as torchvision's Resize and CenterCrop do.
    pad: scale until the picture fits inside, then centre it on `fill`.
    """
    from PIL import Image  # noqa: PLC0415 - an extra

    resampling = Image.Resampling[settings.filter.upper()]
    size = _target_size(image, settings)
    if settings.resize == "crop":
        return image.resize(size, resampling, _crop_box(image.size, size))
    if settings.resize == "stretch":
        return image.resize(size, resampling)
    small = _padded_size(image.size, size)
    canvas = Image.new(image.mode, size, settings.fill if settings.gray else (settings.fill,) * 3)
    canvas.paste(image.resize(small, resampling), ((size[0] - small[0]) // 2, (size[1] - small[1]) // 2))
    return canvas


def _target_size(image: Image.Image, settings: PictureSettings) -> tuple[int, int]:
    """Return (width, height); a side that is not set keeps the proportions, rounded down as torchvision does."""
    (width, height), old = (settings.width, settings.height), image.size
    if width is None:
        width = max(1, old[0] * (height or 1) // old[1])
    if height is None:
        height = max(1, old[1] * width // old[0])
    if None in (settings.width, settings.height) and width * height > settings.max_pixels:
        raise Unreadable(
            f"a picture that would become {width} x {height} pixels, more than max_pixels={settings.max_pixels},"
        )
    return width, height


def _crop_box(old: tuple[int, int], new: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the visible box of the old picture; only this box is resampled, so a long strip needs little memory."""
    if new[0] * old[1] >= new[1] * old[0]:
        scaled = new[0], old[1] * new[0] // old[0]
    else:
        scaled = old[0] * new[1] // old[1], new[1]
    left, top = (round((scaled[i] - new[i]) / 2) for i in (0, 1))
    right, bottom = left + new[0], top + new[1]
    x, y = old[0] / scaled[0], old[1] / scaled[1]
    return left * x, top * y, min(right * x, old[0]), min(bottom * y, old[1])


def _padded_size(old: tuple[int, int], new: tuple[int, int]) -> tuple[int, int]:
    """Return the largest size of the same proportions that fits into `new`."""
    if new[0] * old[1] <= new[1] * old[0]:
        return new[0], max(1, round(old[1] * new[0] / old[0]))
    return max(1, round(old[0] * new[1] / old[1])), new[1]
