"""Make a session from a spec: provider, thread budget, and what its errors mean.

The only room, with `bench`, that knows ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from scorer.errors import (
    BatchError,
    ModelLoadError,
    ModelNotFound,
    OptionsError,
    OutOfMemory,
    ProviderUnavailable,
    some,
)
from scorer.options import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}
_ALIASES = {"gpu": "cuda", "nvidia": "cuda", "amd": "migraphx", "mps": "coreml", "dml": "directml", "trt": "tensorrt"}
_SOURCE = re.compile(r"/\S*onnxruntime\S*:\d+ .*?\) ")
"""Where in the runtime's own source an error arose: nothing a user can act on."""
_MEMORY = re.compile(r"out of memory|failed to allocate|allocat\w+ .*fail|bad_alloc|BFCArena", re.IGNORECASE)
_MISSING = re.compile(r"is not a registered function/op|Could not find an implementation|custom op", re.IGNORECASE)
EXTENSIONS, _CONTRIB = "onnxruntime_extensions", "ai.onnx.contrib"
_BFLOAT16 = 16  # ONNX's number for it
_QUIET = 4  # what goes wrong is raised too; below, a lying output shape warns once for every call
RUNTIME_ERRORS = tuple(
    getattr(ort_errors, name)
    for name in (
        "DeviceReset", "EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf",
        "ModelLoadCanceled", "ModelLoaded", "ModelRequiresCompilation", "NoModel", "NoSuchFile", "NotFound",
        "NotImplemented", "RuntimeException",
    )
    if hasattr(ort_errors, name)
)  # fmt: skip
"""Everything the runtime raises; a test compares the list with the installed version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """All that is needed to load the model somewhere else; plain data."""

    path: str
    digest: str
    files: tuple[str, ...]
    device: str
    """Settled: never 'auto'."""
    intra_op: int = 1
    library: str = ""
    """Custom operators; 'onnxruntime_extensions' for those of that package."""

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What tells one resident session from another."""
        return self.digest, self.device, self.intra_op, self.library


class Session:
    """A loaded model. `run` may be called from many threads at once."""

    def __init__(self, spec: SessionSpec) -> None:
        self.spec = spec
        self.fits: int | None = None
        """Rows that a batch may have since memory ran out once; None while it never did."""
        self.calling: dict[int, float] = {}
        """Threads inside `run`, with the time at which they went in."""
        name, device_id = parse_device(spec.device)
        provider = PROVIDERS[name]
        options = ort.SessionOptions()
        options.intra_op_num_threads = spec.intra_op
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _QUIET
        options.logid = "scorer"
        options.enable_mem_pattern = False  # halves the memory at no cost in time
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        own = {"device_id": str(device_id)} if name in {"cuda", "tensorrt", "migraphx"} else {}
        fallback = [] if name == "cpu" else [PROVIDERS["cpu"]]
        with map_load_errors(spec.path):
            if spec.library:
                options.register_custom_ops_library(_library(spec.library))
            self._session = ort.InferenceSession(
                spec.path, options, providers=[(provider, own), *fallback], enable_fallback=0
            )
        tensors = [*self._session.get_inputs(), *self._session.get_outputs()]
        self._small = any(tensor.type == "tensor(bfloat16)" for tensor in tensors)
        got = self._session.get_providers()
        if got[0] != provider:
            raise unavailable(spec.device, got)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """What the model gives for one batch, in the order of `outputs`."""
        thread = threading.get_ident()
        self.calling[thread] = time.monotonic()
        try:
            if self._small:
                return self._run_small(outputs, feeds)
            return self._session.run(outputs, feeds)  # type: ignore[no-any-return]
        except RUNTIME_ERRORS as error:
            text = one_line(str(error))
            kind = OutOfMemory if _MEMORY.search(text) else BatchError
            raise kind("the runtime refused a batch", "", "", text) from error
        finally:
            del self.calling[thread]

    def _run_small(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """With bfloat16, which the runtime's numpy side does not know, as two-byte words."""
        given = {name: _ort_value(value) for name, value in feeds.items()}
        return [_numpy(value) for value in self._session.run_with_ort_values(outputs, given)]


def _ort_value(array: np.ndarray) -> ort.OrtValue:
    if array.dtype.name != "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _BFLOAT16)


def _numpy(value: ort.OrtValue) -> Any:  # noqa: ANN401 - an array, or what a sequence holds
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    import ml_dtypes  # noqa: PLC0415 - few models need it

    shape = value.shape()
    words = (ctypes.c_uint16 * prod(shape)).from_address(value.data_ptr())
    return np.frombuffer(words, ml_dtypes.bfloat16).reshape(shape).copy()


def parse_device(device: str) -> tuple[str, int]:
    """(name, id) of cuda:1."""
    name, _, number = device.lower().partition(":")
    if name not in {"auto", *PROVIDERS} or (number and not number.isdecimal()):
        what, hint = f"there is no device {device!r}", did_you_mean(_ALIASES.get(name, name), ["auto", *PROVIDERS])
        raise OptionsError(what, "--device", f"one of auto, {', '.join(PROVIDERS)}, with :ID", repr(device), hint)
    return name, int(number or 0)


def settle_device(device: str) -> str:
    """The device that will be used: 'auto' becomes one, and what is not in the wheel is refused."""
    name, number = parse_device(device)
    available = ort.get_available_providers()
    if name == "auto":
        return "cuda" if PROVIDERS["cuda"] in available else "cpu"
    if PROVIDERS[name] not in available:
        raise unavailable(device, available)
    return f"{name}:{number}" if number else name


def unavailable(device: str, providers: Sequence[str]) -> ProviderUnavailable:
    """The device is not there, with what is."""
    name = parse_device(device)[0]
    there = [short for short, provider in PROVIDERS.items() if provider in providers]
    hint = f"--device {there[0] if there else 'cpu'}, or install the runtime for {name}; `scorer doctor` explains"
    what = f"the device {device!r} is not available"
    return ProviderUnavailable(what, "--device", PROVIDERS[name], some(there), hint)


@contextmanager
def map_load_errors(path: str) -> Iterator[None]:
    """Loading failures as ours."""
    try:
        yield
    except (*RUNTIME_ERRORS, ValueError, RuntimeError, OSError) as error:
        text = one_line(str(error))
        what, hint = "the model does not load", "check it with `scorer inspect MODEL`, or export it again"
        if "locale" in text.lower():
            hint = "install the locale that the text names, or export the model without lower-casing"
        if _MISSING.search(text):
            hint = (
                "--ort-library PATH loads custom operators; or install a newer onnxruntime, or export the model again"
            )
        raise ModelLoadError(what, path, f"a model that onnxruntime {ort.__version__} runs", text, hint) from error


def _library(name: str) -> str:
    """The path of a library with custom operators."""
    if name != EXTENSIONS:
        return name
    from onnxruntime_extensions import get_library_path  # noqa: PLC0415 - an extra of the user's

    return str(get_library_path())


def library_for(asked: str | None, domains: Iterable[str]) -> str:
    """The custom operators to load: what was asked, else the well-known package where the model needs it."""
    if asked is not None:
        if not os.path.isfile(asked):
            what, hint = "the library of custom operators is not there", "check --ort-library"
            raise ModelNotFound(what, asked, "a shared library", "nothing", hint)
        return os.path.abspath(asked)
    if _CONTRIB not in domains:
        return ""
    if importlib.util.find_spec(EXTENSIONS) is None:
        what, hint = "the model needs operators that are not installed", f"pip install {EXTENSIONS.replace('_', '-')}"
        raise ModelLoadError(what, "the model", f"operators of {_CONTRIB}", "no onnxruntime-extensions", hint)
    return EXTENSIONS


def one_line(text: str) -> str:
    """The runtime's complaint without its prefix, shortened."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(text.split()))
    return _SOURCE.sub("", text)[:300]


def runtime() -> dict[str, Any]:
    """What is installed, for the doctor and the plan."""
    return {"onnxruntime": ort.__version__, "providers": ort.get_available_providers()}
