"""Make a session from a spec: provider, thread budget, and what its errors mean.

The only room, with `bench`, that knows ONNX Runtime.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from scorer.errors import BatchError, ModelLoadError, OptionsError, OutOfMemory, ProviderUnavailable, some
from scorer.options import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

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

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells one resident session from another."""
        return self.digest, self.device, self.intra_op


class Session:
    """A loaded model. `run` may be called from many threads at once."""

    def __init__(self, spec: SessionSpec) -> None:
        self.spec = spec
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
            self._session = ort.InferenceSession(
                spec.path, options, providers=[(provider, own), *fallback], enable_fallback=0
            )
        got = self._session.get_providers()
        if got[0] != provider:
            raise unavailable(spec.device, got)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """What the model gives for one batch, in the order of `outputs`."""
        try:
            return self._session.run(outputs, feeds)  # type: ignore[no-any-return]
        except RUNTIME_ERRORS as error:
            text = one_line(str(error))
            kind = OutOfMemory if _MEMORY.search(text) else BatchError
            raise kind("the runtime refused a batch", "", "", text) from error


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
        raise ModelLoadError(what, path, f"a model that onnxruntime {ort.__version__} runs", text, hint) from error


def one_line(text: str) -> str:
    """The runtime's complaint without its prefix, shortened."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(text.split()))
    return _SOURCE.sub("", text)[:300]


def runtime() -> dict[str, Any]:
    """What is installed, for the doctor and the plan."""
    return {"onnxruntime": ort.__version__, "providers": ort.get_available_providers()}
