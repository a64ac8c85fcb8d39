"""Encoded pictures become the tensors that plain numpy computes from the same pixels, or the row is reported."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from support import strategies

from scorer.binding.features.image import KEYS, Images, row_shape, settings
from scorer.binding.spec import Feed
from scorer.errors import OptionsError, TypeMismatch
from scorer.options.grammar import parse_call

RNG = np.random.default_rng(3)
COLOR = RNG.integers(0, 256, (11, 17, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (11, 17), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(24) * 5, np.arange(40) * 3)[..., None].repeat(3, axis=2).astype(np.uint8)
WHERE = "in column 'photo' (tensor 'x')"


def encoded(pixels, kind="PNG", **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def images(column, text="size=11x17", dtype="uint8", folder="/nowhere", shape=None):
    """The packed column; without a shape NCHW and, by default, rgb."""
    if shape is None:
        text += "".join(f", {more}" for more in ("layout=NCHW", "color=rgb") if more.split("=")[0] not in text)
    chosen = settings(parse_call(f"image({text})"), "x", shape, str(folder), dtype)
    feed = Feed(
        tensor="x", kind="image", dtype=dtype, columns=("photo",), shape=row_shape(chosen), on_null="error",
        on_lossy="error", settings=chosen,
    )  # fmt: skip
    column = column if isinstance(column, (pa.Array, pa.ChunkedArray)) else pa.array(column, pa.binary())
    return Images(feed, pa.table({"photo": column}))


def one(data, text="size=11x17", dtype="uint8", **options):
    """The tensor of one good picture."""
    packed = images([data], text, dtype, **options)
    tensor = packed.batch(slice(0, 1))
    assert packed.bad == {}
    return tensor[0]


def reason(data, text="size=11x17", **options):
    """Why a picture is a bad row; its place is zeros."""
    packed = images([data] if isinstance(data, bytes) else data, text, **options)
    tensor = packed.batch(slice(0, 1))
    assert not tensor.any()
    assert list(packed.bad) == [0]
    return packed.bad[0]


def first(pixels):
    """[height, width, channels] with the channels first."""
    return np.moveaxis(pixels, -1, 0)


def png(width, height, body=b"", depth=8, color=2):
    """A PNG by hand, whose header may promise anything."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff(values, bits, *, photometric=1, order="<"):
    """A one-strip gray TIFF by hand."""
    height, width = values.shape
    if bits == 12:
        numbers = values.astype(int).reshape(-1, 2)
        data = b"".join(bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in numbers)
    else:
        data = values.astype(f"{order}u2").tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(data))]
    start = b"II*\0" if order == "<" else b"MM\0*"
    entries = b"".join(struct.pack(f"{order}HHI", tag, 3, 1) + struct.pack(f"{order}HH", v, 0) for tag, v in tags)
    return (
        start
        + struct.pack(f"{order}I", 8 + len(data))
        + data
        + struct.pack(f"{order}H", len(tags))
        + entries
        + b"\0" * 4
    )


# the settings of image(...)


def test_every_setting_can_be_given_and_is_stored_in_a_fixed_order():
    text = (
        "image(size=224, layout=NCHW, mean=0.485 0.456 0.406, std=0.229/0.224/0.225, scale=1/255, color=bgr, "
        "resize=pad, filter=lanczos, fill=114, background=9, rotate=false, max_pixels=5)"
    )
    chosen = settings(parse_call(text), "x", ("N", 3, 224, 224), "/data", "float32")
    assert chosen == (
        ("size", "224x224"), ("layout", "NCHW"), ("color", "bgr"), ("mean", (0.485, 0.456, 0.406)),
        ("std", (0.229, 0.224, 0.225)), ("scale", 1 / 255), ("resize", "pad"), ("filter", "lanczos"), ("fill", 114),
        ("background", 9), ("rotate", False), ("max_pixels", 5), ("folder", "/data"),
    )  # fmt: skip
    assert tuple(dict(chosen)) == (*KEYS, "folder")


@pytest.mark.parametrize(
    ("shape", "size", "layout", "color", "row"),
    [
        (("N", 3, 48, 192), "48x192", "NCHW", "rgb", (3, 48, 192)),
        ((None, 28, 30, 1), "28x30", "NHWC", "gray", (28, 30, 1)),
        ((8, 1, 5, 6), "5x6", "NCHW", "gray", (1, 5, 6)),
        (("N", 5, 6, 3), "5x6", "NHWC", "rgb", (5, 6, 3)),
    ],
)
def test_the_declared_shape_fills_in_size_layout_and_color(shape, size, layout, color, row):
    chosen = settings(parse_call("image"), "x", shape, ".", "float32")
    assert [dict(chosen)[key] for key in ("size", "layout", "color")] == [size, layout, color]
    assert row_shape(chosen) == row
    assert dict(chosen)["folder"] == os.getcwd()


@pytest.mark.parametrize(("dtype", "scale"), [("float16", 1 / 255), ("float32", 1 / 255), ("uint8", 1.0), (None, None)])
def test_the_scale_follows_the_type_of_the_tensor(dtype, scale):
    assert dict(settings(parse_call("image"), "x", (1, 3, 2, 2), ".", dtype))["scale"] == scale


def test_without_a_type_the_scale_is_found_when_the_pictures_are():
    chosen = settings(parse_call("image"), "x", (1, 3, 11, 17), ".")
    for dtype, wanted in (("float32", COLOR / 255), ("int16", COLOR)):
        feed = Feed(
            tensor="x", kind="image", dtype=dtype, columns=("photo",), shape=(3, 11, 17), on_null="error",
            on_lossy="error", settings=chosen,
        )  # fmt: skip
        tensor = Images(feed, pa.table({"photo": [encoded(COLOR)]})).batch(slice(0, 1))
        np.testing.assert_allclose(tensor[0], first(wanted), rtol=1e-6)


SQUARE = ("N", 3, 224, 224)


@pytest.mark.parametrize(
    ("text", "shape", "words"),
    [
        ("size=224, colour=rgb", SQUARE, ["no setting 'colour'", "did you mean 'color'?"]),
        ("224", SQUARE, ["'224'", "image(size=224)"]),
        ("size=224, size=224", SQUARE, ["twice"]),
        ("size=big", SQUARE, ["size", "48x192"]),
        ("size=0", SQUARE, ["size", "1 to 65535"]),
        ("size=70000", SQUARE, ["size", "1 to 65535"]),
        ("size=256", SQUARE, ["the tensor's size is 224x224", "'256'"]),
        ("size=10x20", ("N", 3, 10, None), None),
        ("size=11x20", ("N", 3, 10, "w"), ["10xany", "image(size=10x20)"]),
        ("size=10xany", ("N", 3, 10, "w"), None),
        ("size=anyx10", ("N", 3, None, None), None),
        ("size=11xany", ("N", 3, 10, "w"), ["the tensor's size is 10xany", "image(size=10xany)"]),
        ("size=anyx224", SQUARE, ["the tensor's size is 224x224", "image(size=224x224)"]),
        ("size=any", ("N", 3, None, None), ["only one side can be any"]),
        ("size=10xany, resize=pad", ("N", 3, 10, "w"), ["keeps its proportions", "'pad'"]),
        ("", ("N", 3, 10, "w"), ["size", "is required", "image(size=10xany)"]),
        ("", ("N", 3, None, None), ["size", "is required", "[N, 3, ?, ?]"]),
        ("color=rgb, layout=NCHW", None, ["size", "is required", "no shape"]),
        ("size=4", ("N", None, None, None), ["layout", "does not show"]),
        ("size=3", ("N", 3, 3, 3), ["layout", "does not show"]),
        ("size=3, layout=NCHW", ("N", 3, 3, 3), None),
        ("size=4, layout=NCHW", ("N", None, None, None), ["color", "how many channels"]),
        ("layout=NHWC", SQUARE, ["color", "how many channels"]),
        ("layout=NHWC, color=rgb", SQUARE, ["color", "does not fit", "[N, 3, 224, 224]"]),
        ("color=gray", SQUARE, ["color", "does not fit"]),
        ("color=rgb", ("N", 1, 2, 2), ["color", "does not fit"]),
        ("color=rgb, layout=NCHW", ("N", 4, 2, 2), ["color", "does not fit"]),
        ("size=4, layout=NCHW, color=rgb", ("N", 3), ["2 axes instead of 4"]),
        ("color=rbg", SQUARE, ["color", "did you mean 'rgb'?"]),
        ("layout=CHW", SQUARE, ["layout", "did you mean"]),
        ("resize=fill", SQUARE, ["resize", "stretch, crop, pad"]),
        ("filter=cubic", SQUARE, ["filter", "did you mean 'bicubic'?"]),
        ("rotate=yes", SQUARE, ["rotate", "true, false"]),
        ("mean=0.5 0.5", SQUARE, ["mean", "one number, or 3"]),
        ("mean=a", SQUARE, ["mean", "not a number"]),
        ("mean=nan", SQUARE, ["mean"]),
        ("std=0", SQUARE, ["std", "above 0"]),
        ("std=1 1 -1", SQUARE, ["std", "above 0"]),
        ("std=", SQUARE, ["std"]),
        ("scale=0", SQUARE, ["scale", "1/255"]),
        ("scale=1/0", SQUARE, ["scale", "1/255"]),
        ("scale=inf", SQUARE, ["scale", "1/255"]),
        ("scale=x", SQUARE, ["scale", "1/255"]),
        ("fill=256", SQUARE, ["fill", "0 to 255"]),
        ("background=-1", SQUARE, ["background", "0 to 255"]),
        ("max_pixels=0", SQUARE, ["max_pixels", "from 1"]),
    ],
)
def test_an_invalid_setting_is_refused_with_its_name_and_the_tensor(text, shape, words):
    call = parse_call(f"image({text})")
    if words is None:
        assert settings(call, "x", shape, ".")
        return
    with pytest.raises(OptionsError) as refused:
        settings(call, "x", shape, ".")
    for word in (*words, "tensor 'x'"):
        assert word in str(refused.value)
    assert refused.value.hint or refused.value.expected


@pytest.mark.parametrize(
    ("dtype", "more"),
    [("int8", ""), ("uint8", ", mean=1"), ("uint8", ", scale=2"), ("float16", ", scale=1000"), ("bool", "")],
)
def test_values_that_the_tensor_cannot_hold_are_refused_before_anything_is_decoded(dtype, more):
    with pytest.raises(OptionsError, match=f"which {dtype} cannot hold"):
        settings(parse_call(f"image(size=2{more})"), "x", (*SQUARE[:2], 2, 2), ".", dtype)


def test_without_pillow_both_sides_say_what_to_install(monkeypatch):
    chosen = settings(parse_call("image"), "x", SQUARE, ".", "uint8")
    feed = Feed(
        tensor="x", kind="image", dtype="uint8", columns=("photo",), shape=(3, 224, 224), on_null="error",
        on_lossy="error", settings=chosen,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "PIL.Image")
    for work in (
        lambda: settings(parse_call("image"), "x", SQUARE, "."),
        lambda: Images(feed, pa.table({"photo": [b""]})),
    ):
        with pytest.raises(OptionsError) as refused:
            work()
        assert refused.value.hint == "pip install 'dask-scorer[image]'"


def test_pillow_is_not_loaded_before_a_picture_is_asked_for():
    code = "import sys, scorer.binding.features.image; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# pixels


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_a_picture_of_the_right_size_keeps_every_pixel(kind, layout, color):
    data = encoded(COLOR, kind, **({"lossless": True} if kind == "WEBP" else {}))
    got = one(data, f"size=11x17, layout={layout}, color={color}")
    wanted = {"rgb": COLOR, "bgr": COLOR[..., ::-1]}.get(color)
    if color == "gray":
        luma = COLOR @ np.array([0.299, 0.587, 0.114])
        wanted = got.reshape(11, 17, 1)
        assert np.abs(wanted[..., 0] - luma).max() <= 0.51
    np.testing.assert_array_equal(got, first(wanted) if layout == "NCHW" else wanted)


@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_gray_pictures_fill_every_channel(color):
    got = one(encoded(GRAY), f"size=11x17, color={color}")
    np.testing.assert_array_equal(got, np.stack([GRAY] * (3 if color == "rgb" else 1)))


@pytest.mark.parametrize("options", [{"quality": 60}, {"progressive": True}, {"subsampling": 0, "quality": 95}])
def test_a_jpeg_is_what_pillow_makes_of_it(options):
    data = encoded(COLOR, "JPEG", **options)
    np.testing.assert_array_equal(one(data), first(np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))))


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_the_formula_is_pixel_times_scale_minus_mean_over_std_in_the_tensor_s_order(dtype, color):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    text = f"size=11x17, color={color}, mean={' '.join(map(str, mean))}, std={'/'.join(map(str, std))}"
    got = one(encoded(COLOR), text, dtype)
    pixels = COLOR if color == "rgb" else COLOR[..., ::-1]
    wanted = first((pixels.astype(np.float64) / 255 - mean) / std)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert got.dtype == kind
    step = {"float16": 1e-3, "bfloat16": 1e-2}.get(dtype, 1e-6)
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=step, atol=step)


@pytest.mark.parametrize(
    ("dtype", "more", "wanted"),
    [
        ("uint8", "", lambda p: p),
        ("int64", "", lambda p: p),
        ("int8", ", mean=128", lambda p: p - 128),
        ("int32", ", scale=1/2, mean=1", lambda p: np.rint(p / 2 - 1)),
        ("uint8", ", scale=-1, mean=-255", lambda p: 255 - p),
    ],
)
def test_whole_number_tensors_get_whole_numbers(dtype, more, wanted):
    got = one(encoded(COLOR), f"size=11x17{more}", dtype)
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(got, first(wanted(COLOR.astype(np.int64))))


def test_mean_and_std_may_be_one_number():
    got = one(encoded(GRAY), "size=11x17, color=gray, scale=1, mean=127.5, std=127.5", "float32")
    np.testing.assert_allclose(got[0], (GRAY - 127.5) / 127.5, rtol=1e-6)


# unusual pictures, and the result of each

JPEG = encoded(RNG.integers(0, 256, (80, 90, 3), dtype=np.uint8), "JPEG", quality=90)
PNG = encoded(COLOR)
TABLE = {
    "a corrupt JPEG": (
        JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x09"),
        f"broken JPEG {WHERE}: cannot handle 9-bit layers",
    ),
    "a truncated JPEG": (JPEG[: len(JPEG) // 2], f"truncated JPEG {WHERE}: image file is truncated"),
    "a truncated PNG": (PNG[: len(PNG) // 2], f"truncated PNG {WHERE}: image file is truncated"),
    "a PNG of a header": (PNG[:20], f"truncated PNG {WHERE}: "),
    "a PNG with a wrong checksum": (PNG[:30] + b"\0" + PNG[31:], f"broken PNG {WHERE}: "),
    "a PNG of nonsense": (png(4, 4, b"nonsense"), f"broken PNG {WHERE}: "),
    "a truncated GIF": (encoded(GRAY, "GIF")[:-40], f"truncated GIF {WHERE}: "),
    "a truncated WebP": (encoded(COLOR, "WEBP")[:-40], f"truncated WebP {WHERE}: "),
    "a truncated BMP": (encoded(COLOR, "BMP")[:-40], f"truncated BMP {WHERE}: "),
    "a truncated TIFF": (encoded(COLOR, "TIFF")[:-40], f"truncated TIFF {WHERE}: "),
    "a bomb that Pillow would warn of": (
        png(10_000, 10_001),
        f"a picture of 10000 x 10001 pixels, more than max_pixels=100000000, {WHERE}",
    ),
    "a bomb that Pillow would refuse": (
        png(2**31 - 1, 2**31 - 1),
        f"a picture of 2147483647 x 2147483647 pixels, more than max_pixels=100000000, {WHERE}",
    ),
    "a null": (None, f"null {WHERE}"),
    "no bytes": (b"", f"empty bytes {WHERE}"),
    "a text": (b"<html>404</html>", f"not a JPEG, PNG, WebP, GIF, BMP or TIFF picture {WHERE}"),
    "an icon, which is not supported": (
        encoded(COLOR, "ICO"),
        f"not a JPEG, PNG, WebP, GIF, BMP or TIFF picture {WHERE}",
    ),
    "a TIFF of floats": (
        encoded(GRAY.astype(np.float32), "TIFF"),
        f"a picture of 32-bit values, whose white level is unknown, {WHERE}",
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_picture_that_cannot_be_read_is_a_bad_row_of_zeros_with_its_reason(name):
    data, wanted = TABLE[name]
    found = reason([data])
    assert found.startswith(wanted)
    assert "\n" not in found
    assert "0x" not in found


def test_bad_rows_cost_only_themselves_and_keep_their_place():
    rows = [PNG, *(data for data, _ in TABLE.values()), PNG]
    packed = images(rows)
    tensor = packed.batch(slice(0, len(rows)))
    np.testing.assert_array_equal(tensor[0], first(COLOR))
    np.testing.assert_array_equal(tensor[-1], first(COLOR))
    assert not tensor[1:-1].any()
    assert sorted(packed.bad) == [*range(1, len(rows) - 1)]


def test_nulls_are_known_before_anything_is_decoded():
    assert images([None, b"?", None]).bad == {0: f"null {WHERE}", 2: f"null {WHERE}"}


def test_the_pixels_allowed_are_counted_exactly():
    assert one(PNG, "size=11x17, max_pixels=187").any()
    assert "more than max_pixels=186" in reason(PNG, "size=11x17, max_pixels=186")


@pytest.mark.parametrize(
    ("size", "shape"), [("22xany", (22, 34)), ("5xany", (5, 7)), ("anyx34", (22, 34)), ("anyx3", (1, 3))]
)
def test_a_side_of_any_size_keeps_the_proportions_rounded_down(size, shape):
    got = one(encoded(COLOR), f"size={size}")
    wanted = Image.fromarray(COLOR).resize(shape[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(got, first(np.asarray(wanted)))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_pictures_of_several_widths_keep_their_pixels_in_one_batch(layout):
    narrow, wide = COLOR[:, :6], np.concatenate([COLOR, COLOR], axis=1)
    files = [encoded(narrow), b"no picture", encoded(wide)]
    packed = images(files, f"size=11xany, layout={layout}")
    got = packed.batch(slice(0, 3))
    got = got.transpose(0, 2, 3, 1) if layout == "NCHW" else got
    assert list(packed.bad) == [1]
    assert got.shape == (3, 11, 34, 3)
    np.testing.assert_array_equal(got[0, :, :6], narrow)
    np.testing.assert_array_equal(got[2], wide)
    assert not got[0, :, 6:].any()
    assert not got[1].any()


def test_a_picture_that_would_become_too_wide_is_a_bad_row():
    line = encoded(np.zeros((1, 300, 3), np.uint8))
    assert one(line, "size=2xany, max_pixels=1200").shape == (3, 2, 600)
    assert "become 600 x 2 pixels, more than max_pixels=1199" in reason(line, "size=2xany, max_pixels=1199")


def test_a_picture_of_one_pixel_is_ordinary():
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        data = encoded(np.full((1, 1, 3), 200, np.uint8), kind)
        for resize in ("stretch", "crop"):
            assert (one(data, f"size=3x5, resize={resize}") == 200).all()
    assert one(encoded(COLOR), "size=1").shape == (3, 1, 1)


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_put_upright(kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    plain, turned = encoded(COLOR, kind, **options), encoded(COLOR, kind, exif=exif, **options)
    stored = np.asarray(Image.open(io.BytesIO(plain)).convert("RGB"))
    wanted = UPRIGHT[orientation](stored)
    height, width = wanted.shape[:2]
    np.testing.assert_array_equal(one(turned, f"size={height}x{width}"), first(wanted))
    if kind != "TIFF":
        np.testing.assert_array_equal(one(turned, "size=11x17, rotate=false"), first(stored))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0"]
)
def test_an_orientation_that_makes_no_sense_is_none(exif):
    for kind in ("JPEG", "PNG"):
        np.testing.assert_array_equal(one(encoded(COLOR, kind, exif=exif)), one(encoded(COLOR, kind)))


def test_sixteen_bits_are_scaled_and_not_clipped():
    values = RNG.integers(0, 65536, (11, 17), dtype=np.uint16)
    values[0, :4] = 0, 128, 129, 65535
    wanted = np.rint(values / 257)
    rows = [encoded(values), encoded(values, "TIFF"), tiff(values, 16, order=">")]
    packed = images(rows, "size=11x17, color=gray")
    for got in packed.batch(slice(0, 3)):
        np.testing.assert_array_equal(got[0], wanted)
    np.testing.assert_array_equal(one(rows[0])[1], wanted)
    np.testing.assert_array_equal(one(tiff(values, 16, photometric=0), "size=11x17, color=gray")[0], 255 - wanted)


def test_twelve_bits_are_scaled_too():
    values = RNG.integers(0, 4096, (6, 8), dtype=np.uint16)
    got = one(tiff(values, 12), "size=6x8, color=gray")
    np.testing.assert_array_equal(got[0], np.floor(values.astype(float) * 255 / 4095 + 0.5))


def test_sixteen_bit_colour_gives_its_high_byte():
    values = RNG.integers(0, 65536, (4, 5, 3), dtype=np.uint16)
    body = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    np.testing.assert_array_equal(one(png(5, 4, body, depth=16), "size=4x5"), first(values >> 8))


@pytest.mark.parametrize("adobe", [True, False])
def test_a_cmyk_jpeg_is_multiplied_out_whether_or_not_adobe_signed_it(adobe):
    ink = np.empty((16, 16, 4), np.uint8)
    ink[:] = 10, 100, 200, 30
    data = encoded(Image.merge("CMYK", [Image.fromarray(plane) for plane in first(ink)]), "JPEG", quality=100)
    at = data.index(b"\xff\xee\x00\x0eAdobe")
    got = one(data if adobe else data[:at] + data[at + 16 :], "size=16")
    wanted = [(255 - c) * (255 - 30) / 255 for c in (10, 100, 200)]
    assert np.abs(got - np.array(wanted)[:, None, None]).max() <= 2


@pytest.mark.parametrize("background", [255, 0, 77])
def test_transparency_shows_the_background(background):
    alpha = RNG.integers(0, 256, GRAY.shape, dtype=np.uint8)
    share = alpha[..., None] / 255
    text = f"size=11x17, background={background}"
    rgba = np.dstack([COLOR, alpha])
    wanted = first(COLOR * share + background * (1 - share))
    for kind in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        assert np.abs(one(encoded(rgba, kind, **options), text) - wanted).max() <= 1
    wanted = GRAY * share[..., 0] + background * (1 - share[..., 0])
    shades = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(alpha)])
    assert np.abs(one(encoded(shades), f"{text}, color=gray")[0] - wanted).max() <= 1


@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_one_clear_value_shows_the_background_too(color):
    deep = (GRAY // 64).astype(np.uint16) * 20_000
    index = Image.fromarray(GRAY // 64)
    index = index.convert("P")
    index.putpalette([10, 10, 10, 70, 70, 70, 130, 130, 130, 190, 190, 190])
    levels = np.array([10, 70, 130, 190], np.uint8)[GRAY // 64]
    clear = GRAY // 64 == 2
    cases = [
        (encoded(levels, transparency=130), levels),
        (encoded(levels[..., None].repeat(3, axis=2), transparency=(130, 130, 130)), levels),
        (encoded(deep, transparency=40_000), np.rint(deep / 257)),
        (encoded(index, transparency=2), levels),
        (encoded(index, transparency=bytes([255, 255, 0, 255])), levels),
        (encoded(index, "GIF", transparency=2), levels),
    ]
    for data, shades in cases:
        got = one(data, f"size=11x17, color={color}, background=33")
        np.testing.assert_array_equal(got[0], np.where(clear, 33, shades))


def test_palettes_and_single_bits_become_their_colours():
    few = np.array([[255, 0, 0], [0, 200, 0], [7, 8, 9], [255, 255, 255]], np.uint8)[GRAY // 64]
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        np.testing.assert_array_equal(one(encoded(Image.fromarray(few).quantize(4), kind)), first(few))
    bits = GRAY > 99
    for kind in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(one(encoded(bits, kind), "size=11x17, color=gray")[0], bits * 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken(kind):
    frames = [Image.fromarray(np.full((11, 17, 3), shade, np.uint8)) for shade in (40, 200)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert (one(data) == 40).all()


# sizes


@pytest.mark.parametrize("how", ["bilinear", "bicubic", "nearest", "lanczos"])
@pytest.mark.parametrize("size", [(12, 20), (50, 30), (24, 40), (7, 40)])
def test_stretch_forgets_proportions(how, size):
    got = one(encoded(SMOOTH), f"size={size[0]}x{size[1]}, filter={how}")
    reference = Image.fromarray(SMOOTH).resize(size[::-1], getattr(Image.Resampling, how.upper()))
    np.testing.assert_array_equal(got, first(np.asarray(reference)))


@pytest.mark.parametrize("size", [(12, 12), (24, 10), (10, 40), (30, 30), (24, 40), (7, 3)])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (33, 32)])
def test_crop_scales_the_whole_picture_and_cuts_the_centre(shape, size):
    """The reference scales everything first, as torchvision does."""
    pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    ratio = max(size[0] / shape[0], size[1] / shape[1])
    scaled = [max(new, int(old * ratio + 1e-9)) for old, new in zip(shape, size, strict=True)]
    top, left = (round((old - new) / 2) for old, new in zip(scaled, size, strict=True))
    whole = Image.fromarray(pixels).resize(scaled[::-1], Image.Resampling.BILINEAR)
    wanted = np.asarray(whole)[top : top + size[0], left : left + size[1]]
    got = one(encoded(pixels), f"size={size[0]}x{size[1]}, resize=crop")
    assert np.abs(got.astype(int) - first(wanted)).max() <= 1  # Pillow rounds between its two passes


def test_a_long_strip_is_cropped_without_being_blown_up():
    strip = np.zeros((1, 60_000), np.uint8)
    strip[:, 29_000:31_000] = 90
    assert (one(encoded(strip), "size=2000, resize=crop, color=gray") == 90).all()


@pytest.mark.parametrize("size", [(12, 30), (30, 30), (24, 41), (60, 40)])
def test_pad_keeps_the_whole_picture_in_the_middle_of_the_fill(size):
    ratio = min(size[0] / 24, size[1] / 40)
    height, width = round(24 * ratio), round(40 * ratio)
    wanted = np.full((*size, 3), 114, np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    small = Image.fromarray(SMOOTH).resize((width, height), Image.Resampling.BILINEAR)
    wanted[top : top + height, left : left + width] = np.asarray(small)
    got = one(encoded(SMOOTH), f"size={size[0]}x{size[1]}, resize=pad, fill=114")
    np.testing.assert_array_equal(got, first(wanted))


def test_a_padded_strip_never_vanishes():
    got = one(encoded(np.full((1, 200), 60, np.uint8)), "size=9, resize=pad, color=gray, fill=7")
    assert (got[0, 4] == 60).all()
    assert (np.delete(got[0], 4, axis=0) == 7).all()


def test_the_fill_goes_through_the_formula():
    got = one(encoded(GRAY), "size=17, resize=pad, color=gray, fill=51, mean=0.5", "float32")
    np.testing.assert_allclose(got[0, 0], 51 / 255 - 0.5, rtol=1e-5)


def test_an_upright_picture_is_measured_after_it_is_turned():
    exif = Image.Exif()
    exif[274] = 6
    got = one(encoded(COLOR, exif=exif), "size=17x40, resize=pad, fill=1")
    np.testing.assert_array_equal(got[:, :, 14:25], first(np.rot90(COLOR, -1)))


# columns


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(len(PNG)), pa.dictionary(pa.int32(), pa.binary())],
)
def test_every_kind_of_binary_column_is_read(kind):
    packed = images(pa.chunked_array([pa.array([PNG, None], kind), pa.array([PNG], kind)]))
    tensor = packed.batch(np.array([2, 1, 0]))
    np.testing.assert_array_equal(tensor, [first(COLOR), np.zeros((3, 11, 17)), first(COLOR)])
    assert packed.bad == {1: f"null {WHERE}"}


@pytest.fixture
def folder(tmp_path):
    """A folder with pictures, and one beside it that must not be opened."""
    inside = tmp_path / "data"
    (inside / "deep").mkdir(parents=True)
    (inside / "a.png").write_bytes(PNG)
    (inside / "deep" / "b.png").write_bytes(encoded(COLOR[::-1]))
    (inside / "deep" / "link.png").symlink_to("../a.png")
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "data2").mkdir()
    (tmp_path / "data2" / "secret.png").write_bytes(PNG)
    (inside / "out.png").symlink_to("../secret.png")
    (inside / "outside").symlink_to(tmp_path / "data2")
    (inside / "loop.png").symlink_to("loop.png")
    os.mkfifo(inside / "pipe.png")
    return inside


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_strings_are_paths_below_the_folder(folder, kind):
    packed = images(pa.array(["a.png", "deep/b.png", "deep/../a.png", "deep/link.png", None], kind), folder=folder)
    upright, flipped = first(COLOR), first(COLOR[::-1])
    np.testing.assert_array_equal(
        packed.batch(slice(0, 5)), [upright, flipped, upright, upright, np.zeros_like(upright)]
    )
    assert packed.bad == {4: f"null {WHERE}"}


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("../secret.png", "the path '../secret.png', which is outside the allowed folder,"),
        ("../data2/secret.png", "the path '../data2/secret.png', which is outside the allowed folder,"),
        ("out.png", "the path 'out.png', which is outside the allowed folder,"),
        ("outside/secret.png", "the path 'outside/secret.png', which is outside the allowed folder,"),
        ("ABSOLUTE", "the absolute path"),
        ("https://example.com/a.png", "the URL 'https://example.com/a.png' instead of a path"),
        ("file:///etc/passwd", "the URL 'file:///etc/passwd' instead of a path"),
        ("none.png", "no file 'none.png'"),
        ("deep", "no file 'deep'"),
        ("", "no file ''"),
        ("pipe.png", "no file 'pipe.png'"),
        ("loop.png", "no file 'loop.png'"),
        ("x" * 5000, "no file 'xxx"),
        ("a\0.png", "the path 'a\\x00.png'"),
    ],
)
def test_nothing_outside_the_folder_is_opened_and_the_path_is_named(folder, path, wanted):
    path = str(folder / "a.png") if path == "ABSOLUTE" else path
    found = reason(pa.array([path]), folder=folder)
    assert found.startswith(wanted)
    assert WHERE in found


def test_a_folder_that_is_a_link_is_its_target(folder, tmp_path):
    (tmp_path / "alias").symlink_to(folder)
    packed = images(pa.array(["a.png"]), folder=tmp_path / "alias")
    np.testing.assert_array_equal(packed.batch(slice(0, 1))[0], first(COLOR))


def test_a_path_that_is_no_text_is_a_bad_row():
    raw = pa.array([b"\xff\xfe"], pa.binary())
    column = pa.Array.from_buffers(pa.string(), 1, raw.buffers())
    assert reason(column) == f"a path that is not UTF-8 {WHERE}"


def test_of_bytes_and_path_the_bytes_win(folder):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [
        {"bytes": PNG, "path": "deep/b.png"},
        {"bytes": None, "path": "deep/b.png"},
        {"bytes": PNG, "path": None},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"", "path": "a.png"},
    ]
    column = pa.chunked_array([pa.array([None, *rows[:2]], kind).slice(1), pa.array(rows[2:], kind)])
    packed = images(column, folder=folder)
    tensor = packed.batch(slice(0, 6))
    np.testing.assert_array_equal(tensor[:3], [first(COLOR), first(COLOR[::-1]), first(COLOR)])
    assert not tensor[3:].any()
    assert packed.bad == {3: f"null {WHERE}", 4: f"null {WHERE}", 5: f"empty bytes {WHERE}"}


def test_a_struct_of_bytes_alone_will_do():
    column = pa.array([{"bytes": PNG, "label": 1}])
    np.testing.assert_array_equal(images(column).batch(slice(0, 1))[0], first(COLOR))


@pytest.mark.parametrize("column", [pa.array([1]), pa.array([{"path": 1}]), pa.array([{"a": b""}]), pa.array([[b""]])])
def test_columns_that_hold_no_pictures_are_refused(column):
    with pytest.raises(TypeMismatch, match="no pictures in column 'photo'"):
        images(column)


def test_no_rows_make_an_empty_tensor():
    assert images([]).batch(slice(0, 0)).shape == (0, 3, 11, 17)
    assert images([PNG]).batch(np.array([], np.int64)).shape == (0, 3, 11, 17)


# properties

POOL = [None, b"", PNG, JPEG, PNG[:60], encoded(GRAY, "GIF"), encoded(COLOR, "WEBP"), b"text"]


@st.composite
def columns(draw):
    """A column in random chunks, and where its batches are cut."""
    column, rows = draw(strategies.chunked(pa.binary(), st.sampled_from(POOL[1:]), max_rows=12))
    return column, draw(strategies.edges(len(rows)))


@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(columns(), st.randoms(use_true_random=False))
def test_any_batches_in_any_order_give_the_same_pixels(case, random):
    column, cuts = case
    whole, pieces, order = images(column), images(column), images(column)
    n = len(column)
    wanted = whole.batch(slice(0, n))
    got = [pieces.batch(slice(a, b)) for a, b in pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate([*got, np.empty((0, 3, 11, 17), np.uint8)]), wanted)
    numbers = np.array(random.sample(range(n), n), np.int64)
    np.testing.assert_array_equal(order.batch(numbers), wanted[numbers])
    assert whole.bad == pieces.bad == order.bad
    for row, data in enumerate(column.to_pylist()):
        fine = data is not None and len(data) > 60
        assert (row in whole.bad) != fine
        assert fine == bool(wanted[row].any())


@hypothesis_settings(max_examples=300)
@given(
    st.sampled_from([b"", *(data[:n] for data in POOL[2:-1] for n in (4, 12, 33, len(data)))]),
    st.binary(max_size=80),
    st.integers(0, 200),
)
def test_random_bytes_are_bad_rows_or_pictures_and_never_raise(start, noise, at):
    packed = images([start + noise, start[:at] + noise + start[at:], start[:at] + noise + start[at + len(noise) :]])
    tensor = packed.batch(slice(0, 3))
    assert tensor.shape == (3, 3, 11, 17)
    assert not tensor[sorted(packed.bad)].any()
    assert all(WHERE in text and text.isprintable() for text in packed.bad.values())


def test_threads_may_decode_at_once():
    rows = [data for data in POOL for _ in range(8)] + [encoded(COLOR, "TIFF", compression="tiff_lzw")] * 8
    wanted = images(rows)
    whole = wanted.batch(slice(0, len(rows)))
    packed = images(rows)
    parts = [slice(at, at + 4) for at in range(0, len(rows), 4)]
    with ThreadPoolExecutor(8) as threads:
        np.testing.assert_array_equal(np.concatenate([*threads.map(packed.batch, parts)]), whole)
    assert packed.bad == wanted.bad


NOISY = """
import io, random, sys
import numpy as np, pyarrow as pa
from PIL import Image
from scorer.binding.spec import Feed
from scorer.binding.features.image import Images, row_shape, settings
from scorer.options.grammar import parse_call

random.seed(11)
pixels = Image.fromarray(np.random.default_rng(11).integers(0, 256, (21, 34, 3), dtype=np.uint8))
exif = Image.Exif()
exif[274], exif[271], exif[282] = 6, "maker", 72.0
kinds = [("JPEG", {"exif": exif}), ("JPEG", {"progressive": True}), ("PNG", {"exif": exif}), ("GIF", {}), ("BMP", {}),
         ("WEBP", {"exif": exif}), ("PNG", {"save_all": True, "append_images": [pixels.rotate(90)]}), ("TIFF", {}),
         ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "jpeg"}),
         ("TIFF", {"compression": "tiff_adobe_deflate", "exif": exif})]
files = []
for kind, options in kinds:
    file = io.BytesIO()
    pixels.save(file, kind, **options)
    files.append(file.getvalue())
rows = list(files)
while len(rows) < 1000:
    data = bytearray(random.choice(files))
    for _ in range(random.choice((1, 1, 3, 10))):
        at = random.randrange(len(data) if random.random() < 0.5 else min(len(data), 150))
        if random.random() < 0.8:
            data[at] = random.randrange(256)
        else:
            del data[at : at + random.randrange(1, 30)]
    rows.append(bytes(data) if random.random() < 0.9 else random.randbytes(100))
chosen = settings(parse_call("image(size=16, layout=NCHW, color=rgb, max_pixels=4000000)"), "x", None, ".", "float32")
feed = Feed(tensor="x", kind="image", dtype="float32", columns=("photo",), shape=row_shape(chosen), on_null="error",
            on_lossy="error", settings=chosen)
packed = Images(feed, pa.table({"photo": pa.array(rows, pa.binary())}))
for at in range(0, 1000, 40):
    packed.batch(slice(at, at + 40))
assert not set(range(len(files))) & set(packed.bad), packed.bad
print(len(packed.bad))
"""


def test_a_thousand_damaged_files_crash_nothing_and_print_nothing():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", NOISY], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert 300 < int(done.stdout) < 989


# the rest of the process

LOUD = """
import io, sys
import numpy as np
from PIL import Image
from scorer.binding.features._picture import Unreadable, PictureSettings, pixels

file = io.BytesIO()
noise = np.random.default_rng(1).integers(0, 256, (40, 40), dtype=np.uint8)
Image.fromarray(noise).save(file, "TIFF", compression="tiff_lzw")
damaged = file.getvalue().replace(file.getvalue()[8:300], bytes(292))
wanted = PictureSettings(height=4, width=4, gray=True, resize="stretch", filter="nearest", fill=0,
                         background=0, rotate=True, max_pixels=10000)
for _ in range(2):
    try:
        pixels(damaged, wanted)
    except Unreadable as error:
        print(error.what)
print("scorer done", file=sys.stderr, flush=True)
try:
    Image.open(io.BytesIO(damaged)).load()
except OSError:
    print("user done", file=sys.stderr, flush=True)
"""


def test_libtiff_is_muted_while_scorer_decodes_and_not_afterwards():
    done = subprocess.run([sys.executable, "-c", LOUD], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "broken TIFF\n" * 2
    by_scorer, by_user = done.stderr.split("scorer done\n")
    assert by_scorer == ""
    assert len(by_user) > len("user done\n")


def test_pillow_still_warns_outside_of_scorer():
    odd = encoded(COLOR, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0" + b"\x0f\x01\x02\0\xff\0\0\0\xff\0\0\0" * 5)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        one(odd)
        assert seen == []
        with Image.open(io.BytesIO(odd)) as image:
            image.getexif()
        assert seen


def test_pillow_s_settings_are_left_alone(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    images([data for data, _ in TABLE.values()]).batch(slice(0, len(TABLE)))
    assert one(PNG).any()
    assert Image.MAX_IMAGE_PIXELS == 5
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_a_warning_of_the_caller_is_not_muted():
    one(PNG)
    with pytest.warns(UserWarning, match="mine"):
        warnings.warn_explicit("mine", UserWarning, "mine.py", 1, "PIL.Image")
