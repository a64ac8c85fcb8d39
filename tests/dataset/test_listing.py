"""Which files an input means, and in which order."""

from __future__ import annotations

import glob
import os

import pytest
from support.runs import write

from scorer.dataset.listing import is_glob, natural
from scorer.dataset.summary import summarise
from scorer.errors import InputError, InputNotFound
from scorer.storage import stores

ONE = {"a": [1]}


def names(dataset, top):
    return [os.path.relpath(file.path, top) for file in dataset.files]


def listed(top, **options):
    return names(summarise([str(top)], **options), top)


def fill(top, *paths):
    for path in paths:
        write(top / path, ONE)


def test_digits_are_ordered_as_numbers_and_folders_as_words(tmp_path):
    paths = ["b/part-10.parquet", "b/part-2.parquet", "b/part-1.parquet", "a10/x.parquet", "a9/x.parquet", "c.parquet",
             "B.parquet", "2.parquet", "10.parquet"]  # fmt: skip
    fill(tmp_path, *paths)
    assert listed(tmp_path) == [
        "2.parquet", "10.parquet", "B.parquet", "a9/x.parquet", "a10/x.parquet", "b/part-1.parquet",
        "b/part-2.parquet", "b/part-10.parquet", "c.parquet",
    ]  # fmt: skip


def test_names_with_equal_numbers_still_have_one_order():
    """Otherwise the order would be that of the directory, which differs between machines."""
    assert natural("part-1.parquet") != natural("part-01.parquet")


@pytest.mark.parametrize("name", ["x².parquet", "²", "٣.parquet", "1²3", "a/²/b"])
def test_any_digit_may_stand_in_a_name(name):
    assert natural(name) == natural(name)


def test_hidden_other_and_unfinished_files_are_skipped_and_counted(tmp_path):
    fill(
        tmp_path,
        "a.parquet",
        "b.PARQUET",
        "c.pq",
        "d.parq",
        ".h.parquet",
        "_m.parquet",
        ".dir/x.parquet",
        "_d/x.parquet",
    )
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "_SUCCESS").touch()
    dataset = summarise([str(tmp_path)])
    assert names(dataset, tmp_path) == ["a.parquet", "b.PARQUET", "c.pq", "d.parq"]
    assert dataset.skipped == 3


def test_our_own_outputs_are_skipped(tmp_path):
    fill(tmp_path, "in/a.parquet", "out/b.parquet", "out.scorer/quarantine/c.parquet", "alone.scorer/ledger.parquet")
    assert listed(tmp_path) == ["in/a.parquet"]


def test_an_output_that_is_named_is_an_input(tmp_path):
    fill(tmp_path, "out/b.parquet", "out.scorer/ledger.parquet")
    assert listed(tmp_path / "out") == ["b.parquet"]


def test_a_pattern_does_not_reach_our_own_outputs(tmp_path):
    fill(tmp_path, "in/a.parquet", "out/b.parquet", "out.scorer/quarantine/c.parquet")
    assert names(summarise([str(tmp_path / "*")]), tmp_path) == ["in/a.parquet"]


def test_a_pattern_skips_what_a_folder_would_skip(tmp_path):
    fill(tmp_path, "a.parquet", "b.parquet", "_m.parquet")
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "notes.txt").write_text("hello")
    assert names(summarise([str(tmp_path / "*")]), tmp_path) == ["a.parquet", "b.parquet"]


def test_folders_to_ignore_are_ignored(tmp_path):
    fill(tmp_path, "in/a.parquet", "new/b.parquet")
    assert listed(tmp_path, ignore=[str(tmp_path / "new")]) == ["in/a.parquet"]


def test_an_explicit_file_may_have_any_name(tmp_path):
    fill(tmp_path, "_odd.dat")
    assert listed(tmp_path / "_odd.dat") == ["."]


def test_inputs_stay_in_the_order_given(tmp_path):
    fill(tmp_path, "b/2.parquet", "b/1.parquet", "a/x.parquet")
    dataset = summarise([str(tmp_path / "b"), str(tmp_path / "a")])
    assert names(dataset, tmp_path) == ["b/1.parquet", "b/2.parquet", "a/x.parquet"]


def test_patterns_match_in_natural_order(tmp_path):
    fill(tmp_path, "p-10.parquet", "p-9.parquet", "q.parquet")
    assert names(summarise([str(tmp_path / "p-*.parquet")]), tmp_path) == ["p-9.parquet", "p-10.parquet"]


def test_a_file_whose_name_looks_like_a_pattern_is_itself(tmp_path):
    fill(tmp_path, "a[1].parquet", "a1.parquet")
    assert not is_glob(str(tmp_path / "a[1].parquet"))
    assert listed(tmp_path / "a[1].parquet") == ["."]


def test_links_are_followed(tmp_path):
    fill(tmp_path, "elsewhere/x.parquet", "in/a.parquet")
    (tmp_path / "in" / "z").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "b.parquet").symlink_to(tmp_path / "elsewhere" / "x.parquet")
    (tmp_path / "elsewhere" / "x.parquet").rename(tmp_path / "elsewhere" / "y.parquet")
    (tmp_path / "in" / "b.parquet").unlink()
    (tmp_path / "in" / "b.parquet").symlink_to(write(tmp_path / "third.parquet", ONE))
    assert listed(tmp_path / "in") == ["a.parquet", "b.parquet", "z/y.parquet"]


@pytest.mark.parametrize("second", ["a.parquet", "link.parquet", ""])
def test_a_file_that_is_listed_twice_is_refused(tmp_path, second):
    fill(tmp_path, "a.parquet")
    if second == "link.parquet":
        (tmp_path / second).symlink_to(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="contains one file twice"):
        summarise([str(tmp_path / "a.parquet"), str(tmp_path / second)])


@pytest.mark.parametrize("pattern", ["", "*", "**/*.parquet"])
@pytest.mark.parametrize("target", ["day=1", "."])
def test_a_link_to_a_folder_of_the_input_is_refused(tmp_path, target, pattern):
    fill(tmp_path, "in/day=1/a.parquet", "in/day=2/b.parquet")
    (tmp_path / "in" / "latest").symlink_to(target)
    with pytest.raises(InputError, match=r"contains one (folder|file) twice") as caught:
        summarise([str(tmp_path / "in" / pattern)])
    assert {caught.value.where, caught.value.found.removeprefix("also as ")} & {
        str(tmp_path / "in" / name) for name in ("latest", "latest/a.parquet", "latest/day=1")
    }


@pytest.mark.parametrize("pattern", ["", "*/*.parquet", "[d-l]*/*.parquet", "link/*.parquet", "**/*.parquet"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path, pattern):
    """It may have led to a folder of rows."""
    fill(tmp_path, "day/a.parquet")
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(InputError, match="cannot be listed completely") as caught:
        summarise([str(tmp_path / pattern)])
    assert caught.value.where == str(tmp_path / "link")
    assert "'gone'" in caught.value.found


def test_a_hidden_link_that_leads_nowhere_is_skipped(tmp_path):
    fill(tmp_path, "a.parquet")
    (tmp_path / ".#a").symlink_to("gone")
    assert listed(tmp_path) == ["a.parquet"]


PATTERNS = ["*.parquet", "**/*.parquet", "a/**/*.parquet", "[ab]/?.parquet", "a//../b/*", "?/c/2.*", ".*/*", "_*/*",
            "**/2.parquet", "./b/**/[!1].parquet", "**/c/*", "*/1.parquet"]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_what_glob_matches(tmp_path, monkeypatch, pattern):
    fill(tmp_path, "1.parquet", "a/1.parquet", "a/c/2.parquet", "b/2.parquet", ".h/3.parquet", "_d/4.parquet")
    monkeypatch.chdir(tmp_path)
    wanted = {os.path.abspath(match) for match in glob.glob(pattern, recursive=True)}
    assert wanted
    for text in (pattern, str(tmp_path / pattern)):
        assert {file.path for file in summarise([text]).files} == wanted


@pytest.mark.parametrize("text", ["nothing", "*.nothing"])
def test_an_input_that_does_not_exist_is_refused(tmp_path, text):
    with pytest.raises(InputNotFound, match="nothing"):
        summarise([str(tmp_path / text)])


def test_every_folder_without_parquet_is_refused(tmp_path):
    fill(tmp_path, "good/a.parquet")
    (tmp_path / "empty").mkdir()
    for inputs in (["empty"], ["good", "empty"], ["empty", "good"]):
        with pytest.raises(InputNotFound, match="no Parquet file"):
            summarise([str(tmp_path / name) for name in inputs])


def test_a_url_of_an_unknown_kind_is_refused_with_a_hint():
    with pytest.raises(InputError, match="cannot read or write nosuch://") as caught:
        summarise(["nosuch://host/x.parquet"])
    assert "copy" in caught.value.hint


@pytest.mark.parametrize("scheme", ["s3", "s3a", "gs", "gcs", "az", "abfs"])
def test_a_store_without_its_package_is_refused_with_the_command_that_installs_it(monkeypatch, scheme):
    monkeypatch.setattr(stores, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="needs another package") as caught:
        summarise([f"{scheme}://bucket/x.parquet"])
    assert caught.value.hint == "pip install 'dask-scorer[store]'"


@pytest.mark.parametrize("marker", ["_delta_log", ".hoodie", "_temporary", "metadata"])
def test_folders_of_table_formats_are_refused(tmp_path, marker):
    fill(tmp_path, "deep/t/a.parquet")
    (tmp_path / "deep" / "t" / marker).mkdir()
    (tmp_path / "deep" / "t" / marker / "v1.metadata.json").touch()
    with pytest.raises(InputError) as caught:
        summarise([str(tmp_path)])
    assert str(tmp_path / "deep" / "t") in caught.value.where
    assert caught.value.hint


def test_a_folder_called_metadata_is_a_folder(tmp_path):
    fill(tmp_path, "metadata/a.parquet")
    assert listed(tmp_path) == ["metadata/a.parquet"]
