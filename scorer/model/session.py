"""Make a session from a spec: provider, thread budget, and what its errors mean.

The only room, with `bench`, that knows ONNX Runtime.
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

from scorer.errors import BatchError, ModelLoadError, ModelNotFound, OutOfMemory
from scorer.host import cache as cache_
from scorer.host import devices
from scorer.host.devices import PROVIDERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from scorer.model.spec import SessionSpec


_SOURCE = re.compile(r"/\S*onnxruntime\S*:\d+ .*?\) ")
"""Where in the runtime's own source an error arose: nothing a user can act on."""
_NODE = re.compile(r"Non-zero status code returned while running (\w+) node\. Name:'([^']*)' Status Message: ")
_MEMORY = re.compile(r"out of memory|failed to allocate|allocat\w+ .*fail|bad_alloc|BFCArena", re.IGNORECASE)
_MISSING = re.compile(r"is not a registered function/op|Could not find an implementation|custom op", re.IGNORECASE)
EXTENSIONS, _CONTRIB = "onnxruntime_extensions", "ai.onnx.contrib"
_BFLOAT16 = 16  # ONNX's number for it
_CUDA = {
    "arena_extend_strategy": "kSameAsRequested",
    "cudnn_conv_algo_search": "HEURISTIC",  # the default tries every algorithm anew for each shape
    "use_tf32": "0",  # the same scores on every card
}
_LOUD = 2  # the runtime's own default
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


class Session:
    """A loaded model. `run` may be called from many threads at once."""

    def __init__(self, spec: SessionSpec) -> None:
        self.spec = spec
        self.fits: int | None = None
        """Rows that a batch may have since memory ran out once; None while it never did."""
        self.calling: dict[int, float] = {}
        """Threads inside `run`, with the time at which they went in."""
        options = _quiet()
        options.intra_op_num_threads = spec.intra_op
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.enable_mem_pattern = False  # halves the memory at no cost in time
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if spec.device != "cpu":
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            _preload(spec.device)
        with map_load_errors(spec.path):
            if spec.library:
                options.register_custom_ops_library(_library(spec.library))
            providers = _asked(spec.device, spec.gpu, spec.digest)
            self._session = ort.InferenceSession(spec.path, options, providers=providers, enable_fallback=0)
        tensors = [*self._session.get_inputs(), *self._session.get_outputs()]
        self._small = any(tensor.type == "tensor(bfloat16)" for tensor in tensors)
        got = self._session.get_providers()
        if got[0] != PROVIDERS[spec.device]:
            raise devices.unavailable(devices.parse(spec.device), got, _unloadable(spec.device))
        self.nodes = _placed(self._session) if spec.device != "cpu" else {}
        """How many nodes of each operator run where; {} where everything runs on the processor."""

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


def settle_device(asked: str) -> str:
    """The name of what will be used: 'auto' becomes one that works, and what is not there is refused."""
    device = devices.parse(asked)
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


@cache
def why_not(name: str) -> str:
    """Why a device whose provider is in the wheel does not work; '' where it does."""
    if name == "cpu" or PROVIDERS[name] not in ort.get_available_providers():
        return ""
    _preload(name)
    ort.set_default_logger_severity(_QUIET)
    try:
        session = ort.InferenceSession(_smallest_model(), _quiet(), providers=_asked(name, 0), enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - providers raise what they like, and all of it means that they do not work
        return _unloadable(name) or one_line(str(error))
    finally:
        ort.set_default_logger_severity(_LOUD)
    return "" if session.get_providers()[0] == PROVIDERS[name] else _unloadable(name) or "it does not start here"


def _quiet() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    options.logid = "scorer"
    return options


def _asked(name: str, gpu: int, digest: str = "") -> list[tuple[str, dict[str, str]]]:
    """The provider with its options, and those that take what it leaves."""
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
    asked = [(PROVIDERS[name], own)]
    asked += [(PROVIDERS["cuda"], {"device_id": str(gpu), **_CUDA})] if name == "tensorrt" else []
    return asked if name == "cpu" else [*asked, (PROVIDERS["cpu"], {})]


def _folder_name(cards: Sequence[str]) -> str:
    return re.sub(r"\W+", "-", cards[0]) if cards else "card"


def _preload(name: str) -> None:
    """CUDA's libraries where they came as packages; what it prints when one is missing, `_unloadable` finds again."""
    if name in {"cuda", "tensorrt"}:
        with redirect_stdout(io.StringIO()), suppress(Exception):
            ort.preload_dlls()


def _unloadable(name: str) -> str:
    """The library without which a provider's own does not load, in the loader's words; '' if that is not why."""
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
    from onnx import TensorProto, helper  # noqa: PLC0415 - only where another device than the processor is there

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "smallest", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


def _placed(session: ort.InferenceSession) -> dict[str, dict[str, int]]:
    """Operators by the device that they run on; {} of a runtime that does not tell."""
    short = {provider: name for name, provider in PROVIDERS.items()}
    placed: dict[str, Counter[str]] = {}
    with suppress(AttributeError):
        for subgraph in session.get_provider_graph_assignment_info():
            own = placed.setdefault(short.get(subgraph.ep_name, subgraph.ep_name), Counter())
            own.update(node.op_type for node in subgraph.get_nodes())
    return {name: dict(operators.most_common()) for name, operators in placed.items()}


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
    return _NODE.sub(lambda found: f"{found[1]}{found[2] and ' ' + found[2]}: ", _SOURCE.sub("", text))[:300]


def runtime() -> dict[str, Any]:
    """What is installed, for the doctor and the plan."""
    return {"onnxruntime": ort.__version__, "providers": ort.get_available_providers()}
