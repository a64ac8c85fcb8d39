"""A file's identity holds as long as its path, size and time of change do."""

from __future__ import annotations

import os
import pickle

import pytest

from scorer.storage.files import FileId, file_id
from scorer.storage.stores import changes


def test_a_file_is_unchanged_until_its_size_or_its_time_changes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"four")
    before = file_id(str(path))
    stat = path.stat()
    assert before == FileId(str(path), 4, stat.st_mtime_ns)
    assert changes([before]) == ([], 0)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert changes([before]) == ([str(path)], 0)
    path.write_bytes(b"more than four")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert changes([before]) == ([str(path)], 0)


def test_a_file_that_is_written_again_with_its_size_and_time_has_another_inode(tmp_path):
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"four")
    other.write_bytes(b"FOUR")
    first, stat = file_id(str(path)), path.stat()
    for replace in (lambda: path.write_bytes(b"five"), lambda: other.rename(path)):
        before = file_id(str(path))
        replace()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert file_id(str(path)) == before == first
        assert file_id(str(path)).inode != before.inode


def test_a_file_that_cannot_be_found_is_changed_and_gone(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"")
    missing = file_id(str(path))
    path.unlink()
    below = FileId(str(tmp_path / "a" / "b"), 0, 0)
    assert changes([missing, below]) == ([missing.path, below.path], 2)
    with pytest.raises(FileNotFoundError):
        file_id(str(path))


def test_a_version_may_be_text_and_an_identity_travels():
    one = FileId("s3://bucket/a.parquet", 4, "etag")
    assert pickle.loads(pickle.dumps(one)) == one
    assert len({one, FileId("s3://bucket/a.parquet", 4, "other")}) == 2
