"""Parts cover every row once, and a frozen plan is the same after a round trip through JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from types import SimpleNamespace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import strategies
from support.runs import MODELS

from scorer.binding.spec import Binding, Feed, Fetch, fetch_words
from scorer.dataset.summary import Dataset, File
from scorer.errors import DifferentPlan, OptionsError, PreflightError
from scorer.model.protobuf import inspect_model
from scorer.model.spec import SessionSpec
from scorer.options.request import build
from scorer.plan.frozen import FrozenPlan, differences, refuse_different
from scorer.plan.parts import PlannedFile, run_lengths
from scorer.plan.prepared import Plan
from scorer.plan.scorers import Scorer
from scorer.preflight.cutting import Size, plan_files
from scorer.preflight.freeze import request_of
from scorer.preflight.models.requested import Model
from scorer.storage.encoding import Storage
from scorer.storage.files import FileId, file_id


def file(rows, folder="", name="a", groups=None):
    path = "/data/" + (f"{folder}/" if folder else "") + name
    return File(id=FileId(path, rows * 8, 5), folder=folder, top="/in", row_groups=tuple(groups or [rows]))


SCORER = {field.name for field in dataclasses.fields(Scorer)}


def frozen(files, **changes):
    """Return a plan of one model; changes may be fields of the plan or of its model."""
    feed = Feed(tensor="x", kind="numeric", dtype="float32", columns=("a", "b"), shape=(2,), on_null="nan",
                on_lossy="error")  # fmt: skip
    fetch = Fetch(tensor="y", kind="zipmap", columns=("y_0", "y_1"), type="float", labels=("0", "1"), width=2)
    scorer = {
        "binding": Binding(feeds=(feed,), fetches=(fetch,), fixed_batch=3),
        "session": SessionSpec(path="/m.onnx", digest="d", files=("w.bin",), device="cuda:1"),
        "batch_rows": 4096,
        "trials": ("256 rows",),
    }
    own = {name: changes.pop(name) for name in [*changes] if name in SCORER}
    values = {
        "request": {"format": 1, "input": "i", "model": "m", "feed": [["x", ["a", "b"]]]},
        "files": tuple(files),
        "conditions": ("a > 1",),
        "scorers": (Scorer(**scorer | own),),
        "kept": ("a", "ü"),
        "row_id": True,
        "read_schema": "AA==",
        "output_schema": "BB==",
        "storage": Storage(codec="zstd", row_group_rows=9, dictionaries=("a",), encodings=(("b", "PLAIN"),)),
        "versions": {"numpy": "2"},
    }
    return FrozenPlan(**values | changes)


def test_the_shape_of_a_list_is_only_shown(tmp_path):
    """Plans of deep outputs keep their hash and plan.json."""
    fetch = Fetch(tensor="y", kind="list", columns=("y",), type="float", width=6)
    plans = [
        frozen([], binding=Binding(feeds=(), fetches=(dataclasses.replace(fetch, shape=shape),)))
        for shape in ((), (2, 3))
    ]
    assert plans[0].plan_hash == plans[1].plan_hash
    assert plans[0].to_dict() == plans[1].to_dict()
    assert fetch_words(plans[1].fetches[0])[2] == "lists of 6 (2 x 3) float"


def planned(parts, folder="", name="a", hive=(), *, joined=False):
    return PlannedFile(id=FileId(f"/in/{folder}/{name}", 9, 2**62), folder=folder, row_groups=((7, 2),),
                       parts=run_lengths(parts), hive=hive, joined=joined)  # fmt: skip


@settings(max_examples=200)
@given(
    cuts=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=1, max_size=4),
    hive=st.lists(st.tuples(strategies.TEXT, st.none() | strategies.TEXT), max_size=2),
    limits=st.none() | st.integers(0, 2**62),
)
def test_a_frozen_plan_comes_back_from_json_with_the_same_hash(cuts, hive, limits):
    plan = frozen([planned(c, name=str(i), hive=tuple(hive)) for i, c in enumerate(cuts)], request={"limit": limits})
    again = FrozenPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert (again.plan_hash, again.request_hash) == (plan.plan_hash, plan.request_hash)
    assert list(again.parts()) == list(plan.parts())
    assert hash(again.files) == hash(plan.files)


def test_whatever_decides_the_scores_changes_the_plan_hash():
    plan = frozen([planned([1, 2])])
    others = {
        "conditions": (), "batch_rows": 256, "storage": Storage(codec="none", row_group_rows=9), "read_schema": "",
        "output_schema": "", "files": (planned([2, 1]),), "request": {},
        "session": dataclasses.replace(plan.scorers[0].session, device="cpu"),
        "binding": dataclasses.replace(plan.scorers[0].binding, fixed_batch=4), "kept": (), "row_id": False,
    }  # fmt: skip
    hashes = {frozen(**{"files": plan.files, name: value}).plan_hash for name, value in others.items()}
    assert len({plan.plan_hash, *hashes}) == len(others) + 1


def test_a_plan_that_was_tampered_with_is_refused():
    data = frozen([planned([1, 2])]).to_dict()
    with pytest.raises(ValueError, match=data["plan_hash"]):
        FrozenPlan.from_dict(data | {"batch_rows": 1})


def test_columns_that_are_not_read_are_in_the_plan_and_other_plans_stay_as_they_were():
    plan = frozen([planned([1, 2])])
    assert "unused" not in json.dumps(plan.to_dict())
    feed = dataclasses.replace(plan.feeds[0], unused=(1,))
    other = frozen(plan.files, binding=dataclasses.replace(plan.scorers[0].binding, feeds=(feed,)))
    assert other.plan_hash != plan.plan_hash
    assert (other.reads, plan.reads) == (("a",), ("a", "b"))
    assert FrozenPlan.from_dict(json.loads(json.dumps(other.to_dict()))) == other


@pytest.mark.parametrize("what", [{"versions": {"numpy": "3"}}, {"trials": ("512 rows",)}, {"together": 0.9}])
def test_versions_and_what_a_probe_measured_are_recorded_and_not_hashed(what):
    plan = frozen([planned([1])])
    other = frozen(plan.files, **what)
    assert (other.plan_hash, other.request_hash) == (plan.plan_hash, plan.request_hash)
    assert FrozenPlan.from_dict(other.to_dict()) == other


def test_a_plan_that_was_hashed_with_its_trials_can_still_be_read():
    data = frozen([planned([1])]).to_dict()
    hashed = {name: value for name, value in data.items() if name not in {"versions", "plan_hash"}}
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":")).encode()
    old = FrozenPlan.from_dict(data | {"plan_hash": hashlib.sha256(text).hexdigest()})
    assert old.plan_hash != data["plan_hash"]
    assert FrozenPlan.from_dict(old.to_dict()) == old


@settings(max_examples=200)
@given(cuts=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=1, max_size=4))
def test_parts_follow_the_input_and_cover_each_file(cuts):
    plan = frozen([planned(c, folder=f"k={i}", name=str(i), hive=(("k", str(i)),)) for i, c in enumerate(cuts)])
    parts = list(plan.parts())
    assert [p.index for p in parts] == list(range(plan.n_parts))
    assert sum(p.rows for p in parts) == plan.rows == sum(map(sum, cuts))
    for i, c in enumerate(cuts):
        own = [p.sources[0] for p in parts if p.sources[0].path == f"/in/k={i}/{i}"]
        assert [(s.start, s.stop) for s in own] == [(sum(c[:j]), sum(c[: j + 1])) for j in range(len(c))]
        assert {s.hive for s in own} == {(("k", str(i)),)}


@settings(max_examples=200)
@given(runs=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=5))
def test_the_rows_of_joined_files_are_one_part(runs):
    """Each run is the rows of files of one part; the last file of all has two more parts."""
    files = [planned([rows], name=f"{i}-{j}", joined=j > 0) for i, run in enumerate(runs) for j, rows in enumerate(run)]
    plan = frozen([*files, planned([3, 2])])
    parts = list(plan.parts())
    assert [part.rows for part in parts] == [*map(sum, runs), 3, 2]
    assert [part.index for part in parts] == list(range(plan.n_parts))
    assert [[(s.path, s.start, s.stop) for s in part.sources] for part in parts[:-2]] == [
        [(f"/in//{i}-{j}", 0, rows) for j, rows in enumerate(run)] for i, run in enumerate(runs)
    ]
    assert plan.most_rows == max(part.rows for part in parts)
    assert plan.rows == sum(part.rows for part in parts)
    again = FrozenPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert list(again.parts()) == parts
    apart = frozen([dataclasses.replace(file, joined=False) for file in plan.files])
    assert (apart.plan_hash == plan.plan_hash) == (apart == plan)


def test_a_plan_without_joined_files_is_stored_as_before():
    assert planned([1, 2]).as_row() == ["/in//a", "", 9, 2**62, ((7, 2),), ((1, 1), (2, 1)), ()]
    assert PlannedFile.from_row(planned([1], joined=True).as_row()).joined


@pytest.mark.minutes
@pytest.mark.slow
def test_a_hundred_thousand_joined_files_are_planned_in_seconds():
    inputs = [file(100, folder=f"k={i // 25_000}", name=str(i)) for i in range(100_000)]
    started = time.perf_counter()
    for size in (Size(60_000, 64, 2, 1_000, joined=60_000, files=500), Size(10**7, 64, joined=10**7, strict=True)):
        plan = frozen(plan_files(inputs, size, None))
        assert sum(len(part.sources) for part in plan.parts()) == 100_000
    assert time.perf_counter() - started < 30
    assert plan.n_parts == 4


@pytest.mark.parametrize("many", [1, 3, 120_000])
def test_part_names_are_unique_deterministic_and_sorted(many):
    plan = frozen([planned([1] * (many - many // 2), folder="b"), planned([1] * (many // 2), folder="a/c=1")])
    names = [p.name for p in plan.parts()]
    bases = [name.rpartition("/")[2] for name in names]
    assert len(names) == many == len(set(bases))
    assert bases == sorted(bases)
    assert names == [p.name for p in FrozenPlan.from_dict(plan.to_dict()).parts()]
    assert [name.rpartition("/")[0] for name in names] == ["b"] * (many - many // 2) + ["a/c=1"] * (many // 2)
    assert bases[0] == f"part-{'0' * len(str(max(many - 1, 10**4)))}.parquet"


@pytest.mark.minutes
@pytest.mark.slow
def test_a_million_parts_are_planned_in_seconds_and_stay_small():
    """Two million row groups of a thousand files, cut into a million parts."""
    started = time.perf_counter()
    files = plan_files([file(0, name=str(i), groups=[100] * 2_000) for i in range(1_000)], Size(200, 64), None)
    plan = frozen(files)
    size = len(json.dumps(plan.to_dict()))
    assert plan.n_parts == 1_000_000
    assert sum(1 for _ in plan.parts()) == 1_000_000
    assert time.perf_counter() - started < 30
    assert size < 10**6


def test_one_huge_row_group_stays_a_pair_of_run_lengths():
    (got,) = plan_files([file(10**9)], Size(1_000, 100), None)
    assert got.parts == ((1_000, 10**6),)


def dataset(*files):
    return Dataset(
        files=files or (file(10),), schema=pa.schema([]), hive=pa.schema([]), variants=(), skipped=0,
        largest_bytes={}, column_bytes={}, codec="none", row_group_rows=9, dictionaries=(), nulls={},
    )  # fmt: skip


MODEL = inspect_model(MODELS / "sum3.onnx")


def request(*files, spec=MODEL, **options):
    asked = build({"input": "i", "model": "m", **options})
    return request_of(asked, dataset(*files), [Model(name="", spec=spec, options=asked.binding)], {})


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"feed": "x=a"}, ["feed"]), ({"where": "a > 1"}, ["where"]), ({"limit": 0}, ["limit"]),
        ({"keep": "none", "row_id": True}, ["keep", "row_id"]), ({"batch_rows": 5}, ["batch_rows"]),
        ({"on_null": "0", "on_lossy": "warn"}, ["on_lossy", "on_null"]), ({"device": "cpu"}, ["device"]),
        ({"prefix": "p"}, ["prefix"]),
        ({"by_position": True}, ["by_position"]), ({"labels": "a,b"}, ["labels"]),
        ({"batch_axis": {"y": 1}}, ["batch_axis"]),
        ({"file_rows": 5}, ["file_rows"]), ({"file_bytes": "1MiB"}, ["file_bytes"]),
        ({"fetch": "y"}, ["fetch"]), ({"compression": "none"}, ["compression"]),
        ({"threads": 3, "part_bytes": "1MiB", "tune": False, "strict": True, "max_bad_rows": 5, "overwrite": True}, []),
        ({"cluster": "processes", "workers": 2, "work_dir": "w", "output": "o", "max_nan_rows": "1%"}, []),
    ],
)  # fmt: skip
def test_only_what_changes_the_output_makes_another_request(options, names):
    assert differences(request(), request(**options)) == names


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ({}, "73eb70591a77104af5bfc4c2b68337ba1fab4799182f0e2bfd41aa1367c57558"),
        (
            {"feed": "x=a,b,c", "limit": 5, "row_id": True, "prefix": "p"},
            "0621f619629e48a8dcf4b0f8b02b2abd2824521cab931d00bf19502a09725563",
        ),
    ],
)
def test_a_request_without_newer_options_keeps_its_hash(options, digest):
    """As it was before the option `by_position`."""
    assert frozen([], request=request(**options)).request_hash == digest


@pytest.mark.parametrize(
    "changes",
    [
        {"id": FileId("/data/b", 80, 5)}, {"id": FileId("/data/a", 81, 5)}, {"id": FileId("/data/a", 80, 6)},
        {"row_groups": (5, 5)}, {"folder": "x"},
    ],
)  # fmt: skip
def test_another_input_is_another_request(changes):
    assert differences(request(), request(dataclasses.replace(file(10), **changes))) == ["input"]


def test_the_order_of_files_matters():
    one, two = file(10, name="a"), file(10, name="b")
    assert differences(request(one, two), request(two, one)) == ["input"]


def test_another_model_is_another_request_wherever_it_lies():
    assert differences(request(), request(spec=dataclasses.replace(MODEL, digest="other"))) == ["model"]
    assert request() == request(spec=dataclasses.replace(MODEL, path="/elsewhere.onnx"))


def test_a_request_is_equal_to_its_own_json():
    got = request(feed={"x": ["a", "b"]}, where=["a > 1"], limit=5)
    assert json.loads(json.dumps(got)) == got


def test_a_different_plan_says_what_differs():
    error = refuse_different("/out.scorer", earlier(limit=5), request(limit=6, prefix="p"))
    assert isinstance(error, DifferentPlan)
    assert "limit = 5, now 6" in error.found
    assert "prefix = default, now p" in error.found
    assert "feed" not in str(error)
    error = refuse_different("/o", earlier(), request(file(11)))
    assert "the input's files" in error.found


def earlier(*files, **options):
    """Return what is compared of a plan with these files: its request, and the files."""
    return SimpleNamespace(request=request(**options), files=files)


def test_changed_input_files_are_named(tmp_path):
    paths = [tmp_path / f"{n}.parquet" for n in range(6)]
    for path in paths:
        path.write_text("before")
    files = [SimpleNamespace(path=str(path), id=file_id(str(path))) for path in paths]
    for path in paths[1:4]:
        path.write_text("after, which is longer")
    found = refuse_different("/o", earlier(*files), request(file(11))).found
    names = ", ".join(repr(str(path)) for path in paths[1:4])
    assert f"3 input files changed: {names}" in found
    paths[4].unlink()
    found = refuse_different("/o", earlier(*files), request(file(11))).found
    assert f"4 input files changed, 1 of them gone: {names} and 1 more" in found
    found = refuse_different("/o", earlier(files[4]), request(file(11))).found
    assert f"1 input file gone: '{paths[4]}'" in found


def test_a_plan_with_problems_raises_them_all():
    options = build({"input": "i", "model": "m"})
    plan = Plan(options=options, output="o", work_dir="w", problems=(OptionsError("one"), OptionsError("two")))
    with pytest.raises(PreflightError, match=r"(?s)one.*two"):
        plan.check()
    good = dataclasses.replace(plan, problems=(), frozen=frozen([planned([1, 2])]))
    assert good.check().rows == 3
    assert json.loads(json.dumps(good.to_dict()))["input"] == {"files": 1, "rows": 3, "parts": 2}


def test_the_requests_to_stores_and_their_price_are_forecast():
    big = dataclasses.replace(planned([100] * 500), id=FileId("s3://lake/a.parquet", 4 * 10**9, "e"))
    options = build({"input": "a", "model": "m"})
    local = Plan(options=options, output="/o", work_dir="/w", frozen=frozen([planned([100])]))
    assert local.requests is None
    assert local.to_dict()["requests"] is None
    plan = Plan(options=options, output="s3://lake/o", work_dir="s3://lake/o.scorer", frozen=frozen([big] * 200))
    assert (plan.requests.writes, plan.requests.reads) == (200_521, 500_420)
    shown = "about 200,521 writes and 500,420 reads: about 1.20 dollars, at 5 dollars per million writes and 0.4"
    assert shown in " ".join(str(plan).split())
    few = Plan(options=options, output="/o", work_dir="/w", frozen=frozen([big]))
    assert "about 1 write and 2,002 reads: less than a cent" in " ".join(str(few).split())
