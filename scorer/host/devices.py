"""Devices by name and number: which there are to ask for, and which one each process gets.

Knows no runtime: whether a device really works, only a session can tell.
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
"""Distributions that hold the one package of that name; of several, the last one installed is there."""
_ALIASES = {"gpu": "cuda", "nvidia": "cuda", "amd": "migraphx", "mps": "coreml", "dml": "directml", "trt": "tensorrt"}
_CARDS = "/proc/driver/nvidia/gpus"
_MASKS = {"cuda": "CUDA_VISIBLE_DEVICES", "tensorrt": "CUDA_VISIBLE_DEVICES", "migraphx": "HIP_VISIBLE_DEVICES"}


def described(name: str, nodes: Mapping[str, int]) -> str:
    """A device, with how much of the model runs where."""
    return f"{name} ({', '.join(f'{many:,} nodes on {where}' for where, many in nodes.items())})" if nodes else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A kind of device, and which of several."""

    name: str
    ids: tuple[int, ...] = ()
    """As asked; () for the first, or for each process its own."""

    @property
    def counted(self) -> bool:
        """Whether a machine may have several, told apart by number."""
        return self.name in _MASKS

    @property
    def first(self) -> int:
        """The number of the one that a single process uses."""
        return self.ids[0] if self.ids else 0


def parse(text: str) -> Device:
    """What cuda:0,1 names."""
    name, colon, numbers = text.lower().partition(":")
    said = numbers.split(",") if colon else []
    ids = tuple(int(number) for number in said if number.isdecimal())
    whole = len({*ids}) == len(said) and (name in _MASKS or not said)
    if name in {"auto", *PROVIDERS} and whole:
        return Device(name=name, ids=ids)
    what, hint = f"there is no device {text!r}", did_you_mean(_ALIASES.get(name, name), ["auto", *PROVIDERS])
    if name in {"auto", *PROVIDERS}:
        hint = f"number the devices of {', '.join(_MASKS)} only, each once: cuda:0,1"
    expected = f"one of auto, {', '.join(PROVIDERS)}; with :ID, or :ID,ID for a process each"
    raise OptionsError(what, "--device", expected, repr(text), hint)


def visible(device: Device) -> tuple[str, ...]:
    """What the machine has of this kind and lets this process see, as its driver names them."""
    mask = os.environ.get(_MASKS.get(device.name, ""))
    if mask is not None:
        return tuple(name.strip() for name in mask.split(",") if name.strip())
    cards = glob.glob(f"{_CARDS}/*") if device.name in {"cuda", "tensorrt"} else ()
    return tuple(str(number) for number in range(len(cards)))


def one_each(device: Device) -> list[dict[str, str]]:
    """What each process has in its environment so that it sees one GPU and no other; [] where there is none."""
    if not device.counted:
        return []
    there = visible(device)
    ids = device.ids or range(len(there))
    return [{_MASKS[device.name]: there[id_] if id_ < len(there) else str(id_)} for id_ in ids]


def cards() -> list[str]:
    """The models of NVIDIA's cards in this machine, as their driver names them."""
    found = []
    for path in sorted(glob.glob(f"{_CARDS}/*/information")):
        with suppress(OSError), open(path, encoding="utf-8") as file:
            found += [line.partition(":")[2].strip() for line in file if line.startswith("Model")]
    return found


def counts(nodes: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Nodes by device, given those of each operator."""
    return {name: sum(operators.values()) for name, operators in nodes.items()}


def left_behind(nodes: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What to say of nodes that the device does not run."""
    left = nodes.get("cpu", {})
    if not left:
        return []
    named = ", ".join(f"{operator} ({many})" for operator, many in left.items())
    return [f"{sum(left.values())} of {sum(counts(nodes).values())} nodes of the model stay on the cpu: {named}"]


def refuse_missing(device: Device) -> None:
    """Numbers beyond what there is."""
    there = visible(device)
    missing = [str(id_) for id_ in device.ids if id_ >= len(there)]
    if missing and there:
        what, hint = f"there is no {device.name} device {quoted_list(missing)}", "`scorer doctor` lists them"
        found = f"{len(there)}: 0 to {len(there) - 1}" if len(there) > 1 else "only 0"
        raise ProviderUnavailable(what, "--device", "a number of one that is there", found, hint)


def unavailable(device: Device, providers: Sequence[str], why: str = "") -> ProviderUnavailable:
    """The device is not there, with what is."""
    there = [short for short, provider in PROVIDERS.items() if provider in providers]
    hint = (
        f"--device {there[0] if there else 'cpu'}, or install the runtime for {device.name}; `scorer doctor` explains"
    )
    if why:
        hint = "`scorer doctor` says what to type; or use --device cpu"
    what = f"the device {device.name!r} is not available"
    return ProviderUnavailable(what, "--device", PROVIDERS[device.name], why or quoted_list(there), hint)
