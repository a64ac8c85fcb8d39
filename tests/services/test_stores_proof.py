"""verify, status, report and clean of an output on a real store say what they say of the same output on a disk."""

from __future__ import annotations

import uuid

import pyarrow.fs
import pytest
from support.finished import DAMAGES, copied, make_run, said

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run."""
    top = tmp_path_factory.mktemp("proof")
    make_run(top)
    return top


@pytest.fixture
def out(made, tmp_path):
    """A copy of the finished run, to damage."""
    return copied(made, tmp_path)


@pytest.fixture(scope="module")
def bucket(_seaweed):
    """One bucket for all tests: each bucket takes volumes of the server."""
    return _seaweed.bucket()


@pytest.fixture
def push(s3, bucket):
    """A function that copies an output and its proof to the store, and returns the output's URL."""

    def copied(out):
        top = f"{bucket}/{uuid.uuid4().hex[:8]}"
        local, files = pyarrow.fs.LocalFileSystem(), s3.files()
        for folder in (out, out.with_name("out.scorer")):
            if folder.exists():
                target = f"{top}/{folder.name}".removeprefix("s3://")
                pyarrow.fs.copy_files(str(folder), target, source_filesystem=local, destination_filesystem=files)
        return f"{top}/out"

    return copied


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("flags", [(), ("--deep",)], ids=["footers", "deep"])
def test_verify_finds_the_same_on_a_store_as_on_a_disk(flags, damage, out, push):
    DAMAGES[damage](out)
    local = said("verify", out, *flags)
    assert said("verify", push(out), *flags) == local
    assert (local[0] == 0) == (
        damage in {"nothing", "a folder without files"} or (damage, flags) == ("other bytes", ())
    )


@pytest.mark.parametrize("damage", ["nothing", "a missing part", "no manifest", "no proof", "nothing at all"])
def test_status_is_the_same_on_a_store_as_on_a_disk(damage, out, push):
    DAMAGES[damage](out)
    assert said("status", push(out)) == said("status", out)
