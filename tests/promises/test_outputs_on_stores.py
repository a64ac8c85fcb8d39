"""Everything that looks at an output works on a store as on a disk. The store is one in memory."""

from __future__ import annotations

import errno
import json
import time

import pytest
from support.buckets import ROOT, bucket
from support.finished import DAMAGES, REQUEST, copied, make_run, said
from support.runs import cli

import scorer
from scorer.errors import CommitError
from scorer.host import process


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run."""
    top = tmp_path_factory.mktemp("made")
    make_run(top)
    return top


@pytest.fixture
def out(made, tmp_path):
    """A copy of the finished run, to damage."""
    return copied(made, tmp_path)


@pytest.fixture
def store():
    with bucket() as found:
        yield found


def push(store, out):
    """Copy an output and its proof to the store; return the output's URL."""
    for folder in (out, out.with_name("out.scorer")):
        for path in folder.rglob("*"):
            if path.is_file():
                store.put(f"{ROOT}/top/{path.relative_to(out.parent)}", path.read_bytes())
    return f"{ROOT}/top/out"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("flags", [(), ("--deep",)], ids=["footers", "deep"])
def test_verify_finds_the_same_on_a_store_as_on_a_disk(flags, damage, out, store):
    DAMAGES[damage](out)
    local = said("verify", out, *flags)
    assert said("verify", push(store, out), *flags) == local
    assert (local[0] == 0) == (
        damage in {"nothing", "a folder without files"} or (damage, flags) == ("other bytes", ())
    )


@pytest.mark.parametrize("damage", DAMAGES)
def test_status_is_the_same_on_a_store_as_on_a_disk(damage, out, store):
    DAMAGES[damage](out)
    assert said("status", push(store, out)) == said("status", out)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"limit": 7}], ids=["again", "overwrite", "another"])
def test_a_run_meets_what_exists_on_a_store_as_on_a_disk(options, damage, made, out, store):
    def met(output):
        plan = scorer.prepare(made / "input", output=output, **REQUEST | options)
        text = [str(problem).replace(str(output).removesuffix("out"), "TOP/") for problem in plan.problems]
        return text, plan.done, plan.resumes

    DAMAGES[damage](out)
    assert met(push(store, out)) == met(out)


def test_a_finished_run_on_a_store_is_done_already(made, out, store):
    plan = scorer.prepare(made / "input", output=push(store, out), **REQUEST)
    assert (plan.done, plan.problems) == (True, ())


def test_rows_of_an_output_on_a_store_are_scored_again(out, store):
    verdict = scorer.verify(push(store, out), rescore=50)
    assert verdict.whole
    assert verdict.rescored.startswith("50 rows of ")


def test_a_run_whose_parts_lie_elsewhere_on_the_store_is_verified_with_work_dir(out, store):
    output = push(store, out)
    for file in list(store.objects(f"{output}.scorer")):
        store.copy(file.path, file.path.replace("/out.scorer/", "/proof/"))
        store.remove([file.path])
    assert scorer.verify(output, work_dir=f"{ROOT}/top/proof").whole
    assert scorer.status(output, work_dir=f"{ROOT}/top/proof").state == "done"


def test_verify_reads_each_footer_with_one_request_and_status_reads_no_part(out, store):
    output = push(store, out)
    n_parts, n_quarantined = (len(list(path.rglob("*.parquet"))) for path in (out, out.with_name("out.scorer")))
    store.requests.clear()
    assert scorer.verify(output).whole
    assert store.requests["GET"] == n_parts + n_quarantined - 1  # the ledger is read whole
    assert store.requests["LIST"] <= 2
    store.requests.clear()
    assert scorer.status(output).state == "done"
    assert store.requests.total() - store.requests["LIST"] == store.requests["READ"] <= 4
    assert store.requests["LIST"] <= 5


def test_an_object_that_changes_while_it_is_verified_is_a_fault(out, store, monkeypatch):
    output, listed = push(store, out), store.objects

    def then_changed(location):
        yield from listed(location)
        if location == output:
            store.put(f"{output}/k=0/part-00000.parquet", b"other")

    monkeypatch.setattr(store, "objects", then_changed)
    faults = scorer.verify(output).faults
    assert [fault for fault in faults if fault.startswith("k=0/part-00000.parquet: the part cannot be read")] == list(
        faults
    )


def test_a_store_that_does_not_answer_is_an_error_and_no_fault(out, store, monkeypatch):
    output = push(store, out)

    def fails(*_):
        raise OSError(errno.EREMOTEIO, "the network is down", output)

    for name in ("read_range", "read", "objects"):
        with monkeypatch.context() as patch:
            patch.setattr(store, name, fails)
            with pytest.raises(CommitError, match="the store does not let scorer read"):
                scorer.verify(output)


def test_an_unfinished_run_on_a_store_is_shown_with_its_parts(made, out, store):
    output = push(store, out)
    plan = json.loads((made / "out.scorer" / "plan.json").read_text())
    work = f"{output}.scorer/work-{plan['plan_hash'][:8]}"
    store.put(f"{work}/plan.json", (made / "out.scorer" / "plan.json").read_bytes())
    for i in range(2):
        store.put(f"{work}/parts/k=0/part-0000{i}.parquet", b"PAR1")
    now = scorer.status(output)
    assert (now.state, now.done, now.parts) == ("unfinished", 2, 6)


@pytest.mark.parametrize(
    ("owner", "state"), [({}, "running"), ({"pid": 2**30}, "done"), ({"host": "other"}, "running")]
)
def test_a_living_owner_is_shown_and_a_dead_one_is_not(owner, state, out, store):
    output = push(store, out)
    store.put(f"{output}.scorer/lock", json.dumps(process.myself() | {"now": time.time()} | owner).encode())
    assert scorer.status(output).state == state


def test_report_writes_the_same_page_of_a_store_as_of_a_disk(out, store, tmp_path):
    output = push(store, out)
    code, text, _ = cli("report", output, "--json")
    assert (code, json.loads(text)["report"]) == (0, f"{output}.scorer/report.html")
    assert cli("report", output, "--to", tmp_path / "page.html")[0] == 0
    assert cli("report", out)[0] == 0
    page = (out.with_name("out.scorer") / "report.html").read_bytes()
    assert store.read(f"{output}.scorer/report.html") == (tmp_path / "page.html").read_bytes() == page


def test_a_page_that_cannot_be_written_is_an_error(out, tmp_path):
    code, _, error = cli("report", out, "--to", tmp_path / "none" / "page.html")
    assert code == 5
    assert "the page cannot be written" in error
    assert "--to FILE" in error
