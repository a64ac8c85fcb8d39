"""Small files of one folder are scored as one part and written as one file; --file-rows and --file-bytes size it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs import MODELS, cli, oracle, read, write

import scorer
from scorer.errors import OptionsError, PreflightError, RunFailed
from scorer.events import PartFinished
from scorer.output.place import Place, load_plan
from scorer.scoring import content
from scorer.storage import copying

SUM, GATHER = MODELS / "sum3.onnx", MODELS / "gather.onnx"
SIZES = ((7,), (), (3, 4), (1,), (250, 20), (9,), (64, 64, 1))
"""Rows of the row groups of each file."""
HERE = {"cluster": "synchronous", "tune": False}


def numbers(rows, start=0):
    """Return the columns a, b, c, which the model adds up, and an id that goes on from file to file."""
    ids = np.arange(start, start + rows)
    return {name: (ids * (i + 1) % 1000 / 7).astype(np.float32) for i, name in enumerate("abc")} | {"id": ids}


def awkward(rows, start):
    """Return columns that change with a careless concatenation: each file has other dictionaries."""
    texts = [f"{start}-{row % 3}" if row % 5 else None for row in range(rows)]
    deep = [[{"x": start, "y": str(row)}, None] for row in range(rows)]
    return numbers(rows, start) | {
        "words": pa.array(texts, pa.string()).dictionary_encode(),
        "big": pa.array([None if row % 2 else 2**62 + start for row in range(rows)], pa.int64()),
        "deep": pa.array(deep, pa.list_(pa.struct({"x": pa.int64(), "y": pa.string()}))),
    }


def more_awkward(rows, start):
    """Return the same with lists of dictionary values, which Arrow cannot combine."""
    inner = pa.array([f"{start}-{row % 3}" for row in range(2 * rows)]).dictionary_encode()
    offsets = pa.array(np.arange(rows + 1) * 2, pa.int32())
    return awkward(rows, start) | {"tags": pa.ListArray.from_arrays(offsets, inner)}


def write_groups(path, table, groups):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, table.schema) as writer:
        at = 0
        for rows in groups:
            writer.write_table(table.slice(at, rows), row_group_size=rows)
            at += rows
    return path


def write_small(folder, columns=awkward):
    """Write the files of SIZES; return their paths in order."""
    paths, start = [], 0
    for i, groups in enumerate(SIZES):
        table = pa.table(columns(sum(groups), start))
        paths.append(write_groups(folder / f"{i}.parquet", table, groups))
        start += sum(groups)
    return paths


def scores(paths, batch_rows):
    """Return the scores of ONNX Runtime alone, row group by row group."""
    pieces = []
    for path in paths:
        with pq.ParquetFile(path) as parquet:
            for group in range(parquet.num_row_groups):
                rows = parquet.read_row_group(group, columns=["a", "b", "c"])
                matrix = np.stack([column.to_numpy() for column in rows.columns], axis=1)
                pieces.append(oracle(SUM, {"x": matrix}, batch_rows)["total"])
    return np.concatenate(pieces).ravel()


def files(top):
    return sorted(path.relative_to(top).as_posix() for path in top.rglob("*.parquet"))


def ledger(output):
    return pq.read_table(output.parent / f"{output.name}.scorer" / "ledger.parquet").to_pylist()


def rows_of_files(output):
    return [pq.read_metadata(path).num_rows for path in sorted(output.rglob("*.parquet"))]


def run(top, model=SUM, **more):
    return scorer.run(top / "in", model, top / "out", **{"feed": "x=a,b,c"} | HERE | more)


def test_small_files_become_one_file_with_their_rows_in_order_and_the_same_scores(backend, tmp_path):
    paths = write_small(tmp_path / "in")
    report = run(tmp_path, row_id=True, batch_rows=16, **backend)
    assert (report.parts, files(tmp_path / "out")) == (1, ["part-00000.parquet"])
    found = read(tmp_path / "out")
    tables = [pq.read_table(path) for path in paths]
    expected = pa.concat_tables(tables)
    for field in expected.schema:
        assert found.schema.field(field.name).equals(field), field
        assert found[field.name].to_pylist() == expected[field.name].to_pylist(), field
    assert np.array_equal(found["total"].to_numpy().ravel().view(np.int32), scores(paths, 16).view(np.int32))
    place = [(str(path), row) for path, table in zip(paths, tables, strict=True) for row in range(len(table))]
    assert list(zip(found["_file"].to_pylist(), found["_row"].to_pylist(), strict=True)) == place
    assert cli("verify", tmp_path / "out", "--deep", "--rescore", 100)[0] == 0


def test_the_ledger_names_the_first_file_of_a_part_and_counts_its_files(tmp_path):
    paths = write_small(tmp_path / "in")
    run(tmp_path, file_rows=280, batch_rows=1)
    found = [(row["file"], row["row_start"], row["row_stop"], row["rows"], row["files"])
             for row in ledger(tmp_path / "out")]  # fmt: skip
    assert found == [
        (str(paths[0]), 0, 7, 15, 4), (str(paths[4]), 0, 270, 279, 2), (str(paths[6]), 0, 129, 129, 1),
    ]  # fmt: skip
    page = (tmp_path / "out.scorer" / "report.html").read_text()
    assert "0.parquet and 3 more files" in page
    assert cli("report", tmp_path / "out")[0] == 0
    verdict = cli("verify", tmp_path / "out", "--deep", "--rescore", 400)
    assert verdict[0] == 0
    assert "all have the same bits" in verdict[1]


def test_a_run_of_one_file_for_each_part_has_the_ledger_of_before(tmp_path):
    write(tmp_path / "in" / "a.parquet", numbers(100))
    run(tmp_path)
    assert "files" not in ledger(tmp_path / "out")[0]
    plan = json.loads((tmp_path / "out.scorer" / "plan.json").read_text())
    assert [len(row) for row in plan["files"]] == [7]
    assert not {"file_rows", "file_bytes"} & plan["request"].keys()


def test_files_of_different_folders_are_not_joined(tmp_path):
    for day in range(3):
        for i in range(2):
            write(tmp_path / "in" / f"day={day}" / f"{i}.parquet", numbers(5, start=10 * day + 5 * i))
    report = run(tmp_path, keep=["id", "day"])
    assert files(tmp_path / "out") == [f"day={day}/part-0000{day}.parquet" for day in range(3)]
    assert (report.parts, report.files) == (3, 3)
    found = pq.read_table(tmp_path / "out")  # with the keys of the folders
    assert found["id"].to_pylist() == list(range(30))
    assert found["day"].to_pylist() == [day for day in range(3) for _ in range(10)]


def test_files_with_other_schemas_are_not_joined(tmp_path):
    kinds = (pa.string(), pa.string(), pa.large_string(), pa.large_string(), pa.string())
    for i, kind in enumerate(kinds):
        write(tmp_path / "in" / f"{i}.parquet", numbers(5, start=5 * i) | {"t": pa.array(list("vwxyz"), kind)})
    report = run(tmp_path)
    assert [row["files"] for row in ledger(tmp_path / "out")] == [2, 2, 1]
    assert read(tmp_path / "out")["t"].to_pylist() == list("vwxyz") * 5
    assert report.counts.scored == 25


def test_conditions_apply_to_the_rows_of_all_files(backend, tmp_path):
    paths = write_small(tmp_path / "in")
    report = run(tmp_path, where=["id >= 9", "words is not null"], row_id=True, batch_rows=16, **backend)
    expected = pa.concat_tables([pq.read_table(path) for path in paths])
    kept = [row for row, words in enumerate(expected["words"].to_pylist()) if words is not None and row >= 9]
    found = read(tmp_path / "out")
    assert found["id"].to_pylist() == kept
    assert found["deep"].to_pylist() == expected["deep"].take(kept).to_pylist()
    at = {row: str(path) for path in paths for row in pq.read_table(path)["id"].to_pylist()}
    assert found["_file"].to_pylist() == [at[row] for row in kept]
    assert report.counts.filtered == len(expected) - len(kept)


def test_a_limit_that_ends_inside_a_file_leaves_that_file_apart(tmp_path):
    write_small(tmp_path / "in")
    run(tmp_path, limit=100)
    assert read(tmp_path / "out")["id"].to_pylist() == list(range(100))
    assert [(row["rows"], row["files"]) for row in ledger(tmp_path / "out")] == [(15, 4), (85, 1)]


def test_columns_of_several_files_are_copied_as_they_are_stored(backend, tmp_path, monkeypatch):
    paths = [
        write(
            tmp_path / "in" / f"{i}.parquet", awkward(rows, 10**6 * i), row_group_size=20_000, write_page_checksum=True
        )
        for i, rows in enumerate((40_000, 20_000, 30_000))
    ]
    copied = []
    plain = copying.write
    monkeypatch.setattr(copying, "write", lambda *given: (copied.append(given[3]), plain(*given)))
    report = run(tmp_path, batch_rows=4096, file_rows=10**6, **backend)
    assert report.parts == 1
    assert {"words", "big", "deep"} <= set(load_plan(tmp_path / "out.scorer" / "plan.json").storage.copied)
    if backend["cluster"] != "processes":
        assert [len(one.groups) for one in copied[0]] == [2, 1, 2]
    found, expected = read(tmp_path / "out"), pa.concat_tables([pq.read_table(path) for path in paths])
    for field in expected.schema:
        assert found.schema.field(field.name).equals(field), field
        assert found[field.name].equals(expected[field.name]), field
    (written,) = (tmp_path / "out").iterdir()
    metadata = pq.read_metadata(written)
    sizes = [metadata.row_group(group).column(4).total_compressed_size for group in range(metadata.num_row_groups)]
    theirs = [pq.read_metadata(path) for path in paths]
    assert sizes == [m.row_group(g).column(4).total_compressed_size for m in theirs for g in range(m.num_row_groups)]
    assert np.array_equal(found["total"].to_numpy().ravel(), scores(paths, 4096))
    assert cli("verify", tmp_path / "out", "--deep", "--rescore", 50)[0] == 0


def test_kept_columns_that_cannot_be_copied_are_read_from_every_file(tmp_path, monkeypatch):
    """The rows are read 7,001 at a time, across the ends of the files."""
    paths = [write(tmp_path / "in" / f"{i}.parquet", more_awkward(20_000, 20_000 * i)) for i in range(3)]
    monkeypatch.setattr(content, "_copied_groups", lambda *_: None)
    plan = scorer.prepare(tmp_path / "in", SUM, tmp_path / "out", feed="x=a,b,c", file_rows=10**6, **HERE).check()
    assert plan.storage.copied
    ready = scorer.prepare(tmp_path / "in", SUM, tmp_path / "out", feed="x=a,b,c", file_rows=10**6, **HERE)
    storage = dataclasses.replace(plan.storage, stretch_rows=7_001)
    scorer.execute(dataclasses.replace(ready, frozen=dataclasses.replace(plan, storage=storage, plan_hash="")))
    found, expected = read(tmp_path / "out"), pa.concat_tables([pq.read_table(path) for path in paths])
    for name in expected.column_names:
        assert found[name].to_pylist() == expected[name].to_pylist(), name


def test_bad_rows_of_several_files_are_quarantined_with_their_file_and_row(backend, tmp_path):
    for i in range(4):
        idx = np.arange(50) % 10
        idx[[3, 40][: i % 3]] = 99
        write(tmp_path / "in" / f"{i}.parquet", {"idx": idx, "id": np.arange(50) + 100 * i}, row_group_size=20)
    report = run(tmp_path, GATHER, feed="idx=idx", max_bad_rows=10, row_id=True, **backend)
    expected = [("1.parquet", 3), ("2.parquet", 3), ("2.parquet", 40)]
    assert (report.parts, report.counts.quarantined) == (1, 3)
    (path,) = (tmp_path / "out.scorer" / "quarantine").iterdir()
    rows = pq.read_table(path).to_pylist()
    assert [(row["_file"].rpartition("/")[2], row["_row"]) for row in rows] == expected
    assert [row["id"] for row in rows] == [103, 203, 240]
    found = read(tmp_path / "out").to_pylist()
    assert len(found) == 197
    assert all(row["id"] == 100 * int(row["_file"][-9]) + row["_row"] for row in found)
    assert cli("verify", tmp_path / "out", "--deep", "--rescore", 50)[0] == 0


class Cut(BaseException):
    """A process that ends in the middle of a run."""


def stopped(event):
    if isinstance(event, PartFinished):
        raise Cut


def test_a_run_that_stops_between_joined_parts_is_finished_by_the_same_command(tmp_path):
    paths = write_small(tmp_path / "in")
    flags = {"file_rows": 20, "batch_rows": 8}
    with pytest.raises(Cut):
        run(tmp_path, observers=[stopped], **flags)
    assert not (tmp_path / "out").exists()
    report = run(tmp_path, **flags)
    assert report.parts_resumed == 1
    assert read(tmp_path / "out")["id"].to_pylist() == list(range(423))
    assert np.array_equal(read(tmp_path / "out")["total"].to_numpy().ravel(), scores(paths, 8))
    with pytest.raises(PreflightError, match=r"file_rows = 20, now 40"):
        run(tmp_path, file_rows=40, batch_rows=8)


def test_a_run_that_an_older_version_began_keeps_its_parts(tmp_path):
    """Older versions wrote a part for each file."""
    write_small(tmp_path / "in")
    plan = scorer.prepare(tmp_path / "in", SUM, tmp_path / "out", feed="x=a,b,c", **HERE)
    apart = tuple(dataclasses.replace(file, joined=False) for file in plan.frozen.files)
    old = dataclasses.replace(plan, frozen=dataclasses.replace(plan.frozen, files=apart, plan_hash=""))
    with pytest.raises(Cut):
        scorer.execute(old, observers=[stopped])
    report = run(tmp_path)
    assert (report.parts, report.parts_resumed) == (len(SIZES), 1)
    assert read(tmp_path / "out")["id"].to_pylist() == list(range(423))
    assert load_plan(Place.of(str(tmp_path / "out"), None).folder / "plan.json").n_parts == len(SIZES)


@pytest.mark.parametrize("cluster", ["synchronous", "embedded"])
@pytest.mark.parametrize("changed", [5, 4], ids=["its last file", "its first file"])
def test_a_file_of_a_part_that_changes_after_planning_is_refused(tmp_path, changed, cluster):
    paths = write_small(tmp_path / "in", numbers)
    flags = {"file_rows": 280, "batch_rows": 1, "keep": "id", "cluster": cluster}
    shutil.copy2(paths[changed], tmp_path / "away")
    plan = scorer.prepare(tmp_path / "in", SUM, tmp_path / "out", feed="x=a,b,c", **HERE | flags)
    write(paths[changed], numbers(sum(SIZES[changed]), start=5_000))
    with pytest.raises(RunFailed, match=f"{paths[changed]}"):
        scorer.execute(plan)
    assert not (tmp_path / "out").exists()
    shutil.copy2(tmp_path / "away", paths[changed])
    report = run(tmp_path, **flags)
    assert report.parts_resumed == 2
    assert read(tmp_path / "out")["id"].to_pylist() == list(range(423))


def test_a_part_of_several_files_is_named_by_its_first_and_last_file(tmp_path):
    paths = write_small(tmp_path / "in")
    plan = scorer.prepare(tmp_path / "in", SUM, tmp_path / "out", feed="x=a,b,c", **HERE).check()
    assert next(plan.parts()).place == f"part 0: 7 files, {paths[0]} to {paths[-1]}"


@pytest.mark.parametrize("most", [1, 10, 100, 10_000])
@pytest.mark.slow
def test_a_file_has_at_most_the_requested_rows_or_one_batch(tmp_path, most):
    write_small(tmp_path / "in")
    write(tmp_path / "in" / "large.parquet", awkward(5_000, 10_000), row_group_size=1_300)
    run(tmp_path, file_rows=most, batch_rows=16)
    sizes = rows_of_files(tmp_path / "out")
    assert max(sizes) <= max(most, 16)
    assert sum(sizes) == 5_423
    if most == 10_000:
        assert sizes == [5_423]
    if most == 100:
        assert sizes[:6] == [15, 96, 80, 74, 20, 9]


def test_rows_of_a_file_beyond_part_bytes_are_noted(tmp_path):
    write(tmp_path / "in" / "a.parquet", numbers(50_000), row_group_size=1_000)
    _, text, _ = cli("plan", tmp_path / "in", "--model", SUM, "--output", tmp_path / "out", "--feed", "x=a,b,c",
                     "--file-rows", 40_000, "--part-bytes", "200KB", "--no-tune")  # fmt: skip
    assert re.search(r"--file-rows: a file has at most 10,000 rows; --part-bytes allows no more", text)
    _, text, _ = cli("plan", tmp_path / "in", "--model", SUM, "--output", tmp_path / "out", "--feed", "x=a,b,c",
                     "--file-rows", 100, "--batch-rows", 256, "--no-tune")  # fmt: skip
    assert "--file-rows: a file may have 256 rows; a batch has 256 rows and is not divided" in text


def test_a_file_has_about_the_requested_bytes(tmp_path):
    rng = np.random.default_rng(1)
    for i in range(30):
        noise = {name: rng.standard_normal(1_000) for name in "defg"}
        fed = {name: rng.standard_normal(1_000).astype(np.float32) for name in "abc"}
        write(tmp_path / "in" / f"{i:02d}.parquet", fed | noise)
    run(tmp_path, file_bytes="256KiB", batch_rows=500)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "out").iterdir())]
    assert max(sizes) <= 1.05 * 2**18
    assert min(sizes[:-1]) >= 0.8 * 2**18
    assert len(read(tmp_path / "out")) == 30_000


def test_rows_and_bytes_of_a_file_exclude_each_other(tmp_path):
    write(tmp_path / "in" / "a.parquet", numbers(10))
    with pytest.raises(PreflightError, match="--file-rows and --file-bytes cannot be combined") as caught:
        run(tmp_path, file_rows=5, file_bytes="1MiB")
    assert isinstance(caught.value.problems[0], OptionsError)
