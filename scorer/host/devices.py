"""Devices by name and number: which exist, which can be requested, and which one each process gets.

Knows no runtime: whether a device works is only known once a session is created on it.
"""

from __future__ import annotations

import glob
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scorer.display.words import did_you_mean, quoted_list
from scorer.errors import OptionsError, ProviderUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
"""Distributions of the package `onnxruntime`. If several are installed, the last one has overwritten the others."""
_ALIASES = {"gpu": "cuda", "nvidia": "cuda", "amd": "migraphx", "mps": "coreml", "dml": "directml", "trt": "tensorrt"}
_NVIDIA_GPUS = "/proc/driver/nvidia/gpus"
_VISIBLE_VARIABLES = {
    "cuda": "CUDA_VISIBLE_DEVICES",
    "tensorrt": "CUDA_VISIBLE_DEVICES",
    "migraphx": "HIP_VISIBLE_DEVICES",
}


def described(name: str, nodes: Mapping[str, int]) -> str:
    """Return the device as text, with the number of model nodes on each device."""
    return f"{name} ({', '.join(f'{count:,} nodes on {where}' for where, count in nodes.items())})" if nodes else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A kind of device and the numbers of the requested ones."""

    name: str
    ids: tuple[int, ...] = ()
    """Requested device numbers; empty for the first device, or one per process."""

    @property
    def counted(self) -> bool:
        """Whether devices of this kind are numbered."""
        return self.name in _VISIBLE_VARIABLES

    @property
    def first(self) -> int:
        """The number of the device that a single process uses."""
        return self.ids[0] if self.ids else 0


def parse(text: str) -> Device:
    """Parse a device such as `cuda` or `cuda:0,1`."""
    name, colon, numbers = text.lower().partition(":")
    requested = numbers.split(",") if colon else []
    ids = tuple(int(number) for number in requested if number.isdecimal())
    valid = len({*ids}) == len(requested) and (name in _VISIBLE_VARIABLES or not requested)
    if name in {"auto", *PROVIDERS} and valid:
        return Device(name=name, ids=ids)
    hint = did_you_mean(_ALIASES.get(name, name), ["auto", *PROVIDERS])
    if name in {"auto", *PROVIDERS}:
        hint = f"use numbers only with {', '.join(_VISIBLE_VARIABLES)}, and each number once: cuda:0,1"
    raise OptionsError(
        f"there is no device {text!r}",
        where="--device",
        expected=f"one of auto, {', '.join(PROVIDERS)}; optionally :ID, or :ID,ID for one process each",
        found=repr(text),
        hint=hint,
    )


def visible(device: Device) -> tuple[str, ...]:
    """Return the names of the devices that this process may use, by CUDA_VISIBLE_DEVICES or the driver."""
    variable = os.environ.get(_VISIBLE_VARIABLES.get(device.name, ""))
    if variable is not None:
        return tuple(name.strip() for name in variable.split(",") if name.strip())
    gpus = glob.glob(f"{_NVIDIA_GPUS}/*") if device.name in {"cuda", "tensorrt"} else ()
    return tuple(str(number) for number in range(len(gpus)))


def device_environments(device: Device) -> list[dict[str, str]]:
    """Return for each process the environment variable that shows it one device; [] if devices have no numbers."""
    if not device.counted:
        return []
    names = visible(device)
    ids = device.ids or range(len(names))
    return [{_VISIBLE_VARIABLES[device.name]: names[id_] if id_ < len(names) else str(id_)} for id_ in ids]


def cards() -> list[str]:
    """Return the product name of each NVIDIA GPU in this machine, as its driver gives it."""
    found = []
    for path in sorted(glob.glob(f"{_NVIDIA_GPUS}/*/information")):
        with suppress(OSError), open(path, encoding="utf-8") as file:
            found += [line.partition(":")[2].strip() for line in file if line.startswith("Model")]
    return found


def counts(nodes: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return the number of nodes on each device, given device -> operator -> number."""
    return {name: sum(operators.values()) for name, operators in nodes.items()}


def notes_on_cpu_nodes(nodes: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return a note on the nodes that run on the CPU instead of the device; [] if there are none."""
    on_cpu = nodes.get("cpu", {})
    if not on_cpu:
        return []
    named = ", ".join(f"{operator} ({count})" for operator, count in on_cpu.items())
    return [f"{sum(on_cpu.values())} of {sum(counts(nodes).values())} nodes of the model stay on the cpu: {named}"]


def refuse_missing(device: Device) -> None:
    """Raise if a requested number is higher than that of the last device."""
    existing = visible(device)
    missing = [str(id_) for id_ in device.ids if id_ >= len(existing)]
    if missing and existing:
        raise ProviderUnavailable(
            f"there is no {device.name} device {quoted_list(missing)}",
            where="--device",
            expected="the number of an existing device",
            found=f"{len(existing)} devices: 0 to {len(existing) - 1}" if len(existing) > 1 else "one device: 0",
            hint="run `scorer doctor` to list the devices",
        )


def unavailable(device: Device, providers: Sequence[str], why: str = "") -> ProviderUnavailable:
    """Return the error for a device that is not available, with the reason or the available devices."""
    available = [name for name, provider in PROVIDERS.items() if provider in providers]
    other = available[0] if available else "cpu"
    hint = f"use --device {other}, or install the runtime for {device.name}; `scorer doctor` shows how"
    if why:
        hint = "run `scorer doctor` to see what to install, or use --device cpu"
    return ProviderUnavailable(
        f"the device {device.name!r} is not available",
        where="--device",
        expected=PROVIDERS[device.name],
        found=why or quoted_list(available),
        hint=hint,
    )
