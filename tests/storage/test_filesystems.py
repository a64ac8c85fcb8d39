"""Web servers, protocols of fsspec and Arrow's file systems as stores that scorer reads from."""

from __future__ import annotations

import errno
import os
import uuid

import fsspec
import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem
from support.web import web_server

from scorer.errors import InputError
from scorer.storage import stores
from scorer.storage.files import Changed
from scorer.storage.filesystems import ArrowStore

DATA = bytes(range(256)) * 40


@pytest.fixture
def web():
    with web_server() as server:
        yield server


@pytest.fixture(params=["fsspec", "arrow"])
def store(request, tmp_path):
    """A store of each kind with a/b c.bin and a/d/e.bin, its root, and a function that writes a file."""
    if request.param == "fsspec":
        root, memory = f"memory://{uuid.uuid4().hex}", fsspec.filesystem("memory")
        found, put = stores.of(root), lambda url, data: memory.pipe_file(url.removeprefix("memory://"), data)
    else:
        root = f"hdfs:///{str(tmp_path).strip('/')}"
        found = ArrowStore("hdfs://", LocalFileSystem())

        def put(url, data):
            path = "/" + url.removeprefix("hdfs:///")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(data)

    put(f"{root}/a/b c.bin", DATA)
    put(f"{root}/a/d/e.bin", b"123")
    return found, root, put


def test_a_file_system_is_listed_and_read_by_ranges(store):
    files, root, _ = store
    found = list(files.objects(f"{root}/a"))
    assert [one.path for one in found] == [f"{root}/a/b c.bin", f"{root}/a/d/e.bin"]
    assert found[0] == files.identity(f"{root}/a/b c.bin")
    assert files.folder(f"{root}/a") == (found[:1], [f"{root}/a/d"])
    assert files.read_range(found[0], 100, 9000) == DATA[100:9000]
    assert files.read(found[0].path) == DATA
    assert list(files.objects(f"{root}/none")) == []
    for missing in (f"{root}/a", f"{root}/a/none"):
        with pytest.raises(FileNotFoundError):
            files.identity(missing)


def test_a_file_of_a_file_system_that_changed_is_not_read(store):
    files, root, put = store
    planned = files.identity(f"{root}/a/b c.bin")
    put(planned.path, DATA + b"more")
    with pytest.raises(Changed):
        files.read_range(planned, 0, 10)


def test_nothing_is_written_to_a_file_system(store):
    files, root, _ = store
    for write in (
        lambda: files.put(f"{root}/x", b""),
        lambda: files.put_new(f"{root}/x", b""),
        lambda: files.remove([f"{root}/a/b c.bin"]),
        lambda: files.copy(f"{root}/a/b c.bin", f"{root}/x"),
    ):
        with pytest.raises(OSError, match="scorer only reads from") as caught:
            write()
        assert caught.value.errno == errno.EROFS
    assert files.read(f"{root}/a/b c.bin") == DATA


def test_a_subtree_of_arrow_is_a_store(tmp_path):
    (tmp_path / "x.bin").write_bytes(DATA)
    files = ArrowStore("hdfs://name", SubTreeFileSystem(str(tmp_path), LocalFileSystem()))
    assert files.read("hdfs://name/x.bin") == DATA


def test_a_web_server_is_read_by_ranges_bound_to_its_etag(web):
    url = web.put("a b/x%y.bin", DATA)
    file = stores.identity(url)
    assert (file.path, file.size) == (url, len(DATA))
    assert stores.of(url).read_range(file, 5, 700) == DATA[5:700]
    web.put("a b/x%y.bin", DATA[::-1])
    with pytest.raises(Changed):
        stores.of(url).read_range(file, 5, 700)


def test_without_an_etag_the_time_of_change_of_a_file_on_the_web_is_compared(web):
    web.tags = False
    url = web.put("x.bin", DATA)
    file = stores.identity(url)
    assert file.version == web.times["x.bin"] * 10**9
    assert stores.of(url).read_range(file, 5, 700) == DATA[5:700]
    web.put("x.bin", DATA[::-1])
    with pytest.raises(Changed):
        stores.of(url).read_range(file, 5, 700)


def test_a_web_server_without_ranges_and_one_that_fails_say_so_in_one_line(web):
    web.ranges = False
    url = web.put("x.bin", DATA)
    with pytest.raises(OSError, match="Range request not supported") as caught:
        stores.of(url).read_range(stores.identity(url), 5, 700)
    assert caught.value.errno == errno.ENOTSUP
    web.status["x.bin"] = 403
    with pytest.raises(PermissionError) as denied:
        stores.of(url).read(url)
    assert "html" not in str(denied.value)


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("xyz://a/b", "scorer cannot read or write xyz://"),
        ("file:///data/x.parquet", "a local file needs no URL"),
        ("smb://host/x.parquet", "reading from smb:// needs another package"),
        ("hdfs://host/x.parquet", "hdfs:// cannot be read here"),
    ],
)
def test_a_protocol_that_cannot_be_read_is_refused(url, what):
    with pytest.raises(InputError) as caught:
        stores.identity(url)
    assert caught.value.what == what
    assert caught.value.hint
