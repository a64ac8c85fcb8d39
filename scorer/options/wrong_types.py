"""Errors for Python values that are no paths: frames, bytes, models and open files in their place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorer.errors import OptionsError

if TYPE_CHECKING:
    from scorer.options.values import Rule

_BYTES = (bytes, bytearray, memoryview)
_FRAMES = {"DataFrame", "LazyFrame", "Table", "RecordBatch"}
_SCORED = {("polars", "DataFrame"), ("pyarrow", "Table")}
_EXAMPLES = {
    "input": "data/", "model": "m.onnx", "output": "scores", "work_dir": "work", "ort_library": "operators.so",
    "scheduler_file": "scheduler.json", "base": "data",
}  # fmt: skip


def wrong_type(name: str, value: Any, rule: Rule, place: str = "") -> OptionsError:  # noqa: ANN401 - whatever was given
    """Return the error for a value that is no path, where `rule` takes paths; it names types and shows no contents."""
    culprit = next((one for one in value if not _is_plain(one)), value) if isinstance(value, list | tuple) else value
    return OptionsError(
        f"the value of {name!r} is not valid",
        where=place or name,
        expected=rule.types,
        found=described(value),
        hint=_hint(name, culprit),
    )


def described(value: Any) -> str:  # noqa: ANN401 - whatever was given
    """Return a value for an error: text, numbers and lists of them as they are, anything else by its type only."""
    if _is_plain(value):
        return repr(value)
    if isinstance(value, _BYTES):
        return f"{memoryview(value).nbytes:,} bytes"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} with {described(next(one for one in value if not _is_plain(one)))}"
    if callable(value) and not isinstance(value, type):
        return _described_function(value)
    package, name = _package(value), type(value).__name__
    noun = name if package == "builtins" or package.startswith("_") else f"{package} {name}"
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"


def _described_function(function: Any) -> str:  # noqa: ANN401 - anything callable
    """Return what keeps another process from importing a function."""
    name = getattr(function, "__qualname__", "")
    if not name or hasattr(function, "__self__"):
        return f"an object of type {type(function).__name__}, not a function of a module"
    if name.endswith("<lambda>"):
        return "a lambda"
    if "<locals>" in name:
        outer, _, inner = name.rpartition(".<locals>.")
        return f"the function {inner!r} inside {outer!r}"
    return f"the function {name!r} of {getattr(function, '__module__', None)!r}"


def _hint(name: str, value: Any) -> str:  # noqa: ANN401 - whatever was given
    """Return what to pass instead of a value."""
    if name == "transform":
        return 'put the function into a module, such as features.py, and pass transform="features:NAME"'
    package, kind = _package(value), type(value).__name__
    frame = name == "input" and kind in _FRAMES
    if frame and (package in {"pandas", "dask"} or (package, kind) in _SCORED):
        return "call scorer.score(frame, model) to score a frame, or write it to Parquet and pass the path"
    if frame and package in {"polars", "pyarrow"}:
        return "write it to Parquet and pass the path, or make a DataFrame or a Table of it and call scorer.score"
    if name == "model" and isinstance(value, _BYTES):
        return 'write them to a file and pass its path: pathlib.Path("m.onnx").write_bytes(model)'
    if name == "model" and kind == "ModelProto":
        return 'write it to a file and pass its path: onnx.save(model, "m.onnx")'
    return f"pass a path, such as {name}={_EXAMPLES[name]!r}"


def _is_plain(value: Any) -> bool:  # noqa: ANN401 - whatever was given
    """Return whether a value is text, a number, a path, or a list or table of them, and so short enough to show."""
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | Path)


def _package(value: Any) -> str:  # noqa: ANN401 - whatever was given
    """Return the package of a value's type, such as pandas."""
    return type(value).__module__.partition(".")[0]
