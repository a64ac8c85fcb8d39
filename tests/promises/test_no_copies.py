"""No stage copies a float column more than once: the bytes that Arrow and numpy allocate in each stage."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs import MODELS

import scorer
from scorer.binding.features.pack import pack
from scorer.binding.spec import Feed
from scorer.cluster import tasks
from scorer.model.resident import SESSIONS
from scorer.output import staging as staging_
from scorer.output.place import Place
from scorer.scoring.job import JOBS, Spec

ROWS, COLUMNS = 65_536, 28  # a power of two, since Arrow's reader allocates those
FLOATS = ROWS * COLUMNS * 4


@pytest.fixture
def ready(tmp_path):
    """A part of two row groups that keeps all columns, planned and not yet read."""
    rng = np.random.default_rng(0)
    table = pa.table({f"f{i}": rng.standard_normal(4 * ROWS, dtype=np.float32) for i in range(COLUMNS)})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=ROWS // 2, compression="none", use_dictionary=False)
    plan = scorer.prepare(
        tmp_path / "in.parquet", MODELS / "dense28.onnx", tmp_path / "out", batch_rows=4096, tune=False, threads=1
    )
    frozen = plan.check()
    staging = staging_.prepare(Place.of(plan.output, plan.work_dir), frozen)
    spec = Spec.of(frozen, staging)
    JOBS.add(spec)
    SESSIONS.session(frozen.scorers[0].session)
    part = next(frozen.parts())
    assert part.rows == ROWS
    yield spec, part
    JOBS.remove(spec.key)


class Traced:
    """Bytes that Arrow allocated in total, and numpy's peak, both relative to the size of the floats."""

    def __enter__(self):
        self._before = pa.default_memory_pool().total_bytes_allocated()
        tracemalloc.start()
        return self

    def __exit__(self, *_):
        self.numpy = tracemalloc.get_traced_memory()[1] / FLOATS
        tracemalloc.stop()
        self.arrow = (pa.default_memory_pool().total_bytes_allocated() - self._before) / FLOATS


def test_a_float_column_is_copied_once_into_tensors_and_nowhere_else(ready):
    spec, part = ready
    with Traced() as read:
        frame = tasks.read_part(part, spec.key)
    with Traced() as score:
        scored = tasks.score_part(frame, spec.key)
    with Traced() as write:
        tasks._prepared(JOBS.job(spec.key), scored.attrs["scorer"], scored)
    found = {name: (round(one.arrow, 2), round(one.numpy, 2)) for name, one in
             (("read", read), ("score", score), ("write, up to the encoder", write))}  # fmt: skip
    print("allocated relative to the floats, (total by Arrow, peak by numpy):", found)
    assert 2.5 < found["read"][0] < 4  # the columns, half as much of levels, and pages in pieces
    assert found["read"][1] < 0.05
    assert 0.99 < found["score"][0] < 1.05  # one copy, into the batch
    assert found["score"][1] < 0.15  # the scores and the row numbers
    assert max(found["write, up to the encoder"]) < 0.05


def test_a_batch_is_freed_before_the_next_is_built(ready, monkeypatch):
    spec, part = ready
    session = SESSIONS.session(spec.frozen.scorers[0].session)
    frame, held = tasks.read_part(part, spec.key), []
    before, plain = pa.total_allocated_bytes(), session.run
    monkeypatch.setattr(
        type(session), "run", lambda _, *asked: held.append(pa.total_allocated_bytes()) or plain(*asked)
    )
    tasks.score_part(frame, spec.key)
    assert len(held) == 2 * -(-ROWS // 2 // 4096)
    assert max(held) - before < 2.1 * 4096 * COLUMNS * 4


def test_packing_copies_nothing_and_a_batch_is_one_copy():
    table = pa.table({f"f{i}": np.ones(ROWS, np.float32) for i in range(COLUMNS)})
    feed = Feed(tensor="x", kind="numeric", dtype="float32", columns=tuple(table.column_names), shape=(COLUMNS,),
                on_null="nan", on_lossy="error")  # fmt: skip
    with Traced() as packing:
        packed = pack([feed], table)["x"]
    assert packing.numpy < 0.01
    with Traced() as batch:
        packed.batch(slice(0, ROWS))
    assert 0.99 < batch.arrow < 1.01
    assert batch.numpy < 0.01


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), COLUMNS)], ids=str)
def test_a_batch_of_a_list_column_is_a_view(kind):
    values = pa.array(np.ones(ROWS * COLUMNS, np.float32))
    offsets = pa.array(np.arange(0, ROWS * COLUMNS + 1, COLUMNS, dtype=np.int32))
    fixed = pa.types.is_fixed_size_list(kind)
    lists = pa.FixedSizeListArray.from_arrays(values, COLUMNS) if fixed else pa.ListArray.from_arrays(offsets, values)
    feed = Feed(tensor="x", kind="nested", dtype="float32", columns=("v",), shape=(COLUMNS,), on_null="error",
                on_lossy="error")  # fmt: skip
    packed = pack([feed], pa.table({"v": lists}))["x"]
    batch = packed.batch(slice(100, 300))
    address = values.buffers()[1].address
    assert batch.ctypes.data == address + 100 * COLUMNS * 4
    assert batch.shape == (200, COLUMNS)
