"""Create a session from a spec: choose the provider, limit its threads, and explain its errors.

Only this module and `scorer bench` use ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import importlib.util
import io
import os
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from scorer.display.words import cut
from scorer.errors import BatchError, ModelLoadError, ModelNotFound, OutOfMemory
from scorer.host import cache as cache_
from scorer.host import devices
from scorer.host.devices import PROVIDERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from scorer.model.spec import SessionSpec


_SOURCE = re.compile(r"/\S*onnxruntime\S*:\d+ .*?\) ")
"""Position in the runtime's own source, which is removed from error texts because it does not help the user."""
_NODE = re.compile(r"Non-zero status code returned while running (\w+) node\. Name:'([^']*)' Status Message: ")
_MEMORY = re.compile(r"out of memory|failed to allocate|allocat\w+ .*fail|bad_alloc|BFCArena", re.IGNORECASE)
_MISSING = re.compile(r"is not a registered function/op|Could not find an implementation|custom op", re.IGNORECASE)
EXTENSIONS, _CONTRIB = "onnxruntime_extensions", "ai.onnx.contrib"
_BFLOAT16 = 16  # ONNX's number for it
_CUDA = {
    "arena_extend_strategy": "kSameAsRequested",
    "cudnn_conv_algo_search": "HEURISTIC",  # the default tries every algorithm again for each shape
    "use_tf32": "0",  # gives the same scores on every GPU
}
_DEFAULT_SEVERITY = 2  # the runtime's own default: warnings and errors
_FATAL = 4  # errors are raised anyway; at lower levels, a wrong declared output shape warns on every call
RUNTIME_ERRORS = tuple(
    getattr(ort_errors, name)
    for name in (
        "DeviceReset", "EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf",
        "ModelLoadCanceled", "ModelLoaded", "ModelRequiresCompilation", "NoModel", "NoSuchFile", "NotFound",
        "NotImplemented", "RuntimeException",
    )
    if hasattr(ort_errors, name)
)  # fmt: skip
"""All exceptions of the runtime; a test compares the list with the installed version."""


class Session:
    """A loaded model. `run` may be called from many threads at once."""

    def __init__(self, spec: SessionSpec, packed: str = "") -> None:
        """Load the model, or its packed form at the path `packed`."""
        self.spec = spec
        self.fits: int | None = None
        """Largest number of rows to try in a batch after memory ran out; None if it never did."""
        self.calling: dict[int, float] = {}
        """Threads inside `run`, with the time at which each entered."""
        self.trees = ""
        """How the model's tree ensembles are scored, in words; '' if that needs no word."""
        if spec.device != "cpu":
            _preload(spec.device)
        with map_load_errors(spec.path):
            options = packed_options(spec) if packed else session_options(spec)
            providers = _providers(spec.device, spec.gpu, spec.digest)
            self._session = ort.InferenceSession(packed or spec.path, options, providers=providers, enable_fallback=0)
        tensors = [*self._session.get_inputs(), *self._session.get_outputs()]
        self._has_bfloat16 = any(tensor.type == "tensor(bfloat16)" for tensor in tensors)
        got = self._session.get_providers()
        if got[0] != PROVIDERS[spec.device]:
            raise devices.unavailable(devices.parse(spec.device), got, _loader_error(spec.device))
        self.nodes = _nodes_by_device(self._session) if spec.device != "cpu" else {}
        """Number of nodes by device and operator; {} if everything runs on the CPU."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Return the model's outputs for one batch, in the order of `outputs`."""
        thread = threading.get_ident()
        self.calling[thread] = time.monotonic()
        try:
            with map_run_errors():
                if self._has_bfloat16:
                    return self._run_bfloat16(outputs, feeds)
                return self._session.run(outputs, feeds)  # type: ignore[no-any-return]
        finally:
            del self.calling[thread]

    def release_memory(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> None:
        """Run one batch and return to the system what this and earlier batches left allocated on the CPU."""
        if self.spec.device != "cpu" or self._has_bfloat16:
            return
        options = ort.RunOptions()
        options.log_severity_level = _FATAL
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        with suppress(*RUNTIME_ERRORS):
            self._session.run(outputs, feeds, options)

    def _run_bfloat16(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Run with bfloat16 passed as two-byte integers: the runtime cannot convert it to or from numpy."""
        given = {name: _ort_value(value) for name, value in feeds.items()}
        return [_numpy(value) for value in self._session.run_with_ort_values(outputs, given)]


def _ort_value(array: np.ndarray) -> ort.OrtValue:
    if array.dtype.name != "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _BFLOAT16)


def _numpy(value: ort.OrtValue) -> Any:  # noqa: ANN401 - an array, or the items of a sequence
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    import ml_dtypes  # noqa: PLC0415 - few models need it

    shape = value.shape()
    words = (ctypes.c_uint16 * prod(shape)).from_address(value.data_ptr())
    return np.frombuffer(words, ml_dtypes.bfloat16).reshape(shape).copy()


def session_options(spec: SessionSpec) -> ort.SessionOptions:
    """Return the runtime's options for a session of this model."""
    options = _quiet_options()
    options.intra_op_num_threads = spec.intra_op
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # halves the memory at no cost in time
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if spec.device != "cpu":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if spec.library:
        options.register_custom_ops_library(_library(spec.library))
    return options


def packed_options(spec: SessionSpec) -> ort.SessionOptions:
    """Return the runtime's options for a session with packed weights, whose graph is optimised already."""
    options = session_options(spec)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


@contextmanager
def map_run_errors() -> Iterator[None]:
    """Convert errors of a call to `BatchError` or `OutOfMemory`."""
    try:
        yield
    except RUNTIME_ERRORS as error:
        text = one_line(str(error))
        kind = OutOfMemory if _MEMORY.search(text) else BatchError
        raise kind("the runtime refused a batch", found=text) from error


def settle_device(requested: str) -> str:
    """Return the name of the device to use: 'auto' becomes one that works; raise if the device does not work."""
    device = devices.parse(requested)
    available = ort.get_available_providers()
    if device.name == "auto":
        return "cpu" if PROVIDERS["cuda"] not in available or why_not("cuda") else "cuda"
    if PROVIDERS[device.name] not in available:
        raise devices.unavailable(device, available)
    devices.refuse_missing(device)
    why = why_not(device.name)
    if why:
        raise devices.unavailable(device, available, why)
    return device.name


def usable_devices() -> list[str]:
    """Return the names of the devices that work here."""
    installed = ort.get_available_providers()
    return [name for name, provider in PROVIDERS.items() if provider in installed and not why_not(name)]


@cache
def why_not(name: str) -> str:
    """Return why a device does not work although its provider is installed; '' if it works."""
    if name == "cpu" or PROVIDERS[name] not in ort.get_available_providers():
        return ""
    _preload(name)
    ort.set_default_logger_severity(_FATAL)
    try:
        session = ort.InferenceSession(
            _smallest_model(), _quiet_options(), providers=_providers(name, 0), enable_fallback=0
        )
    except Exception as error:  # noqa: BLE001 - providers raise any exception; all mean that they do not work
        return _loader_error(name) or one_line(str(error))
    finally:
        ort.set_default_logger_severity(_DEFAULT_SEVERITY)
    return (
        ""
        if session.get_providers()[0] == PROVIDERS[name]
        else _loader_error(name) or "the provider does not start on this machine"
    )


def _quiet_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.logid = "scorer"
    return options


def _providers(name: str, gpu: int, digest: str = "") -> list[tuple[str, dict[str, str]]]:
    """Return the device's provider with its options, then the providers for operators that it does not support."""
    own = {"device_id": str(gpu)} if devices.parse(name).counted else {}
    if name == "cuda":
        own |= _CUDA
    engines = cache_.folder("engines") if name == "tensorrt" and digest else None
    if engines is not None:
        kept = engines / f"{digest[:16]}-{ort.__version__}-{_folder_name(devices.cards())}"
        with suppress(OSError):
            kept.mkdir(parents=True, exist_ok=True)
            own |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(kept)}
            own |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(kept)}
    providers = [(PROVIDERS[name], own)]
    providers += [(PROVIDERS["cuda"], {"device_id": str(gpu), **_CUDA})] if name == "tensorrt" else []
    return providers if name == "cpu" else [*providers, (PROVIDERS["cpu"], {})]


def _folder_name(cards: Sequence[str]) -> str:
    return re.sub(r"\W+", "-", cards[0]) if cards else "card"


def _preload(name: str) -> None:
    """Load CUDA's libraries if they are installed as packages; `_loader_error` reports a missing one."""
    if name in {"cuda", "tensorrt"}:
        with redirect_stdout(io.StringIO()), suppress(Exception):
            ort.preload_dlls()


def _loader_error(name: str) -> str:
    """Return the loader's error if a library that the provider needs does not load; otherwise ''."""
    if name in {"cuda", "tensorrt"}:
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            return "no NVIDIA driver: libcuda.so.1 does not load"
    library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{name}.so"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return ""


def _smallest_model() -> bytes:
    from onnx import TensorProto, helper  # noqa: PLC0415 - only needed if the machine has a device besides the CPU

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "smallest", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


def _nodes_by_device(session: ort.InferenceSession) -> dict[str, dict[str, int]]:
    """Return the number of nodes by device and operator; {} if the runtime does not report it."""
    short = {provider: name for name, provider in PROVIDERS.items()}
    placed: dict[str, Counter[str]] = {}
    with suppress(AttributeError):
        for subgraph in session.get_provider_graph_assignment_info():
            own = placed.setdefault(short.get(subgraph.ep_name, subgraph.ep_name), Counter())
            own.update(node.op_type for node in subgraph.get_nodes())
    return {name: dict(operators.most_common()) for name, operators in placed.items()}


@contextmanager
def map_load_errors(path: str) -> Iterator[None]:
    """Convert errors of loading a model to `ModelLoadError`."""
    try:
        yield
    except (*RUNTIME_ERRORS, ValueError, RuntimeError, OSError) as error:
        text = one_line(str(error))
        hint = "check it with `scorer inspect MODEL`, or export it again"
        if "locale" in text.lower():
            hint = "install the locale named above, or export the model without lower-casing"
        if _MISSING.search(text):
            hint = (
                "load custom operators with --ort-library PATH, install a newer onnxruntime, or export the model again"
            )
        raise ModelLoadError(
            "the model does not load",
            where=path,
            expected=f"a model that onnxruntime {ort.__version__} runs",
            found=text,
            hint=hint,
        ) from error


def _library(name: str) -> str:
    """Return the path of a library with custom operators."""
    if name != EXTENSIONS:
        return name
    from onnxruntime_extensions import get_library_path  # noqa: PLC0415 - an optional package

    return str(get_library_path())


def library_for(requested: str | None, domains: Iterable[str]) -> str:
    """Return the library of custom operators to load: the requested one, or onnxruntime-extensions if needed."""
    if requested is not None:
        if not os.path.isfile(requested):
            raise ModelNotFound(
                "the library of custom operators does not exist",
                where=requested,
                expected="a shared library",
                found="nothing",
                hint="check the path of --ort-library",
            )
        return os.path.abspath(requested)
    if _CONTRIB not in domains:
        return ""
    if importlib.util.find_spec(EXTENSIONS) is None:
        raise ModelLoadError(
            "the model needs operators that are not installed",
            where="the model",
            expected=f"operators of {_CONTRIB}",
            found="no onnxruntime-extensions",
            hint=f"pip install {EXTENSIONS.replace('_', '-')}",
        )
    return EXTENSIONS


def one_line(text: str) -> str:
    """Return the runtime's error text on one line, without its prefix, shortened."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(text.split()))
    return cut(_NODE.sub(lambda found: f"{found[1]}{found[2] and ' ' + found[2]}: ", _SOURCE.sub("", text)), 300)


def runtime() -> dict[str, Any]:
    """Return the installed onnxruntime and its providers."""
    return {"onnxruntime": ort.__version__, "providers": ort.get_available_providers()}
