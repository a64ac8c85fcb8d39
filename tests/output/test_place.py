"""Where an output and its proof are: on a local file system or on a store."""

from __future__ import annotations

import pytest

from scorer.errors import OptionsError
from scorer.output.place import Place
from scorer.storage.stores import ObjectPath


@pytest.mark.parametrize(
    ("output", "work_dir", "folder"),
    [
        ("s3://bucket/a/scores", None, "s3://bucket/a/scores.scorer"),
        ("s3a://bucket/a//scores/", None, "s3://bucket/a/scores.scorer"),
        ("gs://bucket/scores", "gcs://bucket/work", "gs://bucket/work"),
        (ObjectPath("s3://bucket/scores"), ObjectPath("s3://bucket/w"), "s3://bucket/w"),
    ],
)
def test_the_place_of_an_output_on_a_store_is_known_without_asking_the_store(output, work_dir, folder):
    place = Place.at(output, work_dir)
    assert isinstance(place.output, ObjectPath)
    assert str(place.folder) == folder
    assert str(place.lock) == f"{folder}/lock"
    assert str(place.staging("0123456789ab").parts) == f"{folder}/work-01234567/parts"


def test_a_local_output_is_at_its_real_path(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    place = Place.of(str(tmp_path / "link" / "scores"), None)
    assert place.output == tmp_path / "real" / "scores"
    assert place.folder == tmp_path / "real" / "scores.scorer"


def test_a_whole_bucket_is_no_output():
    with pytest.raises(OptionsError, match="a whole bucket cannot be an output") as error:
        Place.of("s3://bucket/", None)
    assert error.value.hint == "name a folder in it, such as s3://bucket/scores"
