"""An object store in memory, behind s3://mem, that counts what it is asked."""

from __future__ import annotations

import io
from collections import Counter
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from scorer.storage import stores
from scorer.storage.objects import ObjectStore

ROOT = "s3://mem"


class CountingStore(ObjectStore):
    """A store that counts its requests: a listing counts each page of it."""

    def __init__(self):
        from obstore.store import MemoryStore

        super().__init__(ROOT, MemoryStore(), waits=())
        self.requests = Counter()

    def _stream(self, start, location):
        for page in super()._stream(start, location):
            self.requests["LIST"] += 1
            yield page

    def folder(self, location):
        self.requests["LIST"] += 1
        return super().folder(location)

    def identity(self, location):
        self.requests["HEAD"] += 1
        return super().identity(location)

    def read_with_identity(self, location):
        self.requests["READ"] += 1
        return super().read_with_identity(location)

    def read_range(self, file, start, stop):
        self.requests["GET"] += 1
        return super().read_range(file, start, stop)

    def fill(self, *names, table=None):
        """Write a Parquet file under each name."""
        sink = io.BytesIO()
        pq.write_table(pa.table({"a": [1]}) if table is None else table, sink)
        for name in names:
            self.put(f"{self.root}/{name}", sink.getvalue())


@contextmanager
def bucket():
    """Serve s3://mem from memory."""
    store, opened = CountingStore(), stores._open
    stores._open = lambda root, **kind: store if root == ROOT else opened(root, **kind)
    try:
        yield store
    finally:
        stores._open = opened
        with stores._lock:
            for key in [key for key in stores._stores if key[0] == ROOT]:
                del stores._stores[key]
