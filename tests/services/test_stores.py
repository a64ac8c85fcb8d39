"""Object stores keep what scorer relies on, on real servers."""

from __future__ import annotations

import pytest

from scorer.storage import stores

pytestmark = pytest.mark.service


def test_an_object_is_written_once_and_replaced_only_by_who_saw_it(s3):
    location = f"{s3.bucket()}/a b/%20=ü.parquet"
    store = stores.of(location)
    first = store.put_new(location, b"1")
    assert (first, store.put_new(location, b"2")) == (store.identity(location), None)
    second = store.put_over(location, b"22", first)
    assert (second, store.put_over(location, b"333", first)) == (store.identity(location), None)
    assert [one.path for one in store.objects(location.rpartition("/")[0])] == [location]
    with s3.files().open_input_stream(location.removeprefix("s3://")) as file:
        assert file.read() == store.read(location) == b"22"
