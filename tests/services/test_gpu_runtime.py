"""onnxruntime-gpu on a machine without a GPU: clear errors, and no silent fallback to the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.runs import MODELS, read

from scorer.host import devices
from services.conftest import enter_or_skip
from services.processes import Missing, environment

pytestmark = pytest.mark.service
RUNTIME = Path(sys.prefix, "gpu-runtime")


@contextmanager
def _runtime():
    if not (RUNTIME / "onnxruntime").is_dir():
        raise Missing(f"not installed: onnxruntime-gpu in {RUNTIME}; .ci/services installs it")
    yield environment(PYTHONPATH=os.pathsep.join([str(RUNTIME), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(name="gpu_runtime")
def gpu_runtime_():
    """The environment of a process that imports onnxruntime-gpu."""
    if devices.cards():
        pytest.skip("needs a machine without a GPU")
    with enter_or_skip(_runtime()) as found:
        yield found


def asked(env, *arguments):
    """Run the command line; return the finished process."""
    command = [sys.executable, "-m", "scorer", *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("device", ["cuda", "tensorrt", "cuda:0"])
def test_a_device_that_does_not_load_is_refused_with_the_reason(gpu_runtime, device, fewer28, tmp_path):
    done = asked(gpu_runtime, "run", fewer28, "--model", MODELS / "dense28.onnx", "--output", tmp_path / "out",
                 "--device", device)  # fmt: skip
    assert done.returncode == 3
    assert f"the device '{device.partition(':')[0]}' is not available" in done.stderr
    assert "found:    no NVIDIA driver: libcuda.so.1 does not load" in done.stderr
    assert "scorer doctor" in done.stderr
    assert "onnxruntime:" not in done.stderr, "the log of ONNX Runtime was printed"
    assert not list(tmp_path.glob("out*"))


def test_auto_scores_on_the_processor_and_says_why(gpu_runtime, fewer28, tmp_path):
    done = asked(gpu_runtime, "run", fewer28, "--model", MODELS / "dense28.onnx", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "the device is the CPU, because CUDA does not work here: no NVIDIA driver" in done.stdout
    assert read(tmp_path / "out").num_rows == 60_000


def test_doctor_shows_the_command_that_repairs_the_installation(gpu_runtime):
    done = asked(gpu_runtime, "doctor")
    assert done.returncode == 0
    assert "cuda fails     no NVIDIA driver: libcuda.so.1 does not load" in done.stdout
    assert "onnxruntime and onnxruntime-gpu overwrite each other: pip uninstall -y" in done.stdout
