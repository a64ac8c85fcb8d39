"""`scorer clean` works on a store as on a disk. The store is one in memory."""

from __future__ import annotations

import json

import pytest
from support.buckets import ROOT, bucket
from support.runs import MODELS, cli, write

import scorer
from scorer.errors import OutputLocked, RunFailed
from scorer.output import publish
from scorer.output.place import Place

OUT = f"{ROOT}/out"


@pytest.fixture
def store():
    with bucket() as found:
        yield found


def run(tmp_path, *, bad=False, **options):
    """Score four files; with `bad`, the last row cannot be scored, so that the run is not finished."""
    source = tmp_path / ("bad" if bad else "good")
    for i in range(4):
        write(source / f"{i}.parquet", {"idx": [n % 10 for n in range(99)] + [99 if bad and i == 3 else 9]})
    return scorer.run(
        source, MODELS / "gather.onnx", OUT, feed="idx=idx", batch_rows=50, cluster="synchronous", **options
    )


def unfinished(tmp_path, **options):
    with pytest.raises(RunFailed):
        run(tmp_path, bad=True, **options)


def objects(store):
    return {file.path: store.read(file.path) for file in store.objects(ROOT)}


def test_an_unfinished_run_is_removed_whole(store, tmp_path):
    unfinished(tmp_path)
    before = objects(store)
    _, dry, _ = cli("clean", OUT, "--dry-run", "--json")
    assert objects(store) == before
    _, done, _ = cli("clean", OUT, "--json")
    assert json.loads(dry) | {"dry_run": False} == json.loads(done)
    assert (json.loads(done)["files"], json.loads(done)["size"]) == (len(before), sum(map(len, before.values())))
    assert objects(store) == {}


def test_a_published_run_and_its_proof_stay_as_they_are(store, tmp_path):
    run(tmp_path)
    before = objects(store)
    unfinished(tmp_path, overwrite=True)
    assert cli("clean", OUT)[0] == 0
    after = objects(store)
    assert {name for name in before | after if before.get(name) != after.get(name)} == {f"{OUT}.scorer/events.jsonl"}
    assert scorer.verify(OUT, deep=True).whole
    assert cli("clean", OUT)[1] == f"Nothing to remove beside {OUT}\n"


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_nothing_is_removed_while_a_run_lives(flags, store, tmp_path):
    unfinished(tmp_path)
    place = Place.of(OUT, None)
    with publish.protocol(place).hold(place, print):
        before = set(objects(store))
        assert cli("clean", OUT, *flags)[0] == OutputLocked.exit_code
        assert scorer.status(OUT).state == "running"
        assert set(objects(store)) == before


def test_an_output_that_is_published_in_part_is_not_touched(store, tmp_path):
    run(tmp_path)
    unfinished(tmp_path, overwrite=True)
    (work,) = Place.of(OUT, None).work_folders()
    store.put(f"{work}/publish.json", b"{}")
    before = objects(store)
    code, _, error = cli("clean", OUT)
    assert code == 5
    assert "the output is published only in part" in error
    assert objects(store) == before
