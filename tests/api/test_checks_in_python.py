"""scorer.verify and scorer.status: what the commands say, in Python."""

from __future__ import annotations

import json

import pytest
from support.runs import MODELS, cli, write

import scorer
from scorer.errors import CommitError, InputError, OptionsError


@pytest.fixture
def published(tmp_path):
    """An output with its proof in another folder."""
    write(tmp_path / "in.parquet", {f"f{i}": [0.5, 1.5, 2.5] for i in range(28)})
    scorer.run(tmp_path / "in.parquet", MODELS / "dense28.onnx", tmp_path / "out", work_dir=tmp_path / "work",
               cluster="synchronous")  # fmt: skip
    return tmp_path


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_verify_says_what_the_command_says(published, kind):
    out, work = kind(published / "out"), kind(published / "work")
    verdict = scorer.verify(out, deep=True, rescore=2, work_dir=work)
    assert (verdict.whole, verdict.counts.scored, verdict.faults) == (True, 3, ())
    code, shown, _ = cli("verify", out, "--deep", "--rescore", "2", "--work-dir", work, "--json")
    assert (code, json.loads(shown)) == (0, verdict.to_dict())


def test_a_fault_is_returned_and_not_raised(published):
    next((published / "out").glob("*.parquet")).unlink()
    verdict = scorer.verify(published / "out", work_dir=published / "work")
    assert not verdict.whole
    assert "the part is gone" in verdict.faults[0]


def test_status_says_what_the_command_says(published):
    found = scorer.status(published / "out", work_dir=published / "work")
    assert (found.state, found.rows, found.scored) == ("done", 3, 3)
    _, shown, _ = cli("status", published / "out", "--work-dir", published / "work", "--json")
    assert json.loads(shown) == found.to_dict()


def test_an_output_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(CommitError):
        scorer.verify(tmp_path / "out")
    with pytest.raises(InputError):
        scorer.status(tmp_path / "out")


@pytest.mark.parametrize("function", [scorer.verify, scorer.status])
@pytest.mark.parametrize(
    ("arguments", "name"), [((3,), "output"), ((None,), "output"), (("out", {"work_dir": 3}), "work_dir")]
)
def test_what_is_no_path_is_refused(function, arguments, name):
    output, *more = arguments
    with pytest.raises(OptionsError, match=f"the value of {name!r} is not valid") as caught:
        function(output, **(more[0] if more else {}))
    assert caught.value.expected == "a path: a str or a pathlib.Path"
