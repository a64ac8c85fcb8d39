"""Where an output on a store may be: beside the input by default, never inside it, with its proof in one bucket."""

from __future__ import annotations

import pytest
from support.buckets import ROOT, bucket
from support.runs import MODELS, write

import scorer
from scorer.errors import OptionsError
from scorer.output.place import Place


@pytest.fixture
def store():
    with bucket() as found:
        found.fill("data/a.parquet", "day.parquet", "spark.parquet/part-0.parquet")
        yield found


def plan(source, **options):
    return scorer.prepare(source, MODELS / "sum3.onnx", feed="x=a,a,a", cluster="synchronous", **options)


def problems(source, **options):
    """Return the first line and what was found of each problem with the output's place."""
    return [(found.what, found.found) for found in plan(source, **options).problems if "input has" not in found.what]


@pytest.mark.parametrize(
    ("source", "output"),
    [
        (f"{ROOT}/data", f"{ROOT}/data.scored"),
        (f"{ROOT}/data/", f"{ROOT}/data.scored"),
        (f"{ROOT}/day.parquet", f"{ROOT}/day.scored.parquet"),
        (f"{ROOT}/spark.parquet", f"{ROOT}/spark.parquet.scored"),
        ("s3a://mem//data", f"{ROOT}/data.scored"),
    ],
)
def test_an_output_is_beside_its_input_on_the_store(source, output, store):
    found = plan(source)
    assert (found.output, found.work_dir) == (output, f"{output}.scorer")


@pytest.mark.parametrize("source", [ROOT, f"{ROOT}/", "http://127.0.0.1:9/day.parquet"])
def test_an_input_beside_which_nothing_can_be_written_needs_an_output(source, store):
    found = plan(source).problems
    assert found[0].what == "this input needs an --output"
    assert found[0].found == f"the input {source.rstrip('/')}, beside which scorer cannot write"


@pytest.mark.parametrize(
    ("source", "output", "what"),
    [
        (f"{ROOT}/data", f"{ROOT}/data", "the folder for --output is inside the input"),
        (f"{ROOT}/data", f"{ROOT}/data/scores", "the folder for --output is inside the input"),
        (f"{ROOT}/data", "s3a://mem//data/scores/", "the folder for --output is inside the input"),
        (f"{ROOT}/data/a.parquet", f"{ROOT}/data", "the input is inside the folder for --output"),
        (ROOT, f"{ROOT}/scores", "the folder for --output is inside the input"),
    ],
)
def test_an_output_inside_the_input_is_refused(source, output, what, store):
    assert problems(source, output=output)[0][0] == what


@pytest.mark.parametrize("output", [f"{ROOT}/data2", f"{ROOT}/scores", f"{ROOT}/data2/scores"])
def test_an_output_with_a_similar_name_is_not_inside_the_input(output, store):
    assert problems(f"{ROOT}/data", output=output) == []


def test_an_input_on_a_disk_and_an_output_on_a_store_do_not_overlap(store, tmp_path):
    source = write(tmp_path / "mem" / "data" / "a.parquet", {"a": [1.0]})
    assert problems(source, output=f"{ROOT}/data2") == []


def test_an_input_on_a_store_and_an_output_on_a_disk_do_not_overlap(store, tmp_path):
    assert problems(f"{ROOT}/data", output=tmp_path / "out") == []


@pytest.mark.parametrize("work_dir", ["s3://other/work", "gs://mem/work", "work", "s3://mem"])
def test_a_work_dir_in_another_bucket_than_the_output_is_refused(work_dir):
    with pytest.raises(OptionsError, match="on another store than the output") as error:
        Place.of(f"{ROOT}/scores", work_dir)
    assert error.value.expected == f"a folder in {ROOT}"


def test_a_work_dir_on_a_store_is_refused_for_an_output_on_a_disk(tmp_path):
    with pytest.raises(OptionsError, match="on another store than the output"):
        Place.of(str(tmp_path / "out"), f"{ROOT}/work")


@pytest.mark.parametrize(
    ("work_dir", "what"),
    [
        (f"{ROOT}/scores/work", "the folder for --work-dir is inside the output"),
        (f"{ROOT}/data/work", "the folder for --work-dir is inside the input"),
    ],
)
def test_a_work_dir_inside_output_or_input_is_refused(work_dir, what, store):
    assert problems(f"{ROOT}/data", output=f"{ROOT}/scores", work_dir=work_dir)[0][0] == what


def test_an_output_that_is_an_object_is_refused(store):
    assert problems(f"{ROOT}/data", output=f"{ROOT}/day.parquet")[0] == (
        "--output is a file",
        "an object with this name",
    )


def test_an_output_behind_http_is_refused(store):
    found = problems(f"{ROOT}/data", output="https://example.invalid/scores")
    assert found == [("scorer cannot write to https://", "https://")]


def test_a_key_that_leaves_no_room_for_the_names_of_parts_is_refused(store):
    assert problems(f"{ROOT}/data", output=f"{ROOT}/{'long/' * 200}") == [
        ("a name in the output's path is too long", "999 bytes")
    ]


def test_objects_of_another_origin_are_named_and_not_replaced(store):
    store.fill("scores/x/other.parquet")
    for overwrite in (False, True):
        ((what, found),) = problems(f"{ROOT}/data", output=f"{ROOT}/scores", overwrite=overwrite)
        assert what == ("--overwrite replaces only what scorer published" if overwrite else "the output exists")
        assert found.startswith("'x', without a proof")
