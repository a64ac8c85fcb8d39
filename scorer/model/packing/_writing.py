"""Pack the weights of a model, and prove that it gives the same scores with them.

Both functions run in a process of their own. So the memory that packing needs is freed, a crash costs nothing, and what
a process holds with packed weights is measured in one that holds nothing else.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from scorer.host import process
from scorer.model.session import RUNTIME_ERRORS, packed_options, session_options

if TYPE_CHECKING:
    from scorer.model.spec import SessionSpec

MODEL, WEIGHTS = "model.onnx", "model.bin"
"""The files of packed weights: the optimised graph, and the weights that it names."""
_LEAST_BYTES = 1024  # smaller tensors stay in the graph
_PROVIDERS = ("CPUExecutionProvider",)
_TYPES = {
    "bool": np.bool_, "double": np.float64, "float": np.float32, "float16": np.float16, "int8": np.int8,
    "int16": np.int16, "int32": np.int32, "int64": np.int64, "string": np.object_, "uint8": np.uint8,
    "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64,
}  # fmt: skip
_ROWS = (2, 1)
_SIZES = (16, 1, 2, 4, 8, 32, 64, 128, 256, 512)
"""Rows of a made-up batch, and sizes of its other free dimensions; the first that the model accepts are used."""


def write(spec: SessionSpec, folder: str) -> tuple[int, int, str] | None:
    """Write the packed model into the folder; return the rows and the size of a batch that it accepts, and its scores.

    Returns None if it accepts no made-up batch, because then nothing can be proved.
    """
    options = session_options(spec)
    options.optimized_model_filepath = f"{folder}/{MODEL}"
    for name, value in (
        ("save_external_prepacked_constant_initializers", "1"),
        ("optimized_model_external_initializers_file_name", WEIGHTS),
        ("optimized_model_external_initializers_min_size_in_bytes", str(_LEAST_BYTES)),
    ):
        options.add_session_config_entry(f"session.{name}", value)
    session = ort.InferenceSession(spec.path, options, providers=_PROVIDERS)
    for rows, size in product(_ROWS, _SIZES):
        with suppress(*RUNTIME_ERRORS, ValueError, RuntimeError, KeyError):
            return rows, size, _scores(session, rows, size)
    return None


def measure(spec: SessionSpec, folder: str, rows: int, size: int) -> tuple[str, int, int]:
    """Score the same batch with packed weights; return its scores, and the private and the mapped bytes."""
    before = process.private()
    session = ort.InferenceSession(f"{folder}/{MODEL}", packed_options(spec), providers=_PROVIDERS)
    process.release_unused()  # what loading left allocated belongs to no one
    private = max(0, process.private() - before)
    return _scores(session, rows, size), private, process.mapped(f"{folder}/{WEIGHTS}")


def _scores(session: ort.InferenceSession, rows: int, size: int) -> str:
    """Return a digest of the bits of all outputs for a made-up batch, which is always the same."""
    rng, feeds = np.random.default_rng(0), {}
    for tensor in session.get_inputs():
        free = [rows, *[size] * (len(tensor.shape) - 1)] if tensor.shape else []
        shape = [one if isinstance(one, int) else free[axis] for axis, one in enumerate(tensor.shape)]
        kind = np.dtype(_TYPES[tensor.type.removeprefix("tensor(").removesuffix(")")])
        values = rng.standard_normal(shape) if kind.kind == "f" else rng.integers(0, 2, shape)
        feeds[tensor.name] = np.asarray(values).astype(str if kind.kind == "O" else kind).astype(kind)
    found = hashlib.sha256()
    for value in session.run(None, feeds):
        found.update(_bits(value))
    return found.hexdigest()


def _bits(value: Any) -> bytes:  # noqa: ANN401 - whatever a model returns
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return f"{value.dtype} {value.shape}".encode() + value.tobytes()
    if isinstance(value, list):
        return b"".join(map(_bits, value))
    return repr(value.tolist() if isinstance(value, np.ndarray) else value).encode()
