"""Recognise what a file is by its first bytes, whatever its name says, and say what converts a model to ONNX.

Nothing is unpickled or executed. It is called only for files that turned out not to be what was expected, so that an
error can say what they are.
"""

from __future__ import annotations

import bz2
import json
import lzma
import os
import pickletools
import shlex
import zipfile
import zlib
from contextlib import suppress
from typing import NamedTuple

from scorer.locations import is_url
from scorer.storage import stores

_HEAD_BYTES = 1 << 16
_NAMES = {
    "arrow": "an Arrow IPC (Feather) file",
    "arrow-stream": "a stream of Arrow IPC",
    "avro": "an Avro file",
    "catboost": "a CatBoost model",
    "csv": "a CSV file",
    "feather": "a Feather file of version 1",
    "hdf5": "an HDF5 file",
    "hugging-face": "a Hugging Face folder",
    "html": "an HTML page",
    "joblib": "a joblib file",
    "json": "a JSON file",
    "json-lines": "a file of JSON lines",
    "keras": "a Keras model",
    "lfs": "a Git LFS pointer",
    "lightgbm": "a LightGBM model",
    "mlflow": "an MLflow folder",
    "npy": "a NumPy array",
    "orc": "an ORC file",
    "ort": "a model in ONNX Runtime's own format",
    "parquet": "a Parquet file",
    "pickle": "a pickle",
    "picture": "a picture",
    "pmml": "a PMML file",
    "pytorch": "a PyTorch file",
    "safetensors": "a file of weights (safetensors)",
    "saved-model": "a TensorFlow SavedModel",
    "skops": "a skops file",
    "sqlite": "an SQLite database",
    "tflite": "a TensorFlow Lite model",
    "torchscript": "a TorchScript model",
    "xgboost": "an XGBoost model",
    "xgboost-binary": "an XGBoost model in the binary format that XGBoost 3.1 removed",
    "xls": "an old Excel workbook",
    "xlsx": "an Excel workbook",
    "zip": "a zip archive",
}
_MAGIC = (
    (0, b"PAR1", "parquet"),
    (0, b"ARROW1\0\0", "arrow"),
    (0, b"\xff\xff\xff\xff", "arrow-stream"),
    (0, b"FEA1", "feather"),
    (0, b"ORC", "orc"),
    (0, b"Obj\x01", "avro"),
    (0, b"SQLite format 3\0", "sqlite"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "xls"),
    (0, b"\x93NUMPY", "npy"),
    (0, b"\x89HDF\r\n\x1a\n", "hdf5"),
    (0, b"version https://git-lfs", "lfs"),
    (0, b"tree\nversion=v", "lightgbm"),
    (0, b"tree\r\nversion=v", "lightgbm"),
    (0, b"{L\0\0\0\0\0\0\0\x07learner", "xgboost"),
    (0, b"{L\0\0\0\0\0\0\0\x07version", "xgboost"),
    (0, b"CBM1", "catboost"),
    (0, b"\xff\xd8\xff", "picture"),
    (0, b"\x89PNG\r\n\x1a\n", "picture"),
    (0, b"GIF8", "picture"),
    (0, b"II*\0", "picture"),
    (0, b"MM\0*", "picture"),
    (8, b"WEBP", "picture"),
    (4, b"ORTM", "ort"),
    (4, b"TFL3", "tflite"),
    (0, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pytorch"),
)
"""Offset, bytes there, and the format. The last is the number that PyTorch's format before 1.6 starts with."""
_IN_ZIP = (
    ("xl/workbook.xml", "xlsx"), ("model.weights.h5", "keras"), ("constants.pkl", "torchscript"),
    ("data.pkl", "pytorch"), ("schema.json", "skops"),
)  # fmt: skip
"""A member of a zip archive, in its top folder or without one, and the format."""
_FOLDERS = {"saved_model.pb": "saved-model", "MLmodel": "mlflow", "config.json": "hugging-face"}
"""A file in a folder, and the format of the folder."""
_COMPRESSIONS = (
    (b"\x1f\x8b", "gzip"), (b"BZh", "bz2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"),
    (b'\x04"M\x18', "lz4"), (b"\x78\x01", "zlib"), (b"\x78\x5e", "zlib"), (b"\x78\x9c", "zlib"), (b"\x78\xda", "zlib"),
)  # fmt: skip
_PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_PLAIN_PICKLES = (b"ccopy_reg\n_reconstructor\n", b"ccopyreg\n_reconstructor\n")
_BUILDERS = ("copy_reg", "copyreg", "joblib.numpy_pickle")
"""Modules that a pickle names before the class of its object."""
_DELIMITERS = (",", "\t", ";", "|")
_PARAMETERS = 136  # bytes of XGBoost's parameters before the name of the objective
_BOOSTERS = (b"gbtree", b"gblinear", b"dart")


class Format(NamedTuple):
    """What a file is."""

    kind: str
    """A key of `_NAMES`."""
    compression: str = ""
    """Such as gzip, if the file as a whole is compressed."""
    detail: str = ""
    """The class of a pickled object, or the delimiter of a CSV file."""

    @property
    def name(self) -> str:
        """Return the format in words, such as: a CSV file, compressed with gzip."""
        name = _NAMES[self.kind]
        if self.kind == "csv" and self.detail not in (",", ""):
            name = "a file of values that tabs separate" if self.detail == "\t" else f"{name} with {self.detail!r}"
        elif self.kind in {"pickle", "joblib"} and self.detail:
            name += f" of {self.detail}"
        return name + (f", compressed with {self.compression}" if self.compression else "")


def recognise(path: str) -> Format | None:
    """Return what a file or a folder is; None if its bytes do not tell, or cannot be read."""
    if os.path.isdir(path):
        return next((Format(kind) for file, kind in _FOLDERS.items() if os.path.isfile(os.path.join(path, file))), None)
    try:
        head = _head_of_object(path) if is_url(path) else _head_of_file(path)
    except OSError:
        return None
    if head.startswith(b"PK\x03\x04"):
        return Format("zip") if is_url(path) else _zipped(path)
    compression = next((name for magic, name in _COMPRESSIONS if head.startswith(magic)), "")
    if compression:
        inner = _of(_decompressed(head, compression), complete=False)
        return inner and inner._replace(compression=compression)
    if os.path.basename(path) == "saved_model.pb":
        return Format("saved-model")
    return _of(head, complete=len(head) < _HEAD_BYTES)


def _head_of_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_HEAD_BYTES)


def _head_of_object(location: str) -> bytes:
    found = stores.identity(location, hasty=True)
    size = min(found.size, _HEAD_BYTES)
    return bytes(stores.of(location, hasty=True).read_range(found, 0, size)) if size else b""


def _of(head: bytes, *, complete: bool) -> Format | None:
    """Return the format of these first bytes of a file, or of all of them."""
    for offset, magic, kind in _MAGIC:
        if head.startswith(magic, offset):
            return Format(kind)
    if head.startswith((*_PICKLES, *_PLAIN_PICKLES)):
        kind = "joblib" if b"joblib.numpy_pickle" in head else "pickle"
        return Format(kind, detail=_pickled_class(head))
    if _is_binary_xgboost(head.removeprefix(b"binf")):
        return Format("xgboost-binary")
    size = int.from_bytes(head[:8], "little")
    if head.startswith(b'{"', 8) and 0 < size < 1 << 32:
        return Format("safetensors")
    return _of_text(head, complete=complete)


def _of_text(head: bytes, *, complete: bool) -> Format | None:
    """Return the format of a text; None for other bytes, and for a text that is no table and no document."""
    if b"\0" in head:
        return None
    text = head.decode("utf-8-sig", "replace").lstrip()
    if text.startswith("<"):
        start = text[:2000].lower()
        return Format("pmml") if "<pmml" in start else Format("html") if "<html" in start else None
    lines = text.splitlines()
    lines = lines if complete or len(lines) == 1 else lines[:-1]  # the last one may be cut
    if text.startswith(("{", "[")):
        return _of_json(lines)
    return next((Format("csv", detail=d) for d in _DELIMITERS if _is_table(lines, d)), None)


def _of_json(lines: list[str]) -> Format | None:
    first = "".join(lines[0].split())
    if first.startswith(('{"learner":', '{"version":[')):
        return Format("xgboost")
    with suppress(ValueError, RecursionError):
        if isinstance(json.loads(lines[0]), dict):
            return Format("json-lines")
    return Format("json") if first[:2] in {"{", '{"', "[", "[{", "[["} else None


def _is_table(lines: list[str], delimiter: str) -> bool:
    """Return whether the first lines have the same number of delimiters, leaving out those in quotes."""
    counts = {"".join(line.split('"')[::2]).count(delimiter) for line in lines[:5] if line}
    return len(lines) > 1 and len(counts) == 1 and counts.pop() > 0


def _pickled_class(head: bytes) -> str:
    """Return the class of a pickled object as `module.name`, or '' if it is none; the pickle is not loaded."""
    texts: list[str] = []
    with suppress(ValueError, UnicodeDecodeError, IndexError):  # the head may end inside the pickle
        for operation, argument, _ in pickletools.genops(head):
            name = ""
            if operation.name == "GLOBAL":
                name = str(argument).replace(" ", ".")
            elif operation.name == "STACK_GLOBAL":
                name = ".".join(texts[-2:])
            elif isinstance(argument, str):
                texts.append(argument)
            if name and not name.startswith(_BUILDERS):
                return name
    return ""


def _is_binary_xgboost(head: bytes) -> bool:
    """Return whether the names of an objective and of a booster follow XGBoost's parameters."""
    size = int.from_bytes(head[_PARAMETERS : _PARAMETERS + 8], "little")
    at = _PARAMETERS + 8 + size
    booster = head[at + 8 : at + 8 + int.from_bytes(head[at : at + 8], "little")]
    return 0 < size < 1000 and booster in _BOOSTERS  # noqa: PLR2004 - far longer than any name


def _decompressed(head: bytes, compression: str) -> bytes:
    """Return the first bytes of what is compressed; b'' if it is damaged."""
    with suppress(OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
        if compression in {"gzip", "zlib"}:
            return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(head, _HEAD_BYTES)
        if compression == "bz2":
            return bz2.BZ2Decompressor().decompress(head, _HEAD_BYTES)
        if compression == "xz":
            return lzma.LZMADecompressor().decompress(head, _HEAD_BYTES)
        import pyarrow as pa  # noqa: PLC0415 - only to name a file that is refused

        with pa.CompressedInputStream(pa.BufferReader(head), compression) as stream:
            return bytes(stream.read(min(_HEAD_BYTES, len(head))))
    return b""


def _zipped(path: str) -> Format:
    """Return what a zip archive is, by the names of its members."""
    with suppress(OSError, zipfile.BadZipFile, ValueError), zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] if "/data.pkl" in f"/{name}" else name for name in archive.namelist()}
        names |= {name.rpartition("/")[2] for name in archive.namelist() if name.count("/") == 1}
        for member, kind in _IN_ZIP:
            if member in names:
                return Format(kind)
    return Format("zip")


_KERAS = 'import keras; keras.saving.load_model({path}).export({out}, format="onnx")'
_EXPORT = (
    'torch.onnx.export(m.eval(), (torch.zeros(1, 10),), {out}, input_names=["x"], dynamic_axes={{"x": {{0: "N"}}}}'
)
_TORCHSCRIPT = "import torch; m = torch.jit.load({path}); " + _EXPORT + ", dynamo=False)"
_TORCH = "m = torch.load({path}, weights_only=False); " + _EXPORT + ")"
_AGAIN = "export the model again from the program that trained it: "

_CONVERTED = {"lightgbm": "lightgbm", "xgboost": "xgboost", "catboost": "catboost", "skops": "skops and skl2onnx"}
"""What `scorer convert` converts, and the packages that it needs."""
_PICKLED = {"sklearn": "skl2onnx", "lightgbm": "lightgbm", "xgboost": "xgboost", "catboost": "catboost"}
"""The same for the object in a pickle, by the package of its class."""
_COMMANDS: dict[str, tuple[str, str]] = {
    "keras": ("keras, tensorflow and tf2onnx", _KERAS),
    "hdf5": ("keras, tensorflow and tf2onnx", _KERAS),
    "torchscript": ("torch", _TORCHSCRIPT),
}
"""The packages that a conversion needs, and its Python; the paths are filled in."""
_WORDS: dict[str, str] = {
    "pytorch": "in Python, where the model's class can be imported, with its number of features instead of 10: "
    "import torch; {torch}; if the file holds only weights, create the model as m and call "
    "m.load_state_dict(torch.load({path})) instead",
    "xgboost-binary": "load it with xgboost<3.1 and write it as m.json with save_model, then `scorer convert m.json`",
    "pmml": _AGAIN + "`scorer convert` reads files of LightGBM, XGBoost, CatBoost and scikit-learn",
    "pickle": "if it holds a fitted model: {convert}, which runs the code in it",
    "safetensors": _AGAIN + "the file has weights, but not the model that uses them",
    "ort": "pass the .onnx file that it was created from",
    "lfs": "run `git lfs pull`: the file is a Git LFS pointer",
    "html": "download it again: this is the page of a web site, not the file",
    "zip": "unpack it and pass the .onnx file",
}
_TF2ONNX = {"saved-model": "--saved-model", "tflite": "--tflite"}
_DATA = {
    "parquet", "csv", "json", "json-lines", "arrow", "arrow-stream", "feather", "orc", "avro", "sqlite", "xls", "xlsx",
    "npy",
}  # fmt: skip


def how_to_convert(path: str, found: Format) -> str:
    """Return a hint: what converts a file of this format to ONNX, or what to pass instead."""
    kind = "pickle" if found.kind == "joblib" else found.kind
    out = _beside(path)
    if kind in _DATA:
        return "pass the ONNX model as --model, and the data as INPUT"
    if kind in _TF2ONNX:
        folder = os.path.dirname(path) if os.path.basename(path) == "saved_model.pb" else path
        out = _beside(folder)
        return (
            f"with tf2onnx installed: python -m tf2onnx.convert {_TF2ONNX[kind]} {shlex.quote(folder)} "
            f"--output {shlex.quote(out)}"
        )
    package = found.detail.partition(".")[0] if kind == "pickle" else ""
    if kind in _CONVERTED or package in _PICKLED:
        trusted = "if you trust the file, because loading it runs its code, and " if kind == "pickle" else ""
        needs = _CONVERTED.get(kind) or _PICKLED[package]
        return f"{trusted}with {needs} installed: {_convert(path, out, trust=kind == 'pickle')}"
    if kind in {"mlflow", "hugging-face"}:
        return _convert(path, out)
    if kind in _COMMANDS:
        needs, code = _COMMANDS[kind]
        number = ", with the model's number of features instead of 10" if kind == "torchscript" else ""
        return f"with {needs} installed{number}: python -c {shlex.quote(_filled(code, path, out))}"
    text = _WORDS.get("pytorch" if package == "torch" else kind, "export or copy it again")
    text = text.replace("{torch}", _filled(_TORCH, path, out)).replace("{path}", _text(path))
    return text.replace("{convert}", _convert(path, out, trust=True))


def _convert(path: str, out: str, *, trust: bool = False) -> str:
    """Return the command that converts a model."""
    words = ["scorer", "convert", path, "--output", out, "--check", "DATA.parquet", *(["--trust"] if trust else [])]
    return shlex.join(words)


def _beside(path: str) -> str:
    """Return the path of the converted model, beside the original; no file has this name yet, as far as possible."""
    stem = os.path.splitext(path.rstrip("/"))[0]
    return f"{stem}.converted.onnx" if os.path.exists(f"{stem}.onnx") else f"{stem}.onnx"


def _filled(code: str, path: str, out: str) -> str:
    return code.format(path=_text(path), out=_text(out))


def _text(path: str) -> str:
    """Return a Python literal in double quotes, because a shell reads the code in single quotes."""
    return json.dumps(path, ensure_ascii=False)
