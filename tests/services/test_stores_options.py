"""What a store refuses is reported before a row is scored; no secret leaves a process."""

from __future__ import annotations

import json

import pytest
from support.runs import FLIGHTS, cli

from scorer.output import rights
from scorer.storage import stores

pytestmark = pytest.mark.service
MODEL = str(FLIGHTS / "late.onnx")


@pytest.fixture(name="lake")
def lake_(s3):
    """A bucket with one input folder."""
    bucket = s3.bucket()
    stores.of(bucket).put(f"{bucket}/in/flights.parquet", (FLIGHTS / "flights.parquet").read_bytes())
    return bucket


@pytest.fixture(name="become")
def become_(s3, monkeypatch):
    """A function that gives this process, and those it starts, the credentials of another user."""

    def become(user="tests", **variables):
        for name, value in (s3.environment if user == "tests" else s3.user(user)).items():
            monkeypatch.setenv(name, value)
        for name, value in variables.items():
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
        stores._stores.clear()

    return become


def refused(*words):
    """Return what `scorer plan` finds wrong, and its exit code."""
    code, out, _ = cli("plan", *words, "--model", MODEL, "--json")
    return [(one["what"], one["expected"], one["where"]) for one in json.loads(out)["error"]["problems"]], code


NO_READ, NO_WRITE = "no right to read the input", "no right to write the output"


@pytest.mark.parametrize(
    ("user", "problems"),
    [
        ("writer", [(NO_READ, "permission to list"), (NO_WRITE, "permission to list")]),
        ("lister", [(NO_READ, "permission to get"), (NO_WRITE, "permission to put")]),
        ("stranger", [(NO_READ, "permission to list"), (NO_WRITE, "permission to list")]),
    ],
)
def test_each_right_that_is_missing_is_named_before_a_row_is_scored(lake, become, user, problems):
    become(user)
    found, code = refused(f"{lake}/in", "--output", f"{lake}/out")
    places = {NO_READ: f"{lake}/in", NO_WRITE: f"{lake}/out.scorer"}
    assert found == [(what, expected, places[what]) for what, expected in problems]
    assert code == 3
    become()
    assert [one.path for one in stores.of(lake).objects(lake)] == [f"{lake}/in/flights.parquet"]


def test_a_reader_cannot_be_the_one_who_writes(lake, become):
    become("reader")
    found, code = refused(FLIGHTS / "flights.parquet", "--output", f"{lake}/out")
    assert (found, code) == ([(NO_WRITE, "permission to put", f"{lake}/out.scorer")], 3)


def test_a_right_to_get_is_enough_for_one_file(lake, become):
    become("writer")
    assert rights.read_problem(f"{lake}/in/flights.parquet") is None


def test_a_pattern_needs_the_right_to_list_the_folder_above(lake, become):
    become("reader")
    assert rights.read_problem(f"{lake}/in/*.parquet") is None
    become("writer")
    assert rights.read_problem(f"{lake}/in/*.parquet").expected == "permission to list"


def test_bucket_key_and_server_are_told_apart(lake, become):
    become()
    places = (f"{lake}x/in", f"{lake}y/out.scorer")
    gone = [("there is no such bucket", "a bucket that can be listed", place) for place in places]
    assert refused(f"{lake}x/in", "--output", f"{lake}y/out") == (gone, 3)
    for variables, what in (
        ({"AWS_SECRET_ACCESS_KEY": "another"}, "the store does not accept the credentials"),
        ({"AWS_ACCESS_KEY_ID": "another"}, "the store does not accept the credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "the store does not answer"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_EC2_METADATA_DISABLED": "true"}, "no credentials were found"),
    ):
        become(**variables)
        found, code = refused(f"{lake}/in", "--output", f"{lake}/out")
        assert ([one for one, *_ in found], code) == ([what], 3)
        become()


def test_a_public_bucket_needs_the_option_and_no_credentials(s3, become):
    become()
    bucket = s3.bucket("public")
    stores.of(bucket).put(f"{bucket}/in/flights.parquet", (FLIGHTS / "flights.parquet").read_bytes())
    become(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="", AWS_EC2_METADATA_DISABLED="true")
    assert rights.read_problem(f"{bucket}/in").what == "no credentials were found"
    stores.configure(("skip_signature=true",))
    assert rights.read_problem(f"{bucket}/in") is None
    assert rights.write_problem(f"{bucket}/out.scorer").what == "no right to write the output without credentials"
