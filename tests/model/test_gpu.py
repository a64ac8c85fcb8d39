"""On a real GPU: placement of nodes, float16, the CPU's scores, the speed of a plain loop, and full memory."""

from __future__ import annotations

import os
import time

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pytest
from support import real_models
from support.runs import cli, read, report_of, write
from tokenizers import Tokenizer

import scorer
from scorer.host import devices
from scorer.host.devices import Device
from scorer.model.session import why_not

pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers() or bool(why_not("cuda")),
    reason="needs a GPU: an NVIDIA card, and onnxruntime-gpu that loads",
)
SPEED_ROWS = 20_000


def half(model, folder):
    """Return the model in float16 with its inputs and outputs unchanged."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    path = folder / "half.onnx"
    onnx.save(convert_float_to_float16(onnx.load(model), keep_io_types=True), path)
    return path


def scored(case, model, folder, *flags):
    """Return the output as a table, and the report."""
    source = write(folder / "input.parquet", case.table, row_group_size=-(-case.table.num_rows // 4))
    code, _, stderr = cli("run", source, "--model", model, "--output", folder / "out", "--keep", "id", "--quiet",
                          *case.flags, *flags)  # fmt: skip
    assert (code, stderr) == (0, "")
    return read(folder / "out").combine_chunks(), report_of(folder / "out")


def matrix(column):
    """A column as rows of numbers."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.stack(column.to_numpy(zero_copy_only=False)).reshape(len(column), -1)


@pytest.mark.parametrize("make", [real_models.minilm, real_models.orientation], ids=lambda make: make.__name__)
def test_a_device_scores_as_the_processor_does_and_says_what_runs_where(make, tmp_path):
    case = make(tmp_path)
    out, report = scored(case, case.model, tmp_path, "--device", "cuda")
    assert report["device"] == "cuda"
    assert report["nodes"]["cuda"] > 0.9 * sum(report["nodes"].values())
    left = [note for note in report["notes"] if "stay on the cpu" in note]
    assert bool(left) == ("cpu" in report["nodes"])
    for name, expected in case.expected.items():
        np.testing.assert_allclose(matrix(out[name]), expected.reshape(len(expected), -1), rtol=0, atol=2e-3)


def test_a_text_model_in_float16_is_near_the_same_one_in_float32(tmp_path):
    case = real_models.minilm(tmp_path)
    out, _ = scored(case, half(case.model, tmp_path), tmp_path, "--device", "cuda")
    for name, expected in case.expected.items():
        np.testing.assert_allclose(matrix(out[name]), expected.reshape(len(expected), -1), rtol=0, atol=2e-2)


def test_auto_takes_the_gpu(tmp_path):
    case = real_models.orientation(tmp_path)
    assert scored(case, case.model, tmp_path)[1]["device"] == "cuda"


def test_a_process_on_each_gpu(tmp_path):
    case, many = real_models.orientation(tmp_path), len(devices.visible(Device(name="cuda")))
    _, report = scored(case, case.model, tmp_path, "--device", "cuda", "--cluster", "processes")
    assert 1 <= len([made for made in report["sessions"].values() if made]) <= many + 1


def test_a_full_memory_halves_batches_and_blames_no_row(tmp_path):
    case = real_models.orientation(tmp_path)
    case_rows = pa.concat_tables([case.table] * (4096 // case.table.num_rows + 1))
    source = write(tmp_path / "many.parquet", case_rows)
    free = _free_bytes() - (512 << 20)
    held = ort.OrtValue.ortvalue_from_shape_and_type([free], np.uint8, "cuda", 0)
    report = scorer.run(
        source, case.model, tmp_path / "out", device="cuda", batch_rows=4096, keep="id", part_bytes="1GiB",
        **_keywords(case.flags),
    )  # fmt: skip
    assert held.device_name() == "cuda"
    assert report.counts.scored == case_rows.num_rows
    assert report.halved


def test_it_is_as_fast_as_a_bare_loop_and_faster_than_one_that_waits_for_its_input(tmp_path):
    case = real_models.minilm(tmp_path)
    model = half(case.model, tmp_path)
    table = pa.concat_tables([case.table] * (SPEED_ROWS // case.table.num_rows + 1))
    source = write(tmp_path / "many.parquet", table, row_group_size=2048)
    began = time.perf_counter()
    report = scorer.run(source, model, tmp_path / "out", device="cuda", keep="none", **_keywords(case.flags))
    seconds = time.perf_counter() - began
    bare = _bare_seconds(model, table["text"].to_pylist())
    by_hand = f"by hand {bare['all']:.1f}, {bare['model']:.1f} in the model"
    print(f"\n  scoring {report.scoring_s:.1f} s of {seconds:.1f}; {by_hand}")
    assert bare["model"] / report.scoring_s >= 0.95
    assert bare["all"] / report.scoring_s > 1.2


def _bare_seconds(model, lines):
    """Return the seconds of a plain loop with the same batches: in the model, and in total."""
    tokenizer = Tokenizer.from_file(str(real_models.tokenizer()))
    tokenizer.enable_truncation(real_models.MAX_TOKENS)
    session = ort.InferenceSession(str(model), providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    inside, began = 0.0, time.perf_counter()
    for start in range(0, len(lines), 256):
        encoded = tokenizer.encode_batch_fast(lines[start : start + 256])
        longest = max(len(one.ids) for one in encoded)
        feeds = {
            "input_ids": [one.ids + [0] * (longest - len(one.ids)) for one in encoded],
            "attention_mask": [one.attention_mask + [0] * (longest - len(one.ids)) for one in encoded],
            "token_type_ids": [[0] * longest for one in encoded],
        }
        named = {tensor.name: np.array(feeds[tensor.name], np.int64) for tensor in session.get_inputs()}
        entered = time.perf_counter()
        session.run(None, named)
        inside += time.perf_counter() - entered
    return {"model": inside, "all": time.perf_counter() - began}


def _keywords(flags):
    """Flags of the command line as keywords."""
    pairs = zip(flags[::2], flags[1::2], strict=True)
    found = {}
    for flag, value in pairs:
        found.setdefault(flag.removeprefix("--").replace("-", "_"), []).append(value)
    return {name: values if len(values) > 1 else values[0] for name, values in found.items()}


def _free_bytes():
    """Return the free memory of the first GPU."""
    with os.popen("nvidia-smi --query-gpu=memory.free --format=csv,noheader,nounits -i 0") as said:
        return int(said.read().split()[0]) << 20
