"""Sessions use the requested device or fail, convert the runtime's errors, and send no telemetry."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as pybind
from support.runs import MODELS, oracle, session_spec

from scorer.errors import BatchError, ModelLoadError, OutOfMemory, ProviderUnavailable
from scorer.host.devices import PROVIDERS
from scorer.model.session import RUNTIME_ERRORS, Session, map_load_errors, one_line, runtime, settle_device
from scorer.model.spec import SessionSpec

AVAILABLE = ort.get_available_providers()


def test_every_error_of_the_installed_runtime_is_known():
    installed = {
        value for value in vars(pybind).values() if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert installed
    assert set(RUNTIME_ERRORS) == installed


def test_auto_becomes_an_available_device():
    assert settle_device("auto") == ("cuda" if PROVIDERS["cuda"] in AVAILABLE else "cpu")
    assert settle_device("CPU") == "cpu"


def test_a_missing_device_is_an_error_and_never_becomes_the_cpu():
    missing = [name for name, provider in PROVIDERS.items() if provider not in AVAILABLE]
    assert missing
    for name in missing:
        with pytest.raises(ProviderUnavailable, match=name):
            settle_device(name)


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("device", ["cuda", "tensorrt", "coreml"])
def test_a_session_on_a_missing_device_does_not_start(device):
    if PROVIDERS[device] in AVAILABLE:
        pytest.skip(f"{device} is there")
    with pytest.raises(ProviderUnavailable, match="is not available"):
        Session(session_spec("sum3", device))


def test_a_session_gives_what_the_bare_runtime_gives_from_any_thread():
    session = Session(session_spec("dense28"))
    x = np.random.default_rng(0).standard_normal((64, 28)).astype(np.float32)
    wanted = oracle(MODELS / "dense28.onnx", {"input": x})["score"]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: session.run(["score"], {"input": x})[0], range(40)))
    assert all(np.array_equal(result, wanted) for result in results)


def test_outputs_come_in_the_requested_order():
    session = Session(session_spec("two_outputs"))
    x = np.ones((2, 4), np.float32)
    logits, mean = session.run(["logits", "mean"], {"x": x})
    assert (logits.shape, mean.shape) == ((2, 3), (2,))


@pytest.mark.parametrize(
    ("name", "feeds"),
    [
        ("gather", {"idx": np.array([99])}),
        ("sum3", {"x": np.zeros((2, 4), np.float32)}),
        ("sum3", {"x": np.zeros((2, 3), np.float64)}),
        ("sum3", {"x": np.zeros(3, np.float32)}),
    ],
)
def test_a_batch_that_the_runtime_refuses_is_a_batch_error(name, feeds):
    session = Session(session_spec(name))
    with pytest.raises(BatchError, match="refused a batch") as caught:
        session.run([session._session.get_outputs()[0].name], feeds)
    assert not isinstance(caught.value, OutOfMemory)
    assert caught.value.found
    assert "[ONNXRuntimeError]" not in caught.value.found


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x08\x0a\x12\x00"])
def test_a_model_that_does_not_load_is_reported(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"does not load(?s:.)*m\.onnx"):
        Session(SessionSpec(path=str(path), digest="", files=(), device="cpu"))


@pytest.mark.parametrize("error", [*RUNTIME_ERRORS, ValueError, RuntimeError, OSError])
def test_every_loading_failure_becomes_a_model_load_error(error):
    with pytest.raises(ModelLoadError, match="boom"), map_load_errors("m.onnx"):
        raise error("boom")


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got it\n wrong ", "Got it wrong"),
        ("plain", "plain"),
        ("x" * 999, "x" * 300 + "..."),
    ],
)
def test_an_error_text_is_one_short_line(text, short):
    assert one_line(text) == short


def test_the_key_tells_sessions_apart():
    keys = {
        session_spec("sum3").key,
        session_spec("dense28").key,
        session_spec("sum3", intra_op=2).key,
        session_spec("sum3", "cuda").key,
    }
    assert len(keys) == 4
    assert session_spec("sum3").key == session_spec("sum3").key


def test_the_runtime_names_itself():
    assert runtime() == {"onnxruntime": ort.__version__, "providers": AVAILABLE}


def python(code, home, **environment):
    """Run code in a new process with an empty home folder."""
    clean = {k: v for k, v in os.environ.items() if k not in {"ORT_DISABLE_TELEMETRY", "PYTHONDONTWRITEBYTECODE"}}
    clean |= {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_CONFIG_HOME": str(home / "config"),
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True, timeout=60
    )


@pytest.mark.parametrize("asked", [None, "0"])
def test_importing_scorer_turns_telemetry_off_unless_it_was_set(tmp_path, asked):
    code = "import os, scorer; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    result = python(code, tmp_path, **({"ORT_DISABLE_TELEMETRY": asked} if asked else {}))
    assert result.stdout.strip() == (asked or "1")


def test_scoring_leaves_nothing_in_the_home_folder(tmp_path):
    code = f"""
import scorer, numpy as np
from scorer.model.session import Session; from scorer.model.spec import SessionSpec
session = Session(SessionSpec(path={str(MODELS / "sum3.onnx")!r}, digest="", files=(), device="cpu"))
print(session.run(["total"], {{"x": np.ones((1, 3), np.float32)}})[0][0])
"""
    assert python(code, tmp_path).stdout.strip() == "3.0"
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == []
