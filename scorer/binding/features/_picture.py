"""One encoded picture becomes pixels of one size and colour; knows nothing about columns and tensors.

Formats: JPEG, PNG, WebP, GIF, BMP, TIFF, told by their first bytes; the first frame or page of several.
Everything ends as 8 bits: 16-bit gray is divided by 257 and rounded (Pillow itself gives the high byte of 16-bit
colour), transparency is laid over `background`, CMYK is multiplied out (in a JPEG it is inverted, as Adobe writes it).
Gray is 0.299 R + 0.587 G + 0.114 B. Colour profiles are not applied. Damage inside a JPEG that its decoder papers over
is not seen, since the format has no checksums.
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
from scorer.errors import OptionsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image
    from PIL.ImageFile import ImageFile


_KINDS = {
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
"""What a file starts with, and Pillow's name for it; WebP has its own in the middle."""

_ENDED = (IndexError, EOFError, struct.error)
_ORIENTATION, _PHOTOMETRIC, _BITS = 274, 262, 258
_LONGEST_REASON = 200


class Unreadable(Exception):
    """No pixels: what it is instead, and the decoder's own words."""

    def __init__(self, what: str, detail: str = "") -> None:
        super().__init__(what, detail)
        self.what = what
        self.detail = visible(detail)[:_LONGEST_REASON]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSettings:
    """The pixels that are asked for."""

    height: int
    width: int
    gray: bool
    resize: str
    """stretch, crop or pad."""
    filter: str
    """bilinear, bicubic, nearest or lanczos."""
    fill: int
    """Around a padded picture, 0 to 255."""
    background: int
    """Behind a transparent one, 0 to 255."""
    rotate: bool
    """Whether the EXIF orientation is applied; a TIFF's own always is."""
    max_pixels: int


def need_pillow() -> None:
    """Refuse where pictures cannot be decoded."""
    try:
        import PIL.Image  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        what, hint = "pictures need Pillow, which is not installed", "pip install 'dask-scorer[image]'"
        raise OptionsError(what, "image(...)", "Pillow", str(error), hint) from error


def read(path: str, root: str) -> bytes:
    """A picture's file below `root`, which is a resolved folder; nothing outside is opened, links are followed."""
    if "://" in path:
        raise Unreadable(f"the address {path!r} instead of a path")
    if os.path.isabs(path):
        raise Unreadable(f"the absolute path {path!r}")
    try:
        real = os.path.realpath(os.path.join(root, path))
        if os.path.commonpath((real, root)) != root:
            raise Unreadable(f"the path {path!r}, which leads out of its folder,")
        if not os.path.isfile(real):
            raise Unreadable(f"no file {path!r}")
        with open(real, "rb") as file:
            return file.read()
    except OSError as error:
        raise Unreadable(f"unreadable file {path!r}", error.strerror or "") from error
    except ValueError as error:
        raise Unreadable(f"the path {path!r}", str(error)) from error


def pixels(data: bytes, wanted: PictureSettings) -> np.ndarray:
    """[height, width, 1 or 3] of uint8, red first; Unreadable when there is no whole picture."""
    if not data:
        raise Unreadable("empty bytes")
    kind = _kind(data)
    if kind is None:
        raise Unreadable("no JPEG, PNG, WebP, GIF, BMP or TIFF picture")
    with _quiet(kind):
        try:
            found = np.asarray(_fitted(_decoded(kind, data, wanted), wanted))
        except Unreadable:
            raise
        except Exception as error:
            raise _unreadable(kind, data, error) from error
    return found.reshape(wanted.height, wanted.width, -1)


def _unreadable(kind: str, data: bytes, error: Exception) -> Unreadable:
    """Whether the bytes end too early or are wrong, and why the decoder thinks so."""
    text = str(error)
    ended = isinstance(error, _ENDED) or isinstance(error.__cause__, _ENDED) or "truncated" in text.lower()
    if kind == "WebP":  # its decoder does not say, its header tells the length
        ended = len(data) < 8 + int.from_bytes(data[4:8], "little")
    detail = text if " " in text else f"{type(error).__name__} {text}".strip()
    return Unreadable(f"{'truncated' if ended else 'broken'} {kind if kind == 'WebP' else kind.upper()}", detail)


def _kind(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return next((kind for start, kind in _KINDS.items() if data.startswith(start)), None)


class _Hush(threading.local):
    """Silences Pillow in threads that are decoding here, and in no other."""

    on = False

    def match(self, module: str) -> bool:
        """As the module pattern of a warnings filter."""
        return self.on and module.startswith("PIL.")

    def filter(self, _record: logging.LogRecord) -> bool:
        """As the filter of a logger."""
        return not self.on


class _LibTiff:
    """Keeps libtiff, which reports damage on stderr as well, silent while pictures are decoded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._before = [(setter, setter(None)) for setter in _tiff_setters()]

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for setter, before in self._before:
                    setter(before)


def _tiff_setters() -> list[Any]:
    """The C functions that set a handler and give the one before; none where libtiff is linked out of sight."""
    try:
        library = ctypes.CDLL(import_module("PIL._imaging").__file__)
        found = [library.TIFFSetErrorHandler, library.TIFFSetWarningHandler]
    except (AttributeError, OSError):
        return []
    for setter in found:
        setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
    return found


_LIBTIFF = _LibTiff()
_HUSH = _Hush()
_FILTER = ("ignore", None, Warning, _HUSH, 0)


@contextmanager
def _quiet(kind: str) -> Iterator[None]:
    """Nothing from Pillow on stderr; `catch_warnings` is for all threads at once, so it would not do."""
    filters: list[Any] = warnings.filters  # type: ignore[assignment]  # typed as what users may do with it
    if _FILTER not in filters:
        filters.insert(0, _FILTER)
    logging.getLogger("PIL.TiffImagePlugin").addFilter(_HUSH)
    _HUSH.on = True
    try:
        with _LIBTIFF if kind == "Tiff" else nullcontext():
            yield
    finally:
        _HUSH.on = False


def _decoded(kind: str, data: bytes, wanted: PictureSettings) -> Image.Image:
    """The upright picture, L or RGB.

    Pillow's own classes instead of `Image.open`: that one tries formats by turns and has its own limit of pixels.
    """
    image: ImageFile = getattr(import_module(f"PIL.{kind}ImagePlugin"), f"{kind}ImageFile")(io.BytesIO(data))
    width, height = image.size
    if width * height > wanted.max_pixels:
        raise Unreadable(f"a picture of {width} x {height} pixels, more than max_pixels={wanted.max_pixels},")
    image.load()
    turn = _turn(image) if wanted.rotate else None
    plain = _plain(image, "L" if wanted.gray else "RGB", wanted.background)
    return plain if turn is None else plain.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes it upright; nothing when the EXIF block cannot be read, for the pixels can."""
    from PIL.Image import Transpose  # noqa: PLC0415 - an extra

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        return turns.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - as of any hostile bytes
        return None


def _plain(image: Image.Image, mode: str, background: int) -> Image.Image:
    """Eight bits, no palette and no transparency."""
    from PIL import Image  # noqa: PLC0415 - an extra

    if image.mode in ("I", "F"):
        raise Unreadable("a picture of 32-bit values, of which nobody says what is white,")
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        clear = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        image = Image.new("RGBA", clear.size, (background, background, background, 255))
        image.alpha_composite(clear)
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray (12 in some TIFFs) scaled, where Pillow would clip."""
    from PIL import Image  # noqa: PLC0415 - an extra

    tags = getattr(image, "tag_v2", {})
    top = 2 ** tags.get(_BITS, (16,))[0] - 1
    values = np.asarray(image).astype(np.int64)
    scaled = (values * 255 + top // 2) // top
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero, which Pillow minds up to 8 bits only
        scaled = 255 - scaled
    gray = Image.fromarray(scaled.clip(0, 255).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        gray.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return gray


def _fitted(image: Image.Image, wanted: PictureSettings) -> Image.Image:
    """The picture in its new size.

    stretch: both sides as asked, proportions lost. crop: the shorter side as asked and the centre cut out, in the
    whole numbers of torchvision's Resize and CenterCrop. pad: the longer side as asked, centred on `fill`.
    """
    from PIL import Image  # noqa: PLC0415 - an extra

    how = Image.Resampling[wanted.filter.upper()]
    size = wanted.width, wanted.height
    if wanted.resize == "crop":
        return image.resize(size, how, _window(image.size, size))
    if wanted.resize == "stretch":
        return image.resize(size, how)
    small = _inside(image.size, size)
    canvas = Image.new(image.mode, size, wanted.fill if wanted.gray else (wanted.fill,) * 3)
    canvas.paste(image.resize(small, how), ((size[0] - small[0]) // 2, (size[1] - small[1]) // 2))
    return canvas


def _window(old: tuple[int, int], new: tuple[int, int]) -> tuple[float, float, float, float]:
    """What of the old picture is seen; only that is resampled, so a long strip needs no memory."""
    if new[0] * old[1] >= new[1] * old[0]:
        scaled = new[0], old[1] * new[0] // old[0]
    else:
        scaled = old[0] * new[1] // old[1], new[1]
    left, top = (round((scaled[i] - new[i]) / 2) for i in (0, 1))
    right, bottom = left + new[0], top + new[1]
    x, y = old[0] / scaled[0], old[1] / scaled[1]
    return left * x, top * y, min(right * x, old[0]), min(bottom * y, old[1])


def _inside(old: tuple[int, int], new: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the same proportions."""
    if new[0] * old[1] <= new[1] * old[0]:
        return new[0], max(1, round(old[1] * new[0] / old[0]))
    return max(1, round(old[0] * new[1] / old[1])), new[1]
