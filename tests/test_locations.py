"""Locations as text: which are URLs, their usual form, and what lies below what."""

from __future__ import annotations

import pytest

from scorer.locations import is_below, is_url, join, normal, scheme, split


@pytest.mark.parametrize(
    "location", ["/data/a", "a.parquet", "", ".", "C:\\data", "c:/data", "a:b/c", "s3:/b/a", "://b"]
)
def test_a_local_path_is_no_url(location):
    assert (scheme(location), is_url(location)) == ("", False)
    with pytest.raises(ValueError, match="is not a URL"):
        split(location)


@pytest.mark.parametrize(
    ("location", "root", "key"),
    [
        ("s3://b", "s3://b", ""),
        ("s3://b/", "s3://b", ""),
        ("S3://b/a/c", "s3://b", "a/c"),
        ("s3a://b//a///c/", "s3://b", "a/c"),
        ("gcs://b/a", "gs://b", "a"),
        ("azure://c/a", "az://c", "a"),
        ("abfs://c/a", "az://c", "a"),
        ("abfss://c/a", "az://c", "a"),
        ("abfs://c@acc.dfs.core.windows.net/a", "abfss://c@acc.dfs.core.windows.net", "a"),
        ("abfss://c@acc.dfs.core.windows.net/a", "abfss://c@acc.dfs.core.windows.net", "a"),
        ("https://host:8443/a%20b?c", "https://host:8443", "a%20b?c"),
        ("s3://b/a b/%20=ü#?", "s3://b", "a b/%20=ü#?"),
        ("s3://b/a://c", "s3://b", "a:/c"),
    ],
)
def test_a_url_is_split_into_a_root_with_the_usual_scheme_and_a_key(location, root, key):
    assert split(location) == (root, key)
    assert normal(location) == normal(normal(location)) == "/".join(filter(None, [root, key]))


def test_names_are_joined_with_one_slash():
    assert join("s3://b", "a") == join("s3://b/", "/a/") == "s3://b/a"
    assert join("s3://b/a", "c d", "e") == "s3://b/a/c d/e"
    assert join("/data/", "a") == "/data/a"


@pytest.mark.parametrize(
    ("location", "other", "below"),
    [
        ("s3://b/a", "s3://b/a", True),
        ("s3://b/a/", "s3a://b//a", True),
        ("s3://b/a/c", "s3://b/a", True),
        ("s3://b/a/c", "s3://b", True),
        ("s3://b/ab", "s3://b/a", False),
        ("s3://bc/a", "s3://b", False),
        ("s3://b", "s3://b/a", False),
        ("gs://b/a", "s3://b", False),
    ],
)
def test_a_url_is_below_another_if_the_names_of_folders_say_so(location, other, below):
    assert is_below(location, other) is below
