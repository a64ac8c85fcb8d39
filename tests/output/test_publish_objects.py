"""The commit protocol on an object store in memory: whole runs, and what their publishing leaves and refuses."""

from __future__ import annotations

import io
import json
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.buckets import ROOT, bucket
from support.runs import MODELS, cli, oracle, write

import scorer
from scorer.errors import CommitError, OutputFull, OutputLocked, ScorerError
from scorer.events import PartFinished
from scorer.output import publish_objects
from scorer.output.publish_objects import _Gate
from scorer.storage import stores
from scorer.storage.stores import ObjectPath

OUT = f"{ROOT}/lake/scores"
MODEL = MODELS / "sum3.onnx"
PROOF = ["events.jsonl", "ledger.parquet", "manifest.json", "plan.json", "report.html", "report.json"]


@pytest.fixture
def store():
    with bucket() as found:
        yield found
    stores.configure(())


def values(seed=0, rows=40):
    return {"id": np.arange(rows), **{c: np.random.default_rng(seed).normal(size=rows).astype("f4") for c in "abc"}}


def run(tmp_path, columns=None, output=OUT, **options):
    """Score four parts; return the report."""
    columns = values() if columns is None else columns
    source = tmp_path / f"in-{hash(columns['a'].tobytes()):x}.parquet"
    source = source if source.exists() else write(source, columns)  # the time of change belongs to the input
    options = {"feed": "x=a,b,c", "file_rows": 10, "tune": False, "batch_rows": 5, "cluster": "synchronous"} | options
    return scorer.run(source, MODEL, output, **options)


def names(top=OUT):
    return list(ObjectPath(top).files())


def rows(store):
    """Return the rows of the output, read as whole objects."""
    tables = [pq.read_table(io.BytesIO(store.read(f"{OUT}/{name}"))) for name in names() if name.endswith(".parquet")]
    return pa.concat_tables(tables)


def exact(store, columns):
    found = rows(store)
    expected = oracle(MODEL, {"x": np.stack([columns[c] for c in "abc"], axis=1)}, 5)
    return found["id"].to_pylist() == columns["id"].tolist() and np.array_equal(
        found["total"], next(iter(expected.values())).ravel()
    )


def ledger(store):
    table = pq.read_table(io.BytesIO(store.read(f"{OUT}.scorer/ledger.parquet")))
    return dict(zip(table["name"].to_pylist(), table["size"].to_pylist(), strict=True))


def test_an_output_on_a_store_is_exact_and_is_what_its_ledger_says(store, tmp_path):
    report = run(tmp_path)
    assert exact(store, values())
    assert ledger(store) == {name: file.size for name, file in ObjectPath(OUT).files().items()}
    assert names(f"{OUT}.scorer") == PROOF
    assert (report.parts, report.output) == (4, OUT)


def test_the_same_command_does_nothing_after_success(store, tmp_path):
    run(tmp_path)
    before = {file.path: file.version for file in store.objects(ROOT)}
    assert run(tmp_path).already_done
    assert {file.path: file.version for file in store.objects(ROOT)} == before


def test_the_names_of_the_parts_have_the_hash_of_their_plan(store, tmp_path):
    plan = run(tmp_path).plan
    assert names() == [f"part-{part:05d}-{plan[:8]}.parquet" for part in range(4)]


def test_another_output_is_refused_and_replaced_with_overwrite(store, tmp_path):
    run(tmp_path)
    with pytest.raises(ScorerError, match="the output exists"):
        run(tmp_path, values(1, 30))
    assert exact(store, values())
    run(tmp_path, values(1, 30), overwrite=True)
    assert exact(store, values(1, 30))
    assert len(names()) == 3
    assert names(f"{OUT}.scorer") == PROOF


def test_files_of_others_are_not_replaced(store, tmp_path):
    run(tmp_path)
    store.put(f"{OUT}/notes.txt", b"mine")
    with pytest.raises(ScorerError, match=r"notes\.txt"):
        run(tmp_path, values(1), overwrite=True)
    assert store.read(f"{OUT}/notes.txt") == b"mine"
    assert exact(store, values())


def test_a_file_that_appears_during_the_run_ends_it_before_anything_is_shown(store, tmp_path):
    def appear(event):
        if isinstance(event, PartFinished):
            store.put(f"{OUT}/notes.txt", b"mine")

    with pytest.raises(CommitError, match="other files appeared in the output"):
        run(tmp_path, observers=[appear])
    assert names() == ["notes.txt"]
    store.remove([f"{OUT}/notes.txt"])
    assert run(tmp_path).parts_resumed == 4
    assert exact(store, values())


def test_a_run_goes_on_from_the_parts_of_a_run_that_ended(store, tmp_path):
    def end(event):
        if isinstance(event, PartFinished) and event.receipt.proof.part == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, observers=[end])
    assert not ObjectPath(OUT).exists()
    report = run(tmp_path)
    assert report.parts_resumed in {1, 2}
    assert exact(store, values())


def test_bad_rows_are_beside_the_output(store, tmp_path):
    columns = values() | {"a": values()["a"].astype("f8")}
    columns["a"][7] = 1e300
    run(tmp_path, columns, max_bad_rows=1)
    (name,) = names(f"{OUT}.scorer/quarantine")
    bad = pq.read_table(io.BytesIO(store.read(f"{OUT}.scorer/quarantine/{name}")))
    assert bad["id"].to_pylist() == [7]
    assert 7 not in rows(store)["id"].to_pylist()


def test_a_replaced_output_leaves_no_quarantine(store, tmp_path):
    columns = values() | {"a": values()["a"].astype("f8")}
    columns["a"][7] = 1e300
    run(tmp_path, columns, max_bad_rows=1)
    run(tmp_path, values(1), overwrite=True)
    assert names(f"{OUT}.scorer") == PROOF


def test_parts_without_rows_are_not_shown(store, tmp_path):
    run(tmp_path, where="id >= 35")
    assert rows(store)["id"].to_pylist() == [35, 36, 37, 38, 39]
    assert len(names()) == 1
    assert sum(size > 0 for size in ledger(store).values()) == 1


def test_a_success_file_is_empty_comes_last_and_is_replaced(store, tmp_path):
    run(tmp_path, success_file=True)
    assert store.read(f"{OUT}/_SUCCESS") == b""
    run(tmp_path, values(1), success_file=True, overwrite=True)
    assert names()[0] == "_SUCCESS"
    run(tmp_path, values(2), overwrite=True)
    assert "_SUCCESS" not in names()
    assert len(names()) == 4


def careless(store):
    """Make the store say of every write that it was the first one."""

    class Careless(type(store)):
        def guarded(self, *_):
            return self

        def put_new(self, location, data):
            return self.put(location, data)

        def put_over(self, location, data, _):
            return self.put(location, data)

    store.__class__ = Careless


def test_a_store_that_lets_two_writers_win_is_refused_before_a_row_is_scored(store, tmp_path):
    careless(store)
    with pytest.raises(CommitError, match="does not keep its word on conditional writes") as refused:
        run(tmp_path)
    assert refused.value.found == "both were accepted"
    assert "--sole-writer" in refused.value.hint
    assert names(f"{OUT}.scorer") == []


def test_a_sole_writer_needs_no_conditional_writes(store, tmp_path):
    careless(store)
    store.conditional = False
    run(tmp_path, sole_writer=True)
    assert stores.SOLE_WRITER in stores.options()
    assert exact(store, values())
    run(tmp_path, values(1), overwrite=True, sole_writer=True)
    assert exact(store, values(1))
    assert names(f"{OUT}.scorer") == PROOF
    code, _, text = cli("inspect", MODEL, "--input", next(tmp_path.glob("in-*")), "--feed", "x=a,b,c")
    assert code == 0, text  # it takes the options of the store, but no --sole-writer


def test_a_late_part_of_an_older_run_is_not_shown(store, tmp_path):
    report = run(tmp_path)
    store.put(f"{OUT}.scorer/work-{report.plan[:8]}/parts/part-00001-{report.plan[:8]}.parquet", b"late")
    assert run(tmp_path).already_done
    assert exact(store, values())
    assert names(f"{OUT}.scorer") == PROOF


def test_what_dead_drivers_left_is_removed_by_the_same_command(store, tmp_path):
    run(tmp_path)
    store.put(f"{OUT}.scorer/seen-12345678", b"")
    assert run(tmp_path).already_done
    assert names(f"{OUT}.scorer") == PROOF


def test_a_driver_that_lost_its_lease_while_it_scored_publishes_nothing(store, tmp_path):
    def steal(event):
        if isinstance(event, PartFinished):
            owner = {"host": "elsewhere", "pid": 7, "token": "other", "beat": 0}
            store.put(f"{OUT}.scorer/lock", json.dumps(owner).encode())

    def slow(event):
        if isinstance(event, PartFinished):
            time.sleep(1.2)  # until the next renewal

    with pytest.raises(OutputLocked, match="process 7 on elsewhere took over"):
        run(tmp_path, observers=[steal, slow])
    assert not ObjectPath(OUT).exists()


def test_the_manifest_has_the_digest_of_the_ledger_that_is_beside_the_output(store, tmp_path, monkeypatch):
    copy_parts = publish_objects._copy_parts

    def copied(*args, **options):
        """Stage another ledger meanwhile, as a driver does that wakes without its lease."""
        staged = next(name for name in names(f"{OUT}.scorer") if name.endswith("/ledger.parquet"))
        table = pq.read_table(io.BytesIO(store.read(f"{OUT}.scorer/{staged}")))
        sink = io.BytesIO()
        pq.write_table(table.set_column(table.column_names.index("worker"), "worker", pa.array(["late"] * 4)), sink)
        store.put(f"{OUT}.scorer/{staged}", sink.getvalue())
        return copy_parts(*args, **options)

    monkeypatch.setattr(publish_objects, "_copy_parts", copied)
    run(tmp_path)
    assert exact(store, values())
    assert scorer.verify(OUT).whole


def test_lost_rights_are_said_and_keep_the_parts(store, tmp_path, monkeypatch):
    allowed = type(store).put_new

    def denied(self, location, data):
        if "part-00002" in location:
            raise PermissionError(13, "403 AccessDenied", location)
        return allowed(self, location, data)

    monkeypatch.setattr(type(store), "put_new", denied)
    with pytest.raises(OutputFull) as refused:
        run(tmp_path)
    assert refused.value.found == "403 AccessDenied"
    assert "credentials have expired" in refused.value.hint
    assert not ObjectPath(OUT).exists()
    monkeypatch.setattr(type(store), "put_new", allowed)
    assert run(tmp_path).parts_resumed == 2
    assert exact(store, values())


def test_a_run_that_is_complete_is_a_success_although_staging_cannot_be_removed(store, tmp_path, monkeypatch):
    allowed, notices = publish_objects._remove_staging, []

    def held_back(*_):
        raise PermissionError(13, "403 retention")

    monkeypatch.setattr(publish_objects, "_remove_staging", held_back)
    run(tmp_path, observers=[lambda event: notices.append(getattr(event, "text", ""))])
    assert exact(store, values())
    assert any("the output is complete, but" in text and "403 retention" in text for text in notices)
    monkeypatch.setattr(publish_objects, "_remove_staging", allowed)
    assert run(tmp_path).already_done
    assert names(f"{OUT}.scorer") == PROOF


def test_as_many_copies_run_as_the_store_keeps_up_with():
    gate, running, most = _Gate(), [], []
    step = threading.Lock()

    def copy():
        with gate:
            with step:
                running.append(1)
                most.append(len(running))
            time.sleep(0.002)
            with step:
                running.pop()

    def run_copies(number):
        threads = [threading.Thread(target=copy) for _ in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return max(most)

    assert run_copies(8) <= 8
    assert 8 < run_copies(300) <= 64
    for _ in range(10):
        gate.slow()
    most.clear()
    assert run_copies(1) == 1
